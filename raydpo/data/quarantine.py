"""Bad rows on disk: one JSONL file for each raw block that has any."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from raydpo.data.files.rows import ReadRow
from raydpo.runtime import storage

CONTENT_CHARACTERS = 4096
"""Longer contents are cut."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be trained on, as it stands in `quarantine/`."""

    shard: str
    row: int
    """From 1: the line in a JSONL file, the element of a JSON array, the row of a Parquet or Arrow file."""
    reason: str
    content: str
    """The row as text; undecodable bytes are escaped, long rows cut."""


def bad_row(shard: str, row: ReadRow, reason: str) -> BadRow:
    """The record of a row: its JSON as it stood in the file, or its columns as JSON."""
    raw = row.raw if row.columns is None or row.raw else json.dumps(row.columns, ensure_ascii=False, default=repr)
    content = raw.decode("utf-8", errors="backslashreplace") if isinstance(raw, bytes) else raw
    return BadRow(shard, row.number, reason, short(content))


def short(content: str) -> str:
    """A row's content as it is kept."""
    if len(content) <= CONTENT_CHARACTERS:
        return content
    return f"{content[:CONTENT_CHARACTERS]}... ({len(content)} characters)"


def write(folder: str, first_row: int, file: str, rows: Sequence[BadRow]) -> None:
    """Write the bad rows of one raw block, in place of those that an earlier attempt at it wrote.

    The file's name is the shard's name and `first_row`, the number of the raw block's first row. A line has `file`
    (the shard's path or URL), `shard`, `row`, `reason` and `content`.
    """
    lines = [json.dumps(_record(file, row), ensure_ascii=True) for row in rows]
    url = storage.join(folder, f"{quote(rows[0].shard, safe='')}.from-row-{first_row:09d}.jsonl")
    storage.write_bytes(url, ("\n".join(lines) + "\n").encode())


def _record(file: str, row: BadRow) -> dict[str, Any]:
    return {"file": file, "shard": row.shard, "row": row.row, "reason": row.reason, "content": row.content}
