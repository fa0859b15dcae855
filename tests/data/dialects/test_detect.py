"""Every dialect becomes the same canonical pair; a row without a pair is refused with the reason."""

import json
from typing import Any

import pytest

from raydpo.data.dialects.detect import dialect_of, to_pair
from raydpo.data.dialects.pair import Pair, RowError, kind_of

USER = {"role": "user", "content": "hi"}
YES, NO = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
SYSTEM = {"role": "system", "content": "be brief"}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}
RESULT = {"role": "tool", "name": "f", "content": "2"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


CONVERSATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "explicit": ("preference", {"prompt": [USER], "chosen": [YES], "rejected": [NO]}),
    "implicit": ("preference", {"chosen": [USER, YES], "rejected": [USER, NO]}),
    "text prompt, whole conversations": (
        "preference",
        {"prompt": "hi", "messages": [USER, YES], "chosen": [USER, YES], "rejected": [USER, NO], "score": 1},
    ),
    "text prompt, messages": ("preference", {"prompt": "hi", "chosen": [YES], "rejected": [NO]}),
    "conversation prompt, texts": ("preference", {"prompt": [USER], "chosen": "yes", "rejected": "no"}),
    "prompt repeated": ("preference", {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]}),
    "transcript": ("hh", {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"}),
    "transcript with prompt": (
        "hh",
        {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " yes", "rejected": " no"},
    ),
    "transcripts beside their prompt": (
        "hh",
        {
            "prompt": "\n\nHuman: hi\n\nAssistant:",
            "chosen": "\n\nHuman: hi\n\nAssistant: yes",
            "rejected": "\n\nHuman: hi\n\nAssistant: no",
        },
    ),
    "sharegpt": ("sharegpt", {"conversations": [human("hi")], "chosen": gpt("yes"), "rejected": gpt("no")}),
    "sharegpt whole": ("sharegpt", {"chosen": [human("hi"), gpt("yes")], "rejected": [human("hi"), gpt("no")]}),
    "openai": ("openai", {"messages": [USER], "chosen": YES, "rejected": NO}),
    "openai lists": ("openai", {"messages": [USER], "chosen": [YES], "rejected": [NO]}),
    "openai files": (
        "openai",
        {"input": {"messages": [USER]}, "preferred_output": [YES], "non_preferred_output": [NO]},
    ),
}


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_dialects_are_detected_and_give_the_same_pair(case: str) -> None:
    dialect, row = CONVERSATIONS[case]
    assert dialect_of([row]) == dialect
    assert to_pair(row, dialect, chat=True) == Pair([USER], [YES], [NO])


def test_a_row_of_another_conversational_dialect_than_its_file_is_read_by_its_own_columns() -> None:
    for name in ("explicit", "openai", "sharegpt"):
        for dialect in ("preference", "openai", "sharegpt"):
            assert to_pair(CONVERSATIONS[name][1], dialect, chat=True) == Pair([USER], [YES], [NO])


def test_text_pairs_have_an_explicit_or_implicit_prompt() -> None:
    explicit = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    implicit = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    for row in (explicit, implicit):
        assert dialect_of([row]) == "preference"
        assert to_pair(row, "preference", chat=False) == Pair("The sky is", " blue.", " green.")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is black.", "The sky is blue.", "The sky is bl"),  # as in TRL; the boundary is decided in tokens
        (
            "Q: ok? A: yes",
            "Q: ok? A: yes sir",
            "Q: ok? A:",
        ),  # one is a prefix of the other_user and keeps its last word
        ("Q: ok? A: yes sir", "Q: ok? A: yes\n", "Q: ok? A:"),
        ("好的", "好的吗", "好"),
        ("yes ", "no ", ""),  # nothing in common except the space at the end
        ("a", "ab", ""),
    ],
)
def test_implicit_text_prompts_are_the_common_prefix(chosen: str, rejected: str, prompt: str) -> None:
    pair = to_pair({"chosen": chosen, "rejected": rejected}, "preference", chat=False)
    assert pair.prompt == prompt
    assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (chosen, rejected)  # type: ignore[operator]


def test_tools_calls_and_template_arguments_are_kept() -> None:
    row = {
        "prompt": [SYSTEM, USER],
        "chosen": [CALL, RESULT, YES],
        "rejected": [NO],
        "tools": json.dumps(TOOLS),
        "chat_template_kwargs": {"enable_thinking": False},
    }
    called = {**CALL, "content": ""}
    expected = Pair([SYSTEM, USER], [called, RESULT, YES], [NO], TOOLS, {"enable_thinking": False})
    assert to_pair(row, "preference", chat=True) == expected
    assert to_pair({**row, "tools": TOOLS}, "preference", chat=True) == expected
    assert to_pair({**row, "tools": None, "chat_template_kwargs": None}, "preference", chat=True).tools is None


def test_implicit_prompts_end_before_a_turn_of_the_assistant() -> None:
    def split(chosen: list[Any], rejected: list[Any]) -> Pair:
        return to_pair({"chosen": chosen, "rejected": rejected}, "preference", chat=True)

    called = {**CALL, "content": ""}
    assert split([USER, CALL, RESULT, YES], [USER, CALL, RESULT, NO]) == Pair([USER, called, RESULT], [YES], [NO])
    assert split([USER, YES], [USER, YES, USER, NO]) == Pair([USER], [YES], [YES, USER, NO])


def test_sharegpt_roles_system_and_calls_are_converted() -> None:
    row = {
        "system": "be brief",
        "conversations": [
            human("hi"),
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "2"},
        ],
        "chosen": gpt("yes"),
        "rejected": gpt("no"),
        "tools": json.dumps(TOOLS),
    }
    pair = to_pair(row, "sharegpt", chat=True)
    assert pair.prompt == [SYSTEM, USER, {**CALL, "content": ""}, {"role": "tool", "content": "2"}]
    assert pair.tools == TOOLS
    in_conversation = {**row, "system": "", "conversations": [{"from": "system", "value": "be brief"}, human("hi")]}
    assert to_pair(in_conversation, "sharegpt", chat=True).prompt == [SYSTEM, USER]


def test_transcripts_are_split_as_text() -> None:
    row = {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"}
    assert to_pair(row, "hh", chat=False) == Pair("\n\nHuman: hi\n\nAssistant:", " yes", " no")
    prefix = {"chosen": row["chosen"], "rejected": row["chosen"] + "\n\nHuman: ho\n\nAssistant: so"}
    assert to_pair(prefix, "hh", chat=False).chosen == " yes"


def test_consecutive_turns_of_one_speaker_are_merged() -> None:
    row = {
        "chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: yes\n\n1. Human: no turn",
        "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: no",
    }
    pair = to_pair(row, "hh", chat=True)
    assert pair.prompt == [{"role": "user", "content": "a\n\nb"}]
    assert pair.chosen == [{"role": "assistant", "content": "c\n\nyes\n\n1. Human: no turn"}]


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no chosen": (
        "preference",
        {"prompt": "p", "rejected": "b"},
        "missing column: 'chosen'; the row has 'prompt', 'rejected'",
    ),
    "null": ("preference", {"prompt": None, "chosen": "a", "rejected": "b"}, "null column: 'prompt'"),
    "number": (
        "preference",
        {"prompt": "p", "chosen": 3.5, "rejected": "b"},
        "wrong type: chosen is a number but rejected is a string",
    ),
    "numbers": (
        "preference",
        {"prompt": "p", "chosen": 3, "rejected": 4},
        "wrong type: column 'chosen' holds a number",
    ),
    "list of text": (
        "preference",
        {"prompt": "p", "chosen": ["a"], "rejected": ["b"]},
        "wrong type: column 'chosen' is a list of 1 texts",
    ),
    "no content": (
        "preference",
        {"prompt": [USER], "chosen": [{"role": "assistant"}], "rejected": [NO]},
        "wrong type: a message",
    ),
    "number as content": (
        "preference",
        {"prompt": [USER], "chosen": [{"role": "assistant", "content": 1}], "rejected": [NO]},
        "wrong type",
    ),
    "number as role": (
        "preference",
        {"prompt": [USER], "chosen": [{"role": 1, "content": "x"}], "rejected": [NO]},
        "wrong type",
    ),
    "same text": ("preference", {"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    "same whole": ("preference", {"chosen": "p a", "rejected": "p a"}, "chosen and rejected are the same"),
    "same turns": ("preference", {"chosen": [USER, YES], "rejected": [USER, YES]}, "chosen and rejected are the same"),
    "empty": (
        "preference",
        {"prompt": "p", "chosen": "a", "rejected": " \n"},
        "empty completion: rejected holds no text",
    ),
    "empty message": (
        "preference",
        {"prompt": [USER], "chosen": [{"role": "assistant", "content": ""}], "rejected": [NO]},
        "empty completion: chosen",
    ),
    "empty list": ("preference", {"prompt": [USER], "chosen": [], "rejected": [NO]}, "empty completion: chosen"),
    "nothing in common": ("preference", {"chosen": [USER, YES], "rejected": [SYSTEM, NO]}, "prompts differ: "),
    "empty prompt": ("preference", {"prompt": [], "chosen": [YES], "rejected": [NO]}, "no prompt: "),
    "tools": ("preference", {"prompt": [USER], "chosen": [YES], "rejected": [NO], "tools": "[1"}, "broken JSON: "),
    "tools object": (
        "preference",
        {"prompt": [USER], "chosen": [YES], "rejected": [NO], "tools": {}},
        "wrong type: column 'tools' is an object",
    ),
    "kwargs": (
        "preference",
        {"prompt": [USER], "chosen": [YES], "rejected": [NO], "chat_template_kwargs": 1},
        "wrong type",
    ),
    "role": (
        "sharegpt",
        {"conversations": [{"from": "alien", "value": "x"}], "chosen": gpt("a"), "rejected": gpt("b")},
        "unknown role: 'alien'",
    ),
    "value": (
        "sharegpt",
        {"conversations": [human("x")], "chosen": {"from": "gpt"}, "rejected": gpt("b")},
        "wrong type: a message of role 'gpt' in column 'chosen' has no content",
    ),
    "call": (
        "sharegpt",
        {"conversations": [{"from": "function_call", "value": "{"}], "chosen": gpt("a"), "rejected": gpt("b")},
        "broken JSON: ",
    ),
    "no conversations": ("sharegpt", {"chosen": gpt("a"), "rejected": gpt("b")}, "missing column: 'conversations'"),
    "no transcript": (
        "hh",
        {"chosen": "hello", "rejected": "\n\nHuman: a\n\nAssistant: b"},
        "no transcript: chosen does not begin",
    ),
    "human last": (
        "hh",
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"},
        "no transcript: chosen does not end",
    ),
    "no input": (
        "openai",
        {"input": 1, "preferred_output": [YES], "non_preferred_output": [NO]},
        "wrong type: column 'input'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_without_a_pair_are_refused_with_the_reason(case: str) -> None:
    dialect, row, reason = BAD[case]
    with pytest.raises(RowError) as caught:
        to_pair(row, dialect, chat=True)
    assert str(caught.value).startswith(reason)
    assert kind_of(str(caught.value)) in {
        "missing column",
        "null column",
        "wrong type",
        "chosen and rejected are the same",
        "empty completion",
        "no prompt",
        "broken JSON",
        "unknown role",
        "no transcript",
        "prompts differ",
    }


def test_the_dialect_is_that_of_most_rows() -> None:
    sharegpt = CONVERSATIONS["sharegpt"][1]
    assert dialect_of([{"x": 1}, sharegpt, sharegpt]) == "sharegpt"
    assert dialect_of([]) is None
