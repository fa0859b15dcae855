"""Quantiles of two weighted samples, compared one by one: optimal transport in one dimension."""

from collections.abc import Callable

import torch
from torch import Tensor


def integrate_quantiles(one: Tensor, other: Tensor, weights: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the integral of a loss over the quantiles of each value of `one`, in ascending order of the values [B].

    `one` and `other`, each [B], are samples with the same weights [B], at least 0. Each value fills as much of the
    range from 0 to the sum of the weights as it weighs, the values of a sample in ascending order; where a value of
    `one` and a value of `other` overlap, `loss_of` their difference counts by the length of the overlap. With integer
    weights it is what sorting gives if each value is repeated as often as it weighs; with weights of 1 it is
    loss_of(sorted one - sorted other).
    """
    one_values, one_order = torch.sort(one)
    other_values, other_order = torch.sort(other)
    one_ends, other_ends = (weights.double()[order].cumsum(0) for order in (one_order, other_order))
    ends = torch.sort(torch.cat([one_ends, other_ends])).values
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    last = len(one) - 1  # the two totals may differ by rounding
    one_index = torch.searchsorted(one_ends, starts, right=True).clamp(max=last)
    other_index = torch.searchsorted(other_ends, starts, right=True).clamp(max=last)
    overlaps = (ends - starts).to(one.dtype)
    parts = overlaps * loss_of(one_values[one_index] - other_values[other_index])
    return torch.zeros_like(one).index_add(0, one_index, parts)
