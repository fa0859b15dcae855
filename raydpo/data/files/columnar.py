"""Read record batches from Parquet and Arrow files, and convert them to Python rows."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydpo.data.files.streams import CHUNK_BYTES, Damaged, ShardStream

READ_ROWS = 256
"""Number of rows decoded at a time; this bounds memory for rows of any size."""


def record_batches(stream: ShardStream, kind: str, columns: frozenset[str]) -> Iterator[pa.RecordBatch]:
    """Yield the file's record batches, reduced to `columns` (all columns if the file has none of these).

    `kind` comes from `streams.content_kind`: parquet, arrow_file or arrow_stream. Raises Damaged at the point where the
    file cannot be read.
    """
    try:
        if kind == "parquet":
            # Without a buffer size, pyarrow reads a whole column chunk at once, and a file may be a single chunk.
            file = pq.ParquetFile(stream, buffer_size=CHUNK_BYTES, pre_buffer=False)
            wanted = [name for name in file.schema_arrow.names if name in columns] or None
            batches = file.iter_batches(batch_size=READ_ROWS, columns=wanted, use_threads=False)
        elif kind == "arrow_file":
            reader = pa.ipc.open_file(pa.PythonFile(stream, mode="r"))
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(pa.PythonFile(stream, mode="r")))
        for batch in batches:
            names = [name for name in batch.schema.names if name in columns]
            yield batch.select(names) if names else batch
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"damaged {kind.split('_')[0].capitalize()} file: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Yield each row as Python values, or the reason (a string) if it holds invalid UTF-8 or JSON.

    Nulls inside a struct are left out: in these files all structs of a column have the same fields, so a null may only
    mean that some other row has that field.
    """
    decoders = [_json_decoder(field.type) for field in batch.schema]
    try:
        decoded: list[dict[str, Any] | str] = batch.to_pylist()
    except UnicodeDecodeError:
        decoded = [_row_or_reason(batch.slice(i, 1)) for i in range(batch.num_rows)]
    for row in decoded:
        if isinstance(row, str):
            yield row
            continue
        try:
            for name, decode in zip(batch.schema.names, decoders, strict=True):
                value = row[name] if decode is None else decode(row[name])
                row[name] = _without_nulls(value) if isinstance(value, dict | list) else value
        except ValueError as error:
            yield f"broken JSON: {error} in column {name!r}"
        else:
            yield row


def _row_or_reason(one: pa.RecordBatch) -> dict[str, Any] | str:
    try:
        row: dict[str, Any] = one.to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"bad UTF-8: {error.reason} at byte {error.start} of a column"
    return row


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value


def _json_decoder(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Return a decoder for a type that contains JSON text (the `Json` feature of `datasets`), or None."""
    if isinstance(kind, pa.JsonType):
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = _json_decoder(kind.value_type)
        return None if item is None else lambda value: None if value is None else [item(part) for part in value]
    if pa.types.is_struct(kind):
        fields = {field.name: decode for field in kind if (decode := _json_decoder(field.type)) is not None}
        if fields:
            return lambda value: None if value is None else _decode_fields(value, fields)
    return None


def _decode_fields(value: dict[str, Any], fields: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    return {name: fields[name](part) if name in fields else part for name, part in value.items()}
