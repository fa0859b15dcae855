"""JSON of a row, and JSON text inside of a row, give values that later code can handle, or the reason why not."""

import json
from typing import Any

import pytest

from raydpo.data.dialects.detect import to_pair
from raydpo.data.dialects.pair import RowError
from raydpo.data.files.json_text import MAX_DEPTH, parse_json_row, parse_json_text

REFUSED = {
    "depth": ("[" * 101 + "]" * 101, "too deeply nested: more than 100 brackets are open at once"),
    "mixed depth": ('{"a": [' * 51 + "]}" * 51, "too deeply nested"),
    "very deep": ("[" * 100_000 + "]" * 100_000, "too deeply nested"),
    "unclosed": ("[" * 100_000, "too deeply nested"),
    "surrogate": (r'["\ud83d"]', "bad Unicode"),
    "surrogate as key": (r'{"\uDE00": 1}', "bad Unicode"),
    "duplicate": ('{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate key: 'c' stands twice in one object"),
    "float": ("[1e400]", "number out of range: 1e400 is too large for a float"),
    "integer": ("1" * 5000, "number out of range: 1111111111111111111111111111111111111111... (5000 characters)"),
    "negative integer": ("-" + "1" * 400, "number out of range"),
    "broken": ('{"a": ', "broken JSON"),
    "nothing": ("", "broken JSON"),
    "NUL": ('{"a": "\0"}', "broken JSON: there are NUL bytes in it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_later_code_cannot_handle_is_refused_in_rows_and_in_text_of_rows(case: str) -> None:
    text, reason = REFUSED[case]
    with pytest.raises(RowError) as caught:
        parse_json_text(text, "column 'tools'")
    assert str(caught.value).startswith(reason)
    assert str(caught.value).endswith(" in column 'tools'")
    with pytest.raises(RowError) as caught:
        parse_json_row(b'{"x": %s}' % text.encode())
    assert str(caught.value).startswith(reason)
    row = {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c", "tools": text or "["}
    with pytest.raises(RowError) as caught:
        to_pair(row, "preference", chat=True)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    "text",
    [
        "[" * MAX_DEPTH + "]" * MAX_DEPTH,
        json.dumps("[" * 1000),
        json.dumps([{"a": [1]}] * 1000),
        '["\\ud83d\\ude00", "\\\\ud83d"]',
        "[1e308, -1e308, 1e-400, " + "9" * 308 + "]",
        '[{"a": 1}, {"a": 1}]',
    ],
)
def test_what_later_code_can_handle_is_read_as_it_stands(text: str) -> None:
    assert parse_json_text(text) == json.loads(text)
    assert parse_json_row(b'{"x": %s}' % (b"1" if text.startswith("[" * MAX_DEPTH) else text.encode()))


def test_nan_and_infinity_are_read() -> None:
    row = parse_json_row(b'{"score": NaN, "other": [Infinity, -Infinity]}')
    assert row["score"] != row["score"]
    assert row["other"] == [float("inf"), float("-inf")]


def test_nulls_of_objects_are_left_out_but_not_those_of_columns_and_lists() -> None:
    value: dict[str, Any] = {"a": None, "b": [None, {"c": None, "d": [{"e": None}]}]}
    kept: dict[str, Any] = {"b": [None, {"d": [{}]}]}
    assert parse_json_row(json.dumps({"prompt": None, "x": value}).encode()) == {"prompt": None, "x": kept}
    assert parse_json_text(json.dumps(value)) == kept


def test_calls_of_sharegpt_are_parsed_by_the_same_rules() -> None:
    def row(call: str) -> dict[str, Any]:
        turns = [{"from": "human", "value": "hi"}, {"from": "function_call", "value": call}]
        return {
            "conversations": turns,
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        }

    pair = to_pair(row('{"name": "f", "arguments": {"x": null, "y": 1}}'), "sharegpt", chat=True)
    assert pair.prompt[1]["tool_calls"][0]["function"]["arguments"] == {"y": 1}  # type: ignore[index]
    with pytest.raises(RowError, match=r"^bad Unicode: .* in a tool call in column 'prompt'$"):
        to_pair(row(r'{"name": "\ud83d", "arguments": {}}'), "sharegpt", chat=True)
