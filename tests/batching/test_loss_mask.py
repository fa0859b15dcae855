"""Packed rows of pairs with masked tokens, compared with rows written by hand."""

import numpy as np

from raydpo.batching.collate import collate, collate_scored
from raydpo.batching.prefix_tree import build_prompt_trees
from raydpo.blocks.schema import BoolArray, IntArray, ScoredPair
from raydpo.models.attention.padded import to_padded_rows

PROMPT = [5, 6]


def scored(name: str, chosen: str, rejected: str) -> ScoredPair:
    """Return a pair with the prompt PROMPT; each digit is a token, and an x before it masks it.

    The reference log-prob of a token is minus its id.
    """

    def side(text: str) -> tuple[IntArray, BoolArray | None]:
        digits = text.replace("x", "")
        shown = [text[: text.index(digit)][-1:] != "x" for digit in digits]
        return np.array([int(digit) for digit in digits]), None if all(shown) else np.array(shown)

    (chosen_ids, chosen_mask), (rejected_ids, rejected_mask) = side(chosen), side(rejected)
    return ScoredPair(
        name,
        np.array(PROMPT),
        chosen_ids,
        rejected_ids,
        -chosen_ids.astype(np.float32),
        -rejected_ids.astype(np.float32),
        chosen_loss_mask=chosen_mask,
        rejected_loss_mask=rejected_mask,
    )


def test_masked_tokens_are_in_the_row_and_are_no_targets() -> None:
    pairs = [scored("a", "7x8x91", "x32"), scored("b", "4", "32")]
    batch = collate_scored(build_prompt_trees(pairs[:1], 100), pairs)
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 1, 3, 2]
    assert batch.targets.tolist() == batch.input_ids[batch.target_positions].tolist() == [7, 1, 2]
    assert batch.predictors.tolist() == [1, 4, 6]
    assert batch.target_index.tolist() == [0, 1, 2]
    assert batch.sequence_index.tolist() == [0, 0, 1]
    assert (-batch.ref_logps).tolist() == [7, 1, 2]
    rows = to_padded_rows(batch)
    assert rows.input_ids[:, :6].tolist() == [[5, 6, 7, 8, 9, 1], [5, 6, 3, 2, 0, 0]]
    assert rows.predictors.tolist() == [1, 4, 8 + 2]


def test_a_completion_with_different_masks_in_two_pairs_keeps_both() -> None:
    pairs = [scored("a", "7", "x32"), scored("b", "4", "32"), scored("c", "8", "3x2")]
    (tree,) = trees = build_prompt_trees(pairs, 100)
    assert (tree.masked, tree.targets) == (0, 5)
    batch = collate_scored(trees, pairs)
    assert batch.targets.tolist() == [7, 3, 2, 4, 8]
    assert batch.targets[batch.target_index].tolist() == [7, 4, 8, 2, 3, 2, 3]
    assert batch.sequence_index.tolist() == [0, 1, 2, 3, 4, 4, 5]
    assert (-batch.ref_logps).tolist() == [7, 4, 8, 2, 3, 2, 3]


def test_a_tree_counts_the_tokens_that_every_pair_masks() -> None:
    (tree,) = build_prompt_trees([scored("a", "7x8x91", "x32"), scored("b", "4", "x32")], 100)
    assert (tree.tokens, tree.masked, tree.targets) == (2 + 4 + 2 + 1, 3, 4)


def test_prompt_tokens_stay_targets_where_prompts_are_counted() -> None:
    pairs = [scored("a", "7x81", "x32"), scored("b", "4", "9")]
    batch = collate(build_prompt_trees(pairs, 100), pairs, with_prompts=True)
    assert batch.targets.tolist() == [7, 1, 2, 4, 9, 6]
    assert batch.targets[batch.target_index].tolist() == [7, 1, 4, 2, 9]
    assert batch.targets[batch.prompt_target_index].tolist() == [6, 6]
    assert batch.input_ids[batch.predictors].tolist() == [6, 8, 3, 6, 6, 5]
