"""Losses that depend on the whole global batch, however it is divided among ranks and micro-batches.

Such a loss is not a sum over micro-batches, so it takes two forwards. The first, without gradient, computes the few
numbers per pair that the loss depends on. They are gathered from all ranks, and the loss is differentiated with respect
to them. The backward of the second forward uses these derivatives as weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from raydpo.config import LossConfig
from raydpo.objectives.objective import pair_losses
from raydpo.objectives.pairs import PairLogps, from_table


def gather_rows(rows: Tensor) -> tuple[Tensor, slice]:
    """Gather [n, K] from all ranks, where n differs by rank: return [sum of n, K] and the slice of this rank's rows."""
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    torch.distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    padded = rows.new_zeros(max(sizes), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    torch.distributed.all_gather(parts, padded)
    first = sum(sizes[:rank])
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), slice(first, first + len(rows))


class RewardMean:
    """The mean of all rewards of the run so far, chosen and rejected together: BCO's delta (Jung et al. 2024).

    The rewards of a pair count by its weight, as the row gives it.
    """

    def __init__(self, total: float = 0.0, count: float = 0.0) -> None:
        """Start from a weighted sum over rewards, and the sum of their weights, which is their number without any."""
        self.total, self.count = total, count

    @property
    def value(self) -> float:
        """The mean; 0 before the first reward."""
        return self.total / self.count if self.count else 0.0

    @property
    def totals(self) -> tuple[float, float]:
        """Sum and number of the rewards, both weighted, from which a resumed run starts."""
        return self.total, self.count

    def add(self, pairs: PairLogps, beta: float) -> None:
        """Add the rewards of a global batch."""
        rewards = beta * torch.cat([pairs.chosen_logratios, pairs.rejected_logratios]).detach().double()
        weights = pairs.sample_weights.double().repeat(2)
        self.total += float((weights * rewards).sum())
        self.count += float(weights.sum())


def loss_gradients(tables: Sequence[Tensor], loss: LossConfig, rewards: RewardMean) -> tuple[list[Tensor], Tensor]:
    """Return d objective / d table for each of this rank's micro-batches, and the loss of each of its pairs [n].

    `tables` are the tables [b, 11] of this rank's micro-batches (`PairLogps.table`), without gradient. If the loss uses
    the mean of rewards, those of the batch are added to `rewards`.
    """
    everyone, own = gather_rows(torch.cat(list(tables)))
    pairs = from_table(everyone.requires_grad_(), loss.sample_weights)
    if loss.bco_running_mean:
        rewards.add(pairs, loss.beta)
        pairs = pairs.with_reward_mean(rewards.value)
    values = pair_losses(pairs, loss)
    (weights,) = torch.autograd.grad(values.mean(), everyone)
    return list(weights[own].split([len(table) for table in tables])), values[own].detach()
