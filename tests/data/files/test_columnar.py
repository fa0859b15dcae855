"""Special cases of Parquet and Arrow files: nulls for fields of other rows, text that is not validated, JSON types."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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
