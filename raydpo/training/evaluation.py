"""Metrics of the held-out pairs, as means over samples: the same for any batch size and any number of ranks."""

from typing import Any

import torch

from raydpo.feed.prefetch import Prefetcher
from raydpo.feed.schedule import Schedule
from raydpo.objectives.objective import pair_losses
from raydpo.objectives.pairs import from_table
from raydpo.training.global_batch_loss import gather_rows
from raydpo.training.metric_sums import MetricSums, add_pair_sums, add_token_sums
from raydpo.training.step import Objective, add_router_sums, forward


@torch.no_grad()
def evaluate(engine: Any, feed: Prefetcher, schedule: Schedule, objective: Objective) -> dict[str, float]:
    """Make one pass over the held-out pairs and return TRL's metrics (`eval_loss`, `eval_rewards/...`).

    The loss is computed on all held-out pairs as one batch, which for most objectives is the mean over pairs, in which
    a pair counts by its weight. The other metrics are means in which all pairs count alike.
    """
    engine.eval()
    sums, tables = MetricSums(), []
    position = 0
    while position < schedule.pairs:
        batch = feed.get(position, schedule.pairs)
        for micro_batch in batch.micro_batches:
            tokens, pairs = forward(engine, micro_batch, objective.loss, batch, with_statistics=True)
            tables.append(pairs.table())
            add_router_sums(sums, tokens, micro_batch, objective.router_coefficient)
            add_pair_sums(sums, pairs, objective.loss)
            add_token_sums(sums, tokens, micro_batch)
        position = batch.stop
    engine.train()
    everyone, own = gather_rows(torch.cat(tables))
    every_pair = from_table(everyone, objective.loss.sample_weights).with_reward_mean(objective.rewards.value)
    sums.add("loss", pair_losses(every_pair, objective.loss)[own].double().sum(), own.stop - own.start)
    return {f"eval_{name}": value for name, value in sums.means(engine.device).items()}
