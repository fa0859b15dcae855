"""Held-out metrics, each the mean over samples: the same for any batch size and any number of ranks."""

from typing import Any

import torch

from raydpo.config import LossConfig
from raydpo.training.feed import Prefetcher
from raydpo.training.step import Sums, add_pair_sums, add_token_sums, forward, pair_losses
from raydpo.training.task import Schedule


@torch.no_grad()
def evaluate(engine: Any, feed: Any, schedule: Schedule, loss: LossConfig, rank: int) -> dict[str, float]:
    """One pass over the held-out pairs -> metrics named as TRL names them (`eval_loss`, `eval_rewards/...`)."""
    engine.eval()
    prefetcher = Prefetcher(feed, rank, pairs=schedule.pairs, global_batch=schedule.global_batch)
    sums = Sums()
    position = 0
    while position < schedule.pairs:
        batch = prefetcher.get(position, schedule.pairs)
        for micro_batch in batch.micro_batches:
            tokens, logps = forward(engine, micro_batch, engine.device, with_statistics=True)
            add_pair_sums(sums, pair_losses(loss, logps), logps, loss.beta)
            add_token_sums(sums, tokens, micro_batch)
        position = batch.stop
    engine.train()
    return {f"eval_{name}": value for name, value in sums.means(engine.device).items()}
