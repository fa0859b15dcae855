"""Pairs with the same prompt as trees: no pair is lost and nothing is computed twice."""

import random

import numpy as np
import pytest

from raydpo.batching.prefix_tree import PromptTree, build_prompt_trees
from raydpo.blocks.schema import IntArray, TokenizedPair


def pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> TokenizedPair:
    return TokenizedPair("x", *(np.array(ids, dtype=np.int64) for ids in (prompt, chosen, rejected)))


def ids(array: IntArray) -> list[int]:
    return [int(token) for token in array]


def sides(tree: PromptTree, position: int) -> tuple[list[int], list[int], list[int]]:
    chosen, rejected = tree.chosen[position], tree.rejected[position]
    return ids(tree.prompt), ids(tree.completions[chosen]), ids(tree.completions[rejected])


def random_pairs(seed: int) -> list[TokenizedPair]:
    """Return pairs with few different prompts and completions, so that pairs share either, both or neither."""
    draw = random.Random(seed)
    prompts = [[number] * draw.randint(1, 6) for number in range(draw.randint(1, 6))]
    completions = [[7] * length for length in range(1, 7)]
    return [
        pair(draw.choice(prompts), draw.choice(completions), draw.choice(completions))
        for _ in range(draw.randint(1, 30))
    ]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("max_tokens", [1, 12, 25, 10_000])
def test_trees_hold_each_pair_once_and_each_completion_once(seed: int, max_tokens: int) -> None:
    pairs = random_pairs(seed)
    trees = build_prompt_trees(pairs, max_tokens)
    assert sorted(index for tree in trees for index in tree.pairs) == list(range(len(pairs)))
    for tree in trees:
        for position, index in enumerate(tree.pairs):
            expected = (pairs[index].prompt_ids, pairs[index].chosen_ids, pairs[index].rejected_ids)
            assert sides(tree, position) == tuple(ids(side) for side in expected)
        contents = [tuple(ids(completion)) for completion in tree.completions]
        assert len(set(contents)) == len(contents), "a completion is computed twice"
        assert {*tree.chosen, *tree.rejected} == set(range(len(contents))), "a completion belongs to no pair"
        assert tree.lengths == tuple(map(len, contents))
        assert tree.tokens == len(tree.prompt) + sum(map(len, contents))
        assert tree.longest == len(tree.prompt) + max(map(len, contents))
        assert tree.tokens <= max_tokens or len(tree.pairs) == 1


@pytest.mark.parametrize("seed", range(20))
def test_pairs_of_a_prompt_share_one_tree_if_they_fit(seed: int) -> None:
    pairs = random_pairs(seed)
    trees = build_prompt_trees(pairs, 10_000)
    firsts = [tree.pairs[0] for tree in trees]
    assert len(trees) == len({tuple(ids(entry.prompt_ids)) for entry in pairs})
    assert firsts == sorted(firsts), "trees are not in the order of their first pairs"


def test_two_pairs_with_swapped_completions_share_both() -> None:
    (tree,) = build_prompt_trees([pair([1, 2], [3, 4], [5]), pair([1, 2], [5], [3, 4])], 100)
    assert [ids(completion) for completion in tree.completions] == [[3, 4], [5]]
    assert (tree.chosen, tree.rejected) == ((0, 1), (1, 0))
    assert tree.tokens == 5


def test_identical_chosen_and_rejected_are_computed_once() -> None:
    (tree,) = build_prompt_trees([pair([1], [3, 4], [3, 4])], 100)
    assert [ids(completion) for completion in tree.completions] == [[3, 4]]
    assert (tree.chosen, tree.rejected) == ((0,), (0,))
    assert tree.tokens == 3


def test_a_tree_is_filled_up_to_max_tokens() -> None:
    pairs = [pair([1], [2] * size, [3] * size) for size in (2, 3, 4)]  # 5 tokens, and 6 and 8 more
    assert [tree.pairs for tree in build_prompt_trees(pairs, 19)] == [(0, 1, 2)]
    assert [tree.pairs for tree in build_prompt_trees(pairs, 18)] == [(0, 1), (2,)]
    assert [tree.pairs for tree in build_prompt_trees(pairs, 10)] == [(0,), (1,), (2,)]
    assert [tree.tokens for tree in build_prompt_trees(pairs, 1)] == [5, 7, 9]


def test_a_prompt_that_is_a_prefix_of_another_has_its_own_tree() -> None:
    assert len(build_prompt_trees([pair([1, 2], [3], [4]), pair([1], [2, 3], [2, 4])], 100)) == 2


def test_without_pairs_there_are_no_trees() -> None:
    assert build_prompt_trees([], 100) == []
