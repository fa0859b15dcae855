"""Turns make sense: a prompt and whole conversations agree, answers are the model's, roles are those of templates."""

import json
from typing import Any

import pytest

from raydpo.data.dialects.detect import dialect_of, to_pair
from raydpo.data.dialects.pair import Pair, RowError

Row = dict[str, Any]
USER = {"role": "user", "content": "Capital of Italy?"}
YES, NO = {"role": "assistant", "content": "Rome."}, {"role": "assistant", "content": "Pisa."}
SYSTEM = {"role": "system", "content": "Be brief."}
PAIR = Pair([USER], [YES], [NO])


def pair_of(row: Row, chat: bool = True) -> Pair:
    """Return the pair of a row, by the dialect that is detected for it."""
    dialect = dialect_of([row])
    assert dialect is not None
    return to_pair(row, dialect, chat)


AGREE: dict[str, tuple[Row, Pair]] = {
    "the conversation has a system message": (
        {"prompt": [USER], "chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO]},
        Pair([SYSTEM, USER], [YES], [NO]),
    ),
    "the prompt has a system message": (
        {"prompt": [SYSTEM, USER], "chosen": [USER, YES], "rejected": [USER, NO]},
        Pair([SYSTEM, USER], [YES], [NO]),
    ),
    "nulls": (
        {"prompt": [USER], "chosen": [{**USER, "tool_calls": None}, YES], "rejected": [{**USER, "name": None}, NO]},
        PAIR,
    ),
    "blanks": (
        {"prompt": [USER], "chosen": [{**USER, "content": " Capital of Italy?\n"}, YES], "rejected": [USER, NO]},
        PAIR,
    ),
    "the first question as text": (
        {
            "prompt": "Capital of  Italy?",
            "chosen": [USER, NO, {"role": "user", "content": "No."}, YES],
            "rejected": [USER, NO, {"role": "user", "content": "No."}, NO],
        },
        Pair([USER, NO, {"role": "user", "content": "No."}], [YES], [NO]),
    ),
    "all turns as text": (
        {"prompt": "USER: Capital of Italy? ASSISTANT:", "chosen": [USER, YES], "rejected": [USER, NO]},
        PAIR,
    ),
    "JSON text": (
        {name: json.dumps(part) for name, part in (("prompt", [USER]), ("chosen", [YES]), ("rejected", [NO]))},
        PAIR,
    ),
    "JSON text of conversations": (
        {"chosen": json.dumps({"messages": [USER, YES]}), "rejected": json.dumps({"messages": [USER, NO]})},
        PAIR,
    ),
    "Python text": ({"prompt": str([USER]), "chosen": str([YES]), "rejected": str([NO])}, PAIR),
    "an object of messages": ({"chosen": {"messages": [USER, YES]}, "rejected": {"messages": [USER, NO]}}, PAIR),
}


@pytest.mark.parametrize("case", AGREE)
def test_a_prompt_and_whole_conversations_give_one_prompt(case: str) -> None:
    row, expected = AGREE[case]
    found = pair_of(row)
    without_nulls = [
        [{key: part for key, part in message.items() if part is not None} for message in side]  # type: ignore[union-attr]
        for side in (found.prompt, found.chosen, found.rejected)
    ]
    assert without_nulls == [expected.prompt, expected.chosen, expected.rejected]


OTHER = {"role": "user", "content": "Capital of France?"}
TOOL = {"role": "tool", "content": "42"}
REFUSED: dict[str, tuple[Row, str]] = {
    "another prompt": (
        {"prompt": [OTHER], "chosen": [USER, YES], "rejected": [USER, NO]},
        "prompts differ: the prompt ends",
    ),
    "another text": (
        {"prompt": "Capital of France?", "chosen": [USER, YES], "rejected": [USER, NO]},
        "prompts differ: the prompt ends with 'prompt: Capital of France?'",
    ),
    "two prompts": (
        {"chosen": [USER, YES], "rejected": [OTHER, NO]},
        "prompts differ: turn 1 of chosen is 'user: Capital of Italy?', and that of rejected 'user: Capital of France?",
    ),
    "two later prompts": (
        {"chosen": [USER, YES, USER, YES], "rejected": [USER, YES, OTHER, NO]},
        "prompts differ: turn 3",
    ),
    "one whole conversation": (
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [NO]},
        "prompts differ: chosen is a conversation",
    ),
    "the chosen answer in the prompt": (
        {"messages": [USER, YES], "chosen": "Rome.", "rejected": "Pisa."},
        "answer in the prompt: the prompt ends with 'assistant: Rome.', which is how chosen begins",
    ),
    "the rejected answer in the prompt": (
        {"prompt": [USER, NO], "chosen": [YES], "rejected": [NO]},
        "answer in the prompt: the prompt ends with 'assistant: Pisa.', which is how rejected begins",
    ),
    "an answer in a text": (
        {"prompt": "Capital of Italy? It is Rome.", "chosen": "It is Rome.", "rejected": "It is Pisa."},
        "answer in the prompt",
    ),
    "a doubled question": ({"prompt": [USER, USER], "chosen": [YES], "rejected": [NO]}, "doubled prompt: two turns"),
    "a doubled text": (
        {"prompt": "Capital of Italy? Capital of Italy?", "chosen": "Rome.", "rejected": "Pisa."},
        "doubled prompt: it says twice 'Capital of Italy?'",
    ),
    "texts that begin with the prompt": (
        {"prompt": "Capital of Italy?", "chosen": "Capital of Italy? Rome.", "rejected": "Capital of Italy? Pisa."},
        "doubled prompt: chosen and rejected begin with the whole prompt",
    ),
    "a user's turn last": (
        {"prompt": [USER], "chosen": [YES, OTHER], "rejected": [NO]},
        "not an answer: chosen ends with another's turn, 'user: Capital of France?'",
    ),
    "a tool's turn last": (
        {"prompt": [USER], "chosen": [YES], "rejected": [NO, TOOL]},
        "not an answer: rejected ends with another's turn, 'tool: 42'",
    ),
    "an unknown role": (
        {"prompt": [USER], "chosen": [{**YES, "role": "pirate"}], "rejected": [NO]},
        "unknown role: 'pirate'",
    ),
    "an image": (
        {"prompt": [USER], "chosen": [YES], "rejected": [NO], "images": [{"path": "x"}]},
        "not text: column 'images'",
    ),
    "an image part": (
        {
            "prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "chosen": [YES],
            "rejected": [NO],
        },
        "not text: a content in column 'prompt' has a part of type 'image_url'",
    ),
    "a part that is no text": (
        {
            "prompt": [USER],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": {"value": "Rome."}}]}],
            "rejected": [NO],
        },
        "wrong type: a part of a content",
    ),
    "broken JSON of messages": (
        {"prompt": '[{"role": "user", "content": "Capital?]', "chosen": "Rome.", "rejected": "Pisa."},
        "broken JSON: ",
    ),
    "half a surrogate in JSON of messages": (
        {"prompt": '[{"role": "user", "content": "\\ud83d"}]', "chosen": "Rome.", "rejected": "Pisa."},
        "bad Unicode: ",
    ),
    "a role that is a list": (
        {"prompt": [USER], "chosen": [{**YES, "role": ["assistant"]}], "rejected": [NO]},
        "wrong type: a role",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_turns_that_make_no_sense_are_refused_by_name(case: str) -> None:
    row, reason = REFUSED[case]
    with pytest.raises(RowError) as caught:
        pair_of(row)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        *[(role, "user") for role in ("human", "User", "USER", "prompter")],
        *[(role, "assistant") for role in ("gpt", "bot", "model", " Assistant")],
        *[(role, "tool") for role in ("tool_response", "observation", "function", "ipython")],
    ],
)
def test_roles_are_mapped_to_those_of_templates(role: str, expected: str) -> None:
    for key, text in (("role", "content"), ("from", "value")):
        row = {"prompt": [{key: role, text: "hello there"}, USER], "chosen": [YES], "rejected": [NO]}
        assert pair_of(row).prompt == [{"role": expected, "content": "hello there"}, USER]


CALL = {"type": "function", "function": {"name": "capital", "arguments": {"of": "Italy"}}}
FORMS: dict[str, Row] = {
    "object": {"role": "assistant", "content": "", "tool_calls": [CALL]},
    "text": {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "capital", "arguments": '{"of": "Italy"}'}}],
    },
    "bare": {"role": "assistant", "tool_calls": [{"name": "capital", "arguments": {"of": "Italy"}}]},
    "JSON": {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
    "before tool calls": {"role": "assistant", "content": None, "function_call": CALL["function"]},
    "a role of its own": {"role": "tool_call", "content": json.dumps(CALL["function"])},
    "ShareGPT": {"from": "function_call", "value": json.dumps(CALL["function"])},
}


@pytest.mark.parametrize("form", FORMS)
def test_tool_calls_have_one_form_and_arguments_are_objects(form: str) -> None:
    pair = pair_of({"prompt": [USER], "chosen": [FORMS[form]], "rejected": [NO]})
    assert pair.chosen == [FORMS["object"]]


def test_transcripts_with_single_newlines_are_text() -> None:
    row = {"chosen": "Human: hi\nAssistant: Rome.", "rejected": "Human: hi\nAssistant: Pisa."}
    assert pair_of(row) == Pair("Human: hi\nAssistant:", " Rome.", " Pisa.")


def test_one_answer_may_be_json_that_looks_like_messages() -> None:
    row = {"prompt": "Write a chat as JSON.", "chosen": json.dumps([USER]), "rejected": "I would rather not."}
    assert pair_of(row) == Pair(row["prompt"], row["chosen"], row["rejected"])
