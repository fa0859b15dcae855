"""Maintenance of a reference store over all its references: list, verify, prune."""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raydpo.errors import DamagedFile
from raydpo.reference.store import IDENTITY_FILE, READERS, SCORED
from raydpo.runtime import storage
from raydpo.runtime.storage import File

DAY_S = 86_400
LEFT_OVER_S = DAY_S
"""Age in seconds from which an unfinished file counts as left by a killed job."""


@dataclass(frozen=True)
class StoredReference:
    """The scores of one reference in the store."""

    identity: str
    """Digest of the reference."""
    model: str
    """Name of the reference when it was first scored; empty if it is not known."""
    blocks: tuple[File, ...]
    """Files of the scored blocks, the oldest first."""

    @property
    def bytes(self) -> int:
        """Size of all blocks in bytes."""
        return sum(block.bytes for block in self.blocks)


def stored_references(cache_dir: str) -> list[StoredReference]:
    """Return the references in the store, sorted by digest; no block is opened."""
    folders: dict[str, list[File]] = {}
    described: dict[str, str] = {}
    for file in _files(cache_dir):
        folder, _, name = file.url.rpartition("/")
        identity = folder.rpartition("/")[2]
        blocks = folders.setdefault(identity, [])
        if name.endswith(".parquet"):
            blocks.append(file)
        elif name == IDENTITY_FILE:
            described[identity] = storage.read_json(file.url).get("model", "")
    return [
        StoredReference(identity, described.get(identity, ""), tuple(sorted(blocks, key=lambda file: file.modified)))
        for identity, blocks in sorted(folders.items())
    ]


def damaged(blocks: Sequence[File]) -> list[tuple[File, str]]:
    """Read the blocks, and return the damaged ones with a message."""
    with ThreadPoolExecutor(READERS) as threads:
        return [(block, fault) for block, fault in zip(blocks, threads.map(_fault, blocks), strict=True) if fault]


def _fault(block: File) -> str:
    try:
        storage.read_table(block.url)
    except DamagedFile as error:
        return str(error)
    return ""


def prunable(
    found: Sequence[StoredReference], *, older_than_days: float | None = None, max_bytes: int | None = None
) -> list[File]:
    """Return the blocks that are too old, and the oldest of those beyond a total size (None: no limit)."""
    blocks = sorted((block for stored in found for block in stored.blocks), key=lambda block: block.modified)
    oldest = time.time() - older_than_days * DAY_S if older_than_days is not None else float("-inf")
    kept = sum(block.bytes for block in blocks)
    chosen = []
    for block in blocks:
        if block.modified < oldest or (max_bytes is not None and kept > max_bytes):
            chosen.append(block)
            kept -= block.bytes
    return chosen


def prune(cache_dir: str, blocks: Iterable[File]) -> None:
    """Remove blocks, unfinished files of killed jobs, and the folders of references that have no block left."""
    for block in blocks:
        storage.remove(block.url)
    for file in _files(cache_dir):
        if file.url.endswith(".part") and file.modified < time.time() - LEFT_OVER_S:
            storage.remove(file.url)
    for stored in stored_references(cache_dir):
        if not stored.blocks:
            storage.remove_folder(storage.join(cache_dir, SCORED, stored.identity))


def _files(cache_dir: str) -> list[File]:
    return storage.files(storage.join(cache_dir, SCORED))
