"""The length of a run, in updates and in pairs."""

import pytest

from raydpo.batching.order import global_batch_bounds
from raydpo.feed.schedule import Schedule


@pytest.mark.parametrize(
    ("pairs", "batch", "epochs", "max_steps", "steps", "end"),
    [
        (100, 10, 3.0, -1, 30, 300),
        (95, 10, 1.0, -1, 10, 95),  # the last update has the remaining pairs
        (95, 10, 2.0, -1, 20, 190),
        (100, 10, 0.25, -1, 3, 30),  # 2.5 updates, rounded up
        (95, 10, 9.0, 12, 12, 115),  # max_steps wins: an epoch of 10 updates, then 2 of 10 pairs
    ],
)
def test_length_in_updates_and_pairs(
    pairs: int, batch: int, epochs: float, max_steps: int, steps: int, end: int
) -> None:
    schedule = Schedule.from_options(pairs, batch, num_train_epochs=epochs, max_steps=max_steps)
    assert schedule.total_steps == steps
    assert schedule.end == end
    position = 0
    for _ in range(steps):
        position = global_batch_bounds(position, schedule.pairs, schedule.global_batch)[1]
    assert position == end
