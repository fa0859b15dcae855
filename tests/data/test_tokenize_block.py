"""No row ends a run: whatever a row holds, the other rows of its block are trained on."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from raydpo.data import ray_stream
from raydpo.data.shards import Shard
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockOutcome, BlockRecipe, tokenize_block
from raydpo.errors import DataError
from raydpo.runtime import storage
from tests.data.templates import samples
from tests.data.tokenizers import TEMPLATE, build_tokenizer

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "q?"), ("assistant", "a"), ("assistant", "b"))
)


def outcomes(
    path: Path, tokenizer: PreTrainedTokenizerFast, text: TextOptions | None = None, dialect: str = "preference"
) -> list[BlockOutcome]:
    folder = path.parent
    recipe = BlockRecipe(Truncation(), str(folder / "cache"), str(folder / "bad"), text=text or TextOptions())
    slicing = ray_stream.Slicing(dialect, 4096)
    raws = ray_stream.raw_blocks(Shard(path.name, str(path)), 0, slicing)
    return [tokenize_block(raw, tokenizer, recipe) for raw in raws]


def reasons(folder: Path) -> dict[int, str]:
    lines = [line for file in (folder / "bad").glob("*.jsonl") for line in file.read_text().splitlines()]
    return {row["row"]: row["reason"] for row in map(json.loads, lines)}


def line(**columns: Any) -> str:
    return json.dumps({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], **columns})


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


ODD: dict[str, str] = {
    "surrogate in JSON text of tools": line(tools=r'[{"function": {"name": "f", "description": "\ud83d"}}]'),
    "surrogate in JSON text of arguments": line(chat_template_kwargs=r'{"style": "\udfff"}'),
    "role is a list": line(prompt=[{"role": ["user"], "content": "q"}]),
    "role is an object": line(chosen=[{"role": {}, "content": "q"}]),
    "text of a part is an object": line(
        chosen=[{"role": "assistant", "content": [{"type": "text", "text": {"a": 1}}]}]
    ),
    "content is a number": line(prompt=[{"role": "user", "content": 5}]),
    "parts are numbers": line(prompt=[{"role": "user", "content": [1, 2]}]),
    "tools of anything": line(tools=[5, None, "f"]),
    "tool calls of anything": line(chosen=[{"role": "assistant", "content": "a", "tool_calls": [5, "x", {}]}]),
    "100,000 deep": line(tools=None).replace("null", deep(100_000)),
    "600 deep": line(chosen=[{"role": "assistant", "content": "a", "tool_calls": 5}]).replace("5", deep(600)),
    "100,000 deep in JSON text": line(tools=deep(100_000)),
    "900 deep in JSON text": line(tools=[{"function": {"name": "f", "parameters": 5}}]).replace("5", deep(900)),
    "template argument of another type": line(chat_template_kwargs={"messages": 5}),
    "template that is broken": line(chat_template_kwargs={"chat_template": "{% for %}"}),
    "template that loops": line(chat_template_kwargs={"chat_template": "{% for i in range(10**9) %}x{% endfor %}"}),
    "template that reaches out": line(chat_template_kwargs={"chat_template": "{{ ''.__class__.__mro__ }}"}),
    "huge number": line(chat_template_kwargs={"style": 10**400}),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("template", [TEMPLATE, samples.TOOLS, samples.PARTS])
def test_an_odd_row_costs_itself_only(name: str, template: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([line(), line(), ODD[name], line()]) + "\n")
    (outcome,) = outcomes(path, build_tokenizer(template))
    assert outcome.rows == 4
    assert outcome.block is not None
    bad = reasons(tmp_path)
    assert bad.keys() <= {3}
    assert outcome.block.pairs == 4 - len(bad)
    ids = storage.read_table(outcome.block.url)["pair_id"].to_pylist()
    assert {"rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:4"} <= set(ids)
    assert all("\n" not in reason and len(reason) < 1100 for reason in bad.values())


def test_a_row_that_cannot_be_written_as_json_is_quarantined_all_the_same(tmp_path: Path) -> None:
    """Parquet maps may have keys that are bytes, which JSON cannot express."""
    kind = pa.map_(pa.binary(), pa.string())
    table = pa.table({"prompt": ["q", "q"], "chosen": ["a", ""], "rejected": ["b", "b"]})
    tools = pa.array([None, [(b"k", "v")]], kind)
    pq.write_table(table.append_column("tools", tools), tmp_path / "rows.parquet")
    (outcome,) = outcomes(tmp_path / "rows.parquet", build_tokenizer(None))
    assert outcome.block is not None
    assert (outcome.block.pairs, list(reasons(tmp_path))) == (1, [2])


def test_rows_with_lost_words_are_counted_with_the_first_of_them(tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "<think>\neasy\n</think>\nRome"}
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(
            [
                line(),
                line(chosen=[thought]),
                line(chosen=[thought], rejected=[{**thought, "content": "<think>x</think>b"}]),
            ]
        )
    )
    tokenizer = build_tokenizer(samples.THINKING_STRIPPED)
    (kept,) = outcomes(path, tokenizer, TextOptions(on_template_loss="keep"))
    count = kept.remarks["dropped words", "reasoning"]
    assert (count.rows, count.example) == (2, f"'easy' in row 2 of {path}")
    assert kept.bad_reasons == {}
    (quarantined,) = outcomes(path, tokenizer)
    assert quarantined.bad_reasons == {"dropped by the chat template": 2}
    assert ("dropped words", "reasoning") not in quarantined.remarks


def test_one_conversation_among_texts_costs_itself_only_where_there_is_no_template(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"})
    path.write_text("\n".join([text, line(), text]))
    (outcome,) = outcomes(path, build_tokenizer(None))
    assert outcome.block is not None
    assert outcome.block.pairs == 2
    assert "has no chat template; use a model that has one" in reasons(tmp_path)[2]
    path.write_text(line())
    with pytest.raises(DataError, match=r"rows.jsonl can be tokenized: .* has no chat template; use"):
        outcomes(path, build_tokenizer(None))
