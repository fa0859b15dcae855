"""Token ids of the same JSONL file, here and by TRL: our tokenized blocks against what a TRL trainer would train on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset
from transformers import PreTrainedTokenizerFast

from raydpo.data.prepare import TokenizationRequest, prepare
from raydpo.data.shards import find_shards
from raydpo.data.tokenization import Truncation
from raydpo.runtime import storage
from tests.data.tokenizers import TEMPLATE, build_tokenizer
from tests.e2e.jobs import read_lines, write_rows
from tests.parity.trl_side import RUN_ON_CPU, classes, needs_trl

pytestmark = [needs_trl, pytest.mark.usefixtures("ray_local")]

Row = dict[str, Any]
Side = tuple[list[int], list[int]]
"""Ids of the prompt and of its completion."""
Sides = dict[int, tuple[Side, Side]]
"""Chosen and rejected by row number."""

VOCABULARY = "hello world he llo blue black b both yes, no! ".split(" ")
"""With the merges of the test tokenizer, so that tokens merge across the boundary here and there."""


def words(*seed: int) -> str:
    draw = np.random.default_rng(seed)
    return " ".join(draw.choice(VOCABULARY, size=draw.integers(1, 30)))


def turn(role: str, *seed: int) -> Row:
    return {"role": role, "content": words(*seed)}


def answers(i: int, before: list[Row]) -> dict[str, list[Row]]:
    return {"chosen": [*before, turn("assistant", i, 1)], "rejected": [*before, turn("assistant", i, 2)]}


def call(i: int) -> list[Row]:
    """A question, a tool call and its result."""
    function = {"name": "f", "arguments": json.dumps({"x": i})}
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
        {**answers(i, [turn("user", i, 0)]), "chat_template_kwargs": {"style" if i % 2 else "other": words(i, 5)}}
        for i in ROWS
    ],
}
TOKENIZERS = {
    "plain": build_tokenizer(TEMPLATE),
    # adds <bos> to text; conversations take their special tokens from the template alone
    "bos": build_tokenizer(TEMPLATE, bos=True),
    # writes a prompt alone otherwise than one with its answer, as templates of thinking models do
    "thinking": build_tokenizer(TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>hmm {% endif %}")),
}


def differing(rows: list[Row]) -> list[Row]:
    """Without pairs whose texts are equal, and with a number, from 1, that both sides keep or do not mind."""
    kept = [row for row in rows if row["chosen"] != row["rejected"]]
    return [{**row, "number": number} for number, row in enumerate(kept, 1)]


def ours(path: str, tokenizer: PreTrainedTokenizerFast, **truncation: Any) -> tuple[Sides, dict[int, str]]:
    """Ids, and reasons of quarantine, each by row number."""
    folder = Path(path).parent
    request = TokenizationRequest(
        tokenizer, str(folder / "cache"), str(folder / "quarantine"), truncation=Truncation(**truncation)
    )
    data = prepare(find_shards([path], "train"), request)
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
    """TRL's trainer, made and not run: it has read the file and tokenized its rows."""
    config_class, trainer_class = classes(job)
    folder = Path(path).parent
    return trainer_class(
        model=str(model),
        args=config_class(output_dir=str(folder / "trl"), bf16=False, **RUN_ON_CPU, **options),
        processing_class=tokenizer,
        train_dataset=load_dataset("json", data_files=path, split="train", cache_dir=str(folder / "datasets")),
    )


def theirs(path: str, tokenizer: PreTrainedTokenizerFast, model: Path, **options: Any) -> Sides:
    """Ids by row number as the batches of DPOTrainer have them, since its collator is what cuts."""
    dpo = trainer("dpo", path, tokenizer, model, **options)
    sides = {}
    for row in dpo.train_dataset:
        batch = dpo.data_collator([row])
        fields = (batch[name] for name in ("input_ids", "attention_mask", "completion_mask"))
        chosen, rejected = (
            (ids[(seen - own).bool()].tolist(), ids[own.bool()].tolist())
            for ids, seen, own in zip(*fields, strict=True)
        )
        sides[row["number"]] = (chosen, rejected)
    return sides


def lengths(sides: Sides, part: int) -> dict[int, int]:
    """Tokens of the prompt (part 0) or of the longer completion (part 1), by row number."""
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
def test_ids_equal_those_of_trl(name: str, tokenizer: str, tiny_model: Path, tmp_path: Path) -> None:
    rows = differing(FORMATS[name])
    path = write_rows(tmp_path / "rows.jsonl", rows)
    here, bad = ours(path, TOKENIZERS[tokenizer])
    assert here == theirs(path, TOKENIZERS[tokenizer], tiny_model, max_length=None)
    assert (len(here), bad) == (len(rows), {})


@pytest.mark.parametrize("name", ["text, explicit", "text, implicit", "messages, explicit", "tools as JSON"])
def test_cut_rows_equal_those_of_trl(name: str, tiny_model: Path, tmp_path: Path) -> None:
    rows = differing(FORMATS[name])
    path = write_rows(tmp_path / "rows.jsonl", rows)
    whole, _ = ours(path, TOKENIZERS["plain"])
    max_length = int(np.median([*lengths(whole, 0).values()])) + 5
    here, bad = ours(path, TOKENIZERS["plain"], max_length=max_length)
    there = theirs(path, TOKENIZERS["plain"], tiny_model, max_length=max_length)

    assert here == {number: sides for number, sides in there.items() if number in here}
    # TRL drops in silence the rows whose prompt fills max_length; here they are in quarantine
    dropped = {row["number"] for row in rows} - there.keys()
    assert {number for number, reason in bad.items() if reason.startswith("prompt too long")} == dropped
    # TRL trains on rows that differ only beyond the cut, where there is nothing to prefer; here they too are bad rows
    alike = {number for number, (chosen, rejected) in there.items() if chosen == rejected}
    assert {number for number, reason in bad.items() if reason.startswith("chosen and rejected")} == alike
    assert bad.keys() == dropped | alike
    assert min(len(here), len(dropped)) > 5
    assert any(here[number] != whole[number] for number in here)


def test_keep_end_cuts_one_prompt_where_trl_cuts_each_side(tiny_model: Path, tmp_path: Path) -> None:
    """TRL cuts each side from its own beginning, so that chosen and rejected follow prompts of different lengths.

    Here both follow the same one, that of the longer side, so that they differ by the completions alone.
    """
    path = write_rows(tmp_path / "rows.jsonl", differing(FORMATS["messages, explicit"]))
    whole, _ = ours(path, TOKENIZERS["plain"])
    completions = lengths(whole, 1)
    max_length = sorted(completions.values())[-3]
    here, bad = ours(path, TOKENIZERS["plain"], max_length=max_length, truncation_mode="keep_end")
    there = theirs(path, TOKENIZERS["plain"], tiny_model, max_length=max_length, truncation_mode="keep_end")
    for number, sides in here.items():
        longer = max((0, 1), key=lambda side: len(sides[side][1]))
        assert sides[longer] == there[number][longer]
        assert sides[1 - longer] == (sides[longer][0], there[number][1 - longer][1])
    assert any(here[number] != there[number] for number in here)
    assert any(here[number] != whole[number] for number in here)
    # A completion that alone fills max_length: TRL trains on its end without a prompt; here it is a bad row
    assert bad.keys() == {number for number, length in completions.items() if length >= max_length}
    assert len(bad) >= 3
    assert all(reason.startswith("completion too long") for reason in bad.values())


def test_a_text_that_begins_the_other_keeps_its_words_whole(tiny_model: Path, tmp_path: Path) -> None:
    """Without a prompt column, TRL cuts one character before the end of the shorter text; here before its last word.

    TRL's loop over the common characters has no case for its own end.
    """
    rows = differing([{"chosen": "hello blue world", "rejected": "hello blue"}])
    path = write_rows(tmp_path / "rows.jsonl", rows)
    tokenizer = TOKENIZERS["plain"]

    def texts(sides: Sides) -> list[list[str]]:
        return [[tokenizer.decode(ids) for ids in side] for side in sides[1]]

    assert texts(ours(path, tokenizer)[0]) == [["hello", " blue world<eos>"], ["hello", " blue<eos>"]]
    there = theirs(path, tokenizer, tiny_model, max_length=None)
    assert texts(there) == [["hello blu", "e world<eos>"], ["hello blu", "e<eos>"]]


def test_orpo_and_cpo_of_trl_end_conversations_with_eos(tiny_model: Path, tmp_path: Path) -> None:
    """They put BOS and EOS around what the template wrote; here, as in TRL's DPO, the template has the last word."""
    rows = differing(FORMATS["messages, explicit"])
    path = write_rows(tmp_path / "rows.jsonl", rows)
    tokenizer = TOKENIZERS["plain"]
    here, _ = ours(path, tokenizer)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for job in ("orpo", "cpo"):
        for row in trainer(job, path, tokenizer, tiny_model, max_length=4096).train_dataset:
            for side, (prompt, completion) in zip(("chosen", "rejected"), here[row["number"]], strict=True):
                assert row[f"{side}_input_ids"] == [bos, *prompt, *completion, eos]


def test_orpo_and_cpo_of_trl_take_the_same_text(tiny_model: Path, tmp_path: Path) -> None:
    """But where a token merges across the boundary on one side alone, they give the two sides different prompts.

    The last row is so: " b" is a token of the prompt and of the rejected side, and part of " bl" on the chosen side.
    """
    apart = [{**row, **{side: f" {row[side]}" for side in ("chosen", "rejected")}} for row in FORMATS["text, explicit"]]
    rows = differing([*apart, {"prompt": "hello world b", "chosen": "lue", "rejected": "oth"}])
    path = write_rows(tmp_path / "rows.jsonl", rows)
    tokenizer = TOKENIZERS["bos"]
    here, _ = ours(path, tokenizer)
    merged = len(rows)
    for job in ("orpo", "cpo"):
        for row in trainer(job, path, tokenizer, tiny_model, max_length=4096).train_dataset:
            for side, (prompt, completion) in zip(("chosen", "rejected"), here[row["number"]], strict=True):
                to_prompt = 1 if (row["number"], side) == (merged, "rejected") else 0
                assert row[f"{side}_input_ids"] == [*prompt, *completion]
                assert row[f"{side}_labels"] == [-100] * (len(prompt) + to_prompt) + completion[to_prompt:]
    assert [tokenizer.decode(completion) for _, completion in here[merged]] == [" blue<eos>", " both<eos>"]
