"""Rates of training: pairs and tokens a second, the share of time spent waiting, the share of what devices can do."""

import time

import torch

from raydpo.feed.batches import RankBatch
from raydpo.models.model_flops import peak_flops
from raydpo.training.task import TrainTask


def all_peak_flops(task: TrainTask) -> float | None:
    """Floating-point operations a second of all ranks' devices; None where nothing is said of them."""
    stated = task.job.run.device_peak_tflops
    peak = stated * 1e12 if stated else None
    if peak is None and task.gpu:
        peak = peak_flops(torch.cuda.get_device_name())
    return None if peak is None else peak * torch.distributed.get_world_size()


class Throughput:
    """Rates since the last line of metrics, over all ranks."""

    def __init__(self, peak_flops: float | None) -> None:
        """Start now. `peak_flops`: floating-point operations a second of all ranks' devices; None where not known."""
        self._peak_flops = peak_flops
        self.restart()

    def restart(self) -> None:
        """Forget what was counted."""
        self._pairs = self._tokens = self._computed_tokens = 0
        self._flops = self._waited = 0.0
        self._started = time.monotonic()

    def wait(self, seconds: float) -> None:
        """This rank waited for its batch."""
        self._waited += seconds

    def add(self, batch: RankBatch) -> None:
        """A global batch has been trained on."""
        self._pairs += batch.pairs
        self._tokens += batch.tokens
        self._computed_tokens += batch.computed_tokens
        self._flops += batch.flops

    def values(self) -> dict[str, float]:
        """What goes into a line of metrics; then starts anew.

        `tokens_per_second` counts as `num_tokens` does, each sequence with its prompt, and
        `computed_tokens_per_second` what is computed, each prompt once. `mfu` is the model's floating-point operations
        for the tokens that are computed, recomputed activations and the reference left out (Chowdhery et al. 2022,
        appendix B), a second, as a share of the peak.
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
