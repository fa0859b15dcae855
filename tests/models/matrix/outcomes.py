"""Cases of the matrix that are not right, each with the reason that must be given for it."""

NOT_CAUSAL = "it is no causal language model"

REFUSED: dict[str, str] = {
    "bert@encoder": NOT_CAUSAL,
    "cpmant": NOT_CAUSAL,  # the position of a token depends on the row's end
    "doge@experts": NOT_CAUSAL,  # its router mixes tokens
    "emu3": "lack 21 weights of Emu3ForCausalLM",
    "gemma@two ways": NOT_CAUSAL,
    "prophetnet": "only models with one prediction per token",
    "reformer": "depends on the padding or the longest sequence",
    "roberta@encoder": NOT_CAUSAL,
    "xlm": NOT_CAUSAL,
    "xlnet": NOT_CAUSAL,
}
"""A regular expression for the error of each case that is refused."""

UNBUILDABLE: dict[str, str] = {
    "gemma3n": "requires the timm library",
    "gemma4_assistant": "hidden_size_per_layer_input must be 0",
    "gemma4_unified_assistant": "layer types producing a cache",
    "musicgen": "has no attribute 'dropout'",
    "musicgen_melody": "has no attribute 'dropout'",
}
"""A regular expression for the error of transformers on each case of which it computes no tiny model from text here."""
