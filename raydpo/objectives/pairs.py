"""What an objective sees of a batch: a few numbers a pair."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of B pairs' completions, natural log: vectors [B] in float32 or float64.

    x is a prompt, y+ its chosen and y- its rejected completion, pi the policy, ref the reference. A completion's
    log-prob is the sum over its tokens, those of LD-DPO's tail counted with `ld_alpha`.
    """

    chosen: Tensor
    """log pi(y+ | x)"""
    rejected: Tensor
    """log pi(y- | x)"""
    ref_chosen: Tensor
    """log ref(y+ | x); 0 without a reference."""
    ref_rejected: Tensor
    """log ref(y- | x); 0 without a reference."""
    chosen_tokens: Tensor
    """Tokens of y+."""
    rejected_tokens: Tensor
    """Tokens of y-."""
    nll: Tensor
    """-log pi, summed over the tokens that the likelihood term counts: those of y+, with orpo those of x and y+."""
    nll_tokens: Tensor
    """How many these are; the first token of x is predicted by nothing and not counted."""
    weights: Tensor
    """WPO's weight of the pair, without gradient; 1 where it is off."""
    mean_nll_tokens: float
    """Mean of `nll_tokens` over the pairs of the global batch, of which these B may be a part."""
    reward_mean: float = 0.0
    """BCO's delta: the mean of all rewards so far, or 0."""

    @property
    def chosen_logratios(self) -> Tensor:
        """log pi(y+ | x) - log ref(y+ | x), [B]."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_logratios(self) -> Tensor:
        """log pi(y- | x) - log ref(y- | x), [B]."""
        return self.rejected - self.ref_rejected

    @property
    def chosen_mean(self) -> Tensor:
        """log pi(y+ | x) a token, [B]."""
        return self.chosen / self.chosen_tokens

    @property
    def rejected_mean(self) -> Tensor:
        """log pi(y- | x) a token, [B]."""
        return self.rejected / self.rejected_tokens

    def detached(self) -> "PairLogps":
        """The same numbers without gradient."""
        return replace(self, **{name: getattr(self, name).detach() for name in COLUMNS})

    def table(self) -> Tensor:
        """The vectors as columns, [B, 9], to be sent to other ranks."""
        return torch.stack([getattr(self, name) for name in COLUMNS], dim=1)

    def with_reward_mean(self, mean: float) -> "PairLogps":
        """The same pairs under another delta of BCO."""
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
)
"""The vectors of `PairLogps`, in the order of its table."""


def from_table(table: Tensor) -> PairLogps:
    """The pairs of a table [B, 9] that holds a whole global batch."""
    values: dict[str, Any] = dict(zip(COLUMNS, table.unbind(dim=1), strict=True))
    return PairLogps(**values, mean_nll_tokens=float(values["nll_tokens"].detach().mean()))


def tail_weights(completion: Tensor, pairs: int, ld_alpha: float) -> Tensor:
    """LD-DPO's weight of each completion token, [N]: 1 up to the length of the shorter of the two, then ld_alpha.

    Liu et al. 2024 (Length Desensitization in Direct Preference Optimization, arXiv 2409.06411). `completion` [N] says
    which of the 2B completions (B chosen, then B rejected) a token belongs to; the tokens of one stand together.
    """
    lengths = torch.bincount(completion, minlength=2 * pairs)
    position = torch.arange(len(completion), device=completion.device) - (lengths.cumsum(0) - lengths)[completion]
    shared = torch.minimum(lengths[:pairs], lengths[pairs:]).repeat(2)
    return torch.where(position < shared[completion], 1.0, ld_alpha)
