"""A rank's side of the feed."""

from collections import OrderedDict
from typing import Any

from raydpo.batching.order import batch_bounds
from raydpo.feed.batches import RankBatch
from raydpo.runtime.actors import get_result
from raydpo.tr_dpo.version import ReferenceVersion


class Prefetcher:
    """A rank's side of the feed: asks for batches ahead of need."""

    def __init__(
        self, feed: Any, rank: int, *, pairs: int, global_batch: int, reference: ReferenceVersion | None, depth: int = 2
    ) -> None:
        """`pairs` an epoch; `depth` batches are under way while one is trained on."""
        self.reference = reference
        """Of a reference that changes: the one in force. It may be set where nothing is under way."""
        self._feed = feed
        self._rank = rank
        self._pairs = pairs
        self._global_batch = global_batch
        self._depth = depth
        self._ahead: OrderedDict[int, Any] = OrderedDict()

    def get(self, position: int, end: int) -> RankBatch:
        """This rank's share of the batch at a position; those after it, before `end`, are asked for too."""
        self.ask(position, end)
        batch: RankBatch = get_result(self._ahead.pop(position))
        return batch

    def ask(self, position: int, end: int) -> None:
        """Let the batches at a position and after it, before `end`, be made by the time they are needed."""
        for _ in range(self._depth + 1):
            if position >= end:
                break
            if position not in self._ahead:
                self._ahead[position] = self._feed.fetch.remote(position, self._rank, self.reference)
            position = batch_bounds(position, self._pairs, self._global_batch)[1]
