"""Write bad rows to the quarantine folder: one JSONL file per raw block that has any."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from raydpo.data.dialects.pair import RowError
from raydpo.data.files.rows import ReadRow
from raydpo.data.row_errors import attempt, reason_text
from raydpo.runtime import storage

CONTENT_CHARACTERS = 4096
"""Maximum length of a row's content in characters; longer contents are shortened."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be trained on, as written to `quarantine/`."""

    shard: str
    row: int
    """Number of the row, from 1: the line of a JSONL file, the element of a JSON array or of a sequence of
    objects, or the Parquet or Arrow row."""
    reason: str
    content: str
    """The row as text; undecodable bytes are escaped, and long rows are shortened."""


def bad_row(shard: str, row: ReadRow, reason: str) -> BadRow:
    """Return the record of a bad row; its content is the JSON of the file, or the columns as JSON."""
    if row.columns is None or row.raw:
        content = row.raw.decode("utf-8", errors="backslashreplace")
    else:
        content = _as_json(row.columns)
    return BadRow(shard, row.number, reason, shorten(content))


def _as_json(columns: Mapping[str, Any]) -> str:
    """Return the columns as JSON text, or why they cannot be written as such."""
    written = attempt(lambda: json.dumps(columns, ensure_ascii=False, default=repr), "the row cannot be written")
    return reason_text(written) if isinstance(written, RowError) else written


def shorten(content: str) -> str:
    """Return a row's content, shortened to CONTENT_CHARACTERS with a note of its full length."""
    if len(content) <= CONTENT_CHARACTERS:
        return content
    return f"{content[:CONTENT_CHARACTERS]}... ({len(content)} characters)"


def write(folder: str, first_row: int, file: str, rows: Sequence[BadRow]) -> str:
    """Write the bad rows of one raw block and return the file's name; a file of an earlier attempt is overwritten.

    The file is named after the shard and `first_row`, the number of the raw block's first row. Each line has the fields
    `file` (the shard's path or URL), `shard`, `row`, `reason` and `content`.
    """
    lines = [json.dumps(_record(file, row), ensure_ascii=True) for row in rows]
    name = f"{quote(rows[0].shard, safe='')}.from-row-{first_row:09d}.jsonl"
    storage.write_bytes(storage.join(folder, name), ("\n".join(lines) + "\n").encode())
    return name


def with_file(content: str, file: str) -> str:
    """Return the content of a quarantine file with another path or URL of the shard."""
    lines = [json.dumps({**json.loads(line), "file": file}, ensure_ascii=True) for line in content.splitlines()]
    return "\n".join(lines) + "\n"


def _record(file: str, row: BadRow) -> dict[str, Any]:
    return {"file": file, "shard": row.shard, "row": row.row, "reason": row.reason, "content": row.content}
