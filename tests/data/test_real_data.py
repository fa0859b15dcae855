"""Real preference files: every row becomes a pair or is refused for a correct reason."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from raydpo.data.dialects.detect import to_pair
from raydpo.data.dialects.pair import Pair, RowError
from raydpo.data.files.rows import parse
from raydpo.data.ray_stream import Slicing, raw_blocks
from raydpo.data.shards import Shard
from raydpo.data.tokenization import EncodedPair, tokenize

DATA = Path(__file__).parents[3] / "shared" / "data"
HH = DATA / "hh-rlhf-harmless-base-test.jsonl.gz"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the folder shared/data is not next to the checkout")


def read(path: Path, chat: bool) -> tuple[str, dict[int, Pair], dict[int, str]]:
    """Return the dialect, the pairs by row number, and the reasons of refused rows by row number."""
    pairs, reasons, dialect = {}, {}, ""
    for raw in raw_blocks(Shard(path.name, str(path)), 0, Slicing("auto", 500)):
        dialect = raw.dialect
        for row in parse(raw.rows):
            try:
                pairs[row.number] = to_pair(row.columns or {}, raw.dialect, chat)
            except RowError as error:
                reasons[row.number] = str(error)
    return dialect, pairs, reasons


@needs_data
@pytest.mark.parametrize("chat", [True, False])
def test_hh_transcripts_become_pairs(chat: bool, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [json.loads(line) for line in gzip.decompress(HH.read_bytes()).splitlines()]
    dialect, pairs, reasons = read(HH, chat)
    assert dialect == "hh"
    assert sorted([*pairs, *reasons]) == list(range(1, 2313))
    # Found without the reader: these answers have no text after their last "Assistant:".
    empty = [
        i
        for i, row in enumerate(rows, 1)
        if any(row[side].rstrip().endswith("Assistant:") for side in ("chosen", "rejected"))
    ]
    assert sorted(reasons) == empty
    assert set(reasons.values()) <= {f"empty completion: {side} holds no text" for side in ("chosen", "rejected")}
    for number, pair in pairs.items():
        for side in ("chosen", "rejected"):
            completion = getattr(pair, side)
            if chat:
                messages = pair.prompt + completion
                assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
                actual = "".join("".join(m["content"].split()) for m in messages)  # type: ignore[index]
                original = rows[number - 1][side]
                for mark in ("\n\nHuman:", "\n\nAssistant:"):
                    original = original.replace(mark, "")
                assert actual == "".join(original.split())
            else:
                assert pair.prompt + completion == rows[number - 1][side]
                assert isinstance(pair.prompt, str)
                assert pair.prompt.endswith("\n\nAssistant:")
    first_pairs = list(pairs.values())[:100]
    assert all(isinstance(result, EncodedPair) for result in tokenize(chat_tokenizer, first_pairs))


@needs_data
@pytest.mark.parametrize("name", ["llamafactory-dpo-en-demo.json", "llamafactory-dpo-zh-demo.json"])
def test_sharegpt_rows_become_pairs(name: str) -> None:
    rows = json.loads((DATA / name).read_text())
    dialect, pairs, reasons = read(DATA / name, chat=True)
    assert dialect == "sharegpt"
    assert len(pairs) + len(reasons) == len(rows) == 300
    for number, row in enumerate(rows, 1):
        identical = row["chosen"]["value"] == row["rejected"]["value"]
        empty = not (row["chosen"]["value"].strip() and row["rejected"]["value"].strip())
        assert (number in reasons) == (identical or empty), reasons.get(number)
        if number in pairs:
            values = [turn["value"] for turn in row["conversations"]]
            assert [message["content"] for message in pairs[number].prompt] == values  # type: ignore[index]
            assert pairs[number].chosen == [{"role": "assistant", "content": row["chosen"]["value"]}]
    assert set(Counter(reasons.values())) <= {"chosen and rejected are the same"}
