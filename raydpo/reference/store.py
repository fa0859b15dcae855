"""Scored blocks on disk or behind a URL, named by (reference identity, block content).

The name says all that the scores depend on, so a file that exists is right: other learning rates, losses, seeds and
runs read the same one, and a changed shard misses only its own blocks.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raydpo.blocks import schema
from raydpo.blocks.block import Lists, ScoredBlock, TokenizedBlock
from raydpo.blocks.schema import Block
from raydpo.errors import DamagedFile
from raydpo.reference.identity import ReferenceIdentity
from raydpo.runtime import storage

_log = logging.getLogger(__name__)

SCORED = "scored"
"""Folder of the scores in cache_dir, with a folder for each reference."""
IDENTITY_FILE = "identity.json"
"""Beside a reference's scores: what the digest in the folder's name stands for."""
READERS = 16
"""Threads that read scores: mostly they wait for the storage."""


@dataclass(frozen=True)
class ReferenceStore:
    """The scored blocks of one reference."""

    cache_dir: str
    """Folder or fsspec URL that every node can reach."""
    identity: ReferenceIdentity
    model: str = ""
    """Name of the reference, and its commit where it is from the hub: for people, and of no effect."""

    @property
    def digest(self) -> str:
        """What names the reference."""
        return self.identity.digest

    @property
    def folder(self) -> str:
        """Where this reference's blocks lie."""
        return storage.join(self.cache_dir, SCORED, self.identity.digest)

    def url(self, block: Block) -> str:
        """Where the scores of a block lie, or will."""
        return storage.join(self.folder, f"{block.content}.parquet")

    def open(self) -> None:
        """Write down, beside the scores, what the digest in the folder's name stands for."""
        described = {**self.identity.to_dict(), "model": self.model}
        storage.write_json(storage.join(self.folder, IDENTITY_FILE), described)

    def missing(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks without whole scores, each content once, in the order given: reads the files of all others."""
        unique = list({block.content: block for block in blocks}.values())
        with ThreadPoolExecutor(READERS) as threads:
            return [block for block, whole in zip(unique, threads.map(self._has, unique), strict=True) if not whole]

    def absent(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks that have no file of scores."""
        return [block for block in blocks if not storage.exists(self.url(block))]

    def _has(self, block: Block) -> bool:
        """True where there are scores for each pair; logged where there are some that cannot be used."""
        url = self.url(block)
        try:
            rows = len(storage.read_table(url))
        except FileNotFoundError:
            return False
        except DamagedFile as error:
            _log.warning("A block of %s is scored again: %s", block.shard, error)
            return False
        if rows != block.pairs:
            _log.warning("A block of %s is scored again: %s has %d rows, not %d", block.shard, url, rows, block.pairs)
        return rows == block.pairs

    def part_url(self, block: Block) -> str:
        """Where the scores of a block lie while they lack those that other blocks lend it."""
        return f"{self.url(block)}.part"

    def read_scores(self, url: str) -> tuple[Lists, Lists]:
        """Log-probs of each row's chosen and rejected completion; FileNotFoundError or DamagedFile as for files."""
        scores = storage.read_table(url)
        return Lists(scores, schema.REF_CHOSEN_LOGPS), Lists(scores, schema.REF_REJECTED_LOGPS)

    def read(self, block: Block) -> ScoredBlock:
        """A block's pairs and scores; `ReferenceMismatch` where the two do not fit."""
        url = self.url(block)
        return ScoredBlock(TokenizedBlock(block), storage.read_table(url), url)
