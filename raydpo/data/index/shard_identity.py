"""Identify what a shard holds, as cheaply as its storage allows, to notice a change without tokenizing it again."""

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

import fsspec

from raydpo.runtime import storage

WHOLE_BYTES = 16 << 20
"""Size in bytes up to which all of a local file is read: its digest alone identifies it, whatever its times."""
EDGE_BYTES = 1 << 20
"""Number of bytes that are read at the beginning and at the end of a larger local file."""

_VERSION_FIELDS = frozenset(
    "etag contentmd5 md5hash md5 digest sha256 crc crc32c generation versionid blobid "
    "lastmodified modified updated mtime modificationtime".split()
)
"""Fields by which fsspec's file systems describe a version of a file, in lower case and without signs."""


def shard_identity(url: str) -> str | None:
    """Return a digest (hex) that changes with the content of the file at a path or URL.

    A local file of up to WHOLE_BYTES is identified by its content; a larger one by its path, size, times of the last
    change of content and of attributes, beginning and end. A remote file is identified by its URL, its size and what
    its store says about its version (ETag, checksum, generation, time of the last change). None: there is no such file,
    or its store says nothing of that kind.
    """
    try:
        known = _remote(url) if storage.is_remote(url) else _local(storage.absolute(url.removeprefix("file://")))
    except (OSError, ValueError, ImportError):
        return None  # the reader reports a file that cannot be read
    return None if known is None else hashlib.sha256("\n".join(known).encode()).hexdigest()


def _local(path: str) -> list[str]:
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        if status.st_size <= WHOLE_BYTES:
            return ["content", hashlib.file_digest(stream, "sha256").hexdigest()]
        edges = hashlib.sha256(stream.read(EDGE_BYTES))
        stream.seek(-EDGE_BYTES, os.SEEK_END)
        edges.update(stream.read(EDGE_BYTES))
    # `cp -p` and `touch` restore the time of the last change of content, but nothing sets that of the attributes.
    return ["file", path, *map(str, (status.st_size, status.st_mtime_ns, status.st_ctime_ns)), edges.hexdigest()]


def _remote(url: str) -> list[str] | None:
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()  # the listing that found the file may be older than the file
    facts: Mapping[str, Any] = filesystem.info(path)
    versions = [
        f"{name}={facts[name]}"
        for name in sorted(facts)
        if re.sub(r"[^a-z0-9]", "", name.lower()) in _VERSION_FIELDS and facts[name] not in (None, "")
    ]
    return ["url", url, f"size={facts.get('size')}", *versions] if versions else None
