"""Read reference log-probs from the dataset, in TRL's columns `ref_chosen_logps` and `ref_rejected_logps`."""

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
"""Log-probs of a completion: the sum over its tokens, or one value per token, EOS included."""


@dataclass(frozen=True, slots=True)
class DatasetLogps:
    """The reference log-probs of one row, in nats, before truncation."""

    chosen: Values
    rejected: Values


def read_dataset_logps(row: Mapping[str, Any]) -> DatasetLogps:
    """Return the reference log-probs of a row. Raises RowError if columns are missing or hold no log-probs."""
    return DatasetLogps(_values(row, schema.REF_CHOSEN_LOGPS), _values(row, schema.REF_REJECTED_LOGPS))


def _values(row: Mapping[str, Any], name: str) -> Values:
    if row.get(name) is None:
        raise RowError("no reference log-probs", f"the row has no {name!r}, which reference_from_dataset requires")
    found = row[name]
    values = found if isinstance(found, list) else [found]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RowError("wrong type", f"column {name!r} holds {type_name(value)}, not a number")
        if not (math.isfinite(value) and value <= 0):
            raise RowError(
                "wrong reference log-probs", f"column {name!r} holds {value}, but a log-prob is finite and at most 0"
            )
    return [float(value) for value in values] if isinstance(found, list) else float(found)


def align(
    logps: DatasetLogps, full: EncodedPair, truncated: EncodedPair, *, per_token: bool
) -> tuple[FloatArray, FloatArray]:
    """Return the scores of chosen and rejected, one value per token of the truncated pair.

    `full` is the pair before truncation. A sum is stored at the first token, and the other tokens get 0. Raises
    RowError if the number of values differs from the number of tokens, if `per_token` is set and the row has only a
    sum, or if tokens of a sum were truncated.
    """
    sides = (
        (schema.REF_CHOSEN_LOGPS, logps.chosen, len(full.chosen_ids), len(truncated.chosen_ids)),
        (schema.REF_REJECTED_LOGPS, logps.rejected, len(full.rejected_ids), len(truncated.rejected_ids)),
    )
    chosen, rejected = (_fit(name, values, before, after, per_token) for name, values, before, after in sides)
    return chosen, rejected


def _fit(name: str, values: Values, before: int, after: int, per_token: bool) -> FloatArray:
    if isinstance(values, list):
        if len(values) != before:
            raise RowError(
                "wrong reference log-probs", f"{name!r} has {len(values)} values for {before} tokens, EOS included"
            )
        return np.array(values[:after], dtype=np.float32)
    if per_token:
        raise RowError("wrong reference log-probs", f"{name!r} is a sum, but ld_alpha needs one value per token")
    if before != after:
        raise RowError(
            "wrong reference log-probs", f"{name!r} is a sum over {before} tokens, but max_length keeps only {after}"
        )
    scores = np.zeros(after, dtype=np.float32)
    scores[0] = values
    return scores
