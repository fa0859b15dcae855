"""Entries of the index of tokenized shards: one compressed JSON file per shard in cache_dir/token_index.

A file's name is the digest of all that decides the shard's blocks, so an entry is never updated, and one that nothing
names any more is only old. What it says about block files is checked when it is read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import zstandard

from raydpo.errors import DamagedFile
from raydpo.runtime import storage
from raydpo.runtime.storage import File

TOKEN_INDEX = "token_index"
"""Name of the folder of entries in cache_dir."""
TOKENIZED = "tokenized"
"""Name of the folder of tokenized blocks in cache_dir."""
_ENDING = ".json.zst"


@dataclass(frozen=True)
class IndexEntry:
    """What is known about a shard that was tokenized completely."""

    shard: str
    """Name of the shard in the run."""
    file: str
    """Path or URL of the shard when it was tokenized."""
    outcomes: tuple[Mapping[str, object], ...]
    """The outcome of each raw block in order, as JSON."""
    block_bytes: Mapping[str, int]
    """Size of each block file in bytes, by its name in the folder of tokenized blocks."""
    quarantine: Mapping[str, str]
    """Content of each quarantine file, by its name."""


def entry_url(cache_dir: str, key: str) -> str:
    """Return the path or URL of the entry with this key."""
    return storage.join(cache_dir, TOKEN_INDEX, f"{key}{_ENDING}")


def block_url(cache_dir: str, name: str) -> str:
    """Return the path or URL of the tokenized block with this file name."""
    return storage.join(cache_dir, TOKENIZED, name)


def write_entry(url: str, entry: IndexEntry) -> None:
    """Write an entry atomically."""
    storage.write_bytes(url, zstandard.compress(json.dumps(vars(entry)).encode()))


def read_entry(url: str) -> IndexEntry:
    """Return the entry at a path or URL. Raises FileNotFoundError if there is none, DamagedFile if it is not whole."""
    content = storage.read_bytes(url)
    try:
        return IndexEntry(**json.loads(zstandard.decompress(content)))
    except (zstandard.ZstdError, ValueError, TypeError) as error:
        raise DamagedFile(f"{url} is damaged ({error})") from error


def entry_files(cache_dir: str) -> list[File]:
    """Return the files of all entries, the oldest first."""
    found = storage.files(storage.join(cache_dir, TOKEN_INDEX))
    return sorted((file for file in found if file.url.endswith(_ENDING)), key=lambda file: file.modified)


def block_files(cache_dir: str) -> list[File]:
    """Return the files of all tokenized blocks, the oldest first."""
    found = storage.files(storage.join(cache_dir, TOKENIZED))
    return sorted((file for file in found if file.url.endswith(".parquet")), key=lambda file: file.modified)
