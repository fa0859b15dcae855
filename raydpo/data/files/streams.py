"""Open a shard at any fsspec URL, detect its format from its first bytes, and decompress it while reading."""

import zlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import fsspec
import zstandard

from raydpo.errors import DataError

CHUNK_BYTES = 1 << 20
PIECE_BYTES = 1 << 14
"""Number of compressed bytes decompressed at a time: small, so that a damaged file loses little before the damage."""

LINE_NAMES = (".jsonl", ".ndjson")
COLUMNAR_NAMES = (".parquet", ".arrow", ".feather", ".ipc")
DATA_NAMES = (*LINE_NAMES, ".json", *COLUMNAR_NAMES)
COMPRESSION_NAMES = (".gz", ".zst")


class Damaged(Exception):
    """The file cannot be read further. The message is the reason that the bad row gets."""


class ShardStream:
    """A binary file object over a shard's raw bytes that raises DataError if the store fails.

    Arrow also reads through this class. That separates a failing store (the run stops) from damaged content (a bad
    row), which Arrow reports with the same exception types.
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
            f"cannot read {self.url}: {error or type(error).__name__}; every node must be able to read every shard: "
            "check the path, the permissions and the fsspec client for its protocol"
        )

    @property
    def closed(self) -> bool:
        """Whether the file is closed. This and the methods below are the interface of a binary file."""
        return bool(self._file.closed)

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, or all if -1. Raises DataError if the store fails."""
        try:
            return bytes(self._file.read(size))
        except OSError as error:
            raise self._unreadable(error) from error

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to an offset and return the new position from the start of the file."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the offset of the next read."""
        return int(self._file.tell())

    def seekable(self) -> bool:
        """Return True: Parquet is read from its footer, at the end of the file."""
        return True

    def readable(self) -> bool:
        """Return True: the file is open for reading."""
        return True

    def writable(self) -> bool:
        """Return False: the file is not open for writing."""
        return False

    def flush(self) -> None:
        """Do nothing; Arrow calls this method."""

    def close(self) -> None:
        """Close the file and release its handle."""
        self._file.close()

    def __enter__(self) -> "ShardStream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def content_kind(head: bytes) -> str:
    """Return the format by a file's first 8 bytes: gzip, zstd, parquet, arrow_file, arrow_stream or text."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return "zstd"  # the second test is for a skippable frame, with which pzstd begins its files
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow_file"
    if head.startswith(b"\xff\xff\xff\xff"):
        return "arrow_stream"
    return "text"


def text_chunks(stream: ShardStream) -> Iterator[bytes]:
    """Yield the file's bytes from its start, decompressed if needed. Raises Damaged after the last readable bytes."""
    kind = content_kind(stream.read(8))
    stream.seek(0)
    if kind == "gzip":
        yield from _decompressed(stream, "gzip", lambda: zlib.decompressobj(wbits=31))
    elif kind == "zstd":
        # Files written by `zstd --long` need a larger window than the library's default of 128 MiB.
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        yield from _decompressed(stream, "zstd", decompressor.decompressobj)
    else:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _decompressed(stream: ShardStream, name: str, start: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress the concatenated members of a file, such as those of `cat a.gz b.gz`."""
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
        raise Damaged(f"damaged {name} stream: it ends early, so the file was cut off")


def uncompressed_name(url: str) -> str:
    """Return the URL in lower case without .gz and .zst."""
    name = url.lower()
    for ending in COMPRESSION_NAMES:
        name = name.removesuffix(ending)
    return name


def check_type(url: str) -> None:
    """Raise DataError if neither the name nor the content of a file has a supported format."""
    if uncompressed_name(url).endswith(DATA_NAMES):
        return
    with ShardStream(url) as stream:
        kind = content_kind(stream.read(8))
        stream.seek(0)
        if kind in ("parquet", "arrow_file", "arrow_stream"):
            return
        try:
            head = next((chunk for chunk in text_chunks(stream) if chunk.strip()), b"")
        except Damaged:
            return  # the reader reports the damage as a bad row
    if head and not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[")):
        raise DataError(
            f"{url} has an unknown file type; shards are JSONL or a JSON array (optionally .gz or .zst), Parquet or "
            "Arrow: convert the file or leave it out of dataset_name"
        )
