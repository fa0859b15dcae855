"""Words that must stand in a rendered text, and whether they do."""

import html
import json
from typing import Any

import pytest

from raydpo.data.templates.words import Piece, missing, pieces, tool_pieces

CALL = {"function": {"name": "get_weather", "arguments": {"city": "Rome", "days": 3, "exact": True, "unit": None}}}


def words(messages: list[dict[str, Any]], reasoning: bool = True) -> list[tuple[str, str]]:
    return [(piece.kind, piece.text) for piece in pieces(messages, reasoning=reasoning)]


def test_contents_calls_and_reasoning_are_words_of_a_conversation() -> None:
    messages = [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": [{"type": "text", "text": "Will it"}, {"type": "text", "text": "rain?"}]},
        {"role": "assistant", "content": None, "thinking": "I must look.", "tool_calls": [CALL]},
        {"role": "tool", "content": "no"},
        {"role": "assistant", "content": "<think>\nIt is dry.\n</think>\n\nNo."},
    ]
    assert words(messages) == [
        ("system message", "Be brief."),
        ("turns", "Will it"),
        ("turns", "rain?"),
        ("reasoning", "I must look."),
        ("tool calls", "get_weather"),
        ("tool calls", "Rome"),
        ("tool calls", "3"),
        ("tool results", "no"),
        ("reasoning", "It is dry."),
        ("turns", "No."),
    ]
    kinds = [kind for kind, _ in words(messages, reasoning=False)]
    assert "reasoning" not in kinds
    assert ("turns", "No.") in words(messages, reasoning=False)


def test_arguments_may_be_json_text() -> None:
    function = {"name": "f", "arguments": json.dumps({"a": {"b": ["x y", 2]}})}
    expected = [("tool calls", "f"), ("tool calls", "x y"), ("tool calls", "2")]
    assert words([{"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]) == expected
    assert words([{"role": "assistant", "content": "", "function_call": function}]) == expected


def test_tools_are_known_by_their_names() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "d"}}, {"name": "g"}, {}, "h"]
    assert [piece.text for piece in tool_pieces(tools)] == ["f", "g"]
    assert tool_pieces(None) == []


SAID = 'He said: "Größe <b>\n\n  is 5\\6" & left'


@pytest.mark.parametrize(
    "text",
    [
        SAID,
        json.dumps({"text": SAID}),
        json.dumps({"text": SAID}, ensure_ascii=False),
        json.dumps(json.dumps({"text": SAID})),
        repr({"text": SAID}),
        html.escape(SAID),
        " ".join(SAID.split()),
        "\n".join(line.strip() for line in SAID.splitlines()),
    ],
)
def test_words_are_found_in_the_forms_that_templates_give_them(text: str) -> None:
    assert missing([Piece("turns", "user", SAID)], f"<start>{text}<end>") == []


@pytest.mark.parametrize("said", ["He said: no", "!?", "left & he", "5\\7"])
def test_words_that_are_not_there_are_missing(said: str) -> None:
    piece = Piece("turns", "user", said)
    assert missing([piece], f"<start>{SAID}<end>") == [piece]
