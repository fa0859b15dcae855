"""Cases of the matrix that are not right, each with the reason that must be given for it."""

NOT_CAUSAL = "it is no causal language model"

REFUSED: dict[str, str] = {
    "bert@encoder": NOT_CAUSAL,
    "cpmant": NOT_CAUSAL,  # the position of a token depends on the row's end
    "doge@experts": NOT_CAUSAL,  # its router mixes tokens
    "diffusion_gemma": NOT_CAUSAL,
    "gemma@two ways": NOT_CAUSAL,
    "molmo2": "`mm_token_type_ids` is required as a model input when training",  # also for text alone
    "paligemma": NOT_CAUSAL,  # a prefix is seen both ways
    "prophetnet": "only models with one prediction per token",
    "reformer": "depends on the padding or the longest sequence",
    "roberta@encoder": NOT_CAUSAL,
    "shieldgemma2": "lack 29 weights of Gemma3ForConditionalGeneration",  # a classifier
    "xlm": NOT_CAUSAL,
    "xlnet": NOT_CAUSAL,
}
"""A regular expression for the error of each case that is refused."""

UNBUILDABLE: dict[str, str] = {
    "blip": "pixel_values",
    "blip-2": "pixel_values",
    "evolla": "Unrecognized configuration class",
    "fast_vlm": "requires the timm library",
    "idefics": "pixel_values",
    "inkling_mm_model": "No module named 'scipy'",
    "instructblip": "pixel_values",
    "instructblipvideo": "pixel_values",
    "kosmos-2": "pixel_values",
    "perception_lm": "requires the timm library",
    "pi0": "'state'",
    "pix2struct": "flattened_patches",
    "t5gemma2": "exactly one of input_ids or inputs_embeds",
    "udop": "Bbox",
    "vision-encoder-decoder": "pixel_values",
    "gemma3n": "requires the timm library",
    "gemma4_assistant": "hidden_size_per_layer_input must be 0",
    "gemma4_unified_assistant": "layer types producing a cache",
    "musicgen": "has no attribute 'dropout'",
    "musicgen_melody": "has no attribute 'dropout'",
}
"""A regular expression for the error of transformers on each case of which it computes no tiny model from text here."""

UNSHRUNK = frozenset({"florence2", "nemotron_h_omni", "pp_formulanet"})
"""Families with images without a tiny model here: two are encoder-decoders, whose forward of token ids alone gives no
logits of these, and the towers of nemotron_h_omni need settings that the config classes of its parts do not have."""

EXPORT_DIFFERS = frozenset({"youtu"})
"""Families whose weights transformers changes when it loads them: the padding token's row, which the head has, is 0.

Youtu's `_init_weights` sets that row through `weight.data`, which does not have the mark of a weight that was loaded.
"""
