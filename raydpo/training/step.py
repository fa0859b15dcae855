"""One update's forwards and backwards over a rank's micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydpo.config import LossConfig
from raydpo.models.head import TokenLogps
from raydpo.objectives.objective import is_coupled, losses
from raydpo.schema import MicroBatch
from raydpo.training.coupling import RewardMean, weights_of
from raydpo.training.feed import RankBatch
from raydpo.training.forward import forward
from raydpo.training.sums import Sums, add_pair_sums, add_token_sums


@dataclass(frozen=True)
class Objective:
    """What an update minimises, and what it keeps in mind from one update to the next."""

    loss: LossConfig
    router_coefficient: float
    """Weight of a mixture-of-experts model's auxiliary loss; 0 for dense models."""
    rewards: RewardMean


def train_micro_batches(
    engine: Any, batch: RankBatch, objective: Objective, sums: Sums, *, seed: int, with_statistics: bool
) -> Iterator[tuple[MicroBatch, TokenLogps]]:
    """Forward and backward over this rank's share of a global batch, a micro-batch a turn; the caller then steps.

    The loss is the mean over the global batch's pairs. DeepSpeed averages gradients over ranks, so each rank's part is
    multiplied by their number. `seed` makes dropout the same in each of two forwards.
    """
    loss = objective.loss
    world = torch.distributed.get_world_size()
    last = len(batch.micro_batches) - 1
    weights: list[Tensor] | None = None
    if is_coupled(loss):
        torch.manual_seed(seed)
        weights, values = weights_of(_tables(engine, batch, loss), loss, objective.rewards)
        sums.add("loss", values.double().sum(), len(values))
    torch.manual_seed(seed)
    for index, micro_batch in enumerate(batch.micro_batches):
        engine.set_gradient_accumulation_boundary(index == last)
        tokens, pairs = forward(engine, micro_batch, loss, batch.mean_nll_tokens, with_statistics=with_statistics)
        if weights is not None:
            part = (pairs.table() * weights[index]).sum()
        else:
            values = losses(pairs, loss)
            part = values.sum() / batch.pairs
            sums.add("loss", values.detach().double().sum(), len(values))
        # A dummy micro-batch has no share, but must take part in the backward.
        share = micro_batch.pairs / batch.pairs
        engine.backward((part + objective.router_coefficient * share * tokens.router_loss) * world)
        add_router_sums(sums, tokens, micro_batch, objective.router_coefficient)
        add_pair_sums(sums, pairs, loss)
        if with_statistics:
            add_token_sums(sums, tokens, micro_batch)
        yield micro_batch, tokens


@torch.no_grad()
def _tables(engine: Any, batch: RankBatch, loss: LossConfig) -> list[Tensor]:
    forwards = (
        forward(engine, micro_batch, loss, batch.mean_nll_tokens, with_statistics=False)
        for micro_batch in batch.micro_batches
    )
    return [pairs.table() for _, pairs in forwards]


def add_router_sums(sums: Sums, tokens: TokenLogps, micro_batch: MicroBatch, coefficient: float) -> None:
    """Add a mixture-of-experts model's auxiliary loss, and its part of the loss; nothing for dense models."""
    if coefficient:
        weighed = tokens.router_loss.detach().double() * micro_batch.pairs
        sums.add("aux_loss", weighed, micro_batch.pairs)
        sums.add("loss", coefficient * weighed, 0)
