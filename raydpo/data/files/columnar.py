"""Read record batches from Parquet and Arrow files, and convert them to Python rows."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydpo.data.dialects.pair import RowError
from raydpo.data.files.arrow_values import (
    IMAGE_FIELDS,
    MAX_TYPE_DEPTH,
    Converter,
    converter,
    is_readable,
    type_depth,
)
from raydpo.data.files.json_text import without_nulls
from raydpo.data.files.streams import CHUNK_BYTES, Damaged, ShardStream

READ_ROWS = 256
"""Number of rows decoded at a time; this bounds memory for rows of any size."""

_PAIR = frozenset({"prompt", "chosen", "rejected"})
"""Columns of a file that needs no others to be understood."""

_WORDS = _PAIR | frozenset("conversations messages system tools chat_template_kwargs history completions".split())
"""Columns that hold words. A binary column of another name is one that `column_mapping` reads images from."""

_UNREADABLE = (ValueError, OverflowError, LookupError, TypeError, NotImplementedError, pa.ArrowException)
"""Exceptions of pyarrow for a value that Python cannot hold, such as a date of the year 30000."""


def record_batches(stream: ShardStream, kind: str, columns: frozenset[str]) -> Iterator[pa.RecordBatch]:
    """Yield the file's record batches, reduced to the columns that `wanted_columns` names.

    `kind` comes from `streams.content_kind`: parquet, arrow_file or arrow_stream. Raises Damaged at the point where the
    file cannot be read.
    """
    try:
        if kind == "parquet":
            # Without a buffer size, pyarrow reads a whole column chunk at once, and a file may be a single chunk.
            file = pq.ParquetFile(stream, buffer_size=CHUNK_BYTES, pre_buffer=False)
            wanted = wanted_columns(file.schema_arrow, columns)
            batches = file.iter_batches(batch_size=READ_ROWS, columns=wanted, use_threads=False)
        elif kind == "arrow_file":
            reader = pa.ipc.open_file(pa.PythonFile(stream, mode="r"))
            wanted = wanted_columns(reader.schema, columns)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            reader = pa.ipc.open_stream(pa.PythonFile(stream, mode="r"))
            wanted = wanted_columns(reader.schema, columns)
            batches = iter(reader)
        for batch in batches:
            yield batch.select(wanted)
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"damaged {kind.split('_')[0].capitalize()} file: {_one_line(error)}") from error


def wanted_columns(schema: pa.Schema, columns: frozenset[str]) -> list[str]:
    """Return the names of the columns to read: those in `columns`, and all readable ones if no pair is among these.

    Without prompt, chosen or rejected, they stand in columns of other names, which an error must be able to tell.
    Columns whose values are not text, numbers, or lists and objects of these are left out unless `columns` has them.
    Raises Damaged if one that is wanted stands twice or is nested too deeply.
    """
    named = {name for name in schema.names if name in columns}
    complete = named >= _PAIR
    others = set() if complete else {field.name for field in schema if is_readable(field.type)}
    for name, times in Counter(schema.names).items():
        if name in named and times > 1:
            raise Damaged(f"duplicate column: the file has {times} columns named {name!r}; keep one of them")
        if times > 1:
            others.discard(name)
    for field in schema:
        if field.name in named and type_depth(field.type) > MAX_TYPE_DEPTH:
            raise Damaged(f"too deeply nested: column {field.name!r} has more than {MAX_TYPE_DEPTH} levels")
    return [name for name in schema.names if name in named | others]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Yield each row as values of JSON, or the reason (a string) if it holds something that is none.

    Nulls inside a struct are left out (see `json_text.without_nulls`).
    """
    converters = {field.name: convert for field in batch.schema if (convert := _converter_of(field)) is not None}
    try:
        decoded: list[dict[str, Any] | str] = batch.to_pylist()
    except _UNREADABLE:
        decoded = [_row_or_reason(batch.slice(i, 1)) for i in range(batch.num_rows)]
    for row in decoded:
        if isinstance(row, str):
            yield row
            continue
        for name, convert in converters.items():
            try:
                row[name] = None if row[name] is None else convert(row[name])
            except RowError as error:
                yield f"{error} in column {name!r}"
                break
        else:
            yield {name: without_nulls(value) for name, value in row.items()}


def _converter_of(field: pa.Field) -> Converter | None:
    return converter(field.type, field.name if field.name in _WORDS else IMAGE_FIELDS[0])


def _row_or_reason(one: pa.RecordBatch) -> dict[str, Any] | str:
    row: dict[str, Any] = {}
    for name, column in zip(one.schema.names, one.columns, strict=True):
        try:
            row[name] = column.to_pylist()[0]
        except UnicodeDecodeError as error:
            return f"bad UTF-8: {error.reason} at byte {error.start} of column {name!r}"
        except _UNREADABLE as error:
            return f"unreadable value: {_one_line(error)} in column {name!r}"
    return row
