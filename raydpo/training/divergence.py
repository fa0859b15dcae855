"""Divergence: a loss, gradient, metric or weight that is infinite or not a number, which ends a run and says so.

The gradient norm is looked at after each update: it is global over ranks, each rank reads it anyway, and it is not
finite where the loss or a gradient of any rank is not (`poisoned`). So all ranks find the same, without a collective or
a wait of its own.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from raydpo.errors import TrainingError

CHECKED_METRICS = ("loss", "logps/chosen", "logps/rejected", "rewards/margins")
"""Last parts of the names of metrics that are means over all pairs, and therefore finite in a run that is well."""


def poisoned(loss: Tensor) -> Tensor:
    """Return the loss with a gradient that is not a number where the loss is infinite or not a number.

    Some objectives have a gradient of 0 at such a loss (a clamp, a hinge), which would hide it in the gradient norm.
    Otherwise value and gradient are unchanged, bit for bit: both are multiplied by exactly 1.
    """
    return loss * (1 + 0 * loss.detach())


class DivergenceCheck:
    """Raises TrainingError, on all ranks alike, where a run has diverged."""

    def __init__(self, checkpoint: str | None, device: torch.device) -> None:
        """Start with the name of the checkpoint that the run resumes from (None: none), and this rank's device."""
        self.checkpoint = checkpoint
        """Name of the newest checkpoint, all of whose weights are finite."""
        self._device = device

    def check_update(self, fault: str | None, step: int) -> None:
        """Raise TrainingError where update `step` has a fault, given as a clause."""
        if fault:
            raise self._diverged(f"at step {step} {fault}")

    def check_metrics(self, metrics: Mapping[str, float], step: int, prefixes: Iterable[str] = ("",)) -> None:
        """Raise TrainingError where a metric of step `step` whose name begins with one of the prefixes is not finite.

        All ranks must pass the same metrics.
        """
        for name in (f"{prefix}{metric}" for prefix in prefixes for metric in CHECKED_METRICS):
            value = metrics.get(name)
            if value is not None and not math.isfinite(value):
                raise self._diverged(f"at step {step} {name} is {value}")

    def check_weights(self, model: nn.Module, step: int, before: str) -> None:
        """Raise TrainingError where a trained weight is not finite, before they are written as `before`.

        Each rank looks at what it holds, without gathering anything; all ranks must call it.
        """
        faulty = _weights_with_faults(model, self._device)
        found = torch.tensor([len(faulty)], device=self._device)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        if count := int(found):
            named = f"first {faulty[0]}" if faulty else "on another rank"
            raise self._diverged(f"after step {step} {count} weights are not finite, {named}: {before} is not written")

    def _diverged(self, what: str) -> TrainingError:
        kept = (
            f"the last good checkpoint is {self.checkpoint}, from which the same command goes on"
            if self.checkpoint
            else "there is no checkpoint yet"
        )
        return TrainingError(
            f"training has diverged: {what}. No model is written; {kept}. Lower learning_rate or max_grad_norm, warm "
            "up for longer, or compute in a wider dtype (bf16=true instead of fp16, or dtype=float32)"
        )


def check_start(loss: float) -> None:
    """Raise TrainingError where the loss before the first update, the mean over all ranks, is not finite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} before the first update, so the model or its reference gives log-probs that are not "
            "finite; check their weights, compute in a wider dtype (dtype=float32, or bf16=true instead of fp16), or "
            "leave attn_implementation out"
        )


def _weights_with_faults(model: nn.Module, device: torch.device) -> list[str]:
    """Return the names of the trained weights that are not finite in what this rank holds.

    The largest magnitude of a weight is not finite where any element is not; computing it takes no memory. One answer
    per weight comes back from the device, all of them together.
    """
    names: list[str] = []
    largest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        held = getattr(parameter, "ds_tensor", parameter).detach()  # under ZeRO-3, this rank's share
        if parameter.requires_grad and held.numel():
            names.append(name)
            largest.append(torch.linalg.vector_norm(held, ord=math.inf).to(device, torch.float32))
    finite = torch.stack(largest).isfinite().tolist() if largest else []
    return [name for name, good in zip(names, finite, strict=True) if not good]
