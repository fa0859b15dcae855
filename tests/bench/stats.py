"""The arithmetic of the benchmark: rates of steady work, medians, spreads."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> "Spread":
        """At least one value."""
        ordered = sorted(values)
        return Spread(statistics.median(ordered), ordered[0], ordered[-1])


def both(*rates: float | None) -> float:
    """The rate of doing one thing after the other, from the rate of each; None for a thing that takes no time."""
    return 1 / sum(1 / rate for rate in rates if rate is not None)


def training_rate(lines: Sequence[Mapping[str, Any]], global_batch: int) -> float:
    """Pairs/s over all updates but the first, from lines of metrics with `step` and `pairs_per_second`.

    A line's rate is that since the line before; the first update has a line of its own. ValueError where it has none,
    or where no line follows it.
    """
    if len(lines) < 2 or lines[0]["step"] != 1:
        raise ValueError(f"no line of the first update and one after it in {[line['step'] for line in lines]}")
    return steady(lines, "pairs_per_second", global_batch)


def steady(lines: Sequence[Mapping[str, Any]], name: str, global_batch: int) -> float:
    """Mean over time of a quantity of the lines after the first, as far as they have it; 0 where none has."""
    seconds: list[float] = [
        global_batch * (line["step"] - before["step"]) / line["pairs_per_second"]
        for before, line in itertools.pairwise(lines)
    ]
    values: list[float] = [line.get(name) or 0.0 for line in lines[1:]]
    total = sum(value * spent for value, spent in zip(values, seconds, strict=True))
    return total / sum(seconds)


def scoring_rate(blocks: Iterable[tuple[float, int]]) -> float:
    """Pairs/s from the second block on, of blocks as (time when it was done, pairs); ValueError with fewer than two.

    The first block's time holds the start of the scorer, and nobody knows when it was begun.
    """
    done = sorted(blocks)
    if len(done) < 2:
        raise ValueError(f"{len(done)} scored block, and a rate takes two; use more pairs")
    return sum(pairs for _, pairs in done[1:]) / (done[-1][0] - done[0][0])


def relative_gap(one: float, other: float) -> float:
    """How far apart two numbers are, as a share of the larger."""
    return abs(one - other) / max(abs(one), abs(other), 1e-12)
