"""What the objectives compute with: a few numbers per pair."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """Log-probs (natural log) of the completions of B pairs, as vectors [B] in float32 or float64.

    x is a prompt, y+ its chosen and y- its rejected completion, pi the policy, ref the reference. A completion's
    log-prob is the sum over its tokens, in which LD-DPO weights the tokens of the tail by `ld_alpha`.
    """

    chosen: Tensor
    """log pi(y+ | x)"""
    rejected: Tensor
    """log pi(y- | x)"""
    ref_chosen: Tensor
    """log ref(y+ | x); 0 if the objective takes no reference."""
    ref_rejected: Tensor
    """log ref(y- | x); 0 if the objective takes no reference."""
    chosen_tokens: Tensor
    """Number of tokens of y+."""
    rejected_tokens: Tensor
    """Number of tokens of y-."""
    nll: Tensor
    """-log pi summed over the tokens that the likelihood term counts: those of y+, and with orpo those of x too."""
    nll_tokens: Tensor
    """Number of tokens summed in `nll`; the first token of x is not counted, as nothing predicts it."""
    weights: Tensor
    """WPO's weight of the pair, without gradient; 1 without `use_weighting`."""
    sample_weights: Tensor
    """Weight of the pair from its row; 1 without."""
    margins: Tensor
    """Margin of the pair from its row, times `margin_scale`; 0 without."""
    mean_nll_tokens: float
    """Mean of `nll_tokens`, weighted by `sample_weights`, over the whole global batch, of which these B pairs may be a
    part."""
    reward_mean: float = 0.0
    """BCO's delta: the mean of all rewards so far, or 0."""
    mean_weight: float = 1.0
    """What `sample_weights` are divided by: their mean over the whole global batch; 1 with `as_given`."""

    @property
    def chosen_logratios(self) -> Tensor:
        """Log-ratio log pi(y+ | x) - log ref(y+ | x), [B]."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_logratios(self) -> Tensor:
        """Log-ratio log pi(y- | x) - log ref(y- | x), [B]."""
        return self.rejected - self.ref_rejected

    @property
    def chosen_mean(self) -> Tensor:
        """Mean of log pi over the tokens of y+, [B]."""
        return self.chosen / self.chosen_tokens

    @property
    def rejected_mean(self) -> Tensor:
        """Mean of log pi over the tokens of y-, [B]."""
        return self.rejected / self.rejected_tokens

    @property
    def relative_weights(self) -> Tensor:
        """What the loss of each pair is multiplied by, [B]."""
        return self.sample_weights / self.mean_weight

    def detached(self) -> "PairLogps":
        """Return the same numbers without gradient."""
        return replace(self, **{name: getattr(self, name).detach() for name in COLUMNS})

    def table(self) -> Tensor:
        """Return the vectors as the columns of a table [B, 11], which can be sent to other ranks."""
        return torch.stack([getattr(self, name) for name in COLUMNS], dim=1)

    def with_reward_mean(self, mean: float) -> "PairLogps":
        """Return the same pairs with another value of BCO's delta."""
        return replace(self, reward_mean=mean)


COLUMNS = (
    "chosen",
    "rejected",
    "ref_chosen",
    "ref_rejected",
    "chosen_tokens",
    "rejected_tokens",
    "nll",
    "nll_tokens",
    "weights",
    "sample_weights",
    "margins",
)
"""Names of the vectors of `PairLogps`, in the order of the columns of its table."""


def from_table(table: Tensor, sample_weights: str = "mean") -> PairLogps:
    """Return the pairs of a table [B, 11] that holds a whole global batch; `sample_weights` is the option's value."""
    values: dict[str, Any] = dict(zip(COLUMNS, table.unbind(dim=1), strict=True))
    weights = values["sample_weights"] = values["sample_weights"].detach()
    total = weights.sum()
    # Without any weight above 0 each term is 0, whatever it is divided by.
    some = bool(total)
    return PairLogps(
        **values,
        mean_nll_tokens=float((weights * values["nll_tokens"].detach()).sum() / total) if some else 1.0,
        mean_weight=float(total / len(weights)) if some and sample_weights == "mean" else 1.0,
    )


def tail_weights(sequence_index: Tensor, pairs: int, ld_alpha: float) -> Tensor:
    """Return LD-DPO's weight of each completion token [N]: 1 up to the shorter completion's length, then ld_alpha.

    Liu et al. 2024 (Length Desensitization in Direct Preference Optimization, arXiv 2409.06411). `sequence_index` [N]
    gives the completion (0 to B-1 chosen, B to 2B-1 rejected) of each token; a completion's tokens are contiguous.
    """
    lengths = torch.bincount(sequence_index, minlength=2 * pairs)
    position = (
        torch.arange(len(sequence_index), device=sequence_index.device) - (lengths.cumsum(0) - lengths)[sequence_index]
    )
    shared = torch.minimum(lengths[:pairs], lengths[pairs:]).repeat(2)
    return torch.where(position < shared[sequence_index], 1.0, ld_alpha)
