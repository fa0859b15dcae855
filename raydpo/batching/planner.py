"""Division of a global batch into micro-batches per rank: few, equally many on every rank, and nearly equal in work."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raydpo.batching.flops import FlopsModel, padded_width
from raydpo.batching.prefix_tree import PromptTree, build_prompt_trees
from raydpo.blocks.schema import TokenizedPair

TreeGroup = list[int]
"""Indices of the trees of one micro-batch."""
RankPlan = list[list[int]]
"""The micro-batches of one rank, each a list of indices into the trees; an empty list is a dummy forward."""
Load = Callable[[TreeGroup], float]
"""Function that returns the FLOPs of a forward of a group."""


def plan_micro_batches(
    trees: Sequence[PromptTree], ranks: int, budget: int, flops: FlopsModel, *, padded: bool = False
) -> list[RankPlan]:
    """Divide trees among ranks in micro-batches of at most `budget` tokens, and return one plan per rank.

    Each tree is in exactly one micro-batch, which exceeds `budget` only if it holds a single tree that does. All ranks
    get the same number of micro-batches, the fewest that best-fit packing finds; one is empty only if none holds two
    trees. Micro-batches that run in the same turn on different ranks have similar work, and so do the totals of
    the ranks: under ZeRO-3 all ranks wait for the slowest in every layer. The heaviest micro-batches come first, so
    that a run that lacks memory fails at once.

    `padded` is for models whose forward cannot share a prompt: each completion is a row of its own, all rows of a
    micro-batch are as wide as the widest, and its size in tokens is rows x width. Trees of similar length are then
    grouped together.

    Results do not depend on the plan, as the loss is normalised by the global batch; the time of a step does.
    """
    groups, load = (_padded if padded else _packed)(trees, ranks, budget, flops)
    return _assign_to_ranks(groups, ranks, load)


def _packed(trees: Sequence[PromptTree], ranks: int, budget: int, flops: FlopsModel) -> tuple[list[TreeGroup], Load]:
    """Return the micro-batches as packed rows, a multiple of `ranks` in number, and their load function."""
    sizes = [tree.tokens for tree in trees]
    loads = [flops.forward(tree) for tree in trees]

    def load(group: TreeGroup) -> float:
        return sum(loads[index] for index in group)

    tightest = _best_fit(sizes, budget)
    slots = _round_up(len(tightest), ranks)
    # With little room to spare, spreading by tokens may succeed where FLOPs fail, and tokens are most of the work.
    groups = _spread(sizes, loads, slots, budget) or _spread(sizes, sizes, slots, budget) or tightest
    return _split(groups, slots, load), load


def _round_up(count: int, ranks: int) -> int:
    """Return `count` rounded up to a multiple of `ranks`."""
    return -(-count // ranks) * ranks


def _largest_first(sizes: Sequence[float]) -> TreeGroup:
    """Return the indices of the sizes in descending order of size."""
    return sorted(range(len(sizes)), key=lambda index: -sizes[index])  # stable: equal sizes keep their order


def _best_fit(sizes: Sequence[int], budget: int) -> list[TreeGroup]:
    """Put the trees, largest first, each into the group with the least sufficient room (best-fit decreasing).

    The resulting groups are few and nearly full, except for the last.
    """
    groups: list[TreeGroup] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, group), in ascending order
    for index in _largest_first(sizes):
        place = bisect_left(rooms, (sizes[index], -1))
        if place < len(rooms):
            room, group = rooms.pop(place)
        else:
            room, group = budget, len(groups)
            groups.append([])
        groups[group].append(index)
        insort(rooms, (room - sizes[index], group))
    return groups


def _spread(sizes: Sequence[int], loads: Sequence[float], slots: int, budget: int) -> list[TreeGroup] | None:
    """Put the trees, heaviest first, each into the least loaded group with enough room, so that loads come out similar.

    Return None if a tree fits into no group. A group that is too full for a tree is put aside until one fits into it.
    """
    groups: list[TreeGroup] = [[] for _ in range(slots)]
    rooms = [budget] * slots
    open_groups = [(0.0, group) for group in range(slots)]  # heap, least load first
    too_full: list[tuple[int, float, int]] = []  # heap, most room first
    for index in _largest_first(loads):
        while too_full and -too_full[0][0] >= sizes[index]:
            _, load, group = heapq.heappop(too_full)
            heapq.heappush(open_groups, (load, group))
        while open_groups:
            load, group = heapq.heappop(open_groups)
            if rooms[group] >= sizes[index] or not groups[group]:
                break
            heapq.heappush(too_full, (-rooms[group], load, group))
        else:
            return None
        groups[group].append(index)
        rooms[group] -= sizes[index]
        heapq.heappush(open_groups, (load + loads[index], group))
    return groups


def _padded(trees: Sequence[PromptTree], ranks: int, budget: int, flops: FlopsModel) -> tuple[list[TreeGroup], Load]:
    """Return the micro-batches as padded rows, a multiple of `ranks` in number, and their load function."""
    widths = [padded_width(tree.longest) for tree in trees]
    rows = [len(tree.lengths) for tree in trees]

    def load(group: TreeGroup) -> float:
        width = max((widths[index] for index in group), default=0)
        return sum(flops.forward_padded(trees[index], width) for index in group)

    order = _largest_first(widths)
    heads = [flops.forward_padded(tree, 0) for tree in trees]
    bodies = [flops.forward_padded(tree, width) - head for tree, width, head in zip(trees, widths, heads, strict=True)]

    def cut(limit: float) -> list[TreeGroup]:
        """Return contiguous runs of `order`, each as long as `budget` and a limit on its load allow."""
        groups: list[TreeGroup] = []
        taken, width, row, scored = 0, 0, 0.0, 0.0
        for index in order:
            taken, scored = taken + rows[index], scored + heads[index]
            if not groups or taken * width > budget or taken * row + scored > limit:
                groups.append([])
                taken, scored = rows[index], heads[index]
                width, row = widths[index], bodies[index] / rows[index]
            groups[-1].append(index)
        return groups

    fewest = cut(float("inf"))
    slots = _round_up(len(fewest), ranks)
    low, high = 0.0, 1.001 * max(map(load, fewest), default=0.0)  # slightly more, as sums are rounded
    for _ in range(12):  # bisect the least limit for which the slots suffice, to about 1/1000
        limit = (low + high) / 2
        low, high = (low, limit) if len(cut(limit)) <= slots else (limit, high)
    return _split(cut(high), slots, load), load


def _split(groups: list[TreeGroup], slots: int, load: Load) -> list[TreeGroup]:
    """Return `slots` groups: halve the heaviest group of several trees until there are enough; add empty groups."""
    groups = [group for group in groups if group]
    heaviest = [(-load(group), group) for group in groups if len(group) > 1]
    heapq.heapify(heaviest)
    single = [group for group in groups if len(group) == 1]
    while heaviest and len(heaviest) + len(single) < slots:
        _, group = heapq.heappop(heaviest)
        for half in (group[::2], group[1::2]):  # groups are in order of size, so the halves have similar sizes
            if len(half) > 1:
                heapq.heappush(heaviest, (-load(half), half))
            else:
                single.append(half)
    groups = [group for _, group in heaviest] + single
    return groups + [[] for _ in range(slots - len(groups))]


def _assign_to_ranks(groups: list[TreeGroup], ranks: int, load: Load) -> list[RankPlan]:
    """Return one plan per rank: turns take the groups in descending order of load, one group per rank.

    In each turn, the rank with the least total load so far gets the heaviest group.
    """
    in_turns = sorted((-load(group), sorted(group)) for group in groups)
    plans: list[RankPlan] = [[] for _ in range(ranks)]
    totals = [0.0] * ranks
    for first in range(0, len(groups), ranks):
        least_first = sorted(range(ranks), key=totals.__getitem__)
        for rank, (negative_load, group) in zip(least_first, in_turns[first : first + ranks], strict=True):
            plans[rank].append(group)
            totals[rank] -= negative_load
    return plans


@dataclass(frozen=True)
class MicroBatchPlanner:
    """The settings of micro-batches. They change the speed of a step, and its result by no more than rounding."""

    tokens: int
    """Maximum tokens per micro-batch, with shared prompts counted once; only a single pair may have more."""
    flops: FlopsModel
    """Model of the work by which micro-batches and ranks are balanced."""
    padded: bool
    """Whether each completion is a padded row of its own, as the model cannot share prompts."""
    multiple: int = 1
    """Number of tokens that the length of packed rows is a multiple of; they are filled up to it."""

    def split(self, pairs: Sequence[TokenizedPair], ranks: int) -> list[list[list[PromptTree]]]:
        """Return the micro-batches of each rank, each as a list of trees; an empty list is a dummy forward."""
        # A tree goes to one rank as a whole: with more pairs than a rank's share, it would leave other ranks idle.
        trees = build_prompt_trees(pairs, self.tokens, max_pairs=1 if self.padded else -(-len(pairs) // ranks))
        return [[[trees[index] for index in group] for group in plan] for plan in self.plan(trees, ranks)]

    def plan(self, trees: Sequence[PromptTree], ranks: int) -> list[RankPlan]:
        """Return the micro-batches of each rank as indices into the trees (see `plan_micro_batches`)."""
        return plan_micro_batches(trees, ranks, self.tokens, self.flops, padded=self.padded)
