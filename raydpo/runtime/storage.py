"""Atomic reading and writing of files on local disks and at fsspec URLs."""

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from raydpo.errors import DamagedFile, StorageError


def join(base: str, *parts: str) -> str:
    """Return the parts joined to a base path or URL with slashes: `base/part/part`."""
    return "/".join([base.rstrip("/"), *parts])


def is_remote(url: str) -> bool:
    """Return whether the URL is remote, such as `s3://...`, and not a local path or `file://` URL."""
    return "://" in url and not url.startswith("file://")


def absolute(path: str) -> str:
    """Return a path as an absolute path with `~` expanded, and a URL unchanged.

    Relative paths would not work, as Ray's workers run in other working directories.
    """
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URL and the path in it. Raises StorageError if the protocol is not supported."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:  # unknown protocol, or its client is not installed
        raise StorageError(f"cannot open {url}: {error}; install the fsspec client for this protocol") from error
    return filesystem, path


def exists(url: str) -> bool:
    """Return whether there is a file or folder at the URL."""
    filesystem, path = _filesystem(url)
    return bool(filesystem.exists(path))


def size(url: str) -> int | None:
    """Return the size of a file in bytes; None if it does not exist."""
    filesystem, path = _filesystem(url)
    try:
        return int(filesystem.info(path)["size"])
    except FileNotFoundError:
        return None


def read_bytes(url: str) -> bytes:
    """Return the content of a file. Raises FileNotFoundError if it does not exist."""
    filesystem, path = _filesystem(url)
    return bytes(filesystem.cat_file(path))


def read_range(url: str, start: int, stop: int) -> bytes:
    """Return the bytes of a file from `start` up to `stop`. Raises FileNotFoundError if it does not exist."""
    filesystem, path = _filesystem(url)
    return bytes(filesystem.cat_file(path, start=start, end=stop))


def write_bytes(url: str, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new content, never a part of it.

    A local file is written under a temporary name and then renamed; in an object store, a single put is atomic.

    Raises StorageError if the file cannot be written.
    """
    filesystem, path = _filesystem(url)
    parent = path.rsplit("/", 1)[0]
    try:
        filesystem.makedirs(parent, exist_ok=True)
        if is_remote(url):
            filesystem.pipe_file(path, content)
            return
        temporary = f"{parent}/.{uuid.uuid4().hex}.part"
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"cannot write {url}: {error}; make the folder writable from every node") from error


def write_json(url: str, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented UTF-8 JSON."""
    write_bytes(url, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(url: str) -> dict[str, Any]:
    """Return the mapping in a JSON file."""
    content: dict[str, Any] = json.loads(read_bytes(url))
    return content


def write_table(url: str, table: pa.Table) -> None:
    """Write a table as one Parquet file (zstd), with one checksum per page."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_bytes(url, sink.getvalue().to_pybytes())


def read_table(url: str) -> pa.Table:
    """Return the table in a Parquet file.

    Raises FileNotFoundError if the file does not exist, and DamagedFile if it is incomplete or fails its checksums.
    """
    content = read_bytes(url)
    try:
        return pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(f"{url} is damaged ({error}); delete it and run again to recreate it") from error


@dataclass(frozen=True)
class File:
    """A file in the listing of a folder."""

    url: str
    bytes: int
    """Size in bytes."""
    modified: float
    """Time of the last change, in seconds since the Unix epoch."""


def files(url: str) -> list[File]:
    """Return all files below a folder, at any depth; an empty list if the folder does not exist."""
    if not is_remote(url):
        folder = url.removeprefix("file://")
        paths = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]
        found = [(path, os.stat(path)) for path in paths]
        return [File(path, status.st_size, status.st_mtime) for path, status in found]
    filesystem, path = _filesystem(url)
    listed = filesystem.find(path, detail=True).items()
    return [
        File(filesystem.unstrip_protocol(name), info["size"], filesystem.modified(name).timestamp())
        for name, info in listed
    ]


def remove(url: str) -> None:
    """Remove a file, if it exists."""
    filesystem, path = _filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(path)


def remove_folder(url: str) -> None:
    """Remove a folder and its content, if it exists."""
    filesystem, path = _filesystem(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
