"""What a store of reference scores holds, over all references: listed, verified, pruned."""

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
"""Age from which a file that is still being written is one that a killed job left."""


@dataclass(frozen=True)
class StoredReference:
    """The scores of one reference."""

    identity: str
    """The digest that names it."""
    model: str
    """What it was called when it was scored first; empty where that is not known."""
    blocks: tuple[File, ...]
    """The oldest first."""

    @property
    def bytes(self) -> int:
        """Of all blocks."""
        return sum(block.bytes for block in self.blocks)


def stored_references(cache_dir: str) -> list[StoredReference]:
    """What there is, by reference; lists the store, and opens no block."""
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
    """The blocks that are not as they were written, with what is wrong; reads them all."""
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
    """The blocks that are older than so many days, and the oldest beyond so many bytes in all (None: no limit)."""
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
    """Remove blocks, what killed jobs left half written, and the folders of references that have no block left."""
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
