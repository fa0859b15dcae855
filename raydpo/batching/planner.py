"""A global batch to ranks to micro-batches: few, the same number on every rank, near equal in work."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raydpo.batching.flops import FlopsModel, padded_width
from raydpo.batching.prefix_tree import PromptTree, build_prompt_trees
from raydpo.blocks.schema import TokenizedPair

TreeGroup = list[int]
"""The trees of a micro-batch, as indices."""
RankPlan = list[list[int]]
"""A rank's micro-batches, each a list of indices into the trees; an empty one is a dummy forward."""
Load = Callable[[TreeGroup], float]
"""FLOPs of a forward of the group."""


def plan_micro_batches(
    trees: Sequence[PromptTree], ranks: int, budget: int, flops: FlopsModel, *, padded: bool = False
) -> list[RankPlan]:
    """Share trees among `ranks`, in micro-batches of at most `budget` tokens -> one plan a rank.

    Each tree is in one micro-batch, which is over `budget` only where that tree alone is. All ranks get the same number
    of micro-batches, the fewest that best-fit packing finds; one is empty only where no two trees are together. Those
    that run at the same turn on different ranks are alike in work, as are the totals of the ranks: under ZeRO-3 all
    wait for the slowest in every layer. The heaviest come first, so that a lack of memory shows at once.

    `padded` is for models whose forward cannot share a prompt: each completion is a row of its own, all rows of a
    micro-batch are as wide as the widest, and its tokens are rows x width. Trees of like length then go together.

    Results do not depend on the plan, as the loss is normalised by the global batch; the time of a step does.
    """
    groups, load = (_padded if padded else _packed)(trees, ranks, budget, flops)
    return _dealt(groups, ranks, load)


def _packed(trees: Sequence[PromptTree], ranks: int, budget: int, flops: FlopsModel) -> tuple[list[TreeGroup], Load]:
    sizes = [tree.tokens for tree in trees]
    loads = [flops.forward(tree) for tree in trees]

    def load(group: TreeGroup) -> float:
        return sum(loads[index] for index in group)

    tightest = _best_fit(sizes, budget)
    slots = _multiple(len(tightest), ranks)
    # Where there is little room to spare, sharing out by tokens may still succeed, and tokens are most of the work.
    groups = _spread(sizes, loads, slots, budget) or _spread(sizes, sizes, slots, budget) or tightest
    return _split(groups, slots, load), load


def _multiple(count: int, ranks: int) -> int:
    return -(-count // ranks) * ranks


def _largest_first(sizes: Sequence[float]) -> TreeGroup:
    return sorted(range(len(sizes)), key=lambda index: -sizes[index])  # stable, so that equals stay in order


def _best_fit(sizes: Sequence[int], budget: int) -> list[TreeGroup]:
    """The largest first, each into the group that it fills best: few groups, near full, but for the last."""
    groups: list[TreeGroup] = []
    rooms: list[tuple[int, int]] = []  # tokens left, and the group: in ascending order
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
    """The greatest load first, each into the group of least load that has room, so that loads come out alike.

    None where one finds no room. A group that is too full for one is put aside until there is one that it has room for.
    """
    groups: list[TreeGroup] = [[] for _ in range(slots)]
    rooms = [budget] * slots
    open_groups = [(0.0, group) for group in range(slots)]  # a heap: the least load first
    too_full: list[tuple[int, float, int]] = []  # a heap: the most room first
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
    widths = [padded_width(tree.longest) for tree in trees]
    rows = [len(tree.lengths) for tree in trees]

    def load(group: TreeGroup) -> float:
        width = max((widths[index] for index in group), default=0)
        return sum(flops.forward_padded(trees[index], width) for index in group)

    order = _largest_first(widths)
    heads = [flops.forward_padded(tree, 0) for tree in trees]
    bodies = [flops.forward_padded(tree, width) - head for tree, width, head in zip(trees, widths, heads, strict=True)]

    def cut(limit: float) -> list[TreeGroup]:
        """Runs of `order`, each as long as `budget` and a `limit` on its load allow."""
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
    slots = _multiple(len(fewest), ranks)
    low, high = 0.0, 1.001 * max(map(load, fewest), default=0.0)  # a little more, as sums are rounded
    for _ in range(12):  # the least limit under which the slots suffice, to a thousandth or so
        limit = (low + high) / 2
        low, high = (low, limit) if len(cut(limit)) <= slots else (limit, high)
    return _split(cut(high), slots, load), load


def _split(groups: list[TreeGroup], slots: int, load: Load) -> list[TreeGroup]:
    """Halve the group of greatest load among those of several trees until there are `slots`; the rest are empty."""
    groups = [group for group in groups if group]
    heaviest = [(-load(group), group) for group in groups if len(group) > 1]
    heapq.heapify(heaviest)
    single = [group for group in groups if len(group) == 1]
    while heaviest and len(heaviest) + len(single) < slots:
        _, group = heapq.heappop(heaviest)
        for half in (group[::2], group[1::2]):  # they are in order of size
            if len(half) > 1:
                heapq.heappush(heaviest, (-load(half), half))
            else:
                single.append(half)
    groups = [group for _, group in heaviest] + single
    return groups + [[] for _ in range(slots - len(groups))]


def _dealt(groups: list[TreeGroup], ranks: int, load: Load) -> list[RankPlan]:
    """The heaviest groups to the first turn, and so on; in each turn the rank with least so far gets the heaviest."""
    in_turns = sorted((-load(group), sorted(group)) for group in groups)
    plans: list[RankPlan] = [[] for _ in range(ranks)]
    totals = [0.0] * ranks
    for first in range(0, len(groups), ranks):
        least_first = sorted(range(ranks), key=totals.__getitem__)
        for rank, (less_load, group) in zip(least_first, in_turns[first : first + ranks], strict=True):
            plans[rank].append(group)
            totals[rank] -= less_load
    return plans


@dataclass(frozen=True)
class MicroBatchPlanner:
    """What micro-batches are like; it changes the speed of a forward, and its result by no more than rounding."""

    tokens: int
    """Tokens of a micro-batch, each prompt counted once; only a single pair may have more."""
    flops: FlopsModel
    """What micro-batches and ranks are balanced by."""
    padded: bool
    """True where the model cannot share prompts, so that each completion becomes a padded row of its own."""
    multiple: int = 1
    """Packed rows are filled up to a multiple of this many tokens."""

    def split(self, pairs: Sequence[TokenizedPair], ranks: int) -> list[list[list[PromptTree]]]:
        """Of each rank the micro-batches, each as the trees in it; an empty one is a dummy forward."""
        # A tree goes to one rank as a whole: with more than a share of the pairs, it would leave other ranks idle.
        trees = build_prompt_trees(pairs, self.tokens, max_pairs=1 if self.padded else -(-len(pairs) // ranks))
        plans = plan_micro_batches(trees, ranks, self.tokens, self.flops, padded=self.padded)
        return [[[trees[index] for index in group] for group in rank_plan] for rank_plan in plans]
