"""Weighted sums that metrics are computed from: each sample has the same weight, on any rank and in any batch."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raydpo.batching.micro_batch import MicroBatch
from raydpo.config import LossConfig
from raydpo.models.head import TokenLogps
from raydpo.objectives.metrics import pair_metrics
from raydpo.objectives.objective import has_likelihood
from raydpo.objectives.pairs import PairLogps


class MetricSums:
    """Weighted sums by name, whose means over ranks and steps give each sample the same weight."""

    def __init__(self, totals: Mapping[str, Sequence[float]] | None = None) -> None:
        """Start empty, or from an earlier result of `totals`."""
        self._totals: dict[str, tuple[float | Tensor, float | Tensor]] = {
            name: (total, weight) for name, (total, weight) in (totals or {}).items()
        }

    def add(self, name: str, total: float | Tensor, weight: float | Tensor) -> None:
        """Add a sum over `weight` samples. Both are scalars; tensors stay on their device, so that nothing waits."""
        old_total, old_weight = self._totals.get(name, (0.0, 0.0))
        self._totals[name] = (old_total + total, old_weight + weight)

    def totals(self, device: torch.device) -> dict[str, list[float]]:
        """Return the sum and weight of each name over all ranks. Every rank must call it, with the same names added."""
        names = sorted(self._totals)
        rows = [[float(value) for value in self._totals[name]] for name in names]
        table = torch.tensor(rows, dtype=torch.float64, device=device).reshape(len(names), 2)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(table)
        return dict(zip(names, table.tolist(), strict=True))

    def means(self, device: torch.device) -> dict[str, float]:
        """Return the mean of each name over all ranks. Every rank must call it, with the same names added."""
        return {name: total / weight if weight else math.nan for name, (total, weight) in self.totals(device).items()}


def add_pair_sums(sums: MetricSums, pairs: PairLogps, loss: LossConfig) -> None:
    """Add a micro-batch's rewards, log-probs and, if the objective has one, likelihood term."""
    for name, values in pair_metrics(pairs, loss).items():
        sums.add(name, values.double().sum(), len(values))
    if has_likelihood(loss):
        sums.add("nll_loss", pairs.nll.detach().double().sum(), pairs.nll_tokens.sum())


def add_token_sums(sums: MetricSums, tokens: TokenLogps, micro_batch: MicroBatch) -> None:
    """Add the statistics that need a pass over the vocabulary: entropy, token accuracy of chosen, mean logits."""
    chosen = torch.from_numpy(micro_batch.sequence_index < micro_batch.pairs).to(tokens.logps.device)
    count, chosen_count = len(chosen), chosen.sum()
    sums.add("entropy", tokens.entropy.double().sum(), count)
    sums.add("mean_token_accuracy", tokens.correct[chosen].double().sum(), chosen_count)
    sums.add("logits/chosen", tokens.mean_logit[chosen].double().sum(), chosen_count)
    sums.add("logits/rejected", tokens.mean_logit[~chosen].double().sum(), count - chosen_count)
