"""The index of tokenized shards: a second run finds the blocks of unchanged shards instead of tokenizing their rows.

An entry holds the outcomes of all raw blocks of one shard. Its key is the digest of the shard's content and name and of
all settings that decide the blocks, so an entry that exists is right; it is used if its block files are still there.
"""

import contextlib
import hashlib
import json
import logging
import posixpath
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from raydpo.data import quarantine
from raydpo.data.images import store
from raydpo.data.images.rows import KEY_CHARACTERS, changed_file, total_images
from raydpo.data.index import index_entries
from raydpo.data.index.index_entries import IndexEntry
from raydpo.data.index.record_json import from_json, to_json
from raydpo.data.index.shard_identity import shard_identity
from raydpo.data.ray_stream import ShardEnd
from raydpo.data.shards import Shard
from raydpo.data.tokenize_block import BlockOutcome
from raydpo.errors import DamagedFile
from raydpo.runtime import storage

_log = logging.getLogger(__name__)

MAX_QUARANTINE_BYTES = 64 << 20
"""Size of a shard's quarantine files above which it gets no entry, because the driver holds an entry in memory."""
_THREADS = 16
"""Number of threads that read and write entries; they mostly wait for storage."""

Stream = Generator[BlockOutcome | ShardEnd, None, None]
"""Outcomes and ends of the shards that are tokenized now, as `ray_stream.block_outcomes` yields them."""


@dataclass(frozen=True)
class TokenIndex:
    """The index as one run sees it: its shards, and what else decides their blocks."""

    shards: Sequence[Shard]
    settings: str
    """Digest of tokenizer, recipes and code; see `settings_digest`."""
    cache_dir: str
    quarantine_dir: str
    """Folder or URL for bad rows; those of a shard that is reused are written there again."""

    def outcomes(
        self, tokenize: Callable[[Sequence[Shard]], Stream]
    ) -> Generator[tuple[BlockOutcome, bool], None, None]:
        """Yield the outcome of each raw block, and whether it was reused: first those of the shards in the index.

        `tokenize` is called with the other shards, if there are any. Each gets an entry as soon as all of its outcomes
        have arrived, even if the run ends before the others are done. Raises what `tokenize` raises.
        """
        with ThreadPoolExecutor(_THREADS) as threads:
            keys = list(threads.map(self._key, self.shards))
            missing = []
            for position, found in enumerate(threads.map(self._load, range(len(keys)), keys)):
                if found is None:
                    missing.append(position)
                else:
                    yield from ((outcome, True) for outcome in found)
            if missing:
                recorder = _Recorder(self, keys, threads)
                with contextlib.closing(tokenize([self.shards[i] for i in missing])) as stream:  # stops its tasks
                    for outcome in recorder.recorded(stream, missing):
                        yield outcome, False
                recorder.finish()
                self._report_unidentified(keys)

    def _key(self, shard: Shard) -> str | None:
        """Return the key of a shard's entry; None if its content cannot be identified."""
        identity = shard_identity(shard.url)
        if identity is None:
            return None
        # All fields of the shard decide but its URL, of which `identity` has what matters.
        parts = [self.settings, identity, to_json(replace(shard, url=""))]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _report_unidentified(self, keys: Sequence[str | None]) -> None:
        unknown = [shard.url for shard, key in zip(self.shards, keys, strict=True) if key is None]
        if unknown:
            _log.warning(
                "Every run tokenizes these %d shards again, as their store gives neither an ETag nor a checksum nor "
                "the time of the last change: %s",
                len(unknown),
                ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else ""),
            )

    def _load(self, position: int, key: str | None) -> list[BlockOutcome] | None:
        """Return the outcomes of a shard's entry and write its quarantine files; None if there is no usable entry."""
        if key is None:
            return None
        url, shard = index_entries.entry_url(self.cache_dir, key), self.shards[position]
        try:
            entry = index_entries.read_entry(url)
            outcomes = [self._outcome(position, part) for part in entry.outcomes]
        except FileNotFoundError:
            return None
        except (DamagedFile, TypeError, KeyError, ValueError) as error:
            _log.warning("%s is tokenized again: its entry %s cannot be used (%s)", shard.url, url, error)
            return None
        if fault := self._faulty_block(entry) or self._faulty_images(outcomes):
            _log.warning("%s is tokenized again: %s", shard.url, fault)
            return None
        for name, content in entry.quarantine.items():
            text = content if entry.file == shard.url else quarantine.with_file(content, shard.url)
            storage.write_bytes(storage.join(self.quarantine_dir, name), text.encode())
        return outcomes

    def _outcome(self, position: int, stored: Any) -> BlockOutcome:
        outcome: BlockOutcome = from_json(BlockOutcome, stored)
        block = outcome.block
        if block is not None:  # the cache may have been moved
            block = replace(block, url=index_entries.block_url(self.cache_dir, posixpath.basename(block.url)))
        return replace(outcome, shard_index=position, block=block)

    def _faulty_block(self, entry: IndexEntry) -> str:
        """Return what is wrong with a block file of the entry, and remove the file if it is damaged; "" if nothing."""
        for name, expected in entry.block_bytes.items():
            url = index_entries.block_url(self.cache_dir, name)
            size = storage.size(url)
            if size is None:
                return f"the block {url} is gone"
            if size != expected:
                storage.remove(url)  # a file that exists would not be written again
                return f"the block {url} had {size} bytes, not {expected}"
        return ""

    def _faulty_images(self, outcomes: Sequence[BlockOutcome]) -> str:
        """Return what is wrong with the images of outcomes: changed since, or gone from the store; "" if nothing."""
        for outcome in outcomes:
            if (name := changed_file(outcome.images)) is not None:
                return f"the image {name} was changed, or could not be read before"
        wanted = total_images(outcome.images for outcome in outcomes).keys
        missing = wanted - self._stored_images if wanted else wanted
        return f"{len(missing)} of its {len(wanted)} images are gone from the cache" if missing else ""

    @cached_property
    def _stored_images(self) -> frozenset[str]:
        return frozenset(digest[:KEY_CHARACTERS] for digest in store.digests(self.cache_dir))

    def add(self, position: int, key: str, outcomes: Sequence[BlockOutcome]) -> None:
        """Write the entry of a shard that was tokenized completely, unless it has changed since its key was made."""
        shard = self.shards[position]
        if self._key(shard) != key:
            _log.warning("%s was changed while it was tokenized, so the next run tokenizes it again", shard.url)
            return
        blocks = [outcome.block.url for outcome in outcomes if outcome.block]
        files = [storage.join(self.quarantine_dir, part.quarantine_file) for part in outcomes if part.quarantine_file]
        sizes = {url: storage.size(url) for url in [*blocks, *files]}
        if gone := [url for url, size in sizes.items() if size is None]:
            _log.warning("%s gets no entry in the index, as %s was removed while it was tokenized", shard.url, gone[0])
            return
        bad_bytes = sum(sizes[url] or 0 for url in files)
        if bad_bytes > MAX_QUARANTINE_BYTES:
            _log.warning("%s is tokenized in every run: its bad rows take %d MiB", shard.url, bad_bytes >> 20)
            return
        entry = IndexEntry(
            shard.name,
            shard.url,
            tuple(map(to_json, sorted(outcomes, key=lambda outcome: outcome.index))),
            {posixpath.basename(url): sizes[url] or 0 for url in blocks},
            {posixpath.basename(url): storage.read_bytes(url).decode() for url in files},
        )
        index_entries.write_entry(index_entries.entry_url(self.cache_dir, key), entry)


class _Recorder:
    """Collects the outcomes of shards that are being tokenized, and adds the complete ones to the index."""

    def __init__(self, index: TokenIndex, keys: Sequence[str | None], threads: ThreadPoolExecutor) -> None:
        self._index = index
        self._keys = keys
        self._threads = threads
        self._arrived: dict[int, list[BlockOutcome]] = {}
        self._expected: dict[int, int] = {}
        self._writes: list[Future[None]] = []

    def recorded(self, stream: Stream, positions: Sequence[int]) -> Iterator[BlockOutcome]:
        """Yield the outcomes in the stream; `positions` are those of its shards in the dataset."""
        for item in stream:
            position = positions[item.shard_index]
            arrived = self._arrived.setdefault(position, [])
            if isinstance(item, ShardEnd):
                self._expected[position] = item.blocks
            else:
                arrived.append(replace(item, shard_index=position))
            if self._expected.get(position) == len(arrived):
                self._add(position)
            if not isinstance(item, ShardEnd):
                yield arrived[-1]

    def _add(self, position: int) -> None:
        key, outcomes = self._keys[position], self._arrived[position]
        if key is not None:
            self._writes.append(self._threads.submit(self._index.add, position, key, outcomes))

    def finish(self) -> None:
        """Wait until all entries are written. Raises StorageError if one cannot be written."""
        for write in self._writes:
            write.result()
