"""Every file type gives the same rows with the same numbers; damage becomes a bad row among the others."""

import gzip
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import zstandard

from raydpo.data.dialects.detect import COLUMNS
from raydpo.data.files import streams
from raydpo.data.files.rows import parse, read_slices
from raydpo.errors import DataError
from tests.data.shard_files import as_array, as_arrow, as_jsonl, as_parquet, bad, good, read

ROWS: list[dict[str, Any]] = [
    {"prompt": f'Frage {i}: {"ä" * (i % 5)}\n"{i}" [{{', "chosen": f"yes }}] {i}", "rejected": "no, \\"}
    for i in range(10)
]


TEXTS = {
    "lines.jsonl": as_jsonl(ROWS),
    "lines.json": as_jsonl(ROWS),
    "crlf.jsonl": as_jsonl(ROWS).replace(b"\n", b"\r\n"),
    "bom.jsonl": b"\xef\xbb\xbf" + as_jsonl(ROWS),
    "no-last-newline.jsonl": as_jsonl(ROWS).rstrip(),
    "array.json": as_array(ROWS),
    "pretty.json": as_array(ROWS, indent=2),
    "bom.json": b"\xef\xbb\xbf \n" + as_array(ROWS, indent=1),
    "nameless": as_array(ROWS),
}
COMPRESSIONS = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".hidden-gz": gzip.compress,  # recognised by its first bytes, not by its name
    ".members.gz": lambda content: gzip.compress(content[:100]) + gzip.compress(content[100:]) + b"\0" * 512,
    ".members.zst": lambda content: b"".join(zstandard.compress(part) for part in (content[:100], content[100:])),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", TEXTS)
def test_text_files_are_read_in_every_compression(tmp_path: Path, name: str, compression: str) -> None:
    path = tmp_path / (name + compression)
    path.write_bytes(COMPRESSIONS[compression](TEXTS[name]))
    rows = read(path)
    assert [row.number for row in rows] == list(range(1, 11))
    assert [row.columns for row in rows] == ROWS


@pytest.mark.parametrize(
    "content",
    [as_parquet(ROWS), as_arrow(ROWS, pa.ipc.new_file), as_arrow(ROWS, pa.ipc.new_stream)],
    ids=["parquet", "arrow-file", "arrow-stream"],
)
@pytest.mark.parametrize("slice_rows", [1, 4, 100])
def test_columnar_files_are_read_in_slices(tmp_path: Path, content: bytes, slice_rows: int) -> None:
    path = tmp_path / "rows.bin"
    path.write_bytes(content)
    slices = list(read_slices(str(path), slice_rows, COLUMNS))
    assert [part.first_row for part in slices] == list(range(1, 11, slice_rows))
    rows = [row for part in slices for row in parse(part)]
    assert [row.number for row in rows] == list(range(1, 11))
    assert [row.columns for row in rows] == ROWS


def test_fsspec_urls_are_read() -> None:
    with fsspec.open("memory://readers/rows.jsonl.zst", "wb") as file:
        file.write(zstandard.compress(as_jsonl(ROWS)))
    with fsspec.open("memory://readers/rows.parquet", "wb") as file:
        file.write(as_parquet(ROWS))
    for name in ("rows.jsonl.zst", "rows.parquet"):
        assert [row.columns for row in read(f"memory://readers/{name}")] == ROWS


def test_blank_lines_give_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n  \n\r\n{"a": 2}\n\n')
    assert good(read(tmp_path / "a.jsonl")) == {2: {"a": 1}, 5: {"a": 2}}


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]", b" [ \n ] "], ids=["empty", "blank", "array", "spaced"])
def test_a_file_without_rows_gives_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert read(tmp_path / "a.json") == []


def test_bad_lines_have_their_number_and_a_reason(tmp_path: Path) -> None:
    lines = [
        b'{"a": 1}',
        b'{"a": ',
        b'{"a": "\xff"}',
        b'["a"]',
        b"7",
        rb'{"a": "\ud800"}',
        rb'{"a": "\ud83d\ude00"}',
        b"[" * 200_000,
        b'{"a": 2}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = read(tmp_path / "a.jsonl")
    assert good(rows) == {1: {"a": 1}, 7: {"a": "\U0001f600"}, 9: {"a": 2}}
    reasons = bad(rows)
    assert sorted(reasons) == [2, 3, 4, 5, 6, 8]
    assert reasons[2].startswith("broken JSON: ")
    assert reasons[3] == "bad UTF-8: invalid start byte at byte 7 of the row"
    assert reasons[4] == "not a JSON object: the row is a list"
    assert reasons[5] == "not a JSON object: the row is a number"
    assert "surrogate" in reasons[6]
    assert reasons[8] == "too deeply nested: more than 100 brackets are open at once"


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_arrays_are_split_into_the_same_rows_with_any_chunk_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(streams, "CHUNK_BYTES", chunk)
    content = rb'[{"a": "\\"}, 3 , {"a": "\"]},{"}, {"b": [1, {"c": [2]}]}, {"a": }, , null,]  x'
    (tmp_path / "a.json").write_bytes(content)
    rows = read(tmp_path / "a.json")
    assert good(rows) == {1: {"a": "\\"}, 3: {"a": '"]},{'}, 4: {"b": [1, {"c": [2]}]}}
    assert {number: reason.split(":")[0] for number, reason in bad(rows).items()} == {
        2: "not a JSON object",
        5: "broken JSON",
        6: "broken JSON",
        7: "not a JSON object",
        8: "broken JSON",
    }


@pytest.mark.parametrize(
    ("content", "numbers", "bad_number"),
    [
        (b'[{"a": 1}, {"a": 2}', [1, 2], 3),
        (b'[{"a": 1}, {"a": 2', [1], 2),
        (b'[{"a": 1}, {"a": "2', [1], 2),
        (b'[{"a": 1},', [1], 2),
    ],
)
def test_a_truncated_array_ends_with_a_bad_row(
    tmp_path: Path, content: bytes, numbers: list[int], bad_number: int
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    rows = read(tmp_path / "a.json")
    assert list(good(rows)) == numbers
    assert list(bad(rows)) == [bad_number]
    assert "cut off" in bad(rows)[bad_number]


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst", "json.gz"])
def test_a_truncated_compressed_file_keeps_the_rows_before_the_damage(tmp_path: Path, suffix: str) -> None:
    rows = [{"n": i, "noise": hash((i, "x")) % 10**18} for i in range(5000)]
    content = as_array(rows) if suffix.startswith("json.") else as_jsonl(rows)
    compressed = gzip.compress(content) if suffix.endswith("gz") else zstandard.compress(content)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(compressed[: len(compressed) // 2])
    result = read(path, slice_rows=1000)
    assert list(good(result).values()) == rows[: len(result) - 1]
    assert len(result) > 1000 or suffix.endswith("zst")  # zstd decompresses whole blocks of 128 KiB
    assert list(bad(result)) == [len(result)]
    assert "cut off" in result[-1].reason


def test_a_corrupted_gzip_file_is_one_bad_row(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(as_jsonl(ROWS)))
    content[-8] ^= 0xFF  # the checksum
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    rows = read(tmp_path / "a.jsonl.gz")
    assert len(bad(rows)) == 1
    assert rows[-1].reason.startswith("damaged gzip stream: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", as_parquet(ROWS)[:-20]),
        ("a.parquet", b"not Parquet at all"),
        ("a.parquet", b""),
        ("a.arrow", as_arrow(ROWS, pa.ipc.new_file)[:-20]),
        ("a.arrow", b"\xff\xff\xff\xff" + b"junk" * 100),
    ],
)
def test_an_unreadable_columnar_file_is_one_bad_row(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    rows = read(tmp_path / name)
    assert [row.number for row in rows] == [1]
    assert rows[0].reason.startswith("damaged ")


def test_a_truncated_arrow_stream_keeps_its_first_batches(tmp_path: Path) -> None:
    content = as_arrow(ROWS, pa.ipc.new_stream, rows_per_batch=3)
    (tmp_path / "a.arrow").write_bytes(content[: len(content) * 3 // 4])
    rows = read(tmp_path / "a.arrow", slice_rows=100)
    assert good(rows) == dict(enumerate(ROWS[: len(rows) - 1], 1))
    assert len(rows) >= 4
    assert list(bad(rows)) == [len(rows)]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*absent.jsonl"):
        read(tmp_path / "absent.jsonl")
