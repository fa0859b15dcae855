"""Schedules that transformers accepts and that no run means; and those that work, by its own learning rates."""

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from raydpo.config import OptimConfig
from raydpo.config.lr_schedule import check_length
from raydpo.config.optim import SCHEDULERS
from raydpo.errors import ConfigError

UPDATES = 10


def rates(updates: int, **options: Any) -> list[float]:
    """Return the learning rate of each update, by transformers, for a peak of 1."""
    optim = OptimConfig(learning_rate=1.0, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule: Any = get_scheduler(
        optim.lr_scheduler_type,
        optimizer,
        num_warmup_steps=optim.warmup_updates(updates),
        num_training_steps=updates,
        scheduler_specific_kwargs=optim.lr_scheduler_kwargs,
    )
    found = []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


WORKING: list[dict[str, Any]] = [
    {"lr_scheduler_type": "linear", "warmup_steps": 3},
    {"lr_scheduler_type": "cosine", "warmup_ratio": 0.2},
    {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.2}, "warmup_steps": 2},
    {"lr_scheduler_type": "cosine_warmup_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "warmup_steps": 2},
    {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0, "lr_end": 0.1}},
    {"lr_scheduler_type": "constant"},
    {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4},
    {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 2},
    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 4}, "warmup_steps": 2},
]


def test_every_schedule_works_within_its_peak() -> None:
    assert {options["lr_scheduler_type"] for options in WORKING} == set(SCHEDULERS)
    for options in WORKING:
        found = rates(UPDATES, **options)
        assert max(found) == pytest.approx(1.0), options
        assert min(found[1:]) > 0, options
        assert check_length(OptimConfig(learning_rate=1.0, **options), UPDATES) == []


@pytest.mark.parametrize(
    ("schedule", "kwargs", "words"),
    [
        ("cosine_with_min_lr", {"min_lr": 5.0}, ["min_lr=5", "at most learning_rate=1", "min_lr_rate"]),
        ("cosine_with_min_lr", {"min_lr_rate": 1.5}, ["min_lr_rate=1.5", "from 0 to 1"]),
        ("cosine_warmup_with_min_lr", {"min_lr": -1.0}, ["min_lr=-1.0", "at least 0"]),
        ("warmup_stable_decay", {"num_decay_steps": 4, "min_lr_ratio": 2}, ["min_lr_ratio=2", "from 0 to 1"]),
        ("warmup_stable_decay", {"num_decay_steps": 2.5}, ["num_decay_steps=2.5", "whole number"]),
        ("polynomial", {"power": 0}, ["power=0", "above 0"]),
        ("polynomial", {"lr_end": 2.0}, ["learning_rate=1", "above 2"]),
        ("cosine", {"num_cycles": -1}, ["num_cycles=-1", "above 0"]),
        ("inverse_sqrt", {"timescale": 0}, ["timescale=0", "above 0"]),
        ("reduce_lr_on_plateau", {}, ["reduce_lr_on_plateau", "follows a metric", "linear, cosine"]),
        ("greedy", {}, ["greedy", "follows a metric"]),
    ],
)
def test_a_schedule_that_leaves_its_range_is_refused(schedule: str, kwargs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        OptimConfig(learning_rate=1.0, lr_scheduler_type=schedule, lr_scheduler_kwargs=kwargs)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("warmup", [{"warmup_steps": 5}, {"warmup_steps": 0.1}, {"warmup_ratio": 0.1}])
def test_a_warmup_that_constant_ignores_is_refused(warmup: dict[str, Any]) -> None:
    (name,) = warmup
    with pytest.raises(ConfigError, match=rf"{name}=\S+ has no effect .*constant_with_warmup"):
        OptimConfig(lr_scheduler_type="constant", **warmup)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": 20}, r"warmup_steps=20 is more than the 10 updates .*a share"),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 9},
             "warmup_steps": 2},
            r"num_decay_steps=9 and the warm-up of 2 updates are more than the 10 updates",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 2,
             "lr_scheduler_kwargs": {"num_decay_steps": 3, "num_stable_steps": 2}},
            r"make 7 updates, and this run has 10: for the last 3 updates .* 0 of its peak; leave num_stable_steps out",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay",
             "lr_scheduler_kwargs": {"num_decay_steps": 6, "num_stable_steps": 5}},
            r"make 11 updates, and this run has 10: the decay would be cut short",
        ),
    ],
)  # fmt: skip
def test_a_schedule_that_does_not_fit_the_run_is_refused(options: dict[str, Any], message: str) -> None:
    optim = OptimConfig(learning_rate=1.0, **options)
    with pytest.raises(ConfigError, match=message):
        check_length(optim, UPDATES)


def test_a_run_that_is_all_warmup_is_remarked_on() -> None:
    (remark,) = check_length(OptimConfig(learning_rate=1.0, warmup_ratio=0.1), 1)
    assert "all 1 updates" in remark
    assert max(rates(1, warmup_ratio=0.1)) == 0, "the remark is right"
