"""Reference log-probs that the rows themselves carry, in TRL's columns `ref_chosen_logps` and `ref_rejected_logps`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydpo.blocks import schema
from raydpo.blocks.schema import FloatArray
from raydpo.data.dialects.pair import RowError, type_name
from raydpo.data.tokenization import EncodedPair

Values = float | list[float]
"""Of a completion: the sum over its tokens, or a value for each of them, EOS included."""


@dataclass(frozen=True, slots=True)
class DatasetLogps:
    """What a row says of its two completions."""

    chosen: Values
    rejected: Values


def read_dataset_logps(row: Mapping[str, Any]) -> DatasetLogps:
    """The columns of a row; RowError where they are missing or hold no log-probs."""
    return DatasetLogps(_values(row, schema.REF_CHOSEN_LOGPS), _values(row, schema.REF_REJECTED_LOGPS))


def _values(row: Mapping[str, Any], name: str) -> Values:
    if row.get(name) is None:
        raise RowError("no reference log-probs", f"the row has no {name!r}, and reference_from_dataset asks for it")
    found = row[name]
    values = found if isinstance(found, list) else [found]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RowError("wrong type", f"column {name!r} holds {type_name(value)}, not a number")
        if not (math.isfinite(value) and value <= 0):
            raise RowError("wrong reference log-probs", f"column {name!r} holds {value}, and a log-prob is at most 0")
    return [float(value) for value in values] if isinstance(found, list) else float(found)


def align(
    given: DatasetLogps, whole: EncodedPair, cut: EncodedPair, *, per_token: bool
) -> tuple[FloatArray, FloatArray]:
    """The values as scores of the cut pair, each [tokens]; a sum stands at the first token, and the others are 0.

    RowError where there are other numbers of values than tokens, where `per_token` needs more than a sum, and where a
    sum is of more tokens than are left.
    """
    sides = (
        (schema.REF_CHOSEN_LOGPS, given.chosen, len(whole.chosen_ids), len(cut.chosen_ids)),
        (schema.REF_REJECTED_LOGPS, given.rejected, len(whole.rejected_ids), len(cut.rejected_ids)),
    )
    chosen, rejected = (_fitted(name, values, before, after, per_token) for name, values, before, after in sides)
    return chosen, rejected


def _fitted(name: str, values: Values, before: int, after: int, per_token: bool) -> FloatArray:
    if isinstance(values, list):
        if len(values) != before:
            raise RowError(
                "wrong reference log-probs", f"{name!r} has {len(values)} values for {before} tokens, EOS included"
            )
        return np.array(values[:after], dtype=np.float32)
    if per_token:
        raise RowError("wrong reference log-probs", f"{name!r} is a sum, and ld_alpha needs a value a token")
    if before != after:
        raise RowError(
            "wrong reference log-probs", f"{name!r} is a sum over {before} tokens, of which max_length leaves {after}"
        )
    scores = np.zeros(after, dtype=np.float32)
    scores[0] = values
    return scores
