"""A task decides after which updates a metrics line, an evaluation, a checkpoint or a sync is due."""

from typing import Any

import pytest

from raydpo import config
from raydpo.feed.schedule import Schedule
from raydpo.training.task import TrainTask

STEPS = range(1, 9)


def task(**options: Any) -> TrainTask:
    """Return a task of two epochs of four updates, of which only the options and the schedule are set."""
    unset: Any = None
    return TrainTask(
        job=config.from_flat(options),
        policy=unset,
        deepspeed_config={},
        schedule=Schedule(pairs=22, global_batch=6, total_steps=8),
        feed=unset,
        eval_sets=(),
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
        ({"logging_steps": 0.3}, [3, 6, 8]),  # a share of all updates: the ceiling of 2.4
        ({"logging_strategy": "epoch"}, [4, 8]),
        ({"logging_strategy": "no"}, [8]),
    ],
)
def test_steps_with_a_metrics_line(options: dict[str, Any], expected: list[int]) -> None:
    assert [step for step in STEPS if task(**options).logging_due(step)] == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"eval_strategy": "steps", "eval_steps": 3}, [3, 6, 8]),
        ({"eval_strategy": "steps", "eval_steps": 0.5}, [4, 8]),
        ({"eval_strategy": "epoch"}, [4, 8]),
        ({"eval_strategy": "no"}, [8]),  # the final evaluation is due, and does nothing without held-out pairs
    ],
)
def test_steps_with_an_evaluation(options: dict[str, Any], expected: list[int]) -> None:
    assert [step for step in STEPS if task(**options).evaluation_due(step)] == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"save_steps": 3}, [3, 5, 6, 8]),
        ({"save_steps": 0.5}, [4, 5, 8]),
        ({"save_strategy": "epoch"}, [4, 5, 8]),
        ({"save_strategy": "no"}, []),
    ],
)
def test_steps_with_a_checkpoint_include_syncs_and_the_end(options: dict[str, Any], expected: list[int]) -> None:
    assert [step for step in STEPS if task(**options).checkpoint_due(step, synced=step == 5)] == expected


def test_no_sync_is_due_without_a_sync_plan() -> None:
    assert not any(map(task().sync_due, STEPS))
