"""Reference log-probs in columns of the data set: which values are used, and which are refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raydpo.data.dataset_logps import DatasetLogps, align, read_dataset_logps
from raydpo.data.dialects.pair import RowError
from raydpo.data.tokenization import EncodedPair, Truncation

NO_TAIL = np.zeros(0, dtype=np.int32)


def pair(prompt: int, chosen: int, rejected: int) -> EncodedPair:
    ids = [
        np.arange(start, start + count, dtype=np.int32) for start, count in ((0, prompt), (50, chosen), (90, rejected))
    ]
    return EncodedPair(*ids, NO_TAIL)


def masked_pair() -> EncodedPair:
    """Return a pair whose chosen completion has 2 masked tokens of 4, the first among them."""
    mask = np.array([False, True, False, True])
    return replace(pair(3, 4, 2), chosen_mask=mask)


def row(chosen: Any, rejected: Any = -1.0) -> dict[str, Any]:
    return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}


def test_values_are_truncated_with_the_tokens() -> None:
    untruncated = pair(3, 2, 4)
    logps = read_dataset_logps(row([-1.0, -2.0], [-1, -2.5, 0, -4]))
    chosen, rejected = align(logps, untruncated, Truncation(max_length=5).apply(untruncated), per_token=True)
    assert (chosen.tolist(), rejected.tolist()) == ([-1.0, -2.0], [-1.0, -2.5])


def test_a_sum_per_completion_is_used_as_the_total() -> None:
    untruncated = pair(3, 2, 4)
    chosen, rejected = align(DatasetLogps(-3.0, -7.5), untruncated, untruncated, per_token=False)
    assert (len(chosen), chosen.sum()) == (2, -3.0)
    assert (len(rejected), rejected.sum()) == (4, -7.5)


@pytest.mark.parametrize("values", [[-9.0, -1.0, -9.0, -2.0], [-1.0, -2.0]])
def test_values_are_for_all_tokens_or_for_those_of_assistant_turns(values: list[float]) -> None:
    whole = masked_pair()
    chosen, _ = align(DatasetLogps(values, -7.0), whole, whole, per_token=False)
    assert whole.chosen_mask is not None
    assert chosen[whole.chosen_mask].tolist() == [-1.0, -2.0]
    assert len(chosen) == 4
    cut = Truncation(max_length=5).apply(whole)
    chosen, _ = align(DatasetLogps(values, -7.0), whole, cut, per_token=False)
    assert cut.chosen_mask is not None
    assert chosen[cut.chosen_mask].tolist() == [-1.0]


def test_a_sum_is_over_the_tokens_of_assistant_turns() -> None:
    whole = masked_pair()
    chosen, rejected = align(DatasetLogps(-3.0, -7.0), whole, whole, per_token=False)
    assert whole.chosen_mask is not None
    assert (chosen[whole.chosen_mask].sum(), rejected.sum()) == (-3.0, -7.0)
    with pytest.raises(RowError, match="'ref_chosen_logps' is a sum over 2 tokens, but max_length keeps only 1"):
        align(DatasetLogps(-3.0, -7.0), whole, Truncation(max_length=6).apply(whole), per_token=False)
    with pytest.raises(RowError, match="has 3 values for 4 tokens, EOS included, or for 2 tokens of assistant turns"):
        align(DatasetLogps([-1.0] * 3, -7.0), whole, whole, per_token=False)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"ref_chosen_logps": -1.0}, "no reference log-probs: the row has no 'ref_rejected_logps'"),
        (row(None), "no reference log-probs: the row has no 'ref_chosen_logps'"),
        (row("-1.0"), "wrong type: column 'ref_chosen_logps' holds a string"),
        (row([-1.0, True]), "wrong type: column 'ref_chosen_logps' holds a boolean"),
        (row([-1.0, float("nan")]), "wrong reference log-probs: .* holds nan"),
        (row(0.5), "wrong reference log-probs: .* holds 0.5, but a log-prob is finite and at most 0"),
    ],
)
def test_rows_without_valid_log_probs_are_refused(columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        read_dataset_logps(columns)


@pytest.mark.parametrize(
    ("logps", "per_token", "reason"),
    [
        (DatasetLogps([-1.0], -1.0), False, "'ref_chosen_logps' has 1 values for 2 tokens"),
        (DatasetLogps(-1.0, -1.0), True, "'ref_chosen_logps' is a sum, but ld_alpha needs one value per token"),
        (DatasetLogps(-1.0, -1.0), False, "'ref_rejected_logps' is a sum over 4 tokens, but max_length keeps only 2"),
    ],
)
def test_values_that_do_not_match_the_tokens_are_refused(logps: DatasetLogps, per_token: bool, reason: str) -> None:
    untruncated = pair(3, 2, 4)
    with pytest.raises(RowError, match=reason):
        align(logps, untruncated, Truncation(max_length=5).apply(untruncated), per_token=per_token)
