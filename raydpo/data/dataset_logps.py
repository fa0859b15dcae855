"""Read reference log-probs from the dataset, in TRL's columns `ref_chosen_logps` and `ref_rejected_logps`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydpo.blocks import schema
from raydpo.blocks.schema import BoolArray, FloatArray, targets_of
from raydpo.data.dialects.pair import RowError, type_name
from raydpo.data.tokenization import EncodedPair

Values = float | list[float]
"""Log-probs of a completion: the sum over its targets, or one value per target or per token, EOS included.

Its targets are its tokens, or with `loss_on` assistant those of assistant turns.
"""


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

    `full` is the pair before truncation. Values of masked tokens are 0, whether the row has them or not. A sum is
    stored at the first target, and the other tokens get 0. Raises RowError if the number of values is neither that of
    the tokens nor that of the targets, if `per_token` is set and the row has only a sum, or if targets of a sum were
    truncated.
    """
    chosen_targets = targets_of(full.chosen_mask, len(full.chosen_ids))
    rejected_targets = targets_of(full.rejected_mask, len(full.rejected_ids))
    chosen = _fit(schema.REF_CHOSEN_LOGPS, logps.chosen, chosen_targets, len(truncated.chosen_ids), per_token)
    rejected = _fit(schema.REF_REJECTED_LOGPS, logps.rejected, rejected_targets, len(truncated.rejected_ids), per_token)
    return chosen, rejected


def _fit(name: str, values: Values, targets: BoolArray, kept: int, per_token: bool) -> FloatArray:
    """Return a completion's scores, [kept], where `targets` has its loss mask before truncation."""
    scores = np.zeros(len(targets), dtype=np.float32)
    count = int(np.count_nonzero(targets))
    if isinstance(values, list):
        if len(values) not in (len(targets), count):
            turns = "" if count == len(targets) else f", or for {count} tokens of assistant turns"
            raise RowError(
                "wrong reference log-probs",
                f"{name!r} has {len(values)} values for {len(targets)} tokens, EOS included{turns}",
            )
        given = np.array(values, dtype=np.float32)
        scores[targets] = given[targets] if len(values) == len(targets) else given
        return scores[:kept]
    if per_token:
        raise RowError("wrong reference log-probs", f"{name!r} is a sum, but ld_alpha needs one value per token")
    left = int(np.count_nonzero(targets[:kept]))
    if left != count:
        raise RowError(
            "wrong reference log-probs", f"{name!r} is a sum over {count} tokens, but max_length keeps only {left}"
        )
    scores[targets.argmax()] = values
    return scores[:kept]
