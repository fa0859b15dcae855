"""Special cases of Parquet and Arrow files: nulls for fields of other rows, text that is not validated, JSON types."""

import io
import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.data.dialects.detect import COLUMNS
from raydpo.data.files.rows import ReadRow, parse, read_slices


def read(path: Path) -> list[ReadRow]:
    return [row for part in read_slices(str(path), 100, COLUMNS) for row in parse(part)]


def test_bad_utf8_in_a_column_is_a_bad_row(tmp_path: Path) -> None:
    array = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")]
    )
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema([("chosen", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([array], names=["chosen"]))
    (tmp_path / "a.arrow").write_bytes(sink.getvalue())
    rows = read(tmp_path / "a.arrow")
    assert [row.columns for row in rows] == [{"chosen": "a"}, None, {"chosen": "c"}]
    assert rows[1].reason.startswith("bad UTF-8")


def test_struct_fields_that_only_other_rows_have_are_left_out(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    other = {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "g", "arguments": {"b": "2"}}}]}
    table = pa.Table.from_pylist([{"chosen": [call], "prompt": None}, {"chosen": [other], "prompt": "p"}])
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row.columns for row in read(tmp_path / "a.parquet")] == [
        {"chosen": [call], "prompt": None},
        {"chosen": [other], "prompt": "p"},
    ]


def test_json_columns_of_datasets_are_decoded(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Json, List, Value

    tools = [{"name": "f", "parameters": {"x": None}}]
    features = Features({"chosen": Value("string"), "tools": List(Json())})
    Dataset.from_list(
        [{"chosen": "a", "tools": tools}, {"chosen": "b", "tools": None}], features=features
    ).save_to_disk(tmp_path)
    rows = read(next(tmp_path.glob("*.arrow")))
    assert (rows[0].columns or {})["tools"][0]["name"] == "f"
    assert rows[1].columns == {"chosen": "b", "tools": None}


def write_table(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)


def write(path: Path, columns: dict[str, Any]) -> Path:
    write_table(path, pa.table(columns))
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_the_same_rows_with_nulls_are_read_from_every_type_of_file(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "tools": [{"name": "f", "parameters": {"a": {"type": "string", "default": None}}}, None]},
        {"prompt": "q", "tools": [{"name": "g", "parameters": {"b": {"type": "number", "enum": [None, "x"]}}}]},
        {"prompt": None, "tools": None},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write(tmp_path / name, {key: [row[key] for row in rows] for key in rows[0]})
    columns = [row.columns for row in read(tmp_path / name)]
    assert columns == [row.columns for row in read(tmp_path / "a.jsonl")]
    assert columns[0] == {"prompt": "p", "tools": [{"name": "f", "parameters": {"a": {"type": "string"}}}, None]}
    assert columns[1] == {
        "prompt": "q",
        "tools": [{"name": "g", "parameters": {"b": {"type": "number", "enum": [None, "x"]}}}],
    }


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=["large", "view", "category"],
)
def test_text_of_every_arrow_type_is_text(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    words = ["a short one", "one that is longer than the twelve bytes that a view holds", None] * 100
    array = pa.array(words).cast(kind)
    rows = read(write(tmp_path / name, {"prompt": array, "chosen": pa.array([[word] for word in words])}))
    assert [row.columns for row in rows] == [{"prompt": word, "chosen": [word]} for word in words]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_values_that_json_does_not_have_become_those_of_json(tmp_path: Path, name: str) -> None:
    at = datetime(2024, 1, 2, 3, 4, 5)
    extras = [{"at": at, "price": Decimal("1.50"), "count": Decimal(3), "of": [("x", 1), ("y", None)]}]
    kind = pa.struct([
        ("at", pa.timestamp("us")),
        ("price", pa.decimal128(6, 2)),
        ("count", pa.decimal128(6, 0)),
        ("of", pa.map_(pa.string(), pa.int64())),
    ])  # fmt: skip
    rows = read(write(tmp_path / name, {"prompt": ["p"], "tools": pa.array([extras], pa.list_(kind))}))
    assert rows[0].columns == {
        "prompt": "p",
        "tools": [{"at": "2024-01-02 03:04:05", "price": 1.5, "count": 3, "of": {"x": 1}}],
    }
    json.dumps(rows[0].columns)


def test_a_file_without_the_columns_of_a_pair_is_read_with_all_its_columns_but_binary_ones(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"\x89PNG", "path": "x"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    at = pa.array([10**15], pa.timestamp("s"))  # a time that Python cannot hold
    columns = {"ask": ["q"], "chosen": ["a"], "ratings": [[1.5, None]], "meta.x": ["m"], "id": [7]}
    others = {"picture": image, "raw": [b"\xff"], "at": at}
    for name in ("a.parquet", "a.arrow"):
        rows = read(write(tmp_path / name, {**columns, **others}))
        assert [row.columns for row in rows] == [{name: value[0] for name, value in columns.items()}]
        rows = read(write(tmp_path / name, {**columns, **others, "prompt": ["p"]}))
        assert "ask" in (rows[0].columns or {})
        rows = read(write(tmp_path / name, {**columns, **others, "prompt": ["p"], "rejected": ["b"]}))
        assert [row.columns for row in rows] == [{"chosen": "a", "prompt": "p", "rejected": "b"}]
        rows = read(write(tmp_path / name, others))
        assert [row.columns for row in rows] == [{}]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_binary_values_in_a_column_that_is_needed_are_bad_rows(tmp_path: Path, name: str) -> None:
    kind = pa.struct([("text", pa.string()), ("sound", pa.binary())])
    parts = pa.array([[{"text": "t", "sound": None}], [{"text": None, "sound": b"\xff"}]], pa.list_(kind))
    rows = read(write(tmp_path / name, {"prompt": parts, "chosen": pa.array([b"a", None])}))
    assert [row.reason.split(":")[0] for row in rows] == ["wrong type", "wrong type"]
    assert "binary data, which" in rows[1].reason
    assert rows[1].reason.endswith("in column 'prompt'")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_value_that_python_cannot_hold_is_a_bad_row(tmp_path: Path, name: str) -> None:
    times = pa.array([0, 10**15, 1], pa.timestamp("s"))
    prompt = pa.StructArray.from_arrays([times], names=["at"])
    rows = read(write(tmp_path / name, {"prompt": prompt}))
    assert [row.columns is None for row in rows] == [False, True, False]
    assert rows[1].reason.startswith("unreadable value: ")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_columns_that_stand_twice_or_are_nested_too_deeply_are_named(tmp_path: Path, name: str) -> None:
    table = pa.table([pa.array(["p"]), pa.array(["q"]), pa.array(["c"])], names=["prompt", "prompt", "chosen"])
    deep = pa.array(["x"])
    for _ in range(60):
        deep = pa.StructArray.from_arrays([deep], names=["a"])
    for wrong, reason in (
        (table, "duplicate column: the file has 2"),
        (pa.table({"chosen": deep}), "too deeply nested"),
    ):
        write_table(tmp_path / name, wrong)
        rows = read(tmp_path / name)
        assert len(rows) == 1
        assert rows[0].reason.startswith(reason)


def test_keys_that_stand_twice_in_a_map_are_a_bad_row(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.int64())
    tools = pa.array([[("a", 1), ("a", 2)], [("a", 1)], None], kind)
    rows = read(write(tmp_path / "a.parquet", {"prompt": ["p"] * 3, "tools": tools}))
    assert [row.columns and row.columns["tools"] for row in rows] == [None, {"a": 1}, None]
    assert rows[0].reason == "duplicate key: a key stands twice in one map in column 'tools'"


def test_broken_json_of_a_json_column_is_a_bad_row_that_names_it(tmp_path: Path) -> None:
    texts = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": null, "b": 1}', "{", r'["\ud83d"]', None]))
    rows = read(write(tmp_path / "a.arrow", {"prompt": ["p"] * 4, "tools": texts}))
    assert rows[0].columns == {"prompt": "p", "tools": {"b": 1}}
    assert [row.reason.split(":")[0] for row in rows] == ["", "broken JSON", "bad Unicode", ""]
    assert rows[1].reason.endswith(" in column 'tools'")
