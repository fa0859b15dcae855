"""The feed: one actor that turns a position in the run into the micro-batches of every rank.

What it gives is a pure function of the position (`batching.order`, `batching.planner`), so nothing needs to be saved of
it: a restarted feed, or a rank that goes back to a checkpoint, asks for a position again and gets the same pairs.
"""

import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raydpo.batching.collate import collate_scored
from raydpo.batching.flops import FlopsModel
from raydpo.batching.micro_batch import MicroBatch
from raydpo.batching.order import EpochOrder, Window, batch_bounds, grouped
from raydpo.batching.planner import MicroBatchPlanner
from raydpo.blocks.block import ScoredBlock, TokenizedBlock
from raydpo.blocks.schema import Block, IntArray, ScoredPair
from raydpo.reference.readers import Unscored, WaitingReader
from raydpo.reference.store import ReferenceStore
from raydpo.tr_dpo.schedule import SyncSchedule
from raydpo.tr_dpo.version import OnDemandReader, ReferenceVersion, ScoringRequest

KEPT_WINDOWS = 2
"""Shuffle windows in memory: the present one, and the one that ranks ahead of the others read."""


Scores = ReferenceStore | WaitingReader | Unscored
"""Where the feed reads its blocks."""


@dataclass(frozen=True)
class FeedSpec:
    """All that the order and the cut of the batches depend on."""

    seed: int
    sampling: str
    """random, group_by_prompt or sequential (`train_sampling_strategy`)."""
    window: int
    """Shuffle window, in blocks."""
    global_batch: int
    """Pairs an update."""
    planner: MicroBatchPlanner
    update_flops: FlopsModel
    """What an update takes of floating-point operations."""
    ranks: int
    with_prompts: bool = False
    """True where the objective counts the likelihood of the chosen completions' prompts too."""
    sync: SyncSchedule | None = None
    """When the reference changes, of which only the pairs of its window are scored; None: each scores all pairs."""

    def order(self, blocks: Sequence[Block], epoch: int) -> EpochOrder:
        """The order of an epoch's pairs."""
        sizes = [block.pairs for block in blocks]
        shuffle = self.sampling != "sequential"
        return EpochOrder(sizes, seed=self.seed, epoch=epoch, window=self.window, shuffle=shuffle)


@dataclass(frozen=True)
class RankBatch:
    """One rank's share of a global batch."""

    start: int
    """Position of the global batch: pairs consumed before it since the start of the run."""
    stop: int
    """Position after it."""
    micro_batches: tuple[MicroBatch, ...]
    """As many on every rank."""
    tokens: int
    """Tokens of the global batch, each sequence with its prompt, padding not counted (TRL's `num_tokens`)."""
    computed_tokens: int
    """Tokens of the global batch that a forward computes: each prompt and each completion of it once."""
    flops: float
    """Floating-point operations of the update."""
    nll_tokens: int
    """Tokens of the global batch that a likelihood term counts: the chosen completions', with prompts where wanted."""
    pair_ids: tuple[str, ...]
    """The whole global batch, in order; for rank 0 alone, which keeps the ledger."""

    @property
    def pairs(self) -> int:
        """Pairs of the global batch, over all ranks."""
        return self.stop - self.start

    @property
    def mean_nll_tokens(self) -> float:
        """`nll_tokens` a pair."""
        return self.nll_tokens / self.pairs


class BatchSource:
    """Global batches by position, from blocks and their scores."""

    def __init__(self, blocks: Sequence[Block], store: Scores, spec: FeedSpec) -> None:
        """`blocks` in the run's order; they must all have scores in `store`."""
        self._blocks = list(blocks)
        self._store = store
        self._spec = spec
        self._pairs = sum(block.pairs for block in blocks)
        self._orders: dict[int, EpochOrder] = {}
        self._windows: OrderedDict[tuple[str, int, int, int], tuple[IntArray, dict[int, ScoredBlock]]] = OrderedDict()

    def pairs(self, position: int, reference: ReferenceVersion | None = None) -> list[ScoredPair]:
        """The pairs of the global batch at a position, in order, as a reference scores them that may have changed."""
        start, stop = batch_bounds(position, self._pairs, self._spec.global_batch)
        span = self._span(start)
        if isinstance(self._store, OnDemandReader) and reference:
            name = f"{reference.identity.digest}:{span[0]}-{span[1]}"
            if self._store.asked is None or self._store.asked.name != name:
                blocks = self._blocks if self._spec.sync is None else self._parts(*span)
                self._store.ask(ScoringRequest(name, reference, tuple(blocks)))
        epoch, offset = divmod(start, self._pairs)
        return [self._pair(epoch, offset + index, span) for index in range(stop - start)]

    def rank_batches(self, position: int, reference: ReferenceVersion | None = None) -> list[RankBatch]:
        """The global batch at a position, cut for each rank."""
        pairs, planner = self.pairs(position, reference), self._spec.planner
        ranks = planner.split(pairs, self._spec.ranks)
        every = [tree for micro_batches in ranks for trees in micro_batches for tree in trees]
        tokens = sum(2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
        flops = sum(map(self._spec.update_flops.forward, every))
        with_prompts = self._spec.with_prompts
        nll_tokens = sum(len(pair.chosen_ids) for pair in pairs)
        nll_tokens += sum(len(pair.prompt_ids) - 1 for pair in pairs) if with_prompts else 0
        return [
            RankBatch(
                start=position,
                stop=position + len(pairs),
                micro_batches=tuple(
                    collate_scored(trees, pairs, with_prompts=with_prompts, multiple=planner.multiple)
                    for trees in micro_batches
                ),
                tokens=tokens,
                computed_tokens=sum(tree.tokens for tree in every),
                flops=flops,
                nll_tokens=nll_tokens,
                pair_ids=tuple(pair.pair_id for pair in pairs) if rank == 0 else (),
            )
            for rank, micro_batches in enumerate(ranks)
        ]

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders = {epoch: self._spec.order(self._blocks, epoch)}
        return self._orders[epoch]

    def _span(self, position: int) -> tuple[int, int]:
        """The positions (first, and after the last) that are scored together with this one."""
        if self._spec.sync is None:
            return 0, sys.maxsize
        return self._spec.sync.window(position, self._pairs, self._spec.global_batch)

    def _parts(self, start: int, stop: int) -> Iterator[Block]:
        """What is needed of each block for the pairs from one position to another, in the order of reading."""
        while start < stop:
            epoch, offset = divmod(start, self._pairs)
            index = self._order(epoch).window_of(offset)
            window = self._order(epoch).windows[index]
            first = epoch * self._pairs + window.start
            yield from self._parts_of_window(window, self._rows(epoch, index), first, (start, stop)).values()
            start = first + window.pairs

    def _parts_of_window(self, window: Window, rows: IntArray, first: int, span: tuple[int, int]) -> dict[int, Block]:
        """By block: the part of it that a span of positions takes; none where it takes none.

        `rows` are those of the shuffle window, whose first is at the position `first`.
        """
        taken = rows[max(span[0] - first, 0) : max(span[1] - first, 0)]
        rows_of = {block: np.sort(taken[taken[:, 0] == block, 1]).tolist() for block in window.blocks}
        return {block: self._blocks[block].part(chosen) for block, chosen in rows_of.items() if chosen}

    def _rows(self, epoch: int, index: int) -> IntArray:
        """A shuffle window's pairs in order, [pairs, 2]: block, row in the block."""
        order = self._order(epoch)
        rows = order.window_rows(index)
        if self._spec.sampling != "group_by_prompt":
            return rows
        blocks = {block: TokenizedBlock(self._blocks[block]) for block in order.windows[index].blocks}
        return rows[grouped([blocks[int(block)].prompt(int(row)).tobytes() for block, row in rows])]

    def _pair(self, epoch: int, offset: int, span: tuple[int, int]) -> ScoredPair:
        order = self._order(epoch)
        index = order.window_of(offset)
        key = (self._store.digest, span[0], epoch, index)
        if key not in self._windows:
            rows, first = self._rows(epoch, index), epoch * self._pairs + order.windows[index].start
            parts = self._parts_of_window(order.windows[index], rows, first, span)
            blocks = {block: self._store.read(part) for block, part in parts.items()}
            for block, part in parts.items():  # from rows of the block to rows of what was read of it
                if part.rows is not None:
                    here = rows[:, 0] == block
                    rows[here, 1] = np.searchsorted(part.rows, rows[here, 1])
            self._windows[key] = (rows, blocks)
            if len(self._windows) > KEPT_WINDOWS:
                self._windows.popitem(last=False)
        rows, blocks = self._windows[key]
        block, row = rows[offset - order.windows[index].start]
        return blocks[int(block)].pair(int(row))
