"""Helpers for the tests of the readers: rows as the bytes of each file type, and the rows read from a file."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydpo.data.dialects.detect import COLUMNS
from raydpo.data.files.rows import ReadRow, parse, read_slices


def read(path: Path | str, slice_rows: int = 4) -> list[ReadRow]:
    return [row for part in read_slices(str(path), slice_rows, COLUMNS) for row in parse(part)]


def good(rows: list[ReadRow]) -> dict[int, Any]:
    return {row.number: row.columns for row in rows if row.columns is not None}


def bad(rows: list[ReadRow]) -> dict[int, str]:
    return {row.number: row.reason for row in rows if row.columns is None}


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_array(rows: list[dict[str, Any]], indent: int | None = None) -> bytes:
    return json.dumps(rows, indent=indent).encode()


def as_arrow(rows: list[dict[str, Any]], new: Callable[..., Any], rows_per_batch: int = 3) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with new(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=rows_per_batch):
            writer.write_batch(batch)
    return sink.getvalue()


def as_parquet(rows: list[dict[str, Any]], rows_per_group: int = 3) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=rows_per_group)
    return sink.getvalue()
