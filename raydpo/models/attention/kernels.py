"""Attention over a packed row, in which completions share their prompt: three backends for transformers' hook.

Legend of shape suffixes: T tokens of the row, H query heads, K key and value heads, D head size. A micro-batch is one
row, so that the batch dimension that transformers expects is always 1. Each backend is registered under a name of its
own, for which transformers builds no mask; the layout of the row reaches it as the model's keyword argument `segments`.
"""

import importlib
import inspect
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface

from raydpo.errors import ModelError
from raydpo.models.attention.choice import IMPLEMENTATIONS, VARLEN_MAX_HEAD_DIM
from raydpo.models.attention.segments import Part, Segments

_log = logging.getLogger(__name__)


def register_attention() -> None:
    """Register the backends with transformers, in this process.

    A compiled layer has a graph break around them: each row has other parts, and would cause a recompilation.
    """
    for backend, function in (("sdpa", sdpa), ("varlen", varlen), ("flex_attention", flex)):
        AttentionInterface.register(IMPLEMENTATIONS[backend], torch.compiler.disable(function))


def sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention with `scaled_dot_product_attention`, one part of the row at a time: any device, any dtype.

    `query` is [1, H, T, D], `key` and `value` are [1, K, T, D], and the result is [1, T, H, D]. `options` are those of
    transformers: `scaling`, `dropout`, `sliding_window`, `softcap` and `s_aux` (one sink per head).
    """
    _check(query, attention_mask, segments, options)
    window = segments.window(options.get("sliding_window"))
    # A single split, whose backward is one concatenation: the backward of each slice would fill a full row with zeros.
    queries, keys, values = (tensor.split(segments.lengths, dim=2) for tensor in (query, key, value))
    outputs = []
    for part, q, k, v in zip(segments.parts, queries, keys, values, strict=True):
        if part.prompt:
            k, v = (_with_prompt(part, parts[part.trunk], own, window) for parts, own in ((keys, k), (values, v)))
        mask = segments.part_mask(part, k.shape[2], window)
        attend = _eager_attention if options.get("softcap") or options.get("s_aux") is not None else _fused_attention
        outputs.append(attend(q, k, v, mask, options).transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def _with_prompt(part: Part, trunk: Tensor, own: Tensor, window: int | None) -> Tensor:
    """Return the keys or values [1, K, ., D] that a branch sees: its own, after those of its prompt in the window."""
    hidden = 0 if window is None else max(0, part.prompt - window + 1)
    return torch.cat([trunk[:, :, hidden : part.prompt], own], dim=2)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
    """Return the attention of one part, [1, H, queries, D], computed by torch's kernel.

    `mask` is [queries, keys], or None for the causal square.
    """
    grouped = q.shape[1] != k.shape[1]
    if grouped and mask is not None and q.is_cuda:  # no fast CUDA kernel supports both a mask and grouped heads
        k, v, grouped = _repeated(q, k), _repeated(q, v), False
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=options.get("dropout", 0.0),
        scale=options.get("scaling"),
        enable_gqa=grouped,
    )


def _eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
    """Return the attention of one part like `_fused_attention`, with a soft cap on the scores or sinks in the softmax.

    No kernel supports these two.
    """
    scale, cap, sinks = options.get("scaling"), options.get("softcap"), options.get("s_aux")
    scores = q @ _repeated(q, k).transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)[..., : k.shape[2]]
    return F.dropout(weights, options.get("dropout", 0.0)) @ _repeated(q, v)


def _repeated(q: Tensor, shared: Tensor) -> Tensor:
    """Return keys or values [1, K, ., D] repeated for each of the H heads of `q`."""
    return shared.repeat_interleave(q.shape[1] // shared.shape[1], dim=1)


def varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention with torch's `varlen_attn` (flash attention), one call per row.

    It needs CUDA on an Ampere GPU or newer and bfloat16 or float16. Shapes and options are those of `sdpa`, without
    dropout, soft cap and sinks. The prompt's keys and values are gathered again for each further completion; its
    queries and all linear layers are computed once.
    """
    _check(query, attention_mask, segments, options, without=("dropout", "softcap", "s_aux"))
    if segments.blocks:
        tell_blocks("varlen")
        return sdpa(module, query, key, value, None, segments=segments, **options)
    kernel = varlen_kernel(query, value)
    index, window = segments.varlen, segments.window(options.get("sliding_window"))
    q_THD, k_TKD, v_TKD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if index.gather is not None:
        k_TKD, v_TKD = k_TKD.index_select(0, index.gather), v_TKD.index_select(0, index.gather)
    output_THD = kernel(
        q_THD,
        k_TKD,
        v_TKD,
        index.cu_seq_q,
        index.cu_seq_k,
        index.max_q,
        index.max_k,
        scale=options.get("scaling"),
        # Number of keys to the left of a query's own key, which is the last key for the last query; none to the right.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output_THD[None], None


@cache  # once per process and backend
def tell_blocks(backend: str) -> None:
    """Log that rows with images are computed with sdpa, where the tokens of an image attend to each other."""
    _log.info("Rows with images take sdpa attention: %s does not support tokens that see later ones.", backend)


def varlen_kernel(query: Tensor, value: Tensor) -> Callable[..., Tensor]:
    """Return `torch.nn.attention.varlen.varlen_attn`.

    Raises ModelError if it does not support these tensors or if this torch does not have it.
    """
    remedy = "set attn_implementation=sdpa"
    if not query.is_cuda or torch.cuda.get_device_capability(query.device) < (8, 0):
        where = torch.cuda.get_device_name(query.device) if query.is_cuda else f"a {query.device.type} device"
        raise ModelError(f"varlen attention needs an Ampere GPU or newer, and this is {where}; {remedy}")
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise ModelError(f"varlen attention needs bfloat16 or float16, not {query.dtype}; {remedy}")
    if query.shape[-1] != value.shape[-1] or query.shape[-1] > VARLEN_MAX_HEAD_DIM or query.shape[-1] % 8:
        sizes = f"{query.shape[-1]} for queries and {value.shape[-1]} for values"
        raise ModelError(
            f"varlen attention needs one head size that is a multiple of 8 up to {VARLEN_MAX_HEAD_DIM}, and this model "
            f"has {sizes}; {remedy}"
        )
    return _torch_varlen()


@cache
def _torch_varlen() -> Callable[..., Tensor]:
    """Import `varlen_attn`; raise ModelError if this torch does not have it, or lacks options that are needed."""
    try:
        varlen_attn: Callable[..., Tensor] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
        known = set(inspect.signature(varlen_attn).parameters)
    except ModuleNotFoundError:
        known = set()
    if not known >= {"scale", "window_size", "enable_gqa"}:
        raise ModelError(
            f"torch {torch.__version__} has no varlen_attn that supports windows and grouped heads; install torch "
            "2.13, or set attn_implementation=sdpa"
        )
    return varlen_attn


def flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention with `flex_attention` over a block mask.

    It is compiled on CUDA; on a CPU it is slow and computes no gradients. Shapes and options are those of `sdpa`,
    without dropout and sinks.
    """
    _check(query, attention_mask, segments, options, without=("dropout", "s_aux"))
    if segments.blocks:
        tell_blocks("flex_attention")
        return sdpa(module, query, key, value, None, segments=segments, **options)
    softcap = options.get("softcap")
    kernel: Any = _compiled_flex() if query.is_cuda else flex_attention
    output: Tensor = kernel(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=segments.block_mask(segments.window(options.get("sliding_window"))),
        scale=options.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


@cache
def _compiled_flex() -> Callable[..., Any]:
    """Return `flex_attention`, compiled once per process."""
    return torch.compile(flex_attention)


@cache  # a new function object per call would be compiled anew per call
def _capped(softcap: float) -> Callable[..., Tensor]:
    """Return a score function that applies a soft cap: softcap * tanh(score / softcap)."""

    def cap(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def _check(
    query: Tensor,
    attention_mask: Tensor | None,
    segments: Segments,
    options: dict[str, Any],
    *,
    without: tuple[str, ...] = (),
) -> None:
    """Raise ModelError if a layer passes an option that this backend would ignore."""
    if attention_mask is not None or tuple(query.shape[::2]) != (1, segments.tokens):
        raise ModelError(
            f"attention over a packed row of {segments.tokens} tokens received queries of shape "
            f"{tuple(query.shape)} and {'a' if attention_mask is not None else 'no'} mask; set share_prompts=false"
        )
    unknown = [name for name in ("position_bias", *without) if _is_set(options.get(name))]
    if unknown or options.get("is_causal") is False:
        passed = ", ".join(f"{name}={options[name]}" for name in unknown) or "is_causal=False"
        remedy = "attn_implementation=sdpa" if unknown and set(unknown) <= set(without) else "share_prompts=false"
        raise ModelError(
            f"a layer of this model passes {passed} to its attention, which this backend does not support; set {remedy}"
        )


def _is_set(option: Any) -> bool:
    """Return whether an option has an effect: it is neither None nor 0.0."""
    return option is not None and not (isinstance(option, float) and option == 0.0)
