"""Padded arrays, against ones written out by hand."""

import numpy as np

from raydpo.batching.collate import collate, collate_scored
from raydpo.schema import ScoredPair


def scored(name: str, prompt: list[int], chosen: list[int], rejected: list[int]) -> ScoredPair:
    return ScoredPair(
        pair_id=name,
        prompt_ids=np.array(prompt, dtype=np.int64),
        chosen_ids=np.array(chosen, dtype=np.int64),
        rejected_ids=np.array(rejected, dtype=np.int64),
        ref_chosen_logps=-np.array(chosen, dtype=np.float32),
        ref_rejected_logps=-np.array(rejected, dtype=np.float32),
    )


def test_two_pairs() -> None:
    batch = collate_scored([scored("a", [5, 6], [7], [8, 9]), scored("b", [1], [2, 3, 4], [2])])
    assert batch.input_ids.tolist() == [
        [5, 6, 7, 0, 0, 0, 0, 0],
        [1, 2, 3, 4, 0, 0, 0, 0],
        [5, 6, 8, 9, 0, 0, 0, 0],
        [1, 2, 0, 0, 0, 0, 0, 0],
    ]
    assert batch.attention_mask.sum(axis=1).tolist() == [3, 4, 4, 2]
    # the last prompt token predicts the first completion token, and so on
    assert batch.predictors.tolist() == [1, 8, 9, 10, 17, 18, 24]
    assert batch.targets.tolist() == [7, 2, 3, 4, 8, 9, 2]
    assert batch.completion.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert batch.ref_logps.tolist() == [-7, -2, -3, -4, -8, -9, -2]
    assert batch.pair_ids == ("a", "b")


def test_a_rank_without_pairs_gets_one_harmless_row() -> None:
    batch = collate([])
    assert batch.pairs == 0
    assert batch.input_ids.shape[0] == 1
    assert batch.attention_mask.sum() == 1
    assert len(batch.predictors) == len(batch.targets) == len(batch.completion) == len(batch.ref_logps) == 0
