"""Rows are read by what their columns are called, by `column_mapping`, or refused with the mapping to use."""

from typing import Any

import pytest

from raydpo.config import from_flat
from raydpo.data.dialects.columns import ColumnMapping
from raydpo.data.dialects.detect import dialect_of, to_pair
from raydpo.data.dialects.pair import Pair, RowError
from raydpo.errors import ConfigError

Row = dict[str, Any]
GOOD, BAD = "The capital is Rome.", "The capital is Pisa."


def pair_of(row: Row, mapping: str = "", chat: bool = False) -> Pair:
    """Return the pair of a row as a run with this `column_mapping` reads it."""
    job = from_flat({"column_mapping": mapping.replace(" ", ",")} if mapping else {})
    parsed = ColumnMapping.parse(job.data.column_mapping)
    dialect = dialect_of([row], parsed)
    assert dialect is not None
    return to_pair(row, dialect, chat, parsed)


def refusal(row: Row, mapping: str = "", chat: bool = False) -> str:
    """Return the reason why a row is refused."""
    with pytest.raises(RowError) as caught:
        pair_of(row, mapping, chat)
    return str(caught.value)


COMMON_NAMES: dict[str, tuple[Row, str]] = {
    "Orca": ({"question": "Capital of Italy?"}, "Capital of Italy?"),
    "Alpaca": ({"instruction": "Name the capital.", "input": "Italy"}, "Name the capital.\nItaly"),
    "Alpaca without input": ({"instruction": "Name it.", "input": ""}, "Name it."),
    "query": ({"query": "Capital of Italy?", "source": "a quiz of ours"}, "Capital of Italy?"),
}


@pytest.mark.parametrize("case", COMMON_NAMES)
def test_a_prompt_under_a_common_name_is_read_and_not_guessed_from_the_answers(case: str) -> None:
    columns, prompt = COMMON_NAMES[case]
    assert pair_of({**columns, "chosen": GOOD, "rejected": BAD}) == Pair(prompt, GOOD, BAD)


def test_rows_of_ms_swift_are_read() -> None:
    conversation = [{"role": "user", "content": "Capital?"}, {"role": "assistant", "content": GOOD}]
    row = {"messages": conversation, "rejected_response": BAD}
    expected = Pair(conversation[:1], conversation[1:], [{"role": "assistant", "content": BAD}])
    assert pair_of(row, chat=True) == expected
    text = {"query": "Capital?", "response": GOOD, "rejected_response": BAD, "system": None, "history": []}
    assert pair_of(text, chat=True) == expected
    assert pair_of(text) == Pair("Capital?", GOOD, BAD)


def test_earlier_turns_stand_before_the_prompt() -> None:
    row = {
        "instruction": "And of Italy?",
        "history": [["Capital of France?", "Paris."]],
        "chosen": GOOD,
        "rejected": BAD,
    }
    contents = [turn["content"] for turn in pair_of(row, chat=True).prompt]  # type: ignore[union-attr, index]
    assert contents == ["Capital of France?", "Paris.", "And of Italy?"]
    assert refusal(row).startswith("no chat template")


@pytest.mark.parametrize("column", ["trajectory", "dialogue_history", "task", "context", "ask"])
def test_a_column_that_may_be_the_prompt_is_never_ignored(column: str) -> None:
    row = {column: "User: what is the capital of Italy?", "chosen": GOOD, "rejected": BAD}
    reason = refusal(row)
    assert reason.startswith(f"no prompt column: column {column!r} may be the prompt")
    assert f"'{column}', 'chosen', 'rejected'" in reason
    assert pair_of(row, f"prompt={column}").prompt == row[column]
    assert pair_of(row, "prompt=none").prompt == "The capital is"


def test_columns_that_describe_a_row_do_not_hinder_an_implicit_prompt() -> None:
    about = {
        "id": "row 1 of 2", "source": "a quiz of ours", "chosen_model": "some big model", "score_chosen": 4.0,
        "excerpt": "The capital is", "tags": ["x"], "blank": " ",
    }  # fmt: skip
    assert pair_of({**about, "chosen": GOOD, "rejected": BAD}).prompt == "The capital is"


MAPPED: dict[str, tuple[Row, str]] = {
    "PKU-SafeRLHF": (
        {
            "prompt": "Capital?",
            "response_0": BAD,
            "response_1": GOOD,
            "is_response_0_safe": True,
            "better_response_id": 1,
        },
        "completions=response_0+response_1 best=better_response_id",
    ),
    "Nectar": (
        {
            "prompt": "Capital?",
            "answers": [{"answer": "?", "rank": 2}, {"answer": BAD, "rank": 3}, {"answer": GOOD, "rank": 1}],
        },
        "completions=answers.answer ranks=answers.rank",
    ),
    "UltraFeedback": (
        {
            "instruction": "Capital?",
            "completions": [
                {"response": BAD, "overall_score": 1.5},
                {"response": "Rome?", "overall_score": 7},
                {"response": GOOD, "overall_score": "8.5"},
            ],
        },
        "prompt=instruction completions=completions.response scores=completions.overall_score",
    ),
    "two scores": (
        {"question": "Capital?", "answer_0": GOOD, "answer_1": BAD, "score_0": 0.5, "score_1": -0.5},
        "prompt=question completions=answer_0+answer_1 scores=score_0+score_1",
    ),
    "a named winner": (
        {"prompt": "Capital?", "response_a": BAD, "response_b": GOOD, "winner": "model_b"},
        "completions=response_a+response_b best=winner",
    ),
    "winners of Chatbot Arena": (
        {"prompt": "Capital?", "response_a": GOOD, "response_b": BAD, "winner_model_a": 1, "winner_model_b": 0},
        "completions=response_a+response_b scores=winner_model_a+winner_model_b",
    ),
    "lists of completions and ratings": (
        {"instruction": "Capital?", "generations": [BAD, GOOD], "ratings": [2, 5], "generation_models": ["a", "b"]},
        "prompt=instruction completions=generations scores=ratings",
    ),
    "a list of two": ({"prompt": "Capital?", "output": [GOOD, BAD]}, "chosen=output.0 rejected=output.1"),
    "objects and a choice": (
        {"info": {"post": "Capital?"}, "summaries": [{"text": BAD}, {"text": GOOD}], "choice": 1},
        "prompt=info.post completions=summaries.text best=choice",
    ),
    "an export": (
        {"id": "7", "fields": {"prompt": "Capital?", "response_1": GOOD, "response_2": BAD}, "better": 1},
        "prompt=fields.prompt completions=fields.response_1+fields.response_2 best=better",
    ),
    "an object with the text": (
        {"question": {"full_text": "Capital?"}, "answer_0": GOOD, "answer_1": BAD, "score_0": 1.5, "score_1": 1},
        "prompt=question.full_text completions=answer_0+answer_1 scores=score_0+score_1",
    ),
    "instruction with input": (
        {"instruction": "Capital?", "input": "", "winner": GOOD, "loser": BAD},
        "prompt=instruction+input chosen=winner rejected=loser",
    ),
    "other names": ({"question": "Capital?", "accepted": GOOD, "rejected": BAD}, "prompt=question chosen=accepted"),
}


@pytest.mark.parametrize("case", MAPPED)
def test_the_mapping_in_the_refusal_reads_the_rows(case: str) -> None:
    row, mapping = MAPPED[case]
    reason = refusal(row)
    assert all(repr(name) in reason for name in row)
    assert reason.endswith(f"map them with --column_mapping {mapping}")
    assert pair_of(row, mapping) == Pair("Capital?", GOOD, BAD)


def test_nested_columns_lists_and_joined_texts_are_mapped() -> None:
    row = {"data": {"ask": "Capital?", "of": "Italy"}, "answers": [{"text": GOOD}, {"text": BAD}], "a.b": "be brief"}
    mapping = "prompt=data.ask+data.of chosen=answers.0.text rejected=answers.1.text system=a.b"
    assert pair_of(row, mapping) == Pair("be brief\n\nCapital?\nItaly", GOOD, BAD)
    assert "'data.question' of column_mapping" in refusal(row, mapping.replace("data.ask", "data.question"))


def test_completions_of_which_none_is_better_are_refused() -> None:
    row = {"prompt": "Capital?", "response_a": GOOD, "response_b": BAD, "winner": "tie", "s": [1, 1]}
    assert refusal(row, "completions=response_a+response_b best=winner").startswith("no preference: 'winner' is 'tie'")
    assert refusal(row, "completions=response_a+response_b scores=s").startswith("no preference: scores are 1, 1")
    assert refusal({**row, "s": [1]}, "completions=response_a+response_b scores=s").startswith("no preference: ")
    assert refusal({**row, "s": None}, "completions=response_a+response_b scores=s").startswith("no preference: ")
    assert refusal(row, "completions=response_a best=winner").startswith("no completions: ")


ANSWERS = {"response_1": GOOD, "response_2": BAD, "response1": GOOD, "response2": BAD, "a": GOOD, "b": BAD}


@pytest.mark.parametrize(("names", "first", "second"), [("response_1+response_2", 1, 2), ("response1+response2", 1, 2),
    ("response1+response2", "1", "2"), ("response1+response2", "response_1", "Response 2"), ("a+b", 0, 1),
    ("a+b", "A", "B"), ("a+b", "model_a", "model_b")])  # fmt: skip
def test_the_number_in_a_columns_name_is_what_a_choice_means(names: str, first: Any, second: Any) -> None:
    row = {"prompt": "Capital?", **ANSWERS}
    assert pair_of({**row, "better": first}, f"completions={names} best=better") == Pair("Capital?", GOOD, BAD)
    assert pair_of({**row, "better": second}, f"completions={names} best=better") == Pair("Capital?", BAD, GOOD)


@pytest.mark.parametrize("choice", [0, 3, True, False, None, 0.5, [1], "tie", "0"])
def test_a_choice_that_names_neither_completion_is_not_taken_for_an_index(choice: Any) -> None:
    row = {"prompt": "Capital?", **ANSWERS, "better": choice}
    assert refusal(row, "completions=response1+response2 best=better").startswith("no preference: 'better' is ")


def test_a_signed_strength_of_preference_tells_the_better_one() -> None:
    row = {"context": [{"role": "user", "content": "Capital?"}], "response1": GOOD, "response2": BAD}
    mapping = "prompt=context completions=response1+response2 strength=overall_preference"
    assert refusal({**row, "overall_preference": 1}).endswith(f"--column_mapping {mapping}")
    for strength, (chosen, rejected) in {-2: (GOOD, BAD), 1: (BAD, GOOD)}.items():
        pair = pair_of({**row, "overall_preference": strength}, mapping, chat=True)
        assert [turn["content"] for side in (pair.chosen, pair.rejected) for turn in side] == [chosen, rejected]  # type: ignore[index]
    for none in (0, None, "much"):
        assert refusal({**row, "overall_preference": none}, mapping, chat=True).startswith("no preference: 'overall")


def test_a_column_that_is_mapped_is_not_read_under_its_own_name_too() -> None:
    row = {"history": "Capital?", "human_ref_A": GOOD, "human_ref_B": BAD, "score_A": 9, "score_B": 2, "labels": 1}
    mapping = "prompt=history completions=human_ref_A+human_ref_B scores=score_A+score_B"
    assert refusal(row).endswith(mapping)
    assert pair_of(row, mapping) == pair_of(row, mapping, chat=True) == Pair("Capital?", GOOD, BAD)


@pytest.mark.parametrize("beside", ["context", "passage", "documents"])
def test_what_a_question_is_about_is_not_left_out(beside: str) -> None:
    row = {"question": "What is its capital?", beside: "This is about Italy.", "chosen": GOOD, "rejected": BAD}
    assert f"--column_mapping prompt={beside}+question joins them" in refusal(row)
    assert pair_of(row, f"prompt={beside}+question").prompt == "This is about Italy.\nWhat is its capital?"
    assert pair_of({**row, beside: ""}).prompt == "What is its capital?"
    given = {"instruction": "Name the capital.", "input": {"of": "Italy"}, "chosen": GOOD, "rejected": BAD}
    assert refusal(given).startswith("no prompt column")


def test_a_completion_without_a_score_is_not_compared() -> None:
    answers = [{"text": "?", "score": None}, {"text": GOOD, "score": 5}, {"text": BAD, "score": 2}, {"text": "!"}]
    row = {"prompt": "Capital?", "answers": [{key: part for key, part in a.items() if part} for a in answers]}
    assert pair_of(row, "completions=answers.text scores=answers.score") == Pair("Capital?", GOOD, BAD)
    assert refusal(row, "completions=answers.text scores=answers.rank").startswith("missing column: 'answers.rank'")


def test_no_prompt_is_asked_for_where_conversations_contain_it() -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "Capital?"), ("assistant", GOOD))]
    row = {"chosen_traj": turns, "rejected_traj": [turns[0], {"role": "assistant", "content": BAD}]}
    assert refusal(row).endswith("--column_mapping chosen=chosen_traj rejected=rejected_traj")
    assert pair_of(row, "chosen=chosen_traj rejected=rejected_traj", chat=True).prompt == turns[:1]


def test_a_null_column_that_arrow_has_filled_in_hides_no_other() -> None:
    row = {"prompt": None, "messages": None, "question": "Capital?", "system": None, "chosen": GOOD, "rejected": BAD}
    assert pair_of(row) == Pair("Capital?", GOOD, BAD)
    messages = [{"role": "user", "content": "Capital?"}]
    assert pair_of({**row, "question": None, "messages": messages}, chat=True).prompt == messages
    assert refusal({**row, "question": None}).startswith("null column: 'prompt'")
    missing = float("nan")  # as pandas writes nothing in a column of text
    assert pair_of({**row, "prompt": missing, "system": missing, "tools": missing}) == Pair("Capital?", GOOD, BAD)


def test_one_of_several_rows_in_an_object_is_not_suggested_as_the_row() -> None:
    row = {"prompt": "Capital?", "chosen": GOOD, "rejected": BAD}
    assert refusal({"0": row, "1": row}).endswith("prompt=COLUMN chosen=COLUMN rejected=COLUMN")
    assert refusal({"row": row}).endswith("prompt=row.prompt chosen=row.chosen rejected=row.rejected")
    assert refusal({"Prompt": "Capital?", "Chosen": GOOD, "Rejected": BAD}).endswith(
        "prompt=Prompt chosen=Chosen rejected=Rejected"
    )


def test_two_columns_of_system_prompts_lose_none() -> None:
    row = {"prompt": [{"role": "user", "content": "Capital?"}], "chosen": [{"role": "assistant", "content": GOOD}],
           "rejected": [{"role": "assistant", "content": BAD}], "system_prompt": SYSTEM["content"]}  # fmt: skip
    for empty in (None, "", " "):
        assert pair_of({**row, "system": empty}, chat=True).prompt[0] == SYSTEM  # type: ignore[index]
    assert refusal({**row, "system": "Be brief."}, chat=True).startswith("two system messages: columns 'system' and")


def test_rows_of_when2call_are_read() -> None:
    row = {"messages": [{"role": "user", "content": "Capital?"}], "tools": [],
           "chosen_response": {"role": "assistant", "content": GOOD},
           "rejected_response": {"role": "assistant", "content": BAD}}  # fmt: skip
    pair = pair_of(row, chat=True)
    assert (pair.prompt, pair.chosen) == (row["messages"], [row["chosen_response"]])
    assert pair.rejected == [row["rejected_response"]]


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("promt=question", "maps promt, which is not one of prompt, chosen"),
        ("completions=a+b", "together with one of best, strength, scores, ranks"),
        ("best=a", "together with one of best, strength, scores, ranks"),
        ("completions=a+b,best=c,chosen=d", "maps completions and chosen"),
        ("prompt=", "gives prompt no column"),
    ],
)
def test_a_mapping_that_cannot_be_followed_is_an_error_at_start(mapping: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_flat({"column_mapping": mapping})


SYSTEM = {"role": "system", "content": "Answer in French."}


def test_system_is_used_in_every_dialect() -> None:
    user, yes, no = (
        {"role": role, "content": text}
        for role, text in (("user", "Capital?"), ("assistant", GOOD), ("assistant", BAD))
    )
    conversation = Pair([SYSTEM, user], [yes], [no])
    rows: list[Row] = [
        {"prompt": [user], "chosen": [yes], "rejected": [no]},
        {"prompt": "Capital?", "chosen": GOOD, "rejected": BAD},
        {"chosen": [user, yes], "rejected": [user, no]},
        {"messages": [user], "chosen": yes, "rejected": no},
        {"conversations": [{"from": "human", "value": "Capital?"}], "chosen": yes, "rejected": no},
        {"chosen": f"\n\nHuman: Capital?\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: Capital?\n\nAssistant: {BAD}"},
        {"question": "Capital?", "chosen": GOOD, "rejected": BAD},
    ]
    for row in rows:
        assert pair_of({**row, "system": SYSTEM["content"]}, chat=True) == conversation, row
        assert pair_of({**row, "system_prompt": SYSTEM["content"]}, chat=True) == conversation, row
    assert pair_of({**rows[1], "system": SYSTEM["content"]}) == Pair("Answer in French.\n\nCapital?", GOOD, BAD)
    # Rows without a system message are conversations too where others of the file have one.
    assert pair_of({**rows[1], "system": None}, chat=True) == Pair([user], [yes], [no])
    implicit = {"chosen": GOOD, "rejected": BAD}
    assert refusal({**implicit, "system": "Be brief."}, chat=True).startswith("no prompt column: column 'system'")
    assert pair_of({**implicit, "system": None}, chat=True).prompt == "The capital is"
    other = {**rows[0], "prompt": [{"role": "system", "content": "Be brief."}, user], "system": SYSTEM["content"]}
    assert refusal(other, chat=True).startswith("two system messages")
