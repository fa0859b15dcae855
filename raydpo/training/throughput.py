"""Throughput of training: pairs and tokens per second, share of time spent waiting, model FLOPs utilisation (MFU)."""

import time

import torch

from raydpo.feed.batches import RankBatch
from raydpo.models.model_flops import peak_flops
from raydpo.training.task import TrainTask


def total_peak_flops(task: TrainTask) -> float | None:
    """Return the peak FLOP/s of all ranks' devices together; None where it is not known."""
    stated = task.job.run.device_peak_tflops
    peak = stated * 1e12 if stated else None
    if peak is None and task.policy.gpu:
        peak = peak_flops(torch.cuda.get_device_name())
    return None if peak is None else peak * torch.distributed.get_world_size()


class Throughput:
    """Measures rates since the last line of metrics, over all ranks."""

    def __init__(self, peak_flops: float | None) -> None:
        """Start now. `peak_flops` is the peak FLOP/s of all ranks' devices together; None where it is not known."""
        self._peak_flops = peak_flops
        self.restart()

    def restart(self) -> None:
        """Start measuring anew, without what was counted."""
        self._pairs = self._tokens = self._computed_tokens = 0
        self._flops = self._waited = 0.0
        self._started = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Count seconds in which this rank waited for its batch or for a sync of the reference."""
        self._waited += seconds

    def add(self, batch: RankBatch) -> None:
        """Count a global batch that was trained on."""
        self._pairs += batch.pairs
        self._tokens += batch.tokens
        self._computed_tokens += batch.computed_tokens
        self._flops += batch.flops

    def values(self) -> dict[str, float]:
        """Return the rates for a line of metrics, and start measuring anew.

        `tokens_per_second` counts the prompt for each sequence, like `num_tokens`; `computed_tokens_per_second` counts
        each prompt once, as it is computed. `mfu` is the model's FLOP/s for computed tokens, without recomputed
        activations and without the reference, as a share of the peak (Chowdhery et al. 2022, appendix B).
        """
        elapsed = max(time.monotonic() - self._started, 1e-9)
        values = {
            "pairs_per_second": self._pairs / elapsed,
            "tokens_per_second": self._tokens / elapsed,
            "computed_tokens_per_second": self._computed_tokens / elapsed,
            "data_wait": self._waited / elapsed,
        }
        if self._peak_flops is not None:
            values["mfu"] = self._flops / elapsed / self._peak_flops
        self.restart()
        return values
