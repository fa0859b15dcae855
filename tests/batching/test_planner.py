"""Sharing a global batch: nothing lost, nothing doubled, the same number of forwards everywhere."""

import random

import pytest

from raydpo.batching.planner import plan


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("pairs", [1, 2, 7, 16, 61])
@pytest.mark.parametrize("max_pairs", [1, 4])
def test_each_pair_is_on_one_rank_once(ranks: int, pairs: int, max_pairs: int) -> None:
    lengths = [random.Random(pairs).randint(1, 900) for _ in range(pairs)]
    plans = plan(lengths, ranks, max_pairs)
    assert len(plans) == ranks
    assert len({len(rank_plan) for rank_plan in plans}) == 1, "ranks make different numbers of forwards"
    assert sorted(pair for rank_plan in plans for group in rank_plan for pair in group) == list(range(pairs))
    assert max(len(group) for rank_plan in plans for group in rank_plan) <= max_pairs


def test_no_more_forwards_than_needed() -> None:
    assert [len(rank_plan) for rank_plan in plan([10] * 9, 2, 2)] == [3, 3]
    assert [len(rank_plan) for rank_plan in plan([10] * 8, 2, 2)] == [2, 2]


def test_ranks_share_tokens_evenly() -> None:
    lengths = [random.Random(0).randint(10, 1000) for _ in range(256)]
    totals = [
        sum(max(lengths[pair] for pair in group) * len(group) for group in rank_plan)
        for rank_plan in plan(lengths, 4, 8)
    ]
    assert max(totals) / min(totals) < 1.05


def test_little_is_padded() -> None:
    lengths = [random.Random(1).randint(10, 1000) for _ in range(256)]
    padded = sum(max(lengths[pair] for pair in group) * len(group) for group in plan(lengths, 1, 8)[0])
    assert sum(lengths) / padded > 0.95
