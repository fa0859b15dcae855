"""A rank's side of the feed: batches are asked for before they are needed."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from raydpo.batching.order import global_batch_bounds
from raydpo.feed.batches import RankBatch
from raydpo.feed.handle import FeedHandle
from raydpo.feed.schedule import Schedule
from raydpo.runtime.actors import get_result
from raydpo.tr_dpo.version import ReferenceVersion

if TYPE_CHECKING:
    from ray import ObjectRef

DEPTH = 2
"""Batches that are made while one is trained on."""


class Prefetcher:
    """Fetches one rank's batches from a feed, ahead of need."""

    def __init__(self, feed: FeedHandle, rank: int, schedule: Schedule, version: ReferenceVersion | None) -> None:
        """Fetch batches of the schedule's size; `version` is the reference in force, None if it never changes."""
        self.version = version
        """Version of the reference that scores the batches; set it only while no batch is on its way."""
        self.padded = False
        """Whether micro-batches are planned for padded rows, as packed rows were given up; set it before any batch."""
        self._feed = feed
        self._rank = rank
        self._schedule = schedule
        self._coming: OrderedDict[int, ObjectRef[RankBatch]] = OrderedDict()

    def get(self, position: int, end: int) -> RankBatch:
        """Return this rank's share of the batch at a position, and ask for the next ones up to the position `end`."""
        self.ask(position, end)
        return get_result(self._coming.pop(position))

    def ask(self, position: int, end: int) -> None:
        """Ask for the batch at a position and for the `DEPTH` batches after it, up to the position `end`."""
        for _ in range(DEPTH + 1):
            if position >= end:
                break
            if position not in self._coming:
                self._coming[position] = self._feed.fetch(position, self._rank, self.version, self.padded)
            position = global_batch_bounds(position, self._schedule.pairs, self._schedule.global_batch)[1]
