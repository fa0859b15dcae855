"""Read the numbers that a row may have besides its pair: the weight of its loss, and the margin of its preference."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from raydpo.blocks import schema
from raydpo.data.dialects.pair import RowError, type_name

SCORES = ("score_chosen", "score_rejected")
"""Columns of the completions' scores, from which a margin may come; UltraFeedback-binarized calls them so."""
LARGEST = 1e30
"""Largest absolute value of a weight, a margin or a score; sums and products of them stay finite in float32."""
DEFAULTS = {schema.WEIGHT: 1.0, schema.MARGIN: 0.0}
"""What a row without the number has."""


@dataclass(frozen=True)
class ExtrasOptions:
    """The columns of weights and margins that are read; the others may hold anything."""

    weight: bool = False
    """Whether the column `weight` is read."""
    margin: bool = False
    """Whether the column `margin` is read."""
    margin_from_scores: str = "none"
    """How a row without a margin gets one from its scores: none, difference or log."""
    margin_required: bool = False
    """Whether a row without a margin is bad."""


@dataclass(frozen=True, slots=True)
class Extras:
    """The weight and the margin of one row; None where the row has none."""

    weight: float | None = None
    margin: float | None = None
    unread_margin: bool = False
    """Whether the row has a column `margin` that is not read."""


def read_extras(row: Mapping[str, Any], options: ExtrasOptions) -> Extras:
    """Return the weight and margin of a row. Raises RowError if it has one that is wrong, or lacks a required one."""
    weight = _number(row, schema.WEIGHT, "set sample_weights=ignore") if options.weight else None
    if weight is not None and weight < 0:
        raise RowError("wrong weight", f"column 'weight' is {weight:g}, but a weight is at least 0; correct it")
    margin = _number(row, schema.MARGIN, "set use_margins=false") if options.margin else None
    if margin is None and options.margin_from_scores != "none":
        margin = _from_scores(row, log=options.margin_from_scores == "log")
    if margin is None and options.margin_required:
        raise RowError("no margin", "the row has no 'margin', which the loss needs; add one, or set margin_from_scores")
    return Extras(weight, margin, unread_margin=not options.margin and row.get(schema.MARGIN) is not None)


def _from_scores(row: Mapping[str, Any], *, log: bool) -> float:
    """Return the margin of the two scores: their difference, or its natural logarithm."""
    chosen, rejected = (_number(row, name, "set margin_from_scores=none") for name in SCORES)
    if chosen is None or rejected is None:
        name = SCORES[chosen is not None]
        raise RowError("no margin", f"the row has neither 'margin' nor {name!r}, which margin_from_scores requires")
    difference = chosen - rejected
    if not log:
        return difference
    if difference <= 0:
        raise RowError(
            "wrong margin",
            f"score_chosen {chosen:g} is not above score_rejected {rejected:g}, so that margin_from_scores=log has no "
            "logarithm; use difference, or drop the row",
        )
    return math.log(difference)


def _number(row: Mapping[str, Any], name: str, remedy: str) -> float | None:
    """Return the number in a column; None if the row lacks it. Raises RowError for anything else."""
    found = row.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float | Decimal):
        raise RowError("wrong type", f"column {name!r} is {type_name(found)}, not a number; correct it, or {remedy}")
    try:
        number = float(found)
    except (OverflowError, ValueError):  # a whole number of many digits, or a signalling NaN
        number = math.inf
    if not abs(number) <= LARGEST:  # also if it is NaN
        kind = "wrong weight" if name == schema.WEIGHT else "wrong margin"
        rule = f"a finite number of at most {LARGEST:g}"
        raise RowError(kind, f"column {name!r} is {number:g}, but must be {rule}; correct it, or {remedy}")
    return number + 0.0  # -0.0 becomes 0.0


@dataclass(frozen=True)
class ExtrasCounts:
    """The numbers of rows that have a weight or a margin."""

    weights: int = 0
    """Rows with a weight."""
    margins: int = 0
    """Rows with a margin, from the column or from scores."""
    unread_margins: int = 0
    """Rows with a column `margin` that is not read."""


def count_extras(extras: Sequence[Extras]) -> ExtrasCounts:
    """Return how many of the rows have which number."""
    return ExtrasCounts(
        weights=sum(row.weight is not None for row in extras),
        margins=sum(row.margin is not None for row in extras),
        unread_margins=sum(row.unread_margin for row in extras),
    )


def total_extras(counts: Iterable[ExtrasCounts]) -> ExtrasCounts:
    """Return the sums of the counts."""
    every = list(counts)
    return ExtrasCounts(
        weights=sum(count.weights for count in every),
        margins=sum(count.margins for count in every),
        unread_margins=sum(count.unread_margins for count in every),
    )


@dataclass(frozen=True)
class ExtrasColumn:
    """The numbers of a block's pairs that go into a column of its file."""

    name: str
    values: pa.Array
    """[pairs], float32."""
    digest: str
    """SHA-256 (hex) of the values."""


def extras_columns(extras: Sequence[Extras]) -> list[ExtrasColumn]:
    """Return the columns that the file of these rows gets: none where all rows have what a row without has."""
    found = []
    for name, default in DEFAULTS.items():
        given = [getattr(row, name) for row in extras]
        values = np.array([default if value is None else value for value in given], dtype=np.float32)
        if (values != default).any():
            digest = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
            found.append(ExtrasColumn(name, pa.array(values), digest))
    return found
