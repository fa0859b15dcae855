"""Where the feed reads pairs together with their reference log-probs.

Imports no torch: the feed, which loads no model, imports this module, and the first update waits for the feed.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from raydpo.blocks.block import ScoredBlock, TokenizedBlock, scores_table
from raydpo.blocks.schema import Block
from raydpo.errors import ReferenceMismatch
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.store import ReferenceStore
from raydpo.runtime import storage

POLL_S = 0.1
"""Seconds between two looks for a block that is being scored."""


class LogpReader(Protocol):
    """Reads the pairs of a block with the reference's log-prob of each completion token."""

    @property
    def digest(self) -> str:
        """Digest that identifies the reference log-probs; a checkpoint keeps it."""

    def read(self, block: Block) -> ScoredBlock:
        """Return a block's pairs with their scores, once they are there. Raises ReferenceMismatch if they never are."""

    def switch_to(self, identity: ReferenceIdentity) -> None:
        """Read the log-probs of this reference from now on (TR-DPO); no effect where no reference is scored."""

    def fail(self, message: str) -> None:
        """Stop waiting for scores: `read` raises ReferenceMismatch with this message for a block that has none."""


class _CompleteReader:
    """Base of the readers whose log-probs are all there before the feed starts: nothing to wait for or to switch."""

    def switch_to(self, identity: ReferenceIdentity) -> None:
        """Do nothing."""

    def fail(self, message: str) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class ZeroReference(_CompleteReader):
    """Reads blocks for objectives without a reference: every reference log-prob is 0."""

    digest: str = "none"
    """The fixed string that a checkpoint holds instead of a reference's digest."""

    def read(self, block: Block) -> ScoredBlock:
        """Return a block's pairs with reference log-probs of 0."""
        tokenized = TokenizedBlock(block)
        pairs = [tokenized.pair(row) for row in range(len(tokenized))]
        chosen = [np.zeros(len(pair.chosen_ids), dtype=np.float32) for pair in pairs]
        rejected = [np.zeros(len(pair.rejected_ids), dtype=np.float32) for pair in pairs]
        return ScoredBlock(tokenized, scores_table(chosen, rejected), block.url)


@dataclass(frozen=True)
class DatasetReference(_CompleteReader):
    """Reads blocks whose rows carried their reference log-probs (`reference_from_dataset`)."""

    digest: str = "given"
    """The fixed string that a checkpoint holds instead of a digest; the digest of a block covers its log-probs."""

    def read(self, block: Block) -> ScoredBlock:
        """Return a block's pairs with the log-probs stored next to their token ids."""
        tokenized = TokenizedBlock(block)
        return ScoredBlock(tokenized, tokenized.table, block.url)


@dataclass(frozen=True)
class StoreReader(_CompleteReader):
    """Reads blocks that were all scored before training (`reference_schedule` staged)."""

    store: ReferenceStore

    @property
    def digest(self) -> str:
        """Digest of the reference."""
        return self.store.digest

    def read(self, block: Block) -> ScoredBlock:
        """Return a block's pairs with the scores in the store."""
        return self.store.read(block)


@dataclass
class WaitingReader:
    """Reads blocks while they are being scored, and waits for a block that has no scores yet."""

    store: ReferenceStore
    failure: str = field(default="", init=False)
    """Why no more blocks will be scored; empty while scoring goes on."""

    @property
    def digest(self) -> str:
        """Digest of the reference that is read now."""
        return self.store.digest

    def switch_to(self, identity: ReferenceIdentity) -> None:
        """Read the scores of this reference from now on."""
        self.store = replace(self.store, identity=identity)

    def fail(self, message: str) -> None:
        """Stop waiting: no more blocks will be scored."""
        self.failure = message

    def read(self, block: Block) -> ScoredBlock:
        """Return a block's pairs with their scores, once these are in the store.

        Raises ReferenceMismatch after `fail`, if the block has no scores.
        """
        while not storage.exists(self.store.url(block)):
            if self.failure:
                raise ReferenceMismatch(self.failure)
            time.sleep(POLL_S)
        return self.store.read(block)
