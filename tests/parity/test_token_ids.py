"""The token ids in raydpo's tokenized blocks equal those a TRL trainer would train on, from the same JSONL file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset
from transformers import PreTrainedTokenizerFast

from raydpo.data.prepare import TokenizationRequest, prepare
from raydpo.data.ray_stream import Slicing
from raydpo.data.shards import find_shards
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockRecipe
from raydpo.runtime import storage
from tests.data.tokenizers import TEMPLATE, build_tokenizer
from tests.e2e.jobs import read_lines, write_rows
from tests.parity.trl_side import RUN_ON_CPU, classes, needs_trl

pytestmark = [needs_trl, pytest.mark.usefixtures("ray_local")]

Row = dict[str, Any]
Side = tuple[list[int], list[int]]
"""(prompt ids, completion ids)."""
Sides = dict[int, tuple[Side, Side]]
"""(chosen, rejected) by row number."""

VOCABULARY = "hello world he llo blue black b both yes, no! ".split(" ")
"""Words chosen with the merges of the test tokenizer, so that some tokens merge across the prompt boundary."""


def words(*seed: int) -> str:
    draw = np.random.default_rng(seed)
    return " ".join(draw.choice(VOCABULARY, size=draw.integers(1, 30)))


def turn(role: str, *seed: int) -> Row:
    return {"role": role, "content": words(*seed)}


def answers(i: int, history: list[Row]) -> dict[str, list[Row]]:
    return {"chosen": [*history, turn("assistant", i, 1)], "rejected": [*history, turn("assistant", i, 2)]}


def call(i: int) -> list[Row]:
    """Return a user turn, a tool call and its result."""
    function = {"name": "f", "arguments": {"x": i}}
    return [
        turn("user", i, 0),
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": str(i), "tool_calls": None},
    ]


def tools(i: int) -> list[Row]:
    function = {"name": f"f{i % 3}", "parameters": {"properties": {"x" if i % 2 else "y": words(i, 4)}}}
    return [{"type": "function", "function": function}]


ROWS = range(40)
FORMATS: dict[str, list[Row]] = {
    "text, explicit": [{"prompt": words(i, 0), "chosen": words(i, 1), "rejected": words(i, 2)} for i in ROWS],
    "text, implicit": [
        {"chosen": f"{words(i, 0)} {words(i, 1)}", "rejected": f"{words(i, 0)} {words(i, 2)}"} for i in ROWS
    ],
    "messages, explicit": [{"prompt": [turn("system", i, 3), turn("user", i, 0)], **answers(i, [])} for i in ROWS],
    "messages, implicit": [answers(i, [turn("user", i, 0), turn("assistant", i, 3), turn("user", i, 4)]) for i in ROWS],
    "tools as JSON": [{"prompt": call(i), **answers(i, []), "tools": json.dumps(tools(i))} for i in ROWS],
    "tools as objects": [{**answers(i, call(i)), "tools": tools(i)} for i in ROWS],
    "template arguments": [
        {**answers(i, [turn("user", i, 0)]), "chat_template_kwargs": {"style": words(i, 5)} if i % 2 else {"other": i}}
        for i in ROWS
    ],
}
TOKENIZERS = {
    "plain": build_tokenizer(TEMPLATE),
    # Adds <bos> to text; conversations take their special tokens only from the template.
    "bos": build_tokenizer(TEMPLATE, bos=True),
    # Renders a prompt alone differently from a prompt with its answer, as templates of thinking models do.
    "thinking": build_tokenizer(TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>hmm {% endif %}")),
}


def numbered_distinct(rows: list[Row]) -> list[Row]:
    """Return the rows whose chosen and rejected differ, numbered from 1 in a column that both sides accept."""
    kept = [row for row in rows if row["chosen"] != row["rejected"]]
    return [{**row, "number": number} for number, row in enumerate(kept, 1)]


def raydpo_ids(path: str, tokenizer: PreTrainedTokenizerFast, **truncation: Any) -> tuple[Sides, dict[int, str]]:
    """Return raydpo's token ids and its quarantine reasons, each by row number."""
    folder = Path(path).parent
    recipe = BlockRecipe(Truncation(**truncation), str(folder / "cache"), str(folder / "quarantine"))
    data = prepare(find_shards([path], "train"), TokenizationRequest(tokenizer, Slicing(), recipe))
    rows = [row for block in data.blocks for row in storage.read_table(block.url).to_pylist()]
    sides = {
        int(row["pair_id"].rsplit(":", 1)[1]): (
            (row["prompt_ids"], row["chosen_ids"]),
            (row["prompt_ids"], row["rejected_ids"]),
        )
        for row in rows
    }
    bad = [row for file in (folder / "quarantine").glob("*.jsonl") for row in read_lines(file)]
    return sides, {row["row"]: row["reason"] for row in bad}


def trainer(job: str, path: str, tokenizer: PreTrainedTokenizerFast, model: Path, **options: Any) -> Any:
    """Return TRL's trainer of a job before training; it has read the file and tokenized its rows."""
    config_class, trainer_class = classes(job)
    folder = Path(path).parent
    return trainer_class(
        model=str(model),
        args=config_class(output_dir=str(folder / "trl"), bf16=False, **RUN_ON_CPU, **options),
        processing_class=tokenizer,
        train_dataset=load_dataset("json", data_files=path, split="train", cache_dir=str(folder / "datasets")),
    )


def trl_ids(path: str, tokenizer: PreTrainedTokenizerFast, model: Path, **options: Any) -> Sides:
    """Return the token ids by row number in the batches of TRL's DPOTrainer, whose collator truncates them."""
    dpo = trainer("dpo", path, tokenizer, model, **options)
    sides = {}
    for row in dpo.train_dataset:
        batch = dpo.data_collator([row])
        fields = (batch[name] for name in ("input_ids", "attention_mask", "completion_mask"))
        chosen, rejected = (
            (ids[(attended - completion).bool()].tolist(), ids[completion.bool()].tolist())
            for ids, attended, completion in zip(*fields, strict=True)
        )
        sides[row["number"]] = (chosen, rejected)
    return sides


def lengths(sides: Sides, part: int) -> dict[int, int]:
    """Return the number of tokens of the prompt (part 0) or of the longer completion (part 1), by row number."""
    return {number: max(len(side[part]) for side in pair) for number, pair in sides.items()}


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        *((name, "plain") for name in FORMATS),
        ("text, explicit", "bos"),
        ("text, implicit", "bos"),
        ("messages, explicit", "bos"),
        ("messages, implicit", "thinking"),
    ],
)
def test_token_ids_equal_trl(name: str, tokenizer: str, tiny_model: Path, tmp_path: Path) -> None:
    rows = numbered_distinct(FORMATS[name])
    path = write_rows(tmp_path / "rows.jsonl", rows)
    raydpo_rows, bad = raydpo_ids(path, TOKENIZERS[tokenizer])
    assert raydpo_rows == trl_ids(path, TOKENIZERS[tokenizer], tiny_model, max_length=None)
    assert (len(raydpo_rows), bad) == (len(rows), {})


@pytest.mark.parametrize("name", ["text, explicit", "text, implicit", "messages, explicit", "tools as JSON"])
def test_truncated_token_ids_equal_trl(name: str, tiny_model: Path, tmp_path: Path) -> None:
    rows = numbered_distinct(FORMATS[name])
    path = write_rows(tmp_path / "rows.jsonl", rows)
    untruncated, _ = raydpo_ids(path, TOKENIZERS["plain"])
    max_length = int(np.median([*lengths(untruncated, 0).values()])) + 5
    raydpo_rows, bad = raydpo_ids(path, TOKENIZERS["plain"], max_length=max_length)
    trl_rows = trl_ids(path, TOKENIZERS["plain"], tiny_model, max_length=max_length)

    assert raydpo_rows == {number: sides for number, sides in trl_rows.items() if number in raydpo_rows}
    # TRL silently drops the rows whose prompt fills max_length; raydpo quarantines them.
    dropped = {row["number"] for row in rows} - trl_rows.keys()
    assert {number for number, reason in bad.items() if reason.startswith("prompt too long")} == dropped
    # TRL trains on rows that are equal after truncation and express no preference; raydpo quarantines them too.
    equal = {number for number, (chosen, rejected) in trl_rows.items() if chosen == rejected}
    assert {number for number, reason in bad.items() if reason.startswith("chosen and rejected")} == equal
    assert bad.keys() == dropped | equal
    assert min(len(raydpo_rows), len(dropped)) > 5
    assert any(raydpo_rows[number] != untruncated[number] for number in raydpo_rows)


def test_keep_end_truncates_one_prompt_per_pair_and_trl_one_per_side(tiny_model: Path, tmp_path: Path) -> None:
    """TRL truncates the start of each side on its own, so chosen and rejected follow prompts of different lengths.

    In raydpo both follow the prompt as truncated for the longer side, so that the sides differ only in the completions.
    """
    path = write_rows(tmp_path / "rows.jsonl", numbered_distinct(FORMATS["messages, explicit"]))
    untruncated, _ = raydpo_ids(path, TOKENIZERS["plain"])
    completions = lengths(untruncated, 1)
    max_length = sorted(completions.values())[-3]
    raydpo_rows, bad = raydpo_ids(path, TOKENIZERS["plain"], max_length=max_length, truncation_mode="keep_end")
    trl_rows = trl_ids(path, TOKENIZERS["plain"], tiny_model, max_length=max_length, truncation_mode="keep_end")
    for number, sides in raydpo_rows.items():
        longer = max((0, 1), key=lambda side: len(sides[side][1]))
        assert sides[longer] == trl_rows[number][longer]
        assert sides[1 - longer] == (sides[longer][0], trl_rows[number][1 - longer][1])
    assert any(raydpo_rows[number] != trl_rows[number] for number in raydpo_rows)
    assert any(raydpo_rows[number] != untruncated[number] for number in raydpo_rows)
    # If a completion alone fills max_length, TRL trains on its end without a prompt; raydpo quarantines the row.
    assert bad.keys() == {number for number, length in completions.items() if length >= max_length}
    assert len(bad) >= 3
    assert all(reason.startswith("completion too long") for reason in bad.values())


def test_an_implicit_prompt_ends_at_a_word_when_one_text_is_a_prefix_of_the_other(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Without a prompt column, TRL ends the prompt one character before the end of the shorter text.

    The cause is that TRL's loop over the common characters does not handle reaching its end. raydpo ends the prompt
    before the last word of the shorter text.
    """
    rows = numbered_distinct([{"chosen": "hello blue world", "rejected": "hello blue"}])
    path = write_rows(tmp_path / "rows.jsonl", rows)
    tokenizer = TOKENIZERS["plain"]

    def texts(sides: Sides) -> list[list[str]]:
        return [[tokenizer.decode(ids) for ids in side] for side in sides[1]]

    assert texts(raydpo_ids(path, tokenizer)[0]) == [["hello", " blue world<eos>"], ["hello", " blue<eos>"]]
    trl_rows = trl_ids(path, tokenizer, tiny_model, max_length=None)
    assert texts(trl_rows) == [["hello blu", "e world<eos>"], ["hello blu", "e<eos>"]]


def test_trl_orpo_and_cpo_wrap_conversations_in_bos_and_eos(tiny_model: Path, tmp_path: Path) -> None:
    """They add BOS and EOS around the rendered chat template; raydpo, like TRL's DPO, adds nothing to it."""
    rows = numbered_distinct(FORMATS["messages, explicit"])
    path = write_rows(tmp_path / "rows.jsonl", rows)
    tokenizer = TOKENIZERS["plain"]
    raydpo_rows, _ = raydpo_ids(path, tokenizer)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for job in ("orpo", "cpo"):
        for row in trainer(job, path, tokenizer, tiny_model, max_length=4096).train_dataset:
            for side, (prompt, completion) in zip(("chosen", "rejected"), raydpo_rows[row["number"]], strict=True):
                assert row[f"{side}_input_ids"] == [bos, *prompt, *completion, eos]


def test_trl_orpo_and_cpo_take_the_same_token_ids(tiny_model: Path, tmp_path: Path) -> None:
    """If a token merges across the prompt boundary on one side only, they give the two sides different prompts.

    The last row is such a case: " b" is a token of the prompt and of the rejected side, and part of " bl" on the chosen
    side.
    """
    spaced = [
        {**row, **{side: f" {row[side]}" for side in ("chosen", "rejected")}} for row in FORMATS["text, explicit"]
    ]
    rows = numbered_distinct([*spaced, {"prompt": "hello world b", "chosen": "lue", "rejected": "oth"}])
    path = write_rows(tmp_path / "rows.jsonl", rows)
    tokenizer = TOKENIZERS["bos"]
    raydpo_rows, _ = raydpo_ids(path, tokenizer)
    merged = len(rows)
    for job in ("orpo", "cpo"):
        for row in trainer(job, path, tokenizer, tiny_model, max_length=4096).train_dataset:
            for side, (prompt, completion) in zip(("chosen", "rejected"), raydpo_rows[row["number"]], strict=True):
                moved = 1 if (row["number"], side) == (merged, "rejected") else 0
                assert row[f"{side}_input_ids"] == [*prompt, *completion]
                assert row[f"{side}_labels"] == [-100] * (len(prompt) + moved) + completion[moved:]
    assert [tokenizer.decode(completion) for _, completion in raydpo_rows[merged]] == [" blue<eos>", " both<eos>"]
