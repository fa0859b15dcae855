"""A global batch to ranks to micro-batches: the same number on every rank, near equal in work."""

from collections.abc import Sequence

import numpy as np

RankPlan = list[list[int]]
"""A rank's micro-batches, each a list of indices into the global batch; an empty one is a dummy forward."""


def plan(lengths: Sequence[int], ranks: int, max_pairs: int) -> list[RankPlan]:
    """Share `len(lengths)` pairs among `ranks`, in micro-batches of at most `max_pairs` -> one plan a rank.

    `lengths` are the pairs' token counts. Pairs of like length go together, so that little is padded; micro-batches
    that run at the same time on different ranks are alike in size, so that no rank waits long for another. The loss is
    normalised by the global batch, so this changes the speed of a step and not its result.
    """
    slots = ranks * -(-len(lengths) // (ranks * max_pairs))  # micro-batches over all ranks
    longest_first = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    groups = [[int(pair) for pair in group] for group in np.array_split(longest_first, slots)]
    plans: list[RankPlan] = [[] for _ in range(ranks)]
    for turn in range(slots // ranks):
        together = groups[turn * ranks : (turn + 1) * ranks]
        # Each turn the rank with the largest share so far takes the smallest group.
        order = range(ranks) if turn % 2 == 0 else reversed(range(ranks))
        for rank, group in zip(order, together, strict=True):
            plans[rank].append(group)
    return plans
