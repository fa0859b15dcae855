"""Reading needs little memory for any rows, and a failure of the store is an error instead of a bad row."""

import gzip
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raydpo.data.dialects.detect import COLUMNS
from raydpo.data.files import json_rows, streams
from raydpo.data.files import rows as row_files
from raydpo.data.files.rows import parse, read_slices
from raydpo.errors import DataError
from tests.data.shard_files import as_array, as_arrow, as_jsonl, as_parquet, bad, good, read

ROWS = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(10)]


def test_a_row_that_is_too_long_is_bad_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(streams, "CHUNK_BYTES", 64)
    rows = [{"a": "x"}, {"a": "y" * 5000 + '"}],'}, {"a": "z"}]
    for name, content in (("a.jsonl", as_jsonl(rows)), ("a.json", as_array(rows))):
        (tmp_path / name).write_bytes(content)
        assert good(read(tmp_path / name)) == {1: {"a": "x"}, 3: {"a": "z"}}
        assert list(bad(read(tmp_path / name))) == [2]


def test_a_failing_store_stops_reading_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (
        ("a.parquet", as_parquet(ROWS * 500)),
        ("a.arrow", as_arrow(ROWS * 500, pa.ipc.new_file)),
        ("b.arrow", as_arrow(ROWS * 500, pa.ipc.new_stream)),
        ("a.jsonl.gz", gzip.compress(as_jsonl(ROWS * 500))),
    ):
        (tmp_path / name).write_bytes(content)

        class FailingFile:
            """A file whose store fails after the first read."""

            closed = False

            def __init__(self, file: Any) -> None:
                self.file, self.reads = file, 0

            def read(self, size: int = -1) -> bytes:
                self.reads += 1
                if self.reads > 1:
                    raise OSError("connection lost")
                return bytes(self.file.read(size))

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        original = streams.ShardStream.__init__

        def init(self: Any, url: str, original: Any = original) -> None:
            original(self, url)
            self._file = FailingFile(self._file)

        with monkeypatch.context() as patch:
            patch.setattr(streams.ShardStream, "__init__", init)
            with pytest.raises(DataError, match="connection lost"):
                read(tmp_path / name)


def test_slices_of_long_rows_are_limited_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MAX_SLICE_BYTES", 10_000)
    rows = [{"chosen": "x" * 4000} for _ in range(7)]
    for name, content in (("a.jsonl", as_jsonl(rows)), ("a.parquet", as_parquet(rows, 7))):
        (tmp_path / name).write_bytes(content)
        slices = list(read_slices(str(tmp_path / name), 100, COLUMNS))
        assert [part.first_row for part in slices] == [1, 3, 5, 7]
        assert [row.number for part in slices for row in parse(part)] == list(range(1, 8))


@pytest.mark.parametrize("kind", ["lines", "array"])
def test_reading_is_lazy_and_needs_constant_memory(kind: str) -> None:
    """Check that the first slice of an endless stream does not need the rest, and that memory use stays constant."""
    taken = 0

    def endless_chunks() -> Iterator[bytes]:
        nonlocal taken
        row = as_jsonl([{"prompt": "p" * 300, "chosen": "c" * 300, "rejected": "r"}]).strip()
        separator = b"\n" if kind == "lines" else b","
        if kind == "array":
            yield b"["
        while True:
            taken += 1
            yield (row + separator) * 100

    rows = (json_rows.lines if kind == "lines" else json_rows.elements)(endless_chunks())
    slices = row_files._text_slices(rows, 1000)
    assert len(next(slices).rows) == 1000
    assert taken <= 11
    tracemalloc.start()
    for _ in range(20):
        next(slices)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20  # twenty slices together have 14 MB
