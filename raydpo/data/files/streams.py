"""The bytes of one shard: opened anywhere, told apart by their first bytes, decompressed as they are read."""

import zlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import fsspec
import zstandard

from raydpo.errors import DataError

CHUNK_BYTES = 1 << 20
PIECE_BYTES = 1 << 14
"""Compressed bytes handed over at a time: few enough that a damaged file loses little of what came before."""

LINE_NAMES = (".jsonl", ".ndjson")
COLUMNAR_NAMES = (".parquet", ".arrow", ".feather", ".ipc")
DATA_NAMES = (*LINE_NAMES, ".json", *COLUMNAR_NAMES)
COMPRESSION_NAMES = (".gz", ".zst")


class Damaged(Exception):
    """The file cannot be read further; the message says why, in words for a bad row."""


class ShardStream:
    """A shard's raw bytes, for sequential and random reads; what the store cannot deliver is a DataError.

    Arrow reads through this class too. That keeps a failing store (the run stops) apart from damaged content (a bad
    row), which Arrow reports with the same kind of exception.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            filesystem, path = fsspec.core.url_to_fs(url)
            self._file: Any = filesystem.open(path, "rb")
        except (OSError, ValueError, ImportError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"cannot read {self.url}: {error or type(error).__name__}; every node must be able to read each shard, so "
            "check the path, the permissions and the fsspec client of its protocol"
        )

    @property
    def closed(self) -> bool:
        """True once closed; the methods below, too, are those of a binary file."""
        return bool(self._file.closed)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, or all; DataError if the store cannot deliver them."""
        try:
            return bytes(self._file.read(size))
        except OSError as error:
            raise self._unreadable(error) from error

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to an offset; returns it, from the start."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """The offset of the next read."""
        return int(self._file.tell())

    def seekable(self) -> bool:
        """Yes: Parquet begins at its end."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """No."""
        return False

    def flush(self) -> None:
        """Nothing to do; Arrow asks for it."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "ShardStream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def content_kind(head: bytes) -> str:
    """What a file's first bytes say: gzip, zstd, parquet, arrow_file, arrow_stream, or text."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return "zstd"  # the second is a skippable frame, with which pzstd begins its files
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow_file"
    if head.startswith(b"\xff\xff\xff\xff"):
        return "arrow_stream"
    return "text"


def text_chunks(stream: ShardStream) -> Iterator[bytes]:
    """The file's bytes from its start, decompressed where needed; Damaged after all that could be read."""
    kind = content_kind(stream.read(8))
    stream.seek(0)
    if kind == "gzip":
        yield from _decompressed(stream, "gzip", lambda: zlib.decompressobj(wbits=31))
    elif kind == "zstd":
        # Files of `zstd --long` need a window above the library's default of 128 MiB.
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        yield from _decompressed(stream, "zstd", decompressor.decompressobj)
    else:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _decompressed(stream: ShardStream, name: str, start: Callable[[], Any]) -> Iterator[bytes]:
    """The members of a compressed file one after another, as `cat a.gz b.gz` makes them."""
    member: Any = None
    members = 0
    while piece := stream.read(PIECE_BYTES):
        while piece:
            if member is None:
                piece = piece.lstrip(b"\0") if members else piece  # tapes and some stores pad with zeros
                if not piece:
                    break
                member, members = start(), members + 1
            try:
                content = member.decompress(piece)
            except (zlib.error, zstandard.ZstdError) as error:
                raise Damaged(f"damaged {name} stream: {error}") from error
            if content:
                yield content
            piece = b""
            if member.eof:
                piece, member = member.unused_data, None
    if member is not None:
        raise Damaged(f"damaged {name} stream: it ends too early, so the file was cut off")


def plain_name(url: str) -> str:
    """The URL in lower case without the ending of a compression."""
    name = url.lower()
    for ending in COMPRESSION_NAMES:
        name = name.removesuffix(ending)
    return name


def check_type(url: str) -> None:
    """DataError if neither the name nor the content of a file is of a kind that can be read."""
    if plain_name(url).endswith(DATA_NAMES):
        return
    with ShardStream(url) as stream:
        kind = content_kind(stream.read(8))
        stream.seek(0)
        if kind in ("parquet", "arrow_file", "arrow_stream"):
            return
        try:
            head = next((chunk for chunk in text_chunks(stream) if chunk.strip()), b"")
        except Damaged:
            return  # the reader says where, as a bad row
    if head and not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[")):
        raise DataError(
            f"{url} is of no known type; shards are JSONL, a JSON array, Parquet or Arrow, the text ones also .gz or "
            ".zst, so convert it or leave it out of dataset_name"
        )
