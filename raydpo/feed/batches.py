"""From a position in the run to the micro-batches of every rank.

A position counts pairs since the start of the run. What `BatchSource` returns for it is a pure function (`FeedSpec`,
`batching.order`, `batching.planner`), so that it needs no saved state: a restarted feed, or a rank that resumes from a
checkpoint, asks for a position again and gets the same pairs.
"""

import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raydpo.batching.collate import collate_scored
from raydpo.batching.flops import FlopsModel
from raydpo.batching.micro_batch import MicroBatch
from raydpo.batching.order import EpochOrder, Window, global_batch_bounds, group_equal_keys
from raydpo.batching.planner import MicroBatchPlanner
from raydpo.batching.prefix_tree import PromptTree
from raydpo.blocks.block import ScoredBlock, TokenizedBlock
from raydpo.blocks.schema import Block, IntArray, ScoredPair
from raydpo.reference.readers import LogpReader
from raydpo.tr_dpo.schedule import SyncSchedule
from raydpo.tr_dpo.version import ReferenceVersion, ScoringRequest

KEPT_WINDOWS = 2
"""Shuffle windows in memory: the present one, and the next, which faster ranks read already."""


@dataclass(frozen=True)
class FeedSpec:
    """Everything that the order of pairs and their division into micro-batches depend on."""

    seed: int
    sampling: str
    """random, group_by_prompt or sequential (`train_sampling_strategy`)."""
    window: int
    """Size of the shuffle window, in blocks."""
    global_batch: int
    """Pairs per update."""
    planner: MicroBatchPlanner
    update_flops: FlopsModel
    """Cost model of an update: forward and backward."""
    ranks: int
    with_prompts: bool = False
    """Whether the objective counts the likelihood of the chosen completions' prompts too."""
    sync: SyncSchedule | None = None
    """Sync intervals, if each version of the reference scores the pairs of its interval only; None: it scores all."""

    def order(self, blocks: Sequence[Block], epoch: int) -> EpochOrder:
        """Return the order of an epoch's pairs."""
        sizes = [block.pairs for block in blocks]
        shuffle = self.sampling != "sequential"
        return EpochOrder(sizes, seed=self.seed, epoch=epoch, window=self.window, shuffle=shuffle)


@dataclass(frozen=True)
class RankBatch:
    """One rank's share of a global batch."""

    start: int
    """Position of the global batch."""
    stop: int
    """Position of the next global batch."""
    micro_batches: tuple[MicroBatch, ...]
    """This rank's micro-batches; every rank has the same number of them."""
    tokens: int
    """Tokens of the global batch without padding, with the prompt counted for each sequence (TRL's `num_tokens`)."""
    computed_tokens: int
    """Tokens of the global batch that forwards compute: each prompt, and each completion of it, once."""
    flops: float
    """Floating-point operations of the update over all ranks."""
    nll_tokens: float
    """Tokens of the global batch that a likelihood term counts: chosen completions, and their prompts if asked for.
    Those of a pair count by its weight."""
    weight: float
    """Sum of the weights of the global batch's pairs; without weights their number."""
    pair_ids: tuple[str, ...]
    """Pairs of the whole global batch in order, for rank 0, which writes the ledger; empty for other ranks."""

    @property
    def pairs(self) -> int:
        """Number of pairs of the global batch, over all ranks."""
        return self.stop - self.start

    @property
    def mean_nll_tokens(self) -> float:
        """Mean number of tokens of a pair that a likelihood term counts, weighted by the pairs' weights."""
        return self.nll_tokens / self.weight if self.weight else 1.0  # without weights above 0 each term is 0

    @property
    def mean_weight(self) -> float:
        """Mean weight of a pair; 1 if all weights are 0, as the losses are divided by it."""
        return self.weight / self.pairs if self.weight else 1.0


class BatchSource:
    """Makes global batches by position, from blocks and their scores."""

    def __init__(self, blocks: Sequence[Block], reader: LogpReader, spec: FeedSpec) -> None:
        """Take the blocks in the run's order, and the reader that has, or waits for, their scores."""
        self._blocks = list(blocks)
        self._reader = reader
        self._spec = spec
        self._pairs = sum(block.pairs for block in blocks)
        self._orders: dict[int, EpochOrder] = {}
        self._windows: OrderedDict[tuple[str, int, int, int], tuple[IntArray, dict[int, ScoredBlock]]] = OrderedDict()

    def request_name(self, position: int, version: ReferenceVersion) -> str:
        """Return the name of the request for the scores that the sync interval of a position needs."""
        start, stop = self._interval(position)
        return f"{version.identity.digest}:{start}-{stop}"

    def request(self, position: int, version: ReferenceVersion) -> ScoringRequest:
        """Return the request for the scores that the sync interval of a position needs from a version."""
        blocks = self._blocks if self._spec.sync is None else self._parts(*self._interval(position))
        return ScoringRequest(self.request_name(position, version), version, tuple(blocks))

    def pairs(self, position: int, version: ReferenceVersion | None = None) -> list[ScoredPair]:
        """Return the pairs of the global batch at a position, in order, with their scores.

        `version` is the reference that scores them; None if the reference never changes.
        """
        if version is not None:
            self._reader.switch_to(version.identity)
        start, stop = global_batch_bounds(position, self._pairs, self._spec.global_batch)
        interval = self._interval(start)
        epoch, offset = divmod(start, self._pairs)
        return [self._pair(epoch, offset + index, interval) for index in range(stop - start)]

    def rank_batches(
        self, position: int, version: ReferenceVersion | None = None, *, padded: bool = False
    ) -> list[RankBatch]:
        """Return each rank's share of the global batch at a position.

        With `padded`, micro-batches are planned for padded rows, also where the plan was to pack them.
        """
        pairs, planner = self.pairs(position, version), self._spec.planner
        if padded:
            planner = replace(planner, padded=True)
        ranks = planner.split(pairs, self._spec.ranks)
        all_trees = [tree for micro_batches in ranks for trees in micro_batches for tree in trees]
        tokens = sum(2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
        flops = sum(map(self._spec.update_flops.forward, all_trees))
        with_prompts = self._spec.with_prompts
        nll_tokens = sum(pair.weight * pair.chosen_targets for pair in pairs)
        nll_tokens += sum(pair.weight * (len(pair.prompt_ids) - 1) for pair in pairs) if with_prompts else 0
        spare = _spare_image(all_trees) if self._spec.ranks > 1 else None
        return [
            RankBatch(
                start=position,
                stop=position + len(pairs),
                micro_batches=tuple(
                    _with_spare(
                        collate_scored(trees, pairs, with_prompts=with_prompts, multiple=planner.multiple), spare
                    )
                    for trees in micro_batches
                ),
                tokens=tokens,
                computed_tokens=sum(tree.tokens for tree in all_trees),
                flops=flops,
                nll_tokens=nll_tokens,
                weight=sum(pair.weight for pair in pairs),
                pair_ids=tuple(pair.pair_id for pair in pairs) if rank == 0 else (),
            )
            for rank, micro_batches in enumerate(ranks)
        ]

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders = {epoch: self._spec.order(self._blocks, epoch)}
        return self._orders[epoch]

    def _interval(self, position: int) -> tuple[int, int]:
        """Return the positions (start, stop) of the pairs that one version of the reference scores."""
        if self._spec.sync is None:
            return 0, sys.maxsize
        return self._spec.sync.interval(position, self._pairs, self._spec.global_batch)

    def _parts(self, start: int, stop: int) -> Iterator[Block]:
        """Yield the part of each block that the positions from start to stop need, in reading order."""
        while start < stop:
            epoch, offset = divmod(start, self._pairs)
            index = self._order(epoch).window_of(offset)
            window = self._order(epoch).windows[index]
            first = epoch * self._pairs + window.start
            yield from self._parts_of_window(window, self._rows(epoch, index), first, (start, stop)).values()
            start = first + window.pairs

    def _parts_of_window(
        self, window: Window, rows: IntArray, first: int, interval: tuple[int, int]
    ) -> dict[int, Block]:
        """Return the part of each block that an interval of positions needs, by block; blocks not needed are left out.

        `rows` are the rows of the shuffle window, the first of which has the position `first`.
        """
        needed = rows[max(interval[0] - first, 0) : max(interval[1] - first, 0)]
        rows_of = {block: np.sort(needed[needed[:, 0] == block, 1]).tolist() for block in window.blocks}
        return {block: self._blocks[block].part(chosen) for block, chosen in rows_of.items() if chosen}

    def _rows(self, epoch: int, index: int) -> IntArray:
        """Return a shuffle window's pairs in training order, [pairs, 2]: block, row in the block."""
        order = self._order(epoch)
        rows = order.window_rows(index)
        if self._spec.sampling != "group_by_prompt":
            return rows
        blocks = {block: TokenizedBlock(self._blocks[block]) for block in order.windows[index].blocks}
        return rows[group_equal_keys([blocks[int(block)].prompt(int(row)).tobytes() for block, row in rows])]

    def _pair(self, epoch: int, offset: int, interval: tuple[int, int]) -> ScoredPair:
        order = self._order(epoch)
        index = order.window_of(offset)
        key = (self._reader.digest, interval[0], epoch, index)
        if key not in self._windows:
            rows, first = self._rows(epoch, index), epoch * self._pairs + order.windows[index].start
            parts = self._parts_of_window(order.windows[index], rows, first, interval)
            blocks = {block: self._reader.read(part) for block, part in parts.items()}
            for block, part in parts.items():
                if part.rows is not None:  # rows of the block become rows of the part that was read
                    here = rows[:, 0] == block
                    rows[here, 1] = np.searchsorted(part.rows, rows[here, 1])
            self._windows[key] = (rows, blocks)
            if len(self._windows) > KEPT_WINDOWS:
                self._windows.popitem(last=False)
        rows, blocks = self._windows[key]
        block, row = rows[offset - order.windows[index].start]
        return blocks[int(block)].pair(int(row))


def _spare_image(trees: Sequence[PromptTree]) -> str | None:
    """Return the digest of an image of a global batch; None if it has none."""
    return next((digest for tree in trees for digest in tree.images), None)


def _with_spare(batch: MicroBatch, spare: str | None) -> MicroBatch:
    """Return the micro-batch with a spare image if it has none.

    Each forward of a global batch then runs the vision tower, or none does: under ZeRO-3 its modules are collectives,
    and under the other stages its gradients are.
    """
    return batch if spare is None or any(batch.images) else replace(batch, spare_image=spare)
