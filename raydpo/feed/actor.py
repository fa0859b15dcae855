"""The feed actor: gives every rank its batches, and says which scores the next sync interval needs (TR-DPO)."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from raydpo.blocks.schema import Block
from raydpo.feed.batches import BatchSource, FeedSpec, RankBatch
from raydpo.feed.handle import FeedHandle
from raydpo.reference.readers import LogpReader
from raydpo.tr_dpo.version import ReferenceVersion, ScoringRequest

KEPT_BATCHES = 8
"""Global batches in memory: more than ranks can be apart, as they meet at each update."""
REQUEST_TIMEOUT_S = 10.0
"""Seconds after which `next_request` returns without a request, so that no call outlives a run for long."""


class Feed:
    """The actor around a `BatchSource`. It also passes rank 0's metrics on to the driver's console."""

    def __init__(self, blocks: Sequence[Block], reader: LogpReader, spec: FeedSpec) -> None:
        """Serve the batches of these blocks; the arguments are those of `BatchSource`."""
        self._source = BatchSource(blocks, reader, spec)
        self._reader = reader
        self._batches: OrderedDict[tuple[int, ReferenceVersion | None, bool], list[RankBatch]] = OrderedDict()
        self._request: ScoringRequest | None = None
        self._new_request = threading.Condition()
        self._progress: Mapping[str, float] = {}

    def fetch(self, position: int, rank: int, version: ReferenceVersion | None, padded: bool = False) -> RankBatch:
        """Return a rank's share of the global batch at a position, once its pairs are scored.

        `version` is the reference that scores them; None if the reference never changes. `padded` says that the ranks
        have given packed rows up.
        """
        if version is not None:
            self.announce(version, position)  # a feed that was restarted has not heard of it
        key = (position, version, padded)
        if key not in self._batches:
            self._batches[key] = self._source.rank_batches(position, version, padded=padded)
            if len(self._batches) > KEPT_BATCHES:
                self._batches.popitem(last=False)
        return self._batches[key][rank]

    def announce(self, version: ReferenceVersion, position: int) -> None:
        """Request the scores that the sync interval of a position needs from this version of the reference."""
        name = self._source.request_name(position, version)
        if self._request is None or self._request.name != name:
            request = self._source.request(position, version)
            with self._new_request:
                self._request = request
                self._new_request.notify_all()

    @ray.method(concurrency_group="requests")
    def next_request(self, known: str) -> ScoringRequest | None:
        """Return the newest request, once its name differs from `known`; None after REQUEST_TIMEOUT_S."""
        with self._new_request:
            self._new_request.wait_for(lambda: self._request and self._request.name != known, REQUEST_TIMEOUT_S)
            return self._request if self._request and self._request.name != known else None

    @ray.method(concurrency_group="control")
    def fail(self, message: str) -> None:
        """Make `fetch` raise ReferenceMismatch with this message instead of waiting for scores."""
        self._reader.fail(message)

    @ray.method(concurrency_group="control")
    def report(self, line: Mapping[str, float]) -> None:
        """Keep a line of metrics from rank 0 for the driver."""
        self._progress = line

    @ray.method(concurrency_group="control")
    def progress(self) -> Mapping[str, float]:
        """Return the last line of metrics from rank 0; empty before the first."""
        return self._progress


def start_feed(blocks: Sequence[Block], reader: LogpReader, spec: FeedSpec) -> FeedHandle:
    """Start the actor. Ray restarts it if its process dies, and repeats the calls that were not answered."""
    # A thread makes batches and may wait for scores; further threads answer the calls of the other groups meanwhile.
    groups = {"control": 1, "requests": 1}
    remote: Any = ray.remote
    actor = remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, concurrency_groups=groups)(Feed)
    return FeedHandle(actor.remote(blocks, reader, spec))
