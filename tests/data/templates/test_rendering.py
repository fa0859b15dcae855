"""What a row says stands in the rendered text, or the row is told of: templates in the manner of known models."""

import re
from typing import Any

import pytest

from raydpo.data.dialects.pair import Pair, RowError
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.tokenization import EncodedPair, tokenize
from raydpo.errors import DataError
from tests.data.templates import samples
from tests.data.tokenizers import build_tokenizer

KEEP = TextOptions(on_template_loss="keep")
Row = dict[str, Any]


def user(content: Any) -> Row:
    return {"role": "user", "content": content}


def answer(content: Any, **more: Any) -> Row:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> Row:
    return {"role": "system", "content": content}


def call(name: str, **arguments: Any) -> Row:
    return answer("", tool_calls=[{"type": "function", "function": {"name": name, "arguments": arguments}}])


def pair(prompt: list[Row], chosen: Row | list[Row], rejected: Row | None = None, **more: Any) -> Pair:
    chosen = chosen if isinstance(chosen, list) else [chosen]
    return Pair(prompt, chosen, [rejected or answer("I cannot say.")], **more)


def result(template: str, row: Pair, options: TextOptions | None = None) -> EncodedPair | RowError:
    tokenizer = build_tokenizer(template)
    tokenizer.name_or_path = "some/model"
    (found,) = tokenize(tokenizer, [row], options)
    return found


def texts(template: str, row: Pair, options: TextOptions | None = None) -> tuple[str, str]:
    """Return prompt and chosen as text."""
    found = result(template, row, options)
    assert isinstance(found, EncodedPair), found
    tokenizer = build_tokenizer(template)
    return tokenizer.decode(found.prompt_ids.tolist()), tokenizer.decode(found.chosen_ids.tolist())


def reason(template: str, row: Pair, options: TextOptions | None = None) -> str:
    found = result(template, row, options)
    assert isinstance(found, RowError), found
    return str(found)


def losses(template: str, row: Pair) -> dict[str, str]:
    found = result(template, row, KEEP)
    assert isinstance(found, EncodedPair), found
    return {remark.detail: remark.example for remark in found.remarks if remark.topic == "dropped words"}


QUESTION = user("What is the capital of Italy?")
ROME = answer("It is Rome.")
CAPITAL = [{"type": "function", "function": {"name": "capital", "parameters": {"type": "object", "properties": {}}}}]


@pytest.mark.parametrize(
    ("template", "row", "said"),
    [
        (samples.CHATML, pair([QUESTION], call("capital", country="Italy")), "tool calls of chosen, .* 'capital'"),
        (samples.CHATML, pair([QUESTION], ROME, tools=CAPITAL), "tools of the prompt, .* 'capital'"),
        (
            samples.CHATML,
            pair([QUESTION], answer("It is Rome.", thinking="Easy one.")),
            "reasoning of chosen, .*'Easy",
        ),
        (
            samples.CHATML,
            pair([QUESTION], ROME, answer("It is Pisa.", reasoning="A tower.")),
            "reasoning of rejected",
        ),
        (samples.THINKING_STRIPPED, pair([QUESTION], answer("<think>\nEasy one.\n</think>\nRome")), "'Easy one.'"),
        (samples.SYSTEM_IN_LAST_TURN, pair([system("Be brief."), QUESTION], ROME), "system message of the prompt"),
        (samples.SYSTEM_AT_END, pair([system("Be brief."), QUESTION], ROME), "system message of the prompt"),
        (
            samples.NO_TOOL_ROLE,
            pair([QUESTION, call("capital"), {"role": "tool", "content": "4"}], ROME, tools=CAPITAL),
            "tool results of the prompt, .* '4'",
        ),
    ],
)
def test_words_that_the_template_drops_are_the_reason(template: str, row: Pair, said: str) -> None:
    found = reason(template, row)
    assert found.startswith("dropped by the chat template: ")
    assert "'some/model'" in found
    assert "on_template_loss=keep" in found
    assert re.search(said, found), found


def test_the_reason_names_what_the_template_lacks() -> None:
    lacking = reason(samples.CHATML, pair([QUESTION], call("capital"), tools=CAPITAL))
    assert "presents no tools and writes no tool calls" in lacking
    moved = reason(samples.SYSTEM_AT_END, pair([system("Be brief."), QUESTION], ROME))
    assert "writes them behind the prompt" in moved
    first_only = samples.CHATML.replace("{{ m.content }}", "{{ m.content[:20] }}")
    assert "does not write them in this row" in reason(first_only, pair([QUESTION], ROME))


def test_a_word_that_stands_there_by_chance_does_not_hide_a_loss() -> None:
    """The name of the tool, its argument and its result are words of the question too."""
    question = user("Which capital has 4 hills, Rome?")
    assert "tools" in reason(samples.CHATML, pair([question], ROME, tools=CAPITAL))
    dropped = pair([question, call("capital"), {"role": "tool", "content": "4"}], ROME)
    assert "tool results" in reason(samples.NO_TOOL_ROLE, dropped)


def test_with_keep_such_rows_are_trained_on_and_told_of() -> None:
    row = pair([QUESTION], answer("<think>\nEasy one.\n</think>\nRome."))
    assert losses(samples.THINKING_STRIPPED, row) == {"reasoning": "'Easy one.'"}
    assert texts(samples.THINKING_STRIPPED, row, KEEP)[1] == "\nRome.<|end|>\n"
    assert losses(samples.CHATML, pair([QUESTION], ROME, tools=CAPITAL)) == {"tools": "'capital'"}


def test_a_completion_without_words_is_empty_also_with_keep() -> None:
    thought = pair([QUESTION], answer("<think>\nOnly a thought.\n</think>"))
    assert reason(samples.THINKING_STRIPPED, thought, KEEP).startswith("empty completion: ")
    assert "no words of chosen" in reason(samples.CHATML, pair([QUESTION], call("capital")), KEEP)


@pytest.mark.parametrize(
    ("template", "row", "prompt", "chosen"),
    [
        (
            samples.THINKING,
            pair(
                [user("a"), answer("<think>\nold\n</think>\n\nb"), QUESTION], answer("<think>\nnew\n</think>\n\nRome")
            ),
            "<|start|>user\na<|end|>\n<|start|>assistant\nb<|end|>\n<|start|>user\nWhat is the capital of Italy?"
            "<|end|>\n<|start|>assistant\n",
            "<think>\nnew\n</think>\n\nRome<|end|>\n",
        ),
        (
            samples.THINKING,
            pair([QUESTION], answer("Rome.", reasoning="Easy.")),
            "<|start|>user\nWhat is the capital of Italy?<|end|>\n<|start|>assistant\n",
            "<think>\nEasy.\n</think>\n\nRome.<|end|>\n",
        ),
        (
            samples.TOOLS,
            pair([QUESTION], call("capital", country='"Italy"\n'), tools=CAPITAL),
            '<|start|>system\n{"type": "function", "function": {"name": "capital", "parameters": {"type": "object", '
            '"properties": {}}}}\n<|end|>\n<|start|>user\nWhat is the capital of Italy?<|end|>\n<|start|>assistant\n',
            '<tool_call>{"name": "capital", "arguments": {"country": "\\"Italy\\"\\n"}}</tool_call><|end|>\n',
        ),
        (
            samples.NO_SYSTEM,
            pair([user("  What?\n")], answer("\n Rome. ")),
            "<|start|>user\nWhat?<|end|>\n<|start|>model\n",
            "Rome.<|end|>\n",
        ),
    ],
)
def test_words_that_the_template_keeps_are_trained_on(template: str, row: Pair, prompt: str, chosen: str) -> None:
    assert texts(template, row) == (prompt, chosen)


def test_reasoning_that_the_generation_prompt_begins_is_no_loss() -> None:
    """The answer brings the opening mark of the thought, which is in the generation prompt too."""
    template = samples.CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    prompt, chosen = texts(template, pair([QUESTION], answer("<think>\nstill at it"), answer("<think>\nno")))
    assert prompt.endswith("<|start|>assistant\n<think>\n")
    assert chosen == "still at it<|end|>\n"


def test_content_parts_become_text_as_the_template_writes_them() -> None:
    parts = [{"type": "text", "text": "Capital of"}, {"type": "text", "text": "Italy?"}]
    row = pair([user(parts)], answer([{"type": "output_text", "text": "Rome."}]))
    assert texts(samples.PARTS, row) == (
        "<|start|>user\n[Capital of][Italy?]<|end|>\n<|start|>assistant\n",
        "[Rome.]<|end|>\n",
    )
    for template in (samples.CHATML, samples.NO_SYSTEM):  # the first writes a list, the second fails on it
        prompt, chosen = texts(template, row)
        assert "\nCapital of\nItaly?<|end|>" in prompt
        assert chosen == "Rome.<|end|>\n"


@pytest.mark.parametrize("template", [samples.TEXT_ARGUMENTS, samples.PRINTED_ARGUMENTS, samples.TOOLS])
def test_arguments_are_written_as_json_whatever_form_the_template_takes(template: str) -> None:
    row = pair([user("Capital?"), call("capital", of="Italy", n=3), user("And now?")], call("capital", of="Perú"))
    prompt, chosen = texts(template, row)
    assert '{"of": "Italy", "n": 3}' in prompt
    assert '{"of": "Perú"}' in chosen


def test_text_becomes_a_part_where_the_template_takes_only_parts() -> None:
    prompt = "<|start|>user\nWhat is the capital of Italy?<|end|>\n<|start|>assistant\n"
    assert texts(samples.ONLY_PARTS, pair([QUESTION], ROME)) == (prompt, "It is Rome.<|end|>\n")
    prompt = "<|start|>system\nBrief.<|end|>\n<|start|>user\nq<|end|>\n<|start|>assistant\n"
    assert texts(samples.ONLY_PARTS, pair([system("Brief."), user("q")], ROME))[0] == prompt


@pytest.mark.parametrize(
    "part", [{"type": "image", "image": "x.png"}, {"type": "text", "text": {"value": "Rome"}}, {"type": ["text"]}, 5]
)
def test_content_parts_that_are_no_text_are_refused(part: Any) -> None:
    assert reason(samples.PARTS, pair([user([part])], ROME)).startswith("wrong type: ")


def test_a_prompt_that_changes_when_an_answer_follows_is_named_as_that() -> None:
    for options in (TextOptions(), KEEP):
        found = reason(samples.HISTORY_CHANGES, pair([user("Why not?")], ROME), options)
        assert found.startswith("the chat template renders the prompt differently when an answer follows: ")
        assert "last: Why" in found


def test_a_tail_within_the_generation_prompt_is_told_apart_from_merged_tokens() -> None:
    found = result(samples.THINKING_STRIPPED, pair([QUESTION], ROME))
    assert isinstance(found, EncodedPair)
    assert [(remark.topic, remark.example) for remark in found.remarks] == [("generation tail", repr("<think>\n"))]
    (merged,) = tokenize(build_tokenizer(None), [Pair("say he", "llo", "y")])
    assert isinstance(merged, EncodedPair)
    assert [(remark.topic, remark.example) for remark in merged.remarks] == [("merged tail", "'he'")]


def test_a_template_that_cannot_render_anything_ends_the_run_with_one_line() -> None:
    tokenizer = build_tokenizer("{% for m in messages %}{{ raise_exception('broken beyond repair') }}{% endfor %}")
    tokenizer.name_or_path = "some/model"
    with pytest.raises(DataError, match=r"'some/model' cannot render .*broken beyond repair; correct chat_template"):
        list(tokenize(tokenizer, [pair([QUESTION], ROME)] * 3))


def test_rows_that_all_break_a_rule_of_a_sound_template_are_bad_rows() -> None:
    rows = [pair([system("Be brief."), QUESTION], ROME)] * 3
    found = list(tokenize(build_tokenizer(samples.NO_SYSTEM), rows))
    expected = "refused by the chat template: TemplateError: System role not supported"
    assert [str(part) for part in found] == [expected] * 3


def test_text_rows_have_no_chat_template_for_their_tools() -> None:
    row = Pair("q", " a", " b", CAPITAL)
    assert reason(samples.TOOLS, row).startswith(
        "dropped by the chat template: tools, for example 'capital'; the row is"
    )
    assert losses(samples.TOOLS, row) == {"tools": "'capital'"}
    assert texts(samples.TOOLS, Pair("Call capital.", " a", " b", CAPITAL)) == ("Call capital.", " a<eos>")
    assert "'style'" in reason(samples.TOOLS, Pair("q", " a", " b", None, {"style": "curt", "none": None}))


@pytest.mark.parametrize("content", ["\ud83d", "a" * 10 + "\udfff"])
def test_a_row_that_the_tokenizer_refuses_costs_itself_only(content: str) -> None:
    good = pair([QUESTION], ROME)
    found = list(tokenize(build_tokenizer(samples.CHATML), [good, pair([user(content)], ROME), good, good]))
    assert [isinstance(part, EncodedPair) for part in found] == [True, False, True, True]
    assert str(found[1]) == "bad Unicode: half of a surrogate pair stands alone"


def test_words_in_a_variable_that_the_template_does_not_use_are_not_lost_in_silence() -> None:
    documents = {"documents": [{"text": "Rome is the capital."}]}
    row = pair([user("Capital?")], answer("Rome."), chat_template_kwargs=documents)
    assert reason(samples.CHATML, row).startswith(
        "dropped by the chat template: chat_template_kwargs, for example 'doc"
    )
    found = result(samples.CHATML, row, KEEP)
    assert isinstance(found, EncodedPair)
    assert [remark.detail for remark in found.remarks] == ["chat_template_kwargs"]
    written = "{{ documents[0].text }}" + samples.CHATML
    assert texts(written, row)[0].startswith("Rome is the capital.<|start|>")
    for setting in ({"enable_thinking": False}, {"reasoning_effort": "high"}, {"custom_instructions": ""}):
        texts(samples.CHATML, pair([user("Capital?")], answer("Rome."), chat_template_kwargs=setting))


def test_a_system_message_that_vanishes_when_an_answer_follows_is_named_as_that() -> None:
    row = pair([system("Answer in French."), user("Capital?")], answer("Rome."))
    assert "only into a last turn of the user, not where an answer follows" in reason(samples.SYSTEM_IN_LAST_TURN, row)


def test_a_switch_that_the_template_obeys_is_no_word_that_it_drops() -> None:
    obeys = samples.CHATML.replace("{{ m.content }}", "{{ m.content | replace('/no_think', '') }}")
    row = pair([system("Answer /no_think in French."), user("Capital?")], answer("Rome."))
    assert "Answer  in French." in texts(obeys, row)[0]
    drops = samples.CHATML.replace("{{ m.content }}", "{{ m.content | replace('French', '') }}")
    assert reason(drops, row).startswith("dropped by the chat template: system message")


def test_a_template_of_a_row_that_needs_too_much_memory_costs_that_row() -> None:
    greedy = pair([user("Capital?")], answer("Rome."), chat_template_kwargs={"chat_template": "{{ 'x' * (10 ** 17) }}"})
    assert reason(samples.CHATML, greedy) == (
        "refused by the chat template: the row's own template takes too much memory"
    )
