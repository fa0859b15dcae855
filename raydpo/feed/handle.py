"""The feed actor as its callers see it, with types. Imports no ray, as Ray Train's controller unpickles it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray import ObjectRef

    from raydpo.feed.batches import RankBatch
    from raydpo.tr_dpo.version import ReferenceVersion, ScoringRequest


@dataclass(frozen=True)
class FeedHandle:
    """Handle of a `feed.actor.Feed`; each method returns at once with a reference to the result of the same method."""

    actor: Any

    def fetch(
        self, position: int, rank: int, version: "ReferenceVersion | None", padded: bool = False
    ) -> "ObjectRef[RankBatch]":
        """Ask for a rank's share of the global batch at a position."""
        reference: ObjectRef[RankBatch] = self.actor.fetch.remote(position, rank, version, padded)
        return reference

    def announce(self, version: "ReferenceVersion", position: int) -> "ObjectRef[None]":
        """Announce the version of the reference that is in force from a position on."""
        reference: ObjectRef[None] = self.actor.announce.remote(version, position)
        return reference

    def next_request(self, known: str) -> "ObjectRef[ScoringRequest | None]":
        """Ask for the newest scoring request, other than the one named `known`."""
        reference: ObjectRef[ScoringRequest | None] = self.actor.next_request.remote(known)
        return reference

    def fail(self, message: str) -> None:
        """Make readers stop waiting for scores."""
        self.actor.fail.remote(message)

    def report(self, line: Mapping[str, float]) -> None:
        """Pass a line of metrics on to the driver."""
        self.actor.report.remote(line)

    def progress(self) -> "ObjectRef[Mapping[str, float]]":
        """Ask for the last line of metrics that was reported."""
        reference: ObjectRef[Mapping[str, float]] = self.actor.progress.remote()
        return reference
