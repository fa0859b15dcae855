"""Packed rows, compared with rows written by hand."""

from dataclasses import replace

import numpy as np

from raydpo.batching.collate import collate, collate_scored, split_by_completion
from raydpo.batching.micro_batch import Layout
from raydpo.batching.prefix_tree import build_prompt_trees
from raydpo.blocks.schema import ScoredPair


def scored(name: str, prompt: list[int], chosen: list[int], rejected: list[int]) -> ScoredPair:
    return ScoredPair(
        pair_id=name,
        prompt_ids=np.array(prompt, dtype=np.int64),
        chosen_ids=np.array(chosen, dtype=np.int64),
        rejected_ids=np.array(rejected, dtype=np.int64),
        ref_chosen_logps=-np.array(chosen, dtype=np.float32),
        ref_rejected_logps=-np.array(rejected, dtype=np.float32),
    )


PAIRS = [
    scored("a", [5, 6], [7], [8, 9]),
    scored("b", [1], [2, 3, 4], [2]),
    scored("c", [5, 6], [8, 9], [3]),
]
TREES = build_prompt_trees(PAIRS, 100)
"""Two trees: the prompt of a and c with completions [7], [8, 9] and [3], and the prompt of b with its completions."""


def test_three_pairs_with_two_prompts_are_one_packed_row() -> None:
    batch = collate_scored(TREES, PAIRS)
    assert batch.pair_ids == ("a", "c", "b")
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 3, 1, 2, 3, 4, 2]
    assert batch.position_ids.tolist() == [0, 1, 2, 2, 3, 2, 0, 1, 2, 3, 1]
    assert batch.layout == Layout(
        prompts=((0, 2), (6, 7)), completions=((2, 3, 0), (3, 5, 0), (5, 6, 0), (7, 10, 1), (10, 11, 1))
    )
    # [5, 6] is in all four sequences of a and c, [8, 9] in one sequence of each
    assert batch.multiplicity.tolist() == [4, 4, 1, 2, 2, 1, 2, 1, 1, 1, 1]
    # the last token of a prompt predicts the first token of each of its completions
    assert batch.predictors.tolist() == [1, 1, 3, 1, 6, 7, 8, 6]
    assert batch.targets.tolist() == [7, 8, 9, 3, 2, 3, 4, 2]
    # the chosen completions of a, c and b, then the rejected ones
    assert batch.targets[batch.target_index].tolist() == [7, 8, 9, 2, 3, 4, 8, 9, 3, 2]
    assert batch.sequence_index.tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 4, 5]
    assert (-batch.ref_logps).tolist() == [7, 8, 9, 2, 3, 4, 8, 9, 3, 2]
    assert len(batch.prompt_target_index) == len(batch.prompt_pair_index) == 0


def test_prompt_tokens_are_targets_if_prompts_are_counted() -> None:
    pairs = [scored("a", [5, 6, 4], [7], [8]), scored("b", [1], [2], [3]), scored("c", [5, 6, 4], [9], [8])]
    batch = collate(build_prompt_trees(pairs, 100), pairs, with_prompts=True)
    assert batch.input_ids.tolist() == [5, 6, 4, 7, 8, 9, 1, 2, 3]
    # nothing predicts the first token of a prompt
    assert batch.targets.tolist() == [7, 8, 9, 2, 3, 6, 4]
    assert batch.predictors.tolist() == [2, 2, 2, 6, 6, 0, 1]
    assert batch.pair_ids == ("a", "c", "b")
    assert batch.targets[batch.prompt_target_index].tolist() == [6, 4, 6, 4]
    assert batch.prompt_pair_index.tolist() == [0, 0, 1, 1]


def test_a_row_is_padded_to_a_multiple() -> None:
    batch = collate(TREES, PAIRS, multiple=8)
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 3, 1, 2, 3, 4, 2, 0, 0, 0, 0, 0]
    assert batch.layout.prompts[-1] == (11, 16)
    assert batch.multiplicity[11:].tolist() == [0] * 5
    assert max(batch.predictors) < 11


def test_values_are_split_by_completion() -> None:
    batch = collate(TREES, PAIRS)
    found = split_by_completion(batch.targets.astype(np.float32), TREES)
    assert [[part.tolist() for part in parts] for parts in found] == [
        [completion.tolist() for completion in tree.completions] for tree in TREES
    ]


def test_completions_without_pairs_are_packed_like_those_of_pairs() -> None:
    without_pairs = [replace(tree, pairs=(), chosen=(), rejected=()) for tree in TREES]
    batch, expected = collate(without_pairs, ()), collate(TREES, PAIRS)
    assert batch.pair_ids == ()
    assert batch.layout == expected.layout
    for name in ("input_ids", "position_ids", "predictors", "targets"):
        assert getattr(batch, name).tolist() == getattr(expected, name).tolist()


def test_a_rank_without_pairs_gets_a_dummy_row() -> None:
    batch = collate([], [])
    assert batch.pairs == 0
    assert batch.layout == Layout(prompts=((0, 1),), completions=())
    assert batch.input_ids.shape == batch.position_ids.shape == (1,)
    assert batch.multiplicity.tolist() == [1]
    for values in (batch.predictors, batch.targets, batch.target_index, batch.sequence_index, batch.ref_logps):
        assert len(values) == 0
