"""Rotary factors of each row's own length, for models that compute them from the longest row of a forward.

A sequence has the log-probs that the model's own forward gives it alone, whatever rows, padding or earlier forwards
there are beside it. Scorer and trainer share this rule.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raydpo.models.rope_limit import LENGTH_DEPENDENT, rope_limit

Rotation = Tensor | tuple[Tensor, Tensor]
"""What a rotary embedding returns: cos and sin, or in DeepSeek-V2 and Llama 4 one complex tensor."""


class RowLengths:
    """The number of tokens of each row of the next forward, for the rotary embeddings of a model."""

    def __init__(self) -> None:
        """Start without lengths: rows then have no padding."""
        self._lengths: list[int] | None = None

    def set(self, lengths: list[int] | None) -> None:
        """Take the number of tokens of each row, which is padded on the right; None: rows have no padding."""
        self._lengths = lengths

    def of(self, position_ids: Tensor) -> list[int]:
        """Return the length of each row, as position ids [R, T], or [1, T] for all rows, count it."""
        rows, width = position_ids.shape[-2:]
        return self._lengths if self._lengths is not None else [width] * rows


def use_own_lengths(model: Any) -> RowLengths | None:
    """Make a model's rotary embeddings follow each row's own length; None where they do not depend on any length."""
    if rope_limit(model.config) is None:
        return None
    lengths = RowLengths()
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        kinds = set(kind.values()) if isinstance(kind, dict) else {kind}
        if kinds & LENGTH_DEPENDENT or (kind is None and isinstance(getattr(module, "inv_freq", None), Tensor)):
            module.forward = partial(_by_length, module.forward, lengths)
    return lengths


def _by_length(
    forward: Callable[..., Rotation],
    lengths: RowLengths,
    x: Tensor,
    position_ids: Tensor,
    *arguments: Any,
    **named: Any,
) -> Rotation:
    """Return cos and sin [R, T, D], or a complex tensor of both, with the factors of each row's own length."""
    found = lengths.of(position_ids)
    alike = position_ids.shape[-2] == 1  # mostly one row of positions stands for all rows
    parts: dict[tuple[int, int], Rotation] = {}
    keys = [(length, 0 if alike else row) for row, length in enumerate(found)]
    for length, row in dict.fromkeys(keys):
        positions = position_ids[..., row : row + 1, :].clamp(max=length - 1)
        # The dynamic type keeps the factors of the longest row so far, until one is within the original length.
        forward(x[:1], torch.zeros_like(positions[..., :1]), *arguments, **named)
        parts[length, row] = forward(x[:1], positions, *arguments, **named)
    both = [part for key in keys if isinstance(part := parts[key], tuple)]
    if not both:
        return torch.cat([part for key in keys if isinstance(part := parts[key], Tensor)], dim=-3)
    cos, sin = zip(*both, strict=True)
    return torch.cat(cos, dim=-3), torch.cat(sin, dim=-3)
