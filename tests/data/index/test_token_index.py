"""The index of tokenized shards: what is reused, what is tokenized again and why, and what a reused shard gives."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from raydpo.data.index import index_entries, shard_identity, token_index
from raydpo.data.index.settings_digest import settings_digest
from raydpo.data.index.token_index import Stream, TokenIndex
from raydpo.data.ray_stream import ShardEnd, Slicing, raw_blocks
from raydpo.data.shards import Shard, find_shards
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockOutcome, BlockRecipe, tokenize_block
from raydpo.runtime import storage
from tests.data.tokenizers import build_tokenizer


def pair(i: int) -> dict[str, Any]:
    return {"prompt": f"question {i}:", "chosen": f" yes {i}", "rejected": f" no {i} {i}"}


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Run:
    """One run over the files of a folder, which tokenizes in this process and counts the rows that it tokenizes."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast, name: str = "run", **options: Any) -> None:
        self.quarantine = folder / name / "quarantine"
        self.recipe = BlockRecipe(options.pop("truncation", Truncation()), str(folder / "cache"), str(self.quarantine))
        self.slicing = Slicing(**{"dialect": "auto", "block_pairs": 4, **options})
        self.tokenizer = tokenizer
        self.rows_tokenized = 0
        shards = find_shards([str(folder / "data")], "train")
        self.index = TokenIndex(
            shards,
            settings_digest(tokenizer, self.recipe, self.slicing),
            self.recipe.cache_dir,
            self.recipe.quarantine_dir,
        )
        outcomes = list(self.index.outcomes(self.tokenize))
        self.outcomes = sorted((part for part, _ in outcomes), key=lambda part: (part.shard_index, part.index))
        self.rows_reused = sum(outcome.rows for outcome, reused in outcomes if reused)

    def tokenize(self, shards: Sequence[Shard]) -> Stream:
        for position, shard in enumerate(shards):
            raws = list(raw_blocks(shard, position, self.slicing))
            yield ShardEnd(position, len(raws))
            for raw in reversed(raws):
                outcome = tokenize_block(raw, self.tokenizer, self.recipe)
                self.rows_tokenized += outcome.rows
                yield outcome

    def quarantined(self) -> dict[str, str]:
        return {file.name: file.read_text() for file in self.quarantine.glob("*")}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with three shards of ten rows, of which the second has three bad rows in two blocks."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        rows = [pair(100 * number + i) for i in range(10)]
        if number == 1:
            rows[2]["chosen"] = rows[3]["rejected"] = rows[9]["chosen"] = ""
        (folder / f"{number}.jsonl").write_bytes(jsonl(rows))
    return folder


def test_a_second_run_tokenizes_nothing_and_finds_the_same(
    tmp_path: Path, data: Path, text_tokenizer: PreTrainedTokenizerFast
) -> None:
    first = Run(tmp_path, text_tokenizer)
    second = Run(tmp_path, text_tokenizer, "again")
    assert (first.rows_tokenized, first.rows_reused) == (30, 0)
    assert (second.rows_tokenized, second.rows_reused) == (0, 30)
    assert second.outcomes == first.outcomes
    assert [outcome.shard_index for outcome in first.outcomes] == [0] * 3 + [1] * 3 + [2] * 3
    assert sorted(second.quarantined()) == ["1.jsonl.from-row-000000001.jsonl", "1.jsonl.from-row-000000009.jsonl"]
    assert second.quarantined() == first.quarantined()


def test_a_changed_and_a_new_shard_cost_only_themselves(
    tmp_path: Path, data: Path, text_tokenizer: PreTrainedTokenizerFast
) -> None:
    first = Run(tmp_path, text_tokenizer)
    (data / "1.jsonl").write_bytes(jsonl([pair(i) for i in range(7)]))
    changed = Run(tmp_path, text_tokenizer)
    assert (changed.rows_tokenized, changed.rows_reused) == (7, 20)
    assert [part for part in changed.outcomes if part.shard_index != 1] == [
        part for part in first.outcomes if part.shard_index != 1
    ]
    (data / "0-new.jsonl").write_bytes(jsonl([pair(i) for i in range(5)]))
    added = Run(tmp_path, text_tokenizer)
    assert (added.rows_tokenized, added.rows_reused) == (5, 27)
    assert [part.block.shard for part in added.outcomes if part.block and part.index == 0] == [
        "0-new.jsonl",
        "0.jsonl",
        "1.jsonl",
        "2.jsonl",
    ]


@pytest.mark.parametrize("whole_bytes", [1 << 20, 16])
def test_a_change_of_same_size_and_time_is_noticed(
    tmp_path: Path,
    data: Path,
    text_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    whole_bytes: int,
) -> None:
    """Check edits as of `cp -p`, in files that are read whole and in the middle of files of which only ends are."""
    monkeypatch.setattr(shard_identity, "WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(shard_identity, "EDGE_BYTES", 8)
    Run(tmp_path, text_tokenizer)
    path = data / "1.jsonl"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"yes 104", b"yes 999"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = Run(tmp_path, text_tokenizer)
    assert (again.rows_tokenized, again.rows_reused) == (10, 20)


def test_a_small_file_may_be_touched_and_moved(
    tmp_path: Path, data: Path, text_tokenizer: PreTrainedTokenizerFast
) -> None:
    Run(tmp_path, text_tokenizer)
    shutil.copytree(data, tmp_path / "elsewhere" / "data", copy_function=shutil.copy)  # with new times
    shutil.move(tmp_path / "cache", tmp_path / "elsewhere" / "cache")
    moved = Run(tmp_path / "elsewhere", text_tokenizer)
    assert (moved.rows_tokenized, moved.rows_reused) == (0, 30)
    assert all(storage.exists(part.block.url) for part in moved.outcomes if part.block)
    rows = [json.loads(line) for text in moved.quarantined().values() for line in text.splitlines()]
    assert {row["file"] for row in rows} == {str(tmp_path / "elsewhere" / "data" / "1.jsonl")}
    assert len(rows) == 3


def test_other_settings_are_a_miss(tmp_path: Path, data: Path, text_tokenizer: PreTrainedTokenizerFast) -> None:
    Run(tmp_path, text_tokenizer)
    for options in ({"truncation": Truncation(20)}, {"block_pairs": 5}, {"dialect": "preference"}):
        assert Run(tmp_path, text_tokenizer, **options).rows_tokenized == 30
        assert Run(tmp_path, text_tokenizer, **options).rows_tokenized == 0
    assert Run(tmp_path, build_tokenizer(None, bos=True)).rows_tokenized == 30


def test_a_lost_or_damaged_block_has_its_shard_tokenized_again(
    tmp_path: Path, data: Path, text_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    first = Run(tmp_path, text_tokenizer)
    blocks = {(part.shard_index, part.index): part.block for part in first.outcomes}
    gone, cut = Path(blocks[0, 1].url), Path(blocks[2, 0].url)  # type: ignore[union-attr]
    whole = cut.read_bytes()
    gone.unlink()
    cut.write_bytes(whole[:-9])
    again = Run(tmp_path, text_tokenizer)
    assert (again.rows_tokenized, again.rows_reused) == (20, 10)
    assert again.outcomes == first.outcomes
    assert gone.exists()
    assert cut.read_bytes() == whole
    assert f"{data}/0.jsonl is tokenized again: the block {gone} is gone" in caplog.text
    assert f"the block {cut} had {len(whole) - 9} bytes, not {len(whole)}" in caplog.text
    assert Run(tmp_path, text_tokenizer).rows_tokenized == 0


def test_a_damaged_entry_is_replaced(
    tmp_path: Path, data: Path, text_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    Run(tmp_path, text_tokenizer)
    entries = sorted((tmp_path / "cache" / index_entries.TOKEN_INDEX).iterdir())
    assert len(entries) == 3
    entries[0].write_bytes(entries[0].read_bytes()[:-5])
    assert Run(tmp_path, text_tokenizer).rows_tokenized == 10
    assert "cannot be used" in caplog.text
    assert Run(tmp_path, text_tokenizer).rows_tokenized == 0


def test_only_complete_shards_are_kept_when_a_run_stops(
    tmp_path: Path, data: Path, text_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run.tokenize

    def stopping(self: Run, shards: Sequence[Shard]) -> Iterator[BlockOutcome | ShardEnd]:
        for number, item in enumerate(whole(self, shards)):
            if number == 6:  # the first shard is done after four items, and the second is not
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(Run, "tokenize", stopping)
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, text_tokenizer)
    monkeypatch.setattr(Run, "tokenize", whole)
    again = Run(tmp_path, text_tokenizer)
    assert (again.rows_tokenized, again.rows_reused) == (20, 10)


def test_a_shard_that_changes_while_it_is_tokenized_gets_no_entry(
    tmp_path: Path,
    data: Path,
    text_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = Run.tokenize

    def changing(self: Run, shards: Sequence[Shard]) -> Iterator[BlockOutcome | ShardEnd]:
        (data / "0.jsonl").write_bytes(jsonl([pair(i) for i in range(3)]))
        yield from whole(self, shards)

    monkeypatch.setattr(Run, "tokenize", changing)
    Run(tmp_path, text_tokenizer)
    monkeypatch.setattr(Run, "tokenize", whole)
    assert f"{data}/0.jsonl was changed while it was tokenized" in caplog.text
    assert Run(tmp_path, text_tokenizer).rows_tokenized == 3


def test_a_shard_with_too_many_bad_rows_for_an_entry_says_so(
    tmp_path: Path,
    data: Path,
    text_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(token_index, "MAX_QUARANTINE_BYTES", 100)
    Run(tmp_path, text_tokenizer)
    assert f"{data}/1.jsonl is tokenized in every run: its bad rows take" in caplog.text
    assert Run(tmp_path, text_tokenizer).rows_tokenized == 10


def test_remote_shards_that_cannot_be_told_apart_are_reported_once(
    tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    index = TokenIndex([Shard(f"{i}", f"memory://nowhere/{i}") for i in range(5)], "", str(tmp_path), str(tmp_path))

    def nothing(shards: Sequence[Shard]) -> Stream:
        assert len(shards) == 5
        yield from (ShardEnd(i, 0) for i in range(5))

    assert list(index.outcomes(nothing)) == []
    (record,) = caplog.records
    assert "these 5 shards" in record.getMessage()
    assert "memory://nowhere/0, memory://nowhere/1, memory://nowhere/2, ..." in record.getMessage()
    assert not (tmp_path / index_entries.TOKEN_INDEX).exists()
