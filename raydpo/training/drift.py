"""How far the policy is from its reference before the first update: nothing, if both compute alike."""

import torch

from raydpo.models.device import to_device
from raydpo.models.head import TokenLogps
from raydpo.schema import MicroBatch


class Drift:
    """|log-prob of policy - of reference| a token, before the first update."""

    def __init__(self, device: torch.device) -> None:
        """Nothing seen yet."""
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._max = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, micro_batch: MicroBatch, tokens: TokenLogps) -> None:
        """Take in a micro-batch."""
        if micro_batch.pairs:
            gap = (tokens.logps.detach() - to_device(micro_batch.ref_logps, self._max.device)).abs().double()
            self._sums += torch.stack([gap.sum(), gap.new_tensor(len(gap))])
            self._max = torch.maximum(self._max, gap.max())

    def reduced(self) -> dict[str, float]:
        """Mean and max over all ranks, which must all call it."""
        torch.distributed.all_reduce(self._sums)
        torch.distributed.all_reduce(self._max, op=torch.distributed.ReduceOp.MAX)
        return {
            "reference_drift/mean": float(self._sums[0] / self._sums[1]),
            "reference_drift/max": float(self._max),
        }
