"""Read the rows of one shard in order, in slices of numbered rows, with only one slice in memory at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raydpo.data.dialects.pair import RowError
from raydpo.data.files import columnar
from raydpo.data.files.json_rows import RawRow
from raydpo.data.files.json_text import parse_json_row
from raydpo.data.files.layout import text_rows
from raydpo.data.files.streams import COLUMNAR_NAMES, Damaged, ShardStream, content_kind, uncompressed_name

MAX_SLICE_BYTES = 64 << 20
"""Maximum size of a slice in bytes. A slice of very long rows gets fewer rows, so that memory stays bounded."""


@dataclass(frozen=True)
class RowSlice:
    """Consecutive unparsed rows of a file: first those of `batch`, then those of `rows`."""

    first_row: int
    """Number of the first row in the file, from 1."""
    rows: tuple[RawRow, ...] = ()
    """JSON rows, and rows of any format that cannot be read."""
    batch: bytes | None = None
    """Rows of a columnar file, as an Arrow IPC stream."""


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A parsed row: its columns, or the reason why it is bad."""

    number: int
    columns: dict[str, Any] | None
    reason: str
    """Reason why the row is bad; empty for a good row."""
    raw: bytes = b""
    """The row's JSON as bytes; empty for a row of a columnar file."""


def read_slices(url: str, slice_rows: int, columns: frozenset[str]) -> Iterator[RowSlice]:
    """Yield the shard's rows in slices of up to `slice_rows` rows.

    Columnar files are reduced to `columns` if they have prompt, chosen and rejected, else to these and all other
    readable ones (see `columnar.wanted_columns`). Bad rows are yielded in order like the good ones. Raises DataError if
    the file cannot be opened or its store fails.
    """
    with ShardStream(url) as stream:
        kind = content_kind(stream.read(8))
        stream.seek(0)
        if kind in ("parquet", "arrow_file", "arrow_stream"):
            yield from _columnar_slices(stream, kind, slice_rows, columns)
        elif uncompressed_name(url).endswith(COLUMNAR_NAMES):
            reason = (
                "damaged file: its name is that of Parquet or Arrow, but its first bytes are not (nor may it be .gz)"
            )
            yield RowSlice(1, (RawRow(1, stream.read(64), reason),))
        else:
            yield from _text_slices(text_rows(stream), slice_rows)


def _text_slices(rows: Iterator[RawRow], slice_rows: int) -> Iterator[RowSlice]:
    held: list[RawRow] = []
    size = 0
    for row in rows:
        if held and (len(held) == slice_rows or size + len(row.content) > MAX_SLICE_BYTES):
            yield RowSlice(held[0].number, tuple(held))
            held, size = [], 0
        held.append(row)
        size += len(row.content)
    if held:
        yield RowSlice(held[0].number, tuple(held))


def _columnar_slices(stream: ShardStream, kind: str, slice_rows: int, columns: frozenset[str]) -> Iterator[RowSlice]:
    row = 1  # number of the first row that was not yielded yet
    held: list[pa.RecordBatch] = []
    damage: RawRow | None = None
    try:
        for batch in columnar.record_batches(stream, kind, columns):
            while batch.num_rows:
                rows_held = sum(part.num_rows for part in held)
                room = MAX_SLICE_BYTES - sum(part.nbytes for part in held)
                fitting = room * batch.num_rows // max(batch.nbytes, 1)
                taken = min(batch.num_rows, slice_rows - rows_held, max(fitting, 0 if held else 1))
                if taken:
                    held.append(batch.slice(0, taken))
                    batch = batch.slice(taken)
                if batch.num_rows:
                    yield RowSlice(row, batch=_as_bytes(held))
                    row += sum(part.num_rows for part in held)
                    held = []
    except Damaged as error:
        damage = RawRow(row + sum(part.num_rows for part in held), b"", str(error))
    if held or damage:
        yield RowSlice(row, (damage,) if damage else (), _as_bytes(held) if held else None)


def _as_bytes(batches: list[pa.RecordBatch]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def parse(part: RowSlice) -> Iterator[ReadRow]:
    """Parse the rows of a slice and yield them in order."""
    number = part.first_row
    if part.batch is not None:
        for batch in pa.ipc.open_stream(part.batch):
            for row in columnar.rows(batch):
                yield ReadRow(number, None, row) if isinstance(row, str) else ReadRow(number, row, "")
                number += 1
    for raw in part.rows:
        yield _parse_json(raw)


def _parse_json(raw: RawRow) -> ReadRow:
    if raw.reason is not None:
        return ReadRow(raw.number, None, raw.reason, raw.content)
    try:
        return ReadRow(raw.number, parse_json_row(raw.content), "", raw.content)
    except RowError as error:
        return ReadRow(raw.number, None, str(error), raw.content)
