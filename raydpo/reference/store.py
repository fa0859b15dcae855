"""The reference store: scored blocks on disk or behind a URL, named by reference identity and block content.

The name covers everything that the scores depend on, so a file that exists is valid: runs with other learning rates,
losses and seeds read the same file, and a changed shard misses only its own blocks.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydpo.blocks import schema
from raydpo.blocks.block import ListColumn, ScoredBlock, TokenizedBlock
from raydpo.blocks.schema import Block
from raydpo.errors import DamagedFile
from raydpo.reference.identity import ReferenceIdentity
from raydpo.runtime import storage

_log = logging.getLogger(__name__)

SCORED = "scored"
"""Name of the folder of scores in cache_dir, which has a folder per reference."""
IDENTITY_FILE = "identity.json"
"""Name of the file, next to a reference's scores, with the identity whose digest names the folder."""
READERS = 16
"""Number of threads that read scores; they mostly wait for storage."""


@dataclass(frozen=True)
class ReferenceStore:
    """The scored blocks of one reference."""

    cache_dir: str
    """Folder or fsspec URL that every node can reach."""
    identity: ReferenceIdentity
    model: str = ""
    """Name of the reference, and its commit if it is from the hub; shown in lists only."""

    @property
    def digest(self) -> str:
        """Digest of the reference."""
        return self.identity.digest

    @property
    def folder(self) -> str:
        """Folder or URL of this reference's scored blocks."""
        return storage.join(self.cache_dir, SCORED, self.identity.digest)

    def url(self, block: Block) -> str:
        """Return the path or URL of a block's scores, whether they exist or not."""
        return storage.join(self.folder, f"{block.content}.parquet")

    def open(self) -> None:
        """Write the reference's identity next to its scores."""
        described = {**self.identity.to_dict(), "model": self.model}
        storage.write_json(storage.join(self.folder, IDENTITY_FILE), described)

    def missing(self, blocks: Sequence[Block]) -> list[Block]:
        """Return the blocks without valid scores, each content once, in the given order. Reads all other scores."""
        unique = list({block.content: block for block in blocks}.values())
        with ThreadPoolExecutor(READERS) as threads:
            return [block for block, whole in zip(unique, threads.map(self._has, unique), strict=True) if not whole]

    def absent(self, blocks: Sequence[Block]) -> list[Block]:
        """Return the blocks that have no file of scores."""
        return [block for block in blocks if not storage.exists(self.url(block))]

    def _has(self, block: Block) -> bool:
        """Return whether a block has a score file for all of its pairs; log a file that cannot be used."""
        url = self.url(block)
        try:
            table = storage.read_table(url)
        except FileNotFoundError:
            return False
        except DamagedFile as error:
            _log.warning("A block of %s is scored again: %s", block.shard, error)
            return False
        rows = len(table)
        if not all(_is_finite(table, name) for name in (schema.REF_CHOSEN_LOGPS, schema.REF_REJECTED_LOGPS)):
            _log.warning("A block of %s is scored again: %s has scores that are not finite", block.shard, url)
            return False
        if rows != block.pairs:
            _log.warning("A block of %s is scored again: %s has %d rows, not %d", block.shard, url, rows, block.pairs)
        return rows == block.pairs

    def part_url(self, block: Block) -> str:
        """Return the path or URL of a block's scores before the reused ones are filled in."""
        return f"{self.url(block)}.part"

    def read_scores(self, url: str) -> tuple[ListColumn, ListColumn]:
        """Read the log-probs of each row's chosen and rejected completion. Raises FileNotFoundError or DamagedFile."""
        scores = storage.read_table(url)
        return ListColumn(scores, schema.REF_CHOSEN_LOGPS), ListColumn(scores, schema.REF_REJECTED_LOGPS)

    def read(self, block: Block) -> ScoredBlock:
        """Return a block's pairs with their scores. Raises ReferenceMismatch where the two do not fit."""
        url = self.url(block)
        return ScoredBlock(TokenizedBlock(block), storage.read_table(url), url)


def _is_finite(table: Any, name: str) -> bool:
    """Return whether all numbers in a list column of an Arrow table are finite."""
    column = table.column(name).combine_chunks()
    return bool(np.isfinite(column.flatten().to_numpy(zero_copy_only=False)).all())
