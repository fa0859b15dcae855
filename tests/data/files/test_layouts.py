"""Rows of a text file are read however they stand in it: on lines, in an array, in sequence, in an exported object."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raydpo.data.files import json_objects, json_rows, layout, streams
from raydpo.data.files.layout import layout_of
from tests.data.shard_files import as_array, as_jsonl, bad, good, read

ROWS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": f'Frage {i}: {"ä" * (i % 5)}\n"{i}" [{{'}],
        "chosen": [{"role": "assistant", "content": f"yes }}] {i}"}],
        "rejected": [{"role": "assistant", "content": "no, \\"}],
    }
    for i in range(10)
]


def each(separator: str, indent: int | None = None) -> bytes:
    return separator.join(json.dumps(row, indent=indent, ensure_ascii=False) for row in ROWS).encode()


def with_inner_lines(row: dict[str, Any]) -> str:
    """Return an object over several lines, some of which are whole objects themselves."""
    inner = ",\n".join(f'  "{name}": [\n    {json.dumps(part[0])}\n  ]' for name, part in row.items())
    return "{\n" + inner + "\n}\n"


LAYOUTS = {
    "array": as_array(ROWS),
    "array, pretty": as_array(ROWS, indent=1),
    "array, an object per line": b"[\n" + each(",\n") + b"\n]\n",
    "one line": each(""),
    "one line, spaces": each(" "),
    "one line, commas": each(", "),
    "lines, commas": each(",\n") + b",\n",
    "pretty": each("\n", indent=2),
    "pretty, commas": each(",\n", indent=2),
    "pretty, tight": each("", indent=2),
    "pretty, no indent": each("\n", indent=0),
    "pretty, blank lines": each("\n\n\n", indent=4),
    "pretty, CRLF": each("\n", indent=2).replace(b"\n", b"\r\n"),
    "pretty, BOM": b"\xef\xbb\xbf" + each("\n", indent=2),
    "pretty, inner lines": "".join(map(with_inner_lines, ROWS)).encode(),
    "CR": each("\r") + b"\r",
    "text sequence": b"".join(b"\x1e" + json.dumps(row).encode() + b"\n" for row in ROWS),
    "data": json.dumps({"data": ROWS}).encode(),
    "train, pretty": json.dumps({"version": "1.0", "count": 10, "train": ROWS, "note": None}, indent=2).encode(),
    "BOM of each file": b"\xef\xbb\xbf" + as_jsonl(ROWS[:5]) + b"\xef\xbb\xbf" + as_jsonl(ROWS[5:]),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_gives_the_same_rows(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(LAYOUTS[kind])
    rows = read(tmp_path / name)
    assert [row.number for row in rows] == list(range(1, 11))
    assert [row.columns for row in rows] == ROWS


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("kind", ["pretty, commas", "one line", "train, pretty", "pretty, CRLF"])
def test_chunks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, chunk: int) -> None:
    monkeypatch.setattr(streams, "CHUNK_BYTES", chunk)
    (tmp_path / "a.jsonl").write_bytes(LAYOUTS[kind])
    assert [row.columns for row in read(tmp_path / "a.jsonl")] == ROWS


def test_a_compressed_array_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LAYOUTS["array, pretty"]))
    assert [row.columns for row in read(tmp_path / "a.jsonl.gz")] == ROWS


FIRST_LINES = [
    b'{"prompt": ',
    b'{"prompt": }',
    b'{"prompt": "x',
    b'{"prompt": ["x}',
    b'x{"prompt": 1}',
    b"[",
    b'["prompt", {"a": 1}]',
    b"prompt,chosen,rejected",
    b'{"a": 1}{"a": 2}',
    b"[" * 100_000,
    b'{"a": \xff"',
    b"\0\0\0\0\0\0",
]


@pytest.mark.parametrize("first", FIRST_LINES, ids=lambda line: line[:20].decode("latin-1"))
def test_a_bad_first_line_costs_that_line_only(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(first + b"\n" + as_jsonl(ROWS))
    rows = read(tmp_path / "a.jsonl")
    assert list(bad(rows)) == [1]
    assert good(rows) == dict(enumerate(ROWS, 2))


def test_a_line_of_several_objects_among_lines_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(ROWS) + b'{"a": 1}{"a": 2}\n[{"a": 1}, {"a": 2}]\n')
    reasons = bad(read(tmp_path / "a.jsonl"))
    assert reasons == {
        11: "broken JSON: another value follows at character 9; write each object on a line of its own",
        12: "not a JSON object: the row is a list; write each of its objects on a line of its own",
    }


def test_lists_on_lines_are_bad_rows_each(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"a": 1}, {"a": 2}]\n[{"a": 3}]\n')
    assert {number: reason.split(":")[0] for number, reason in bad(read(tmp_path / "a.json")).items()} == {
        1: "not a JSON object",
        2: "not a JSON object",
    }


BROKEN = {
    "missing bracket": '{\n  "a": [1, 2\n}',
    "missing brace": '{\n  "a": {"b": 1\n}',
    "missing quote": '{\n  "a": "x,\n  "b": "y"\n}',
    "quote too many": '{\n  "a": "x"",\n  "b": "y"\n}',
    "missing comma": '{\n  "a": 1\n  "b": 2\n}',
    "cut off": '{\n  "a": [1, 2',
}


@pytest.mark.parametrize("separator", ["\n", ",\n"], ids=["newline", "comma"])
@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("place", [0, 4])
def test_a_broken_object_does_not_hide_the_next(tmp_path: Path, kind: str, separator: str, place: int) -> None:
    objects = [json.dumps(row, indent=2) for row in ROWS]
    objects.insert(place, BROKEN[kind])
    (tmp_path / "a.json").write_text(separator.join(objects))
    rows = read(tmp_path / "a.json")
    assert list(bad(rows)) == [place + 1]
    assert list(good(rows).values()) == ROWS


def test_objects_on_one_line_recover_from_a_missing_bracket(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1} {"a": [2} {"a": 3} } x {"a": 4} {"a": [5')
    rows = read(tmp_path / "a.json")
    assert list(good(rows).values()) == [{"a": 1}, {"a": 3}, {"a": 4}]
    assert list(bad(rows)) == [2, 4, 6]
    assert "cut off" in rows[-1].reason


def test_a_second_list_of_an_exported_object_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS, "test": ROWS}))
    rows = read(tmp_path / "a.json")
    assert list(good(rows).values()) == ROWS
    assert 'the object has "test"; save each list' in bad(rows)[11]


@pytest.mark.parametrize("rest", ["", ', "x": 1', "]}", "} x"])
def test_an_exported_object_that_does_not_end_well_is_told_of(tmp_path: Path, rest: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS})[:-1] + rest)
    rows = read(tmp_path / "a.json")
    assert list(good(rows).values()) == ROWS
    assert bad(rows)[11].startswith("broken JSON: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (as_jsonl(ROWS).decode().encode("utf-16"), "UTF-16"),
        (as_jsonl(ROWS).decode().encode("utf-16-le"), "UTF-16"),
        (as_jsonl(ROWS).decode().encode("utf-16-be"), "UTF-16"),
        (as_array(ROWS).decode().encode("utf-32"), "UTF-32"),
        (b"prompt,chosen,rejected\na,b,c\n", "it begins with 'prompt,chosen,rejected'"),
        (b"\0" * 1000, "NUL bytes"),
        (b'{"a": "x\0y"}\n', "NUL bytes"),
        (b'"{}"\n', "the row is a string"),
        (b"{'a': 1}\n", "broken JSON"),
        (b"{\n", "cut off"),
        (b"\xef\xbb\xbf[", "cut off"),
    ],
)
def test_files_that_are_no_json_have_a_clear_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    rows = read(tmp_path / "a.jsonl")
    assert rows
    assert good(rows) == {}
    assert reason in rows[0].reason


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n \n", b"\r\r\r", b" \t\n" * 50_000])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_files_of_blanks_have_no_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == []


def test_objects_in_sequence_need_constant_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 10_000)
    longest = 0

    class Watched(json_objects._ObjectCutter):
        """A cutter that records the largest size of its buffer."""

        def append(self, chunk: bytes) -> None:
            nonlocal longest
            super().append(chunk)
            longest = max(longest, len(self.buffer))

    monkeypatch.setattr(json_objects, "_ObjectCutter", Watched)

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield each("\n", indent=2)
        yield b'{"a": "'
        yield from [b"x" * 1000] * 500
        yield b'"}' + each("\n", indent=2)

    rows = list(json_objects.objects(chunks(), indented=True))
    assert len(rows) == 511
    assert [row.number for row in rows if row.reason] == [501]
    assert longest < 40_000


def test_a_normal_file_is_known_by_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    original = layout._parses
    monkeypatch.setattr(layout, "_parses", lambda line, kind: parsed.append(line) or original(line, kind))
    assert layout_of(as_jsonl(ROWS), complete=True).name == "lines"
    assert len(parsed) == 1
