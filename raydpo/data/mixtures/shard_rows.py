"""Parse the rows of a raw block, reduced to the columns that the shard's data set selects."""

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from raydpo.data.files.rows import ReadRow, RowSlice, parse
from raydpo.data.shards import Shard
from raydpo.errors import DataError


def parse_rows(rows: RowSlice, columns: frozenset[str]) -> Iterator[ReadRow]:
    """Parse the rows of a slice and yield them in order, with `columns` only (empty: all)."""
    for row in parse(rows):
        if columns and row.columns is not None:
            yield replace(row, columns={name: value for name, value in row.columns.items() if name in columns})
        else:
            yield row


def check_columns(rows: RowSlice, shard: Shard) -> None:
    """Raise DataError if a column that the shard's data set selects is in none of its first rows."""
    if not shard.columns:
        return
    if rows.batch is not None:
        names = set(pa.ipc.open_stream(rows.batch).schema.names)
    else:
        names = {name for row in parse(rows) if row.columns is not None for name in row.columns}
    if names and (missing := sorted(shard.columns - names)):
        raise DataError(
            f"columns of datasets names {missing[0]}, which no row at the start of {shard.url} has (found: "
            f"{', '.join(sorted(names))}); correct it, or leave columns out"
        )
