"""Files that appear whole or not at all, on a local disk or behind any fsspec URL."""

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
    """`base/part/part`, for paths and URLs alike."""
    return "/".join([base.rstrip("/"), *parts])


def is_remote(url: str) -> bool:
    """True for `s3://...` and the like, False for a path or `file://` URL."""
    return "://" in url and not url.startswith("file://")


def absolute(path: str) -> str:
    """The path with `~` expanded and made absolute, as Ray's workers have other working folders; URLs as they are."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:  # unknown protocol, or its client is not installed
        raise StorageError(f"cannot open {url}: {error}; install the fsspec client of that protocol") from error
    return filesystem, path


def exists(url: str) -> bool:
    """True if there is a file or folder at the URL."""
    filesystem, path = _filesystem(url)
    return bool(filesystem.exists(path))


def read_bytes(url: str) -> bytes:
    """The whole file; FileNotFoundError if there is none."""
    filesystem, path = _filesystem(url)
    return bytes(filesystem.cat_file(path))


def write_bytes(url: str, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Local: written aside, then renamed. Object stores: one put, which they make visible whole.
    """
    filesystem, path = _filesystem(url)
    parent = path.rsplit("/", 1)[0]
    try:
        filesystem.makedirs(parent, exist_ok=True)
        if is_remote(url):
            filesystem.pipe_file(path, content)
            return
        aside = f"{parent}/.{uuid.uuid4().hex}.part"
        with open(aside, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise StorageError(f"cannot write {url}: {error}; the folder must be writable from every node") from error


def write_json(url: str, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented UTF-8 JSON."""
    write_bytes(url, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(url: str) -> dict[str, Any]:
    """The mapping in a JSON file."""
    content: dict[str, Any] = json.loads(read_bytes(url))
    return content


def write_table(url: str, table: pa.Table) -> None:
    """Write a table as one Parquet file (zstd), with a checksum a page."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_bytes(url, sink.getvalue().to_pybytes())


def read_table(url: str) -> pa.Table:
    """The table in a Parquet file; FileNotFoundError if there is none, `DamagedFile` if it is not whole."""
    content = read_bytes(url)
    try:
        return pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(f"{url} is damaged ({error}); delete it and run again: it will be made anew") from error


@dataclass(frozen=True)
class File:
    """A file, as a listing has it."""

    url: str
    bytes: int
    modified: float
    """Seconds since the epoch."""


def files(url: str) -> list[File]:
    """All files below a folder, at any depth; none where there is no folder."""
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
    """Remove a file; nothing happens where there is none."""
    filesystem, path = _filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(path)


def remove_folder(url: str) -> None:
    """Remove a folder and what it holds; nothing happens where there is none."""
    filesystem, path = _filesystem(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
