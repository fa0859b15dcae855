"""The arithmetic of the benchmark: steady-state rates, medians and spreads."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of several measurements."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> "Spread":
        """Return the spread of the values, of which there must be at least one."""
        ordered = sorted(values)
        return Spread(statistics.median(ordered), ordered[0], ordered[-1])


def sequential_rate(*rates: float | None) -> float:
    """Return the combined rate of tasks done one after the other, from their rates; None stands for no time."""
    return 1 / sum(1 / rate for rate in rates if rate is not None)


def training_rate(lines: Sequence[Mapping[str, Any]], global_batch: int) -> float:
    """Return the pairs/s over all updates except the first, from lines of metrics with `step` and `pairs_per_second`.

    The rate of a line covers the time since the previous line. Raises ValueError if the first update has no line of its
    own, or if no line follows it.
    """
    if len(lines) < 2 or lines[0]["step"] != 1:
        steps = [line["step"] for line in lines]
        raise ValueError(f"steps {steps} have metrics; a rate needs a line of the first update and one after it")
    return steady(lines, "pairs_per_second", global_batch)


def steady(lines: Sequence[Mapping[str, Any]], name: str, global_batch: int) -> float:
    """Return the time-weighted mean of a metric over the lines after the first; a line without it counts as 0."""
    seconds: list[float] = [
        global_batch * (line["step"] - before["step"]) / line["pairs_per_second"]
        for before, line in itertools.pairwise(lines)
    ]
    values: list[float] = [line.get(name) or 0.0 for line in lines[1:]]
    total = sum(value * spent for value, spent in zip(values, seconds, strict=True))
    return total / sum(seconds)


def scoring_rate(blocks: Iterable[tuple[float, int]]) -> float:
    """Return the pairs/s of all blocks except the first; a block is (time at which it was done, number of pairs).

    The first block is left out because its time includes the start of the scoring worker, and its own start is unknown.
    Raises ValueError if there are fewer than two blocks.
    """
    done = sorted(blocks)
    if len(done) < 2:
        raise ValueError(f"{len(done)} scored blocks; a rate needs at least two; use more pairs")
    return sum(pairs for _, pairs in done[1:]) / (done[-1][0] - done[0][0])


def relative_gap(one: float, other: float) -> float:
    """Return the difference of two numbers relative to the larger magnitude."""
    return abs(one - other) / max(abs(one), abs(other), 1e-12)
