"""Splitting a global batch: each pair is used once, micro-batches are full, and ranks do not wait for each other."""

import random
import time

import numpy as np
import pytest

from raydpo.batching.flops import FlopsModel
from raydpo.batching.planner import RankPlan, plan_micro_batches
from raydpo.batching.prefix_tree import PromptTree

HALF_BILLION = FlopsModel(2 * 3.6e8, 2 * 896 * 151_936, ((4 * 896 * 24, None),))


def tree(prompt: int, *completions: int) -> PromptTree:
    first, *rest = (np.zeros(length, dtype=np.int64) for length in (prompt, *completions))
    return PromptTree(first, tuple(rest), (0,), (0,), (len(rest) - 1,))


def hh_like(pairs: int, seed: int) -> list[PromptTree]:
    """Return trees with lognormal lengths and the means of the HH data: prompt 165, chosen 78, rejected 79 tokens."""
    draw = np.random.default_rng(seed)
    spread = 0.9
    columns = [draw.lognormal(np.log(mean) - spread**2 / 2, spread, pairs) for mean in (165, 78, 79)]
    return [tree(*lengths) for lengths in np.clip(np.rint(columns), 1, 1024).astype(int).T]


def random_trees(seed: int) -> list[PromptTree]:
    draw = random.Random(seed)
    longest = draw.choice([5, 60, 300])  # with the budget of 100 below, some trees exceed it on their own
    count = draw.choice([1, 2, 3, 8, 40])
    return [tree(*(draw.randint(1, longest) for _ in range(draw.choice([2, 3, 3, 6])))) for _ in range(count)]


def tokens(trees: list[PromptTree], group: list[int], padded: bool) -> int:
    if not padded:
        return sum(len(trees[index].prompt) + sum(map(len, trees[index].completions)) for index in group)
    rows = [len(trees[index].prompt) + len(ids) for index in group for ids in trees[index].completions]
    return len(rows) * -(-max(rows, default=0) // 8) * 8


def loads(trees: list[PromptTree], rank_plan: RankPlan) -> list[float]:
    return [sum(HALF_BILLION.forward(trees[index]) for index in group) for group in rank_plan]


def fewest_padded(trees: list[PromptTree], remaining: list[int], budget: int) -> int:
    """Return the smallest number of micro-batches: try all for the first tree, each with the best split of the rest."""
    if not remaining:
        return 0
    first, rest = remaining[0], remaining[1:]
    best = len(remaining)
    for subset in range(2 ** len(rest)):
        group = [first] + [index for bit, index in enumerate(rest) if subset >> bit & 1]
        if len(group) == 1 or tokens(trees, group, padded=True) <= budget:
            others = [index for index in rest if index not in group]
            best = min(best, 1 + fewest_padded(trees, others, budget))
    return best


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_plan_uses_each_tree_once_within_the_budget(ranks: int, padded: bool) -> None:
    for seed in range(150):
        trees = random_trees(seed)
        plans = plan_micro_batches(trees, ranks, 100, HALF_BILLION, padded=padded)
        groups = [group for rank_plan in plans for group in rank_plan]
        assert len(plans) == ranks
        assert len({len(rank_plan) for rank_plan in plans}) == 1, "ranks run different numbers of forwards"
        assert sorted(index for group in groups for index in group) == list(range(len(trees)))
        assert all(group == sorted(group) for group in groups)
        assert all(tokens(trees, group, padded) <= 100 or len(group) == 1 for group in groups)
        if not all(groups):
            assert max(map(len, groups)) == 1, "a rank idles while another has two trees in one micro-batch"
        assert plans == plan_micro_batches(trees, ranks, 100, HALF_BILLION, padded=padded)


@pytest.mark.parametrize("padded", [False, True])
def test_trees_that_fit_into_one_forward_are_one_micro_batch(padded: bool) -> None:
    trees = [tree(4, 4, 3), tree(2, 3, 3), tree(1, 1, 1)]
    assert plan_micro_batches(trees, 1, 64, HALF_BILLION, padded=padded) == [[[0, 1, 2]]]


def test_ranks_without_a_tree_get_a_dummy() -> None:
    plans = plan_micro_batches([tree(5, 5, 5), tree(9, 9, 9)], 4, 1000, HALF_BILLION)
    assert sorted(plans) == [[[]], [[]], [[0]], [[1]]]


def test_the_only_split_that_fits_is_found() -> None:
    # Sizes 5, 5, 4, 3, 3: if trees are spread evenly, the last one does not fit and a third micro-batch is needed.
    trees = [tree(size - 2, 1, 1) for size in (5, 5, 4, 3, 3)]
    assert sorted(plan_micro_batches(trees, 1, 10, HALF_BILLION)[0]) == [[0, 1], [2, 3, 4]]


def test_without_trees_there_are_no_forwards() -> None:
    assert plan_micro_batches([], 2, 100, HALF_BILLION) == [[], []]


@pytest.mark.parametrize(("pairs", "budget"), [(512, 4096), (2048, 4096), (2048, 16_384)])
@pytest.mark.parametrize("seed", range(4))
def test_micro_batches_are_full(pairs: int, budget: int, seed: int) -> None:
    trees = hh_like(pairs, seed)
    (groups,) = plan_micro_batches(trees, 1, budget, HALF_BILLION)
    assert tokens(trees, list(range(pairs)), padded=False) / (len(groups) * budget) >= 0.97


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [4096, 8192])
def test_ranks_have_nearly_equal_flops(budget: int, seed: int) -> None:
    trees = hh_like(512, seed)
    plans = plan_micro_batches(trees, 8, budget, HALF_BILLION)
    per_rank = [loads(trees, rank_plan) for rank_plan in plans]
    totals = [sum(rank) for rank in per_rank]
    assert max(totals) / min(totals) <= 1.02
    # All ranks wait for each other in every forward, so each forward takes as long as that of the slowest rank.
    waiting = 8 * sum(map(max, zip(*per_rank, strict=True))) / sum(totals)
    assert waiting <= 1.02
    assert len(plans[0]) == -(-sum(entry.tokens for entry in trees) // (8 * budget)), "more forwards than tokens need"


def test_flops_are_balanced_and_not_tokens() -> None:
    # All trees have the same number of tokens, but the head computes nine times as many in every second one.
    trees = [tree(90, 5, 5), tree(10, 45, 45)] * 8
    head_heavy = FlopsModel(1.0, 10.0, ())
    totals = [
        sum(head_heavy.forward(trees[index]) for group in rank_plan for index in group)
        for rank_plan in plan_micro_batches(trees, 4, 1000, head_heavy)
    ]
    assert max(totals) == min(totals)


@pytest.mark.parametrize("seed", range(12))
def test_padded_rows_of_pairs_take_the_fewest_forwards(seed: int) -> None:
    draw = random.Random(seed)
    trees = [tree(draw.randint(1, 30), draw.randint(1, 30), draw.randint(1, 30)) for _ in range(7)]
    (groups,) = plan_micro_batches(trees, 1, 200, HALF_BILLION, padded=True)
    assert len(groups) == fewest_padded(trees, list(range(7)), 200)


def test_padded_rows_of_a_micro_batch_have_similar_lengths() -> None:
    trees = hh_like(512, 0)
    plans = plan_micro_batches(trees, 8, 4096, HALF_BILLION, padded=True)
    # In any plan, both rows of a pair are as wide as its longer one; padding because of other pairs is small.
    minimum = sum(tokens(trees, [index], padded=True) for index in range(len(trees)))
    computed = sum(tokens(trees, group, padded=True) for rank_plan in plans for group in rank_plan)
    assert minimum / computed >= 0.95


@pytest.mark.parametrize("padded", [False, True])
def test_ten_thousand_trees_take_less_than_a_second(padded: bool) -> None:
    trees = hh_like(10_000, 0)
    started = time.process_time()
    plan_micro_batches(trees, 8, 4096, HALF_BILLION, padded=padded)
    assert time.process_time() - started < 1.0
