"""Drift: how far the policy is from its reference before the first update; 0 if both compute the same."""

import torch

from raydpo.batching.micro_batch import MicroBatch
from raydpo.errors import ReferenceMismatch
from raydpo.models.device import to_device
from raydpo.models.head import TokenLogps

DRIFT_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Default tolerance by dtype, in nats per token: half types round a log-prob differently in batches of other shapes."""


def check_drift(mean: float, tolerance: float | None) -> None:
    """Raise ReferenceMismatch where the mean drift per token is above the tolerance; None: no limit."""
    if tolerance is not None and mean > tolerance:
        raise ReferenceMismatch(
            f"before the first update the policy is {mean:.2g} nats per token from its reference on average, more than "
            f"reference_drift_tolerance={tolerance:g}, though it starts from the same weights. Mostly the scoring "
            "workers compute differently from the train workers: another GPU type, attention or library version; make "
            "the two alike, or raise the tolerance if that much does not matter"
        )


class Drift:
    """Accumulates |log-prob of the policy - log-prob of the reference| over the tokens of the first batch, in nats."""

    def __init__(self, device: torch.device) -> None:
        """Start with no tokens."""
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._max = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, micro_batch: MicroBatch, tokens: TokenLogps) -> None:
        """Add the tokens of a micro-batch."""
        if micro_batch.pairs:
            gap = (tokens.logps.detach() - to_device(micro_batch.ref_logps, self._max.device)).abs().double()
            self._sums += torch.stack([gap.sum(), gap.new_tensor(len(gap))])
            self._max = torch.maximum(self._max, gap.max())

    def reduced(self) -> dict[str, float]:
        """Return the mean and the maximum over all ranks; every rank must call it."""
        torch.distributed.all_reduce(self._sums)
        torch.distributed.all_reduce(self._max, op=torch.distributed.ReduceOp.MAX)
        return {
            "reference_drift/mean": float(self._sums[0] / self._sums[1]),
            "reference_drift/max": float(self._max),
        }
