"""Which models can share a prompt among its completions, and with which attention; from the config alone."""

from dataclasses import dataclass
from typing import Any

from raydpo.errors import ModelError

IMPLEMENTATIONS = {"sdpa": "raydpo_segments", "varlen": "raydpo_varlen", "flex_attention": "raydpo_flex"}
"""Of each backend, the name that `from_pretrained(attn_implementation=...)` knows it by, once it is registered.

Transformers reads meaning into names: one with "sdpa", "flash" or "flex_attention" in it is refused for some models.
"""
VARLEN_HEAD = 256
"""The largest head that the flash kernels behind `varlen_attn` take; a head is a multiple of 8 numbers."""

SHARING = frozenset(
    """
    apertus arcee cohere cohere2 deepseek_v2 deepseek_v3 dots1 ernie4_5 ernie4_5_moe exaone4 gemma gemma2 gemma3
    gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss granite granitemoe helium hunyuan_v1_dense llama
    minimax_m2 ministral ministral3 mistral mixtral nanochat olmo olmo2 olmo3 olmoe opt phi phi3 qwen2 qwen2_moe qwen3
    qwen3_moe seed_oss smollm3 starcoder2
    """.split()
)
"""Values of `model_type` whose packed row is tested to give the hidden states of plain rows.

Nothing that a model says of itself tells that safely: some that take any attention function lay their window, a state
or a convolution over the tokens in ways that do not reach it, and would be wrong without a word.
"""
SINKS = frozenset({"gpt_oss"})
"""Those of them whose heads each have a sink that takes part in the softmax."""
WINDOW_IN_MASK = frozenset({"qwen2_moe"})
"""Those that tell a window to the mask alone, and not to the attention function."""

LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Values in a config's `layer_types` that packed rows can do."""

REQUESTABLE = {
    "sdpa": "sdpa",
    "varlen": "varlen",
    "flash_attention_2": "varlen",
    "flash_attention_3": "varlen",
    "flex_attention": "flex_attention",
}
"""The backend that stands for each value of `attn_implementation`; others have no form for packed rows."""
HALVES = ("bfloat16", "float16")


@dataclass(frozen=True)
class AttentionChoice:
    """How a model's attention is computed in this run."""

    backend: str
    """"sdpa", "varlen" or "flex_attention" over packed rows; "plain" for padded rows and the model's own attention."""
    implementation: str | None
    """What `from_pretrained(attn_implementation=...)` shall be given; None for the model's own choice."""
    reason: str
    """Why, for the log: a clause."""

    @property
    def shares(self) -> bool:
        """Whether a forward takes packed rows, in which completions share their prompt."""
        return self.backend != "plain"


def choose(
    config: Any, *, attn_implementation: str | None, share_prompts: bool, gpu: bool, dtype: str
) -> AttentionChoice:
    """The attention of a model with this Hugging Face config.

    `attn_implementation` is the user's wish, None for the best there is; `gpu` and `dtype` (a key of `DTYPES`) say
    where and how the model will run. `ModelError` where the wish cannot work there.
    """
    wish = attn_implementation
    _check_wish(wish, gpu, dtype)
    obstacle = why_not_shared(config) if share_prompts else "share_prompts is off"
    if obstacle is None and wish is not None and wish not in REQUESTABLE:
        obstacle = f"{wish} attention has no form for packed rows"
    if obstacle is not None:
        # "varlen" is the one name that transformers does not know.
        return AttentionChoice("plain", None if wish == "varlen" else wish, obstacle)
    backend, reason = _backend(config, wish, gpu, dtype)
    return AttentionChoice(backend, IMPLEMENTATIONS[backend], reason)


def why_not_shared(config: Any) -> str | None:
    """Why a model with this config cannot have prompts shared: a clause; None where it can."""
    text = config.get_text_config()
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return "the model comes with code of its own"
    if config.model_type not in SHARING:
        return f"sharing prompts is not known to be right for {config.model_type} models"
    layers = set(getattr(text, "layer_types", None) or ())
    if layers - LAYERS:
        return f"the model has layers of {', '.join(sorted(layers - LAYERS))}"
    if config.model_type in WINDOW_IN_MASK and "sliding_attention" in layers:
        return f"{config.model_type} models keep their sliding window to themselves"
    if getattr(text, "use_bidirectional_attention", None):
        return "the model's attention is not causal"
    return None


def _backend(config: Any, wish: str | None, gpu: bool, dtype: str) -> tuple[str, str]:
    """The backend for packed rows, and the reason."""
    if wish is None and not (gpu and dtype in HALVES):
        return "sdpa", "flash attention takes bfloat16 or float16" if gpu else "there is no GPU"
    backend = "varlen" if wish is None else REQUESTABLE[wish]
    lacking = _lacking(config, backend)
    if lacking is not None:
        return "sdpa", lacking
    return backend, "the fastest on a GPU" if wish is None else f"attn_implementation is {wish}"


def _lacking(config: Any, backend: str) -> str | None:
    """What the model's attention has that the backend has not: a clause."""
    text = config.get_text_config()
    if backend != "sdpa" and config.model_type in SINKS:
        return f"{backend} has no attention sinks, which the model has"
    if backend != "varlen":
        return None
    if getattr(text, "attn_logit_softcapping", None) is not None:
        return "varlen has no soft cap on attention scores, which the model has"
    if getattr(text, "kv_lora_rank", None) is not None:
        return "varlen takes heads of one size, and the model's queries and values differ"
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if head > VARLEN_HEAD or head % 8:
        return f"varlen takes heads of a multiple of 8 up to {VARLEN_HEAD}, and the model's are of {head}"
    return None


def _check_wish(wish: str | None, gpu: bool, dtype: str) -> None:
    backend = REQUESTABLE.get(wish or "")
    if backend == "varlen" and not gpu:
        raise ModelError(f"attn_implementation={wish} needs a GPU; leave it out, or set it to sdpa")
    if backend == "varlen" and dtype not in HALVES:
        raise ModelError(
            f"attn_implementation={wish} takes bfloat16 or float16, and not {dtype}; leave it out, or set it to sdpa"
        )
    if backend == "flex_attention" and not gpu:
        raise ModelError(f"attn_implementation={wish} gives no gradients on a CPU; leave it out, or set it to sdpa")
