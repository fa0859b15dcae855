"""The actor that gives every rank its batches."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import ray

from raydpo.blocks.schema import Block
from raydpo.feed.batches import BatchSource, FeedSpec, RankBatch, Scores
from raydpo.reference.readers import WaitingReader
from raydpo.tr_dpo.version import OnDemandReader, ReferenceVersion, ScoringRequest

KEPT_BATCHES = 8
"""Global batches in memory: more than ranks are apart, as they meet at each update."""


class Feed:
    """The actor around a `BatchSource`; it also passes the ranks' progress on to the driver's console."""

    def __init__(self, blocks: Sequence[Block], store: Scores, spec: FeedSpec) -> None:
        """As `BatchSource`."""
        self._source = BatchSource(blocks, store, spec)
        self._store = store
        self._batches: OrderedDict[tuple[int, ReferenceVersion | None], list[RankBatch]] = OrderedDict()
        self._progress: dict[str, Any] = {}

    def fetch(self, position: int, rank: int, reference: ReferenceVersion | None) -> RankBatch:
        """A rank's share of the global batch at a position, as a reference scores it; None: as the store has it."""
        key = (position, reference)
        if key not in self._batches:
            self._batches[key] = self._source.rank_batches(position, reference)
            if len(self._batches) > KEPT_BATCHES:
                self._batches.popitem(last=False)
        return self._batches[key][rank]

    @ray.method(concurrency_group="control")
    def asked(self, known: str) -> ScoringRequest | None:
        """What is to be scored now; None where that is nothing, or what has the name `known`."""
        asked = self._store.asked if isinstance(self._store, OnDemandReader) else None
        return None if asked is None or asked.name == known else asked

    @ray.method(concurrency_group="control")
    def fail(self, message: str) -> None:
        """No more scores will come: whoever waits for some is told."""
        if isinstance(self._store, WaitingReader):
            self._store.fail(message)

    @ray.method(concurrency_group="control")
    def report(self, progress: dict[str, Any]) -> None:
        """What rank 0 says of where the run is."""
        self._progress = progress

    @ray.method(concurrency_group="control")
    def progress(self) -> dict[str, Any]:
        """What rank 0 said last; empty before it said anything."""
        return self._progress


def start_feed(blocks: Sequence[Block], store: Scores, spec: FeedSpec) -> Any:
    """Start the actor; should its process die, Ray starts it anew and repeats what was asked of it."""
    # Threads: one makes batches, which may wait for scores, the other answers meanwhile.
    remote: Any = ray.remote
    actor = remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, concurrency_groups={"control": 1})(Feed)
    return actor.remote(blocks, store, spec)
