"""The preference shards can be parsed, come in two formats, and prefer the courteous answer to a request."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from raydpo.demo.facts import OPENINGS
from raydpo.demo.preferences import HELD_OUT_PAIRS, TRAIN_PAIRS, write_preferences

Messages = list[dict[str, str]]


def read(path: str) -> list[tuple[Messages, str, str]]:
    """Return (prompt, chosen, rejected) of each row, with implicit prompts taken from the conversations."""
    if path.endswith(".parquet"):
        rows = pq.read_table(path).to_pylist()
    else:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    found = []
    for row in rows:
        prompt = row.get("prompt", row["chosen"][:-1])
        assert "prompt" in row or row["rejected"][:-1] == prompt
        found.append((prompt, row["chosen"][-1]["content"], row["rejected"][-1]["content"]))
    return found


def test_shards_hold_every_pair_once_in_two_formats(tmp_path: Path) -> None:
    train, held_out = write_preferences(str(tmp_path), 7)
    assert {Path(path).suffix for path in train} == {".jsonl", ".parquet"}
    pairs = [pair for path in train for pair in read(path)]
    held_out_pairs = [pair for path in held_out for pair in read(path)]
    assert (len(pairs), len(held_out_pairs)) == (TRAIN_PAIRS, HELD_OUT_PAIRS)
    prompts = [json.dumps(prompt) for prompt, _, _ in pairs]
    assert len(set(prompts)) == TRAIN_PAIRS
    assert not {json.dumps(prompt) for prompt, _, _ in held_out_pairs} & set(prompts)
    for prompt, chosen, rejected in [*pairs, *held_out_pairs]:
        assert prompt[-1]["role"] == "user"
        assert chosen.startswith(OPENINGS["courteous"])
        assert rejected.startswith(OPENINGS["curt"])


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_preferences(str(tmp_path / name), 7)[0] for name in ("a", "b"))
    assert [Path(path).read_bytes() for path in first] == [Path(path).read_bytes() for path in second]
