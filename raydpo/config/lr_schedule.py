"""Rules of learning-rate schedules: what transformers accepts and would turn into a run that nobody means.

Some rules need the number of updates, which is known only once the rows are counted.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from raydpo.config.fields import Rule, above, at_least, show
from raydpo.errors import ConfigError


class ScheduleOptions(Protocol):
    """The options of a schedule, which `OptimConfig` has."""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""

    @property
    def lr_scheduler_type(self) -> str:
        """Name of the schedule."""

    @property
    def lr_scheduler_kwargs(self) -> dict[str, Any]:
        """Arguments of the schedule."""

    @property
    def warmup_steps(self) -> float:
        """Warm-up updates, or a share below 1."""

    @property
    def warmup_ratio(self) -> float:
        """Warm-up as a share of all updates."""

    def warmup_updates(self, total: int) -> int:
        """Return the number of warm-up updates in a run of `total` updates."""


FOLLOW_A_METRIC = ("reduce_lr_on_plateau", "greedy")
"""Schedules of transformers that change the learning rate by a metric."""

_SHARE = Rule("from 0 to 1", lambda value: 0 <= value <= 1)
_WHOLE = Rule("a whole number of updates, at least 0", lambda value: value >= 0 and value == int(value))
_RULES: dict[str, Rule] = {
    "min_lr": at_least(0),
    "min_lr_rate": _SHARE,
    "min_lr_ratio": _SHARE,
    "warmup_lr_rate": _SHARE,
    "lr_end": at_least(0),
    "num_cycles": above(0),
    "power": above(0),
    "timescale": above(0),
    "num_decay_steps": _WHOLE,
    "num_stable_steps": _WHOLE,
}
"""Rules of single numbers in lr_scheduler_kwargs: outside them, transformers raises the learning rate beyond its peak,
makes it negative or undefined, or never returns to it."""


def check_values(optim: ScheduleOptions) -> None:
    """Raise ConfigError where an argument of the schedule is out of range, or does not fit the learning rate."""
    name, given, peak = optim.lr_scheduler_type, optim.lr_scheduler_kwargs, optim.learning_rate
    for key, value in given.items():
        rule = _RULES.get(key)
        if rule and not rule.holds(value):
            raise ConfigError(
                f"lr_scheduler_kwargs={show(given)}: {key}={value} must be {rule.text} for lr_scheduler_type {name}; "
                "change it, or leave it out"
            )
    lowest = given.get("min_lr")
    if lowest is not None and not (peak > 0 and lowest <= peak):
        raise ConfigError(
            f"min_lr={lowest:g} must be at most learning_rate={peak:g}, from which lr_scheduler_type {name} goes down "
            "to it, and learning_rate above 0; lower min_lr, or give it as min_lr_rate, a share of learning_rate"
        )
    warmup = f"warmup_steps={optim.warmup_steps:g}" if optim.warmup_steps else f"warmup_ratio={optim.warmup_ratio:g}"
    if name == "constant" and (optim.warmup_steps or optim.warmup_ratio):
        raise ConfigError(
            f"{warmup} has no effect with lr_scheduler_type constant, which has no warm-up; set "
            "lr_scheduler_type=constant_with_warmup, or leave it out"
        )


def check_length(optim: ScheduleOptions, total: int) -> list[str]:
    """Return remarks on the schedule of a run of `total` updates, as sentences.

    Raises ConfigError where the warm-up or the decay is longer than the run, or where the learning rate is 0 before
    the run ends.
    """
    warmup = optim.warmup_updates(total)
    if optim.warmup_steps > total:
        raise ConfigError(
            f"warmup_steps={warmup} is more than the {total} updates of this run, so that the learning rate would not "
            f"reach learning_rate={optim.learning_rate:g}; lower it, or give a share of all updates, such as 0.1"
        )
    if optim.lr_scheduler_type == "warmup_stable_decay":
        _check_phases(optim.lr_scheduler_kwargs, warmup, total)
    if 0 < total <= warmup:
        return [
            f"The warm-up takes all {total} updates of this run, so that the learning rate stays below "
            f"learning_rate={optim.learning_rate:g}."
        ]
    return []


def _check_phases(given: Mapping[str, Any], warmup: int, total: int) -> None:
    """Raise ConfigError unless the phases of a warm-up, stable and decay schedule make up the run."""
    decay, stable = int(given["num_decay_steps"]), given.get("num_stable_steps")
    if warmup + decay > total:
        raise ConfigError(
            f"num_decay_steps={decay} and the warm-up of {warmup} updates are more than the {total} updates of this "
            "run; lower num_decay_steps or the warm-up"
        )
    if stable is None or (planned := warmup + int(stable) + decay) == total:
        return
    rest = total - planned
    after = f"for the last {rest} updates the learning rate would be {given.get('min_lr_ratio', 0):g} of its peak"
    raise ConfigError(
        f"num_stable_steps={stable:g}, num_decay_steps={decay} and the warm-up of {warmup} updates make {planned} "
        f"updates, and this run has {total}: {after if rest > 0 else 'the decay would be cut short'}; leave "
        "num_stable_steps out, which fills the run"
    )
