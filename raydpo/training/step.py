"""One update: forward and backward over a rank's micro-batches, and the sums that metrics are made of."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raydpo.config import LossConfig
from raydpo.models.logprobs import TokenLogps, completion_sums
from raydpo.objectives.losses import LOSSES, PairLogps
from raydpo.objectives.metrics import pair_metrics
from raydpo.schema import MicroBatch
from raydpo.training.feed import RankBatch


class Sums:
    """Weighted sums by name, so that a mean over ranks and steps weighs each sample alike."""

    def __init__(self, totals: Mapping[str, Sequence[float]] | None = None) -> None:
        """Empty, or going on from what `totals` gave."""
        self._totals: dict[str, tuple[float | Tensor, float | Tensor]] = {
            name: (total, weight) for name, (total, weight) in (totals or {}).items()
        }

    def add(self, name: str, total: float | Tensor, weight: float | Tensor) -> None:
        """Add a sum over `weight` samples (scalars; tensors stay on their device, so that nothing waits for a GPU)."""
        old_total, old_weight = self._totals.get(name, (0.0, 0.0))
        self._totals[name] = (old_total + total, old_weight + weight)

    def totals(self, device: torch.device) -> dict[str, list[float]]:
        """Sum and weight of each name over all ranks; every rank must call it, with the same names added."""
        names = sorted(self._totals)
        rows = [[float(value) for value in self._totals[name]] for name in names]
        table = torch.tensor(rows, dtype=torch.float64, device=device).reshape(len(names), 2)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(table)
        return dict(zip(names, table.tolist(), strict=True))

    def means(self, device: torch.device) -> dict[str, float]:
        """The mean of each name over all ranks, to be called as `totals`."""
        return {name: total / weight if weight else math.nan for name, (total, weight) in self.totals(device).items()}


def to_device(array: Any, device: torch.device) -> Tensor:
    """A numpy array as a tensor; copied, as arrays from the object store are read-only."""
    return torch.from_numpy(array.copy()).to(device, non_blocking=True)


def forward(
    model: Any, micro_batch: MicroBatch, device: torch.device, *, with_statistics: bool
) -> tuple[TokenLogps, PairLogps]:
    """Log-probs of a micro-batch: of each token, and of each pair's two completions with the reference's beside."""
    inputs = (micro_batch.input_ids, micro_batch.attention_mask, micro_batch.predictors, micro_batch.targets)
    tokens = TokenLogps(*model(*(to_device(array, device) for array in inputs), with_statistics))
    pairs = micro_batch.pairs
    completion = to_device(micro_batch.completion, device)
    policy = completion_sums(tokens.logps, completion, 2 * pairs)
    reference = completion_sums(to_device(micro_batch.ref_logps, device), completion, 2 * pairs)
    return tokens, PairLogps(policy[:pairs], policy[pairs:], reference[:pairs], reference[pairs:])


def pair_losses(loss: LossConfig, logps: PairLogps) -> Tensor:
    """The objective of each pair, [B]."""
    return LOSSES[loss.loss_type](logps, beta=loss.beta, label_smoothing=loss.label_smoothing)


def add_pair_sums(sums: Sums, losses: Tensor, logps: PairLogps, beta: float) -> None:
    """Add a micro-batch's loss and TRL's per-pair metrics."""
    sums.add("loss", losses.detach().double().sum(), len(losses))
    for name, values in pair_metrics(logps, beta=beta).items():
        sums.add(name, values.double().sum(), len(values))


def add_token_sums(sums: Sums, tokens: TokenLogps, micro_batch: MicroBatch) -> None:
    """Add what needs a pass over the vocabulary: entropy, accuracy and mean logit of the completion tokens."""
    chosen = torch.from_numpy(micro_batch.completion < micro_batch.pairs).to(tokens.logps.device)
    count, chosen_count = len(chosen), chosen.sum()
    sums.add("entropy", tokens.entropy.double().sum(), count)
    sums.add("mean_token_accuracy", tokens.correct.double().sum(), count)
    sums.add("logits/chosen", tokens.mean_logit[chosen].double().sum(), chosen_count)
    sums.add("logits/rejected", tokens.mean_logit[~chosen].double().sum(), count - chosen_count)


def train_micro_batches(
    engine: Any, batch: RankBatch, loss: LossConfig, sums: Sums, *, with_statistics: bool
) -> Iterable[tuple[MicroBatch, TokenLogps]]:
    """Forward and backward over this rank's share of a global batch, a micro-batch a turn; the caller then steps.

    The loss is the mean over the global batch's pairs. DeepSpeed averages gradients over ranks, so each rank's part is
    multiplied by their number.
    """
    world = torch.distributed.get_world_size()
    last = len(batch.micro_batches) - 1
    for index, micro_batch in enumerate(batch.micro_batches):
        engine.set_gradient_accumulation_boundary(index == last)
        tokens, logps = forward(engine, micro_batch, engine.device, with_statistics=with_statistics)
        losses = pair_losses(loss, logps)
        engine.backward(losses.sum() * (world / batch.pairs))
        add_pair_sums(sums, losses, logps, loss.beta)
        if with_statistics:
            add_token_sums(sums, tokens, micro_batch)
        yield micro_batch, tokens
