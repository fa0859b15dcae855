"""What is due after an update: a line of metrics, an evaluation, a checkpoint."""

from typing import Any

import pytest

from raydpo import config
from raydpo.feed.schedule import Schedule
from raydpo.training.task import TrainTask

STEPS = range(1, 9)


def task(**options: Any) -> TrainTask:
    """A task of two epochs of four updates; only its options and its schedule are set."""
    unset: Any = None
    return TrainTask(
        job=config.from_flat(options),
        policy=unset,
        deepspeed_config={},
        schedule=Schedule(pairs=22, global_batch=6, total_steps=8),
        feed=unset,
        eval_feed=None,
        eval_schedule=None,
        drift_tolerance=None,
        run_dir="run",
        fingerprint={},
        sync=None,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"logging_steps": 3}, [3, 6, 8]),
        ({"logging_steps": 3, "logging_first_step": True}, [1, 3, 6, 8]),
        ({"logging_strategy": "epoch"}, [4, 8]),
        ({"logging_strategy": "no"}, [8]),
    ],
)
def test_lines_of_metrics(options: dict[str, Any], expected: list[int]) -> None:
    assert [step for step in STEPS if task(**options).logging_due(step)] == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"eval_strategy": "steps", "eval_steps": 3}, [3, 6, 8]),
        ({"eval_strategy": "epoch"}, [4, 8]),
        ({"eval_strategy": "no"}, [8]),  # without held-out pairs it does nothing
    ],
)
def test_evaluations(options: dict[str, Any], expected: list[int]) -> None:
    assert [step for step in STEPS if task(**options).evaluation_due(step)] == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"save_steps": 3}, [3, 5, 6, 8]),
        ({"save_strategy": "epoch"}, [4, 5, 8]),
        ({"save_strategy": "no"}, []),
    ],
)
def test_checkpoints_also_at_a_sync_and_at_the_end(options: dict[str, Any], expected: list[int]) -> None:
    assert [step for step in STEPS if task(**options).checkpoint_due(step, synced=step == 5)] == expected


def test_without_a_plan_no_sync_is_due() -> None:
    assert not any(map(task().sync_due, STEPS))
