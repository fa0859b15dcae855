"""A store whose reader waits for scores that are to come. Imports no torch, as the feed comes by here."""

import time
from dataclasses import dataclass, field

from raydpo import storage
from raydpo.errors import ReferenceMismatch
from raydpo.reference.store import ReferenceStore, ScoredBlock
from raydpo.schema import Block

LOOK_S = 0.1
"""How often a reader looks for a block that is being scored."""


@dataclass
class AwaitedStore:
    """Reads blocks as `ReferenceStore` does, and waits for those that have no scores yet."""

    store: ReferenceStore
    failure: str = field(default="", init=False)
    """Why no more blocks will come; empty while they may."""

    @property
    def digest(self) -> str:
        """What names the reference."""
        return self.store.digest

    def fail(self, message: str) -> None:
        """No more blocks will come."""
        self.failure = message

    def read(self, block: Block) -> ScoredBlock:
        """A block's pairs and scores, once they are there; `ReferenceMismatch` where they will not come."""
        while not storage.exists(self.store.url(block)):
            if self.failure:
                raise ReferenceMismatch(self.failure)
            time.sleep(LOOK_S)
        return self.store.read(block)
