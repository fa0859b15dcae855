"""Choosing the attention of a model, and whether it can share prompts among completions, from its config alone."""

from dataclasses import dataclass
from typing import Any

from raydpo.batching.flops import padded_width
from raydpo.errors import ModelError
from raydpo.models.rope_limit import rope_limit

IMPLEMENTATIONS = {"sdpa": "raydpo_segments", "varlen": "raydpo_varlen", "flex_attention": "raydpo_flex"}
"""The name of each backend for `from_pretrained(attn_implementation=...)`, valid once `register_attention` has run.
Transformers interprets names: it refuses one that contains "sdpa", "flash" or "flex_attention" for some models."""
VARLEN_MAX_HEAD_DIM = 256
"""Largest attention head size, in dimensions, of the flash kernels behind `varlen_attn`; head sizes must also be a
multiple of 8."""

SHARING_MODEL_TYPES = frozenset(
    """
    apertus arcee cohere cohere2 deepseek_v2 deepseek_v3 dots1 ernie4_5 ernie4_5_moe exaone4 gemma gemma2 gemma3
    gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss granite granitemoe helium hunyuan_v1_dense llama
    minimax_m2 ministral ministral3 mistral mixtral nanochat olmo olmo2 olmo3 olmoe opt phi phi3 qwen2 qwen2_moe qwen3
    qwen3_moe seed_oss smollm3 starcoder2
    """.split()
)
"""Values of `model_type` whose packed rows are tested to give the same hidden states as plain rows.

Other families take padded rows unless `share_prompts` is "try", although every model is compared with its own forward
when it is loaded (`models.forward_check`). That proof sees sequences of some tens of tokens. It finds a state, a
convolution, a mask or positions that packed rows break, but not a window of 4,096 tokens that a model applies past its
attention function, nor an expert's capacity that only long rows exhaust. For a listed family the tests look for these
too; for others, the user decides. Packed rows that fail the proof are given up for padded ones.
"""
VISION_SHARING_MODEL_TYPES = frozenset(
    """
    gemma3 idefics3 internvl llava llava_next mistral3 qwen2_5_vl qwen2_vl qwen3_vl smolvlm
    """.split()
)
"""Values of `model_type` of vision-language models whose packed rows, with and without images, are tested to give the
same log-probs as the model's own forward. Their text model is their own, or of one of `SHARING_MODEL_TYPES`."""
SINK_MODEL_TYPES = frozenset({"gpt_oss"})
"""The ones of `SHARING_MODEL_TYPES` whose attention heads each have a sink, which takes part in the softmax."""
WINDOW_IN_MASK = frozenset({"qwen2_moe"})
"""The ones of `SHARING_MODEL_TYPES` that apply their window in the mask only, without passing it to the attention
function."""

TRY = "try"
"""Value of `share_prompts` that also tries families which are not known to share prompts."""
WINDOWS = (
    "sliding_window",
    "attention_window_size",
    "window_size",
    "local_attention",
    "attention_chunk_size",
)
"""Names of windows in configs, in tokens. Other names with "window" in them count too, but for numbers of layers."""
PROVABLE_WINDOW = 80
"""Largest window, in tokens, that the sequences of the proof at load reach beyond."""

SUPPORTED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
"""Values in a config's `layer_types` that packed rows support."""

REQUESTABLE = {
    "sdpa": "sdpa",
    "varlen": "varlen",
    "flash_attention_2": "varlen",
    "flash_attention_3": "varlen",
    "flex_attention": "flex_attention",
}
"""The backend for each value of `attn_implementation` that supports packed rows."""
HALF_DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True)
class AttentionChoice:
    """How the attention of a model is computed in this run."""

    backend: str
    """"sdpa", "varlen" or "flex_attention" over packed rows; "plain" for padded rows and the model's own attention."""
    implementation: str | None
    """The value for `from_pretrained(attn_implementation=...)`; None for the model's own choice."""
    reason: str
    """The reason for the choice, as a clause for the log."""

    @property
    def shares(self) -> bool:
        """Whether a forward takes packed rows, in which completions share their prompt."""
        return self.backend != "plain"


def choose(
    config: Any,
    *,
    attn_implementation: str | None,
    share_prompts: bool | str,
    gpu: bool,
    dtype: str,
    max_length: int | None = None,
) -> AttentionChoice:
    """Choose the attention of a model with this Hugging Face config.

    `attn_implementation` is the user's setting, or None for the best available. `share_prompts` is true, false or
    "try", which also tries families that are not in `SHARING_MODEL_TYPES`. `gpu` and `dtype` (a key of `DTYPES`)
    describe where and how the model will run, and `max_length` is the largest number of tokens of a sequence, or None
    without a limit. Raises ModelError if the setting cannot work there.
    """
    requested = attn_implementation
    _check_requested(requested, gpu, dtype)
    obstacle = sharing_obstacle(config, share_prompts, max_length) if share_prompts else "share_prompts is off"
    if obstacle is None and requested is not None and requested not in REQUESTABLE:
        obstacle = f"{requested} attention does not support packed rows"
    if obstacle is not None:
        # "varlen" is the one setting that transformers does not know.
        return AttentionChoice("plain", None if requested == "varlen" else requested, obstacle)
    backend, reason = _backend(config, requested, gpu, dtype)
    return AttentionChoice(backend, IMPLEMENTATIONS[backend], reason)


def follows_own_length(config: Any, max_length: int | None) -> bool:
    """Return whether a model's rotary factors depend on a sequence's length within `max_length` tokens (None: any)."""
    limit = rope_limit(config)
    return limit is not None and (max_length is None or padded_width(max_length) > limit)


def sharing_obstacle(config: Any, share_prompts: bool | str = True, max_length: int | None = None) -> str | None:
    """Return the reason, as a clause, why a model with this config cannot share prompts, or None if it can."""
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        return "the encoder reads each prompt once, for all its completions"
    obstacle = _trial_obstacle(config, max_length) if share_prompts == TRY else _family_obstacle(config)
    if obstacle is not None:
        return obstacle
    if follows_own_length(config, max_length):
        return (
            f"its rotary factors depend on each sequence's length beyond {rope_limit(config)} tokens, and a prompt is "
            "part of sequences of several lengths"
        )
    layers = set(getattr(text, "layer_types", None) or ())
    if layers - SUPPORTED_LAYER_TYPES:
        return f"packed rows do not support layers of type {', '.join(sorted(layers - SUPPORTED_LAYER_TYPES))}"
    if text.model_type in WINDOW_IN_MASK and "sliding_attention" in layers:
        return f"{text.model_type} models do not pass their sliding window to the attention function"
    if getattr(text, "use_sliding_window", True) is False and "sliding_attention" in layers:
        return "its layers have a sliding window in the mask only, as use_sliding_window is false"
    if getattr(text, "use_bidirectional_attention", None):
        return "the model's attention is not causal"
    return None


def _family_obstacle(config: Any) -> str | None:
    """Return why a model is not of a family that is tested to share prompts, or None if it is."""
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return "the model comes with its own code"
    if untested := _untested(config, config.get_text_config()):
        return f"prompt sharing is not tested for {untested} models"
    return None


def _trial_obstacle(config: Any, max_length: int | None) -> str | None:
    """Return why the proof at load could not tell that a model shares prompts correctly, or None if it can."""
    if _family_obstacle(config) is None:
        return None
    if config.get_text_config() is not config:
        return f"share_prompts=try compares text, which says nothing about the images of a {config.model_type} model"
    if not _takes_attention_functions(config):
        return f"{config.model_type} models take no attention function from outside"
    for window in short_and_long_windows(config):
        if window > PROVABLE_WINDOW and (max_length is None or max_length > window):
            return (
                f"share_prompts=try compares short sequences, which say nothing about the window of {window} tokens of "
                f"a {config.model_type} model"
            )
    return None


def _takes_attention_functions(config: Any) -> bool:
    """Return whether a model's class uses the attention function that it is given; true for code of the model's own."""
    from transformers import AutoModelForCausalLM  # here, as `models.plan` is imported where transformers is not

    found: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    kinds = found if isinstance(found, list | tuple) else [found]
    return all(kind is None or kind._can_set_attn_implementation() for kind in kinds)


def short_and_long_windows(config: Any) -> list[int]:
    """Return the windows, in tokens, beyond which layers of a model do not see, by the names that configs have."""
    text = config.get_text_config()
    others = [name for name in vars(text) if "window" in name and "layer" not in name and name not in WINDOWS]
    values = [getattr(text, name, None) for name in (*WINDOWS, *others)]
    if getattr(text, "use_sliding_window", True) is False:
        values[0] = None
    return [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0]


def _untested(config: Any, text: Any) -> str | None:
    """Return the `model_type` for which packed rows are not tested, or None.

    `text` is the config of the text model within a vision-language model, or `config` itself.
    """
    if text is config:
        return None if config.model_type in SHARING_MODEL_TYPES else config.model_type
    if config.model_type not in VISION_SHARING_MODEL_TYPES:
        return str(config.model_type)
    known = text.model_type in SHARING_MODEL_TYPES or text.model_type == f"{config.model_type}_text"
    return None if known else str(text.model_type)


def _backend(config: Any, requested: str | None, gpu: bool, dtype: str) -> tuple[str, str]:
    """Return the backend for packed rows and the reason for it."""
    if requested is None and not (gpu and dtype in HALF_DTYPES):
        return "sdpa", "flash attention needs bfloat16 or float16" if gpu else "there is no GPU"
    backend = "varlen" if requested is None else REQUESTABLE[requested]
    unsupported = _unsupported(config, backend)
    if unsupported is not None:
        return "sdpa", unsupported
    return backend, "it is the fastest on a GPU" if requested is None else f"attn_implementation is {requested}"


def _unsupported(config: Any, backend: str) -> str | None:
    """Return a clause that names what the model's attention needs and the backend does not support, or None."""
    text = config.get_text_config()
    if backend != "sdpa" and text.model_type in SINK_MODEL_TYPES:
        return f"{backend} does not support attention sinks, which the model has"
    if backend != "varlen":
        return None
    if getattr(text, "attn_logit_softcapping", None) is not None:
        return "varlen does not support a soft cap on attention scores, which the model has"
    if getattr(text, "kv_lora_rank", None) is not None:
        return "varlen needs one head size, and those of the model's queries and values differ"
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if head > VARLEN_MAX_HEAD_DIM or head % 8:
        return (
            f"varlen needs a head size that is a multiple of 8 up to {VARLEN_MAX_HEAD_DIM}, and the model's is {head}"
        )
    return None


def _check_requested(requested: str | None, gpu: bool, dtype: str) -> None:
    """Raise ModelError if the requested implementation cannot work on this device and in this dtype."""
    backend = REQUESTABLE.get(requested or "")
    if backend == "varlen" and not gpu:
        raise ModelError(f"attn_implementation={requested} needs a GPU; leave it out, or set it to sdpa")
    if backend == "varlen" and dtype not in HALF_DTYPES:
        raise ModelError(
            f"attn_implementation={requested} needs bfloat16 or float16, not {dtype}; leave it out, or set it to sdpa"
        )
    if backend == "flex_attention" and not gpu:
        raise ModelError(
            f"attn_implementation={requested} computes no gradients on a CPU; leave it out, or set it to sdpa"
        )
