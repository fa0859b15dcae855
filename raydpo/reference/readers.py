"""A store whose reader waits for scores that are to come. Imports no torch, as the feed comes by here."""

import time
from dataclasses import dataclass, field

import numpy as np

from raydpo.blocks.block import ScoredBlock, TokenizedBlock, scores_table
from raydpo.blocks.schema import Block
from raydpo.errors import ReferenceMismatch
from raydpo.reference.store import ReferenceStore
from raydpo.runtime import storage

POLL_S = 0.1
"""How often a reader looks for a block that is being scored."""


@dataclass
class WaitingReader:
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
            time.sleep(POLL_S)
        return self.store.read(block)


@dataclass(frozen=True)
class ZeroReference:
    """Reads blocks as `ReferenceStore` does; a reference that finds all completions alike."""

    digest: str = "none"
    """What a checkpoint holds in the place of the reference's identity."""

    def read(self, block: Block) -> ScoredBlock:
        """A block's pairs, with reference log-probs of 0."""
        tokenized = TokenizedBlock(block)
        pairs = [tokenized.pair(row) for row in range(len(tokenized))]
        chosen = [np.zeros(len(pair.chosen_ids), dtype=np.float32) for pair in pairs]
        rejected = [np.zeros(len(pair.rejected_ids), dtype=np.float32) for pair in pairs]
        return ScoredBlock(tokenized, scores_table(chosen, rejected), block.url)


@dataclass(frozen=True)
class DatasetReference:
    """Reads blocks as `ReferenceStore` does; the scores are those that their rows carried."""

    digest: str = "given"
    """In the place of an identity: a block's content counts its scores."""

    def read(self, block: Block) -> ScoredBlock:
        """A block's pairs and scores."""
        tokenized = TokenizedBlock(block)
        return ScoredBlock(tokenized, tokenized.table, block.url)


Unscored = ZeroReference | DatasetReference
