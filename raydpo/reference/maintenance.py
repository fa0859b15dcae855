"""Maintenance of cache_dir, over all references and all tokenized blocks: list, verify, prune."""

import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raydpo.data.images import store as image_store
from raydpo.data.index import index_entries
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
    def files(self) -> tuple[File, ...]:
        """All files that pruning may remove."""
        return self.blocks

    @property
    def bytes(self) -> int:
        """Size of all blocks in bytes."""
        return sum(block.bytes for block in self.blocks)


@dataclass(frozen=True)
class StoredTokens:
    """The tokenized blocks of all data sets, and the entries of the index by which later runs find them."""

    blocks: tuple[File, ...]
    """Files of the tokenized blocks, the oldest first."""
    entries: tuple[File, ...]
    """Files of the index entries, one per shard, the oldest first."""
    images: tuple[File, ...] = ()
    """Files of the processed images, the oldest first. A shard whose images are gone is tokenized again."""

    @property
    def files(self) -> tuple[File, ...]:
        """All files that pruning may remove."""
        return self.blocks + self.entries + self.images

    @property
    def bytes(self) -> int:
        """Size of all blocks and entries in bytes."""
        return sum(file.bytes for file in self.files)


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


def stored_tokens(cache_dir: str) -> StoredTokens:
    """Return the tokenized blocks and the index entries in cache_dir; no file is opened."""
    return StoredTokens(
        tuple(index_entries.block_files(cache_dir)),
        tuple(index_entries.entry_files(cache_dir)),
        tuple(image_store.image_files(cache_dir)),
    )


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
    found: Sequence[StoredReference | StoredTokens],
    *,
    older_than_days: float | None = None,
    max_bytes: int | None = None,
) -> list[File]:
    """Return the files that are too old, and the oldest of those beyond a total size (None: no limit)."""
    blocks = sorted((file for stored in found for file in stored.files), key=lambda file: file.modified)
    oldest = time.time() - older_than_days * DAY_S if older_than_days is not None else float("-inf")
    kept = sum(block.bytes for block in blocks)
    chosen = []
    for block in blocks:
        if block.modified < oldest or (max_bytes is not None and kept > max_bytes):
            chosen.append(block)
            kept -= block.bytes
    return chosen


def prune(cache_dir: str, blocks: Iterable[File]) -> None:
    """Remove these files, and what is then of no use.

    That is unfinished files of killed jobs, the folders of references that have no block left, and index entries that
    name a block which is gone.
    """
    for block in blocks:
        storage.remove(block.url)
    folders = (SCORED, index_entries.TOKENIZED, index_entries.TOKEN_INDEX, image_store.IMAGES)
    for file in [file for folder in folders for file in storage.files(storage.join(cache_dir, folder))]:
        if file.url.endswith(".part") and file.modified < time.time() - LEFT_OVER_S:
            storage.remove(file.url)
    for stored in stored_references(cache_dir):
        if not stored.blocks:
            storage.remove_folder(storage.join(cache_dir, SCORED, stored.identity))
    tokens = stored_tokens(cache_dir)
    existing = {block.url.rpartition("/")[2] for block in tokens.blocks}
    for entry in tokens.entries:
        if not _names_only(entry, existing):
            storage.remove(entry.url)


def _names_only(entry: File, existing: Collection[str]) -> bool:
    """Return whether an index entry is whole and all blocks that it names exist."""
    try:
        return all(name in existing for name in index_entries.read_entry(entry.url).block_bytes)
    except DamagedFile:
        return False


def _files(cache_dir: str) -> list[File]:
    return storage.files(storage.join(cache_dir, SCORED))
