"""The second run of the tokenize stage on Ray: it starts no work for shards that are in the index of the cache."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from raydpo.data import ray_stream
from raydpo.data.prepare import PreparedData, TokenizationRequest, prepare
from raydpo.data.ray_stream import Slicing
from raydpo.data.shards import find_shards
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockRecipe
from raydpo.errors import DataError

pytestmark = pytest.mark.usefixtures("ray_local")

SHARDS, ROWS = 4, 25


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of shards with two bad rows in the second."""
    folder = tmp_path / "data"
    folder.mkdir()
    for shard in range(SHARDS):
        rows = [{"prompt": f"{shard} {i}:", "chosen": f" yes {i}", "rejected": f" no {i} {i}"} for i in range(ROWS)]
        if shard == 1:
            rows[3]["chosen"] = rows[20]["chosen"] = ""
        (folder / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(folder: Path, tokenizer: PreTrainedTokenizerFast, name: str, **limits: Any) -> PreparedData:
    shards = find_shards([str(folder / "data")], "train")
    recipe = BlockRecipe(Truncation(), str(folder / "cache"), str(folder / name))
    return prepare(shards, TokenizationRequest(tokenizer, Slicing(block_pairs=10), recipe), **limits)


def quarantined(folder: Path, name: str) -> dict[str, str]:
    return {file.name: file.read_text() for file in (folder / name).glob("*")}


def test_unchanged_shards_start_no_work(
    tmp_path: Path, data: Path, text_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, text_tokenizer, "first")
    assert (first.rows_read, first.rows_reused, first.rows_quarantined) == (SHARDS * ROWS, 0, 2)

    def unexpected(*arguments: Any, **options: Any) -> None:
        raise AssertionError("nothing is left to read")

    monkeypatch.setattr(ray_stream.ray.data, "read_datasource", unexpected)
    second = run(tmp_path, text_tokenizer, "second")
    assert second == first
    assert second.rows_reused == SHARDS * ROWS
    assert quarantined(tmp_path, "second") == quarantined(tmp_path, "first") != {}


def test_a_changed_shard_is_the_only_one_that_is_read(
    tmp_path: Path, data: Path, text_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, text_tokenizer, "first")
    changed = data / "2.jsonl"
    changed.write_text(changed.read_text().replace("yes", "yea"))
    read: list[str] = []
    outcomes = ray_stream.block_outcomes

    def noted(shards: Any, *arguments: Any) -> Any:
        read.extend(shard.name for shard in shards)
        return outcomes(shards, *arguments)

    monkeypatch.setattr("raydpo.data.prepare.block_outcomes", noted)
    second = run(tmp_path, text_tokenizer, "second")
    assert read == ["2.jsonl"]
    assert second.rows_reused == (SHARDS - 1) * ROWS
    assert [(block.shard, block.index) for block in second.blocks] == [
        (f"{shard}.jsonl", index) for shard in range(SHARDS) for index in range(3)
    ]


def test_max_bad_rows_stops_a_run_that_reuses_them_with_the_same_message(
    tmp_path: Path, data: Path, text_tokenizer: PreTrainedTokenizerFast
) -> None:
    for shard in (0, 2, 3):
        (data / f"{shard}.jsonl").unlink()
    with pytest.raises(DataError, match="max_bad_rows=1") as before:
        run(tmp_path, text_tokenizer, "run", max_bad_rows=1)
    assert run(tmp_path, text_tokenizer, "run", max_bad_rows=2).rows_quarantined == 2
    with pytest.raises(DataError) as after:
        run(tmp_path, text_tokenizer, "run", max_bad_rows=1)
    assert str(after.value) == str(before.value)
    assert run(tmp_path, text_tokenizer, "run").rows_reused == ROWS
