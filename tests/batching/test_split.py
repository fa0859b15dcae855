"""From pairs to the micro-batches of the ranks: which prompts are shared, and how trees are split and distributed."""

import numpy as np

from raydpo.batching.flops import FlopsModel
from raydpo.batching.planner import MicroBatchPlanner
from raydpo.batching.prefix_tree import build_completion_trees
from raydpo.blocks.schema import TokenizedPair

FLOPS = FlopsModel(token=1.0, completion_token=1.0, attention=((0.01, None),))


def pairs(count: int, prompts: int) -> list[TokenizedPair]:
    """Return pairs with prompts of 50 and different completions of 10 tokens; pair i has prompt i mod `prompts`."""

    def ids(start: int, length: int) -> np.ndarray:
        return np.arange(start, start + length, dtype=np.int64)

    return [
        TokenizedPair(str(index), ids(10**6 * (index % prompts), 50), ids(100 * index, 10), ids(100 * index + 50, 10))
        for index in range(count)
    ]


def test_a_prompt_is_shared_within_the_token_budget() -> None:
    (micro_batches,) = MicroBatchPlanner(tokens=100, flops=FLOPS, padded=False).split(pairs(8, prompts=1), ranks=1)
    # a prompt of 50 tokens leaves room for 2 pairs of 20
    assert [[tree.tokens for tree in trees] for trees in micro_batches] == [[90]] * 4
    assert sorted(trees[0].pairs for trees in micro_batches) == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_pairs_of_one_prompt_do_not_leave_ranks_idle() -> None:
    ranks = MicroBatchPlanner(tokens=10_000, flops=FLOPS, padded=False).split(pairs(16, prompts=1), ranks=4)
    assert all(len(micro_batches) == 1 and micro_batches[0] for micro_batches in ranks)
    loads = [sum(map(FLOPS.forward, trees)) for (trees,) in ranks]
    assert max(loads) / min(loads) < 1.5


def test_completions_of_a_prompt_are_packed_two_at_a_time() -> None:
    prompt, completions = np.arange(50), [np.arange(start, start + 10) for start in range(7)]

    def sizes(max_tokens: int, one_pair: bool = False) -> list[int]:
        trees = build_completion_trees(prompt, completions, max_tokens, one_pair=one_pair)
        assert [ids.tolist() for tree in trees for ids in tree.completions] == [ids.tolist() for ids in completions]
        return [len(tree.completions) for tree in trees]

    assert sizes(10_000) == [7]
    assert sizes(100) == [4, 3]  # a prompt of 50 tokens leaves room for 5 completions of 10, so for 2 times 2
    assert sizes(60) == [2, 2, 2, 1]  # two completions go together even over the budget
    assert sizes(10_000, one_pair=True) == [2, 2, 2, 1]


def test_padded_rows_share_no_prompt() -> None:
    ((trees,),) = MicroBatchPlanner(tokens=10_000, flops=FLOPS, padded=True).split(pairs(6, prompts=2), ranks=1)
    assert sorted(tree.pairs for tree in trees) == [(index,) for index in range(6)]
