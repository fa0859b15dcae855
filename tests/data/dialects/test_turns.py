"""Turns make sense: a prompt and whole conversations agree, answers are the model's, roles are those of templates."""

import json
from collections.abc import Callable
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
    "a video": (
        {"prompt": [USER], "chosen": [YES], "rejected": [NO], "videos": [{"path": "x"}]},
        "not text: column 'videos'",
    ),
    "a video part": (
        {
            "prompt": [{"role": "user", "content": [{"type": "video", "video": "x"}]}],
            "chosen": [YES],
            "rejected": [NO],
        },
        "not text: a content in column 'prompt' has a part of type 'video'",
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
    "Llama": {"role": "assistant", "tool_calls": [{"name": "capital", "parameters": {"of": "Italy"}}]},
    "LangChain": {"role": "assistant", "tool_calls": [{"name": "capital", "args": {"of": "Italy"}}]},
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


@pytest.mark.parametrize("form", [json.dumps, str, lambda value: json.dumps(json.dumps(value))])
def test_messages_that_a_table_holds_as_text_are_messages(form: Callable[[Any], str]) -> None:
    assert pair_of({"prompt": form([USER]), "chosen": form([YES]), "rejected": form([NO])}) == PAIR
    if form is json.dumps:
        assert pair_of({"prompt": form([USER]), "chosen": form(YES), "rejected": form(NO)}) == PAIR


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'hi'}\n {'role': 'assistant', 'content': 'ho'}]",
        "[{'content': 'hi', 'role': 'user'}\n {'content': 'ho', 'role': 'assistant'}]",
        "array([{'content': 'hi', 'role': 'user'}], dtype=object)",
    ],
)
def test_numpys_notation_of_messages_is_not_trained_on(text: str) -> None:
    with pytest.raises(RowError, match=r"^broken JSON: .*it begins as messages do: save messages as lists"):
        pair_of({"prompt": text, "chosen": "Rome.", "rejected": "Pisa."})


def test_half_a_surrogate_in_messages_as_text_keeps_its_reason() -> None:
    text = json.dumps([USER]).replace("Italy", "\\ud83d")
    with pytest.raises(RowError, match=r"^bad Unicode: .* stands alone$"):
        pair_of({"prompt": text, "chosen": [YES], "rejected": [NO]})


@pytest.mark.parametrize("answers", [('{"role": "chef", "pay": 1}', '{"role": "cook"}'),
    ('[{"from": "Rome", "to": "Pisa"}]', '[{"from": "Pisa", "to": "Rome"}]')])  # fmt: skip
def test_answers_in_json_are_not_taken_for_messages_by_one_key(answers: tuple[str, str]) -> None:
    row = {"prompt": "Answer in JSON.", "chosen": answers[0], "rejected": answers[1]}
    assert pair_of(row) == Pair("Answer in JSON.", *answers)


def test_a_message_with_its_words_under_text_is_read_and_two_contents_are_refused() -> None:
    assert (
        pair_of({"prompt": [{"role": "prompter", "text": USER["content"]}], "chosen": [YES], "rejected": [NO]}) == PAIR
    )
    with pytest.raises(RowError, match=r"two messages in one: .* has both 'content' and 'text'"):
        pair_of({"prompt": [USER], "chosen": [{**YES, "text": "Paris."}], "rejected": [NO]})


def test_videos_of_a_message_are_not_left_out() -> None:
    row = {"prompt": [{**USER, "videos": ["a.mp4"]}], "chosen": [YES], "rejected": [NO]}
    with pytest.raises(RowError, match=r"^not text: a message in column 'prompt' has 'videos'"):
        pair_of(row)
    assert pair_of({**row, "prompt": [{**USER, "videos": []}]}).chosen == [YES]


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff \u2060", "\x00", "\u00a0"])
def test_an_answer_of_which_nothing_is_visible_is_empty(blank: str) -> None:
    with pytest.raises(RowError, match=r"^empty completion: chosen"):
        pair_of({"prompt": [USER], "chosen": [{**YES, "content": blank}], "rejected": [NO]})
    with pytest.raises(RowError, match=r"^empty completion: rejected"):
        pair_of({"prompt": "Capital?", "chosen": "Rome.", "rejected": blank})


def test_answers_without_a_prompt_name_the_columns_and_the_mapping() -> None:
    row = {"context_messages": [USER], "chosen": [YES], "rejected": [NO]}
    with pytest.raises(RowError) as caught:
        pair_of(row)
    assert str(caught.value).startswith("no prompt column: chosen and rejected are answers without what they answer")
    assert str(caught.value).endswith("--column_mapping prompt=context_messages")


def test_a_list_of_tools_as_texts_is_read() -> None:
    tool = {"type": "function", "function": {"name": "capital"}}
    row = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
    assert pair_of({**row, "tools": [json.dumps(tool)]}).tools == [tool]
    with pytest.raises(RowError, match="not a list of objects, one for each tool"):
        pair_of({**row, "tools": tool})


def test_a_prompt_of_text_may_render_the_turns_but_says_nothing_else() -> None:
    whole = {"chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO]}
    rendered = f"<|system|>\n{SYSTEM['content']}</s>\n<|user|>\n{USER['content']}</s>\n<|assistant|>\n"
    assert pair_of({**whole, "prompt": rendered}) == Pair([SYSTEM, USER], [YES], [NO])
    with pytest.raises(RowError, match=r"^prompts differ: the prompt ends with 'prompt: Answer in French"):
        pair_of({**whole, "prompt": f"Answer in French. {SYSTEM['content']} {USER['content']}"})


def test_a_list_of_texts_is_refused_as_what_it_is() -> None:
    with pytest.raises(RowError, match=r"^wrong type: column 'chosen' is a list of 1 texts"):
        pair_of({"prompt": [USER], "chosen": ["Rome."], "rejected": ["Pisa."]})
    with pytest.raises(RowError, match=r"holds an object with 'sender', 'words', not a message"):
        pair_of({"prompt": [USER], "chosen": {"sender": "a", "words": "b"}, "rejected": {"sender": "a", "words": "c"}})
