"""Choosing the attention of a model, and whether it can share prompts among completions, from its config alone."""

from dataclasses import dataclass
from typing import Any

from raydpo.errors import ModelError

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

This is a fixed list since nothing in a model tells it safely: some models that accept any attention function apply
their window, a state or a convolution over the tokens in ways that bypass it, and would be silently wrong.
"""
SINK_MODEL_TYPES = frozenset({"gpt_oss"})
"""The ones of `SHARING_MODEL_TYPES` whose attention heads each have a sink, which takes part in the softmax."""
WINDOW_IN_MASK = frozenset({"qwen2_moe"})
"""The ones of `SHARING_MODEL_TYPES` that apply their window in the mask only, without passing it to the attention
function."""

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
    config: Any, *, attn_implementation: str | None, share_prompts: bool, gpu: bool, dtype: str
) -> AttentionChoice:
    """Choose the attention of a model with this Hugging Face config.

    `attn_implementation` is the user's setting, or None for the best available. `gpu` and `dtype` (a key of `DTYPES`)
    describe where and how the model will run. Raises ModelError if the setting cannot work there.
    """
    requested = attn_implementation
    _check_requested(requested, gpu, dtype)
    obstacle = sharing_obstacle(config) if share_prompts else "share_prompts is off"
    if obstacle is None and requested is not None and requested not in REQUESTABLE:
        obstacle = f"{requested} attention does not support packed rows"
    if obstacle is not None:
        # "varlen" is the one setting that transformers does not know.
        return AttentionChoice("plain", None if requested == "varlen" else requested, obstacle)
    backend, reason = _backend(config, requested, gpu, dtype)
    return AttentionChoice(backend, IMPLEMENTATIONS[backend], reason)


def sharing_obstacle(config: Any) -> str | None:
    """Return the reason, as a clause, why a model with this config cannot share prompts, or None if it can."""
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        return "the encoder reads each prompt once, for all its completions"
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return "the model comes with its own code"
    if config.model_type not in SHARING_MODEL_TYPES:
        return f"prompt sharing is not tested for {config.model_type} models"
    layers = set(getattr(text, "layer_types", None) or ())
    if layers - SUPPORTED_LAYER_TYPES:
        return f"packed rows do not support layers of type {', '.join(sorted(layers - SUPPORTED_LAYER_TYPES))}"
    if config.model_type in WINDOW_IN_MASK and "sliding_attention" in layers:
        return f"{config.model_type} models do not pass their sliding window to the attention function"
    if getattr(text, "use_bidirectional_attention", None):
        return "the model's attention is not causal"
    return None


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
    if backend != "sdpa" and config.model_type in SINK_MODEL_TYPES:
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
