"""From shards through Ray Data to blocks: all rows in order, bad rows in quarantine, the same files in every run."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from transformers import PreTrainedTokenizerFast

from raydpo.blocks import schema
from raydpo.data import ray_stream, tokenize_block
from raydpo.data.prepare import PreparedData, TokenizationRequest, prepare
from raydpo.data.ray_stream import Slicing
from raydpo.data.shards import Shard, find_shards
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockRecipe
from raydpo.errors import DataError
from raydpo.runtime import storage
from tests.data.templates.samples import THINKING_STRIPPED
from tests.data.tokenizers import build_tokenizer

pytestmark = pytest.mark.usefixtures("ray_local")


def pair(i: int) -> dict[str, Any]:
    return {"prompt": f"question {i}:", "chosen": f" yes {i}", "rejected": f" no {i} {i}"}


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def request(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, **options: Any) -> TokenizationRequest:
    slicing = Slicing(**{name: options.pop(name) for name in ("dialect", "block_pairs") if name in options})
    options.setdefault("truncation", Truncation())
    folders = {"cache_dir": str(tmp_path / "cache"), "quarantine_dir": str(tmp_path / "quarantine")}
    return TokenizationRequest(tokenizer, slicing, BlockRecipe(**folders, **options))


def quarantined(tmp_path: Path) -> list[dict[str, Any]]:
    files = sorted((tmp_path / "quarantine").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def pairs_of(data: PreparedData, tokenizer: PreTrainedTokenizerFast) -> dict[str, tuple[str, str, str]]:
    """Return the texts of each pair by pair id, in the order of the blocks."""
    texts = {}
    for block in data.blocks:
        table = storage.read_table(block.url)
        assert table.schema.equals(schema.TOKENIZED_SCHEMA)
        for row in table.to_pylist():
            ids = (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
            texts[row["pair_id"]] = tuple(tokenizer.decode(part) for part in ids)
    return texts  # type: ignore[return-value]


def test_shards_of_several_types_become_blocks(tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [pair(i) for i in range(60)]
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(jsonl(rows[:25])))
    (tmp_path / "b.json.zst").write_bytes(zstandard.compress(json.dumps(rows[25:40]).encode()))
    pq.write_table(pa.Table.from_pylist(rows[40:]), tmp_path / "a.parquet")
    (tmp_path / "empty.jsonl").touch()
    shards = find_shards(
        [str(tmp_path / name) for name in ("c.jsonl.gz", "empty.jsonl", "b.json.zst", "a.parquet")], "train"
    )
    progress: list[int] = []
    data = prepare(shards, request(tmp_path, text_tokenizer, block_pairs=10), on_progress=progress.append)

    assert (data.rows_read, data.rows_quarantined, dict(data.bad_reasons)) == (60, 0, {})
    assert sorted(progress) == progress
    assert progress[-1] == 60
    assert data.dialects == dict.fromkeys(("c.jsonl.gz", "b.json.zst", "a.parquet"), "preference")
    places = [(block.shard, block.index, block.pairs) for block in data.blocks]
    assert places == [
        *(("c.jsonl.gz", index, pairs) for index, pairs in enumerate((10, 10, 5))),
        *(("b.json.zst", index, pairs) for index, pairs in enumerate((10, 5))),
        *(("a.parquet", index, 10) for index in range(2)),
    ]
    numbers = [*(f"c.jsonl.gz:{i}" for i in range(1, 26)), *(f"b.json.zst:{i}" for i in range(1, 16))]
    numbers += [f"a.parquet:{i}" for i in range(1, 21)]
    texts = pairs_of(data, text_tokenizer)
    assert list(texts) == numbers
    assert list(texts.values()) == [(row["prompt"], row["chosen"] + "<eos>", row["rejected"] + "<eos>") for row in rows]
    ids = [[*text_tokenizer(row["prompt"] + row["rejected"] + "<eos>")["input_ids"]] for row in rows]
    assert data.longest == max(map(len, ids))
    chosen = [len(text_tokenizer(row["chosen"] + "<eos>")["input_ids"]) for row in rows[:10]]
    assert data.blocks[0].tokens == sum(map(len, ids[:10])) + sum(chosen)


def test_every_kind_of_bad_row_is_quarantined(tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    user, answer = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    good = json.dumps(pair(0)).encode()
    lines: list[tuple[bytes, str | None]] = [
        (good, None),
        (b'{"prompt": "p", "chosen": ', "broken JSON"),
        (b'{"prompt": "p\xff", "chosen": "a", "rejected": "b"}', "bad UTF-8"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"prompt": "p", "chosen": "a"}', "missing column"),
        (b'{"prompt": "p", "chosen": "a", "rejected": null}', "null column"),
        (b'{"prompt": "p", "chosen": "a", "rejected": 5}', "wrong type"),
        (b'{"prompt": "p", "chosen": "a", "rejected": "a"}', "chosen and rejected are the same"),
        (b'{"prompt": "p", "chosen": "", "rejected": "a"}', "empty completion"),
        (b'{"prompt": "", "chosen": "a", "rejected": "b"}', "no prompt"),
        (json.dumps({"prompt": "p" * 200, "chosen": "a", "rejected": "b"}).encode(), "prompt too long"),
        (
            json.dumps({"prompt": "p", "chosen": "c" * 200 + "a", "rejected": "c" * 200}).encode(),
            "chosen and rejected are the same",
        ),
        (b"", None),
        (good, None),
        (
            json.dumps(
                {"prompt": [{"role": "forbidden", "content": "x"}], "chosen": user, "rejected": answer}
            ).encode(),
            "unknown role",
        ),
    ]
    content = b"\n".join(line for line, _ in lines) + b"\n" + good
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(content)[:-1])  # without its last byte it is truncated
    shard = find_shards([str(tmp_path / "rows.jsonl.gz")], "train")
    data = prepare(shard, request(tmp_path, chat_tokenizer, block_pairs=4, truncation=Truncation(max_length=150)))

    expected = {number: reason for number, (_, reason) in enumerate(lines, 1) if reason}
    expected[16] = "damaged gzip stream"
    bad = {row["row"]: row for row in quarantined(tmp_path)}
    assert {number: row["reason"].split(":")[0] for number, row in bad.items()} == expected
    assert all(
        row["file"] == str(tmp_path / "rows.jsonl.gz") and row["shard"] == "rows.jsonl.gz" for row in bad.values()
    )
    assert bad[2]["content"] == '{"prompt": "p", "chosen": '
    assert bad[3]["content"] == '{"prompt": "p\\xff", "chosen": "a", "rejected": "b"}'
    assert bad[16]["content"] == good.decode()
    assert list(pairs_of(data, chat_tokenizer)) == ["rows.jsonl.gz:1", "rows.jsonl.gz:14"]
    assert (data.rows_read, data.rows_quarantined) == (15, 13)
    assert sum(data.bad_reasons.values()) == 13
    assert data.bad_reasons["empty completion"] == data.bad_reasons["prompt too long"] == 1
    assert [block.index for block in data.blocks] == [0, 3]  # all rows of the blocks in between are bad
    names = sorted(file.name for file in (tmp_path / "quarantine").iterdir())
    assert names == [f"rows.jsonl.gz.from-row-00000000{first}.jsonl" for first in (1, 5, 9)] + [
        "rows.jsonl.gz.from-row-000000014.jsonl"
    ]


def test_more_than_max_bad_rows_are_an_error_with_the_first(
    tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [pair(i) for i in range(300)]
    for bad in (130, 131, 200, 290):
        rows[bad]["chosen"] = ""
    (tmp_path / "rows.jsonl").write_bytes(jsonl(rows))
    shards = find_shards([str(tmp_path / "rows.jsonl")], "train")
    tokenization = request(tmp_path, text_tokenizer, block_pairs=20)
    message = (
        r"more than max_bad_rows=0. The first is row 131 of .*rows.jsonl: empty completion: chosen holds no text. See "
        r".*quarantine; fix"
    )
    with pytest.raises(DataError, match=message):
        prepare(shards, tokenization, max_bad_rows=0)
    assert {"row": 131, "reason": "empty completion: chosen holds no text"}.items() <= quarantined(tmp_path)[0].items()
    assert prepare(shards, tokenization, max_bad_rows=4).rows_quarantined == 4


def test_shards_without_a_good_row_are_an_error(tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "chosen": "a"}\n' * 3)
    (tmp_path / "empty.jsonl").touch()
    tokenization = request(tmp_path, text_tokenizer)
    with pytest.raises(DataError, match=r"no row of 3 is a preference pair. Row 1 of .*rows.jsonl: missing") as caught:
        prepare(find_shards([str(tmp_path / "rows.jsonl")], "train"), tokenization)
    assert "the row has 'question', 'chosen'; map them with --column_mapping prompt=question" in str(caught.value)
    assert "max_bad_rows" not in str(caught.value)
    with pytest.raises(DataError, match="there are no rows in"):
        prepare(find_shards([str(tmp_path / "empty.jsonl")], "train"), tokenization)


def test_conversations_need_a_chat_template(tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    row["rejected"] = [row["chosen"][0], {"role": "assistant", "content": "c"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(
        DataError,
        match=r"no pair of .*rows.jsonl can be tokenized: the pair is a conversation, and .* no chat template",
    ):
        prepare(find_shards([str(tmp_path / "rows.jsonl")], "train"), request(tmp_path, text_tokenizer))


def test_a_missing_shard_is_named_in_the_error(tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"cannot read .*gone.jsonl"):
        prepare([Shard("gone.jsonl", str(tmp_path / "gone.jsonl"))], request(tmp_path, text_tokenizer))


def test_blocks_depend_on_their_rows_only(tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that equal rows in another shard give the same content, in files of their own with their own pair ids."""
    rows = [pair(i) for i in range(40)]
    for name, part in (("a", rows[:20]), ("b", rows[20:]), ("copy-of-a", rows[:20])):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(part))
    tokenization = request(tmp_path, text_tokenizer, block_pairs=8)

    def run(*names: str) -> PreparedData:
        return prepare(find_shards([str(tmp_path / f"{name}.jsonl") for name in names], "train"), tokenization)

    first, again, other = run("a", "b"), run("a", "b"), run("copy-of-a", "a")
    assert first == again
    assert [block.content for block in other.blocks] == [block.content for block in first.blocks[:3]] * 2
    assert len({block.url for block in other.blocks}) == 6
    assert other.blocks[3:] == first.blocks[:3]
    assert list(pairs_of(other, text_tokenizer))[:2] == ["copy-of-a.jsonl:1", "copy-of-a.jsonl:2"]
    assert len(set(block.content for block in first.blocks)) == len(first.blocks)


def test_the_content_of_a_block_is_the_digest_of_its_ids(
    tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([pair(1), pair(22)]))
    (block,) = prepare(find_shards([str(tmp_path / "a.jsonl")], "train"), request(tmp_path, text_tokenizer)).blocks
    expected = hashlib.sha256()
    table = storage.read_table(block.url)
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        ids = table[name].to_pylist()
        for number in (len(ids), *map(len, ids)):
            expected.update(number.to_bytes(8, "little"))
        for token in (token for part in ids for token in part):
            expected.update(token.to_bytes(4, "little"))
    assert block.content == expected.hexdigest()


def test_dropped_prompt_tails_are_counted_and_logged_once(
    tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [pair(0), *({"prompt": f"{i} he", "chosen": "llo", "rejected": "y"} for i in range(9))]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    data = prepare(find_shards([str(tmp_path / "a.jsonl")], "train"), request(tmp_path, text_tokenizer, block_pairs=2))
    assert data.dropped_prompt_tails == 9
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("raydpo.data")]
    assert len(messages) == 1
    assert messages[0].startswith("The prompts of 9 pairs lose their last tokens, for example 'he'")


def test_words_that_a_template_drops_are_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    thought = {"role": "assistant", "content": "<think>\neasy\n</think>\nyes"}
    question, no = {"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}
    rows = [{"prompt": [question], "chosen": [answer], "rejected": [no]} for answer in [thought] * 3]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    shards = find_shards([str(tmp_path / "a.jsonl")], "train")
    tokenizer = build_tokenizer(THINKING_STRIPPED)
    keep = TextOptions(on_template_loss="keep")
    data = prepare(shards, request(tmp_path, tokenizer, block_pairs=1, text=keep))
    assert (data.pairs, data.template_losses, data.dropped_prompt_tails) == (3, {"reasoning": 3}, 3)
    lost, tails = [record.getMessage() for record in caplog.records if record.name.startswith("raydpo.data")]
    assert lost.startswith("The chat template drops words of 3 pairs (reasoning), for example 'easy' in row 1 of ")
    assert tails.startswith("The prompts of 3 pairs lose the end of the chat template's generation prompt")
    with pytest.raises(DataError, match=r"no row of 3 is .*dropped by the chat template: reasoning of chosen"):
        prepare(shards, request(tmp_path, tokenizer))


def test_the_dialect_option_overrides_the_detected_one(tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"chosen": "\n\nHuman: a\n\nAssistant: same words", "rejected": "\n\nHuman: a\n\nAssistant: same thing"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    shards = find_shards([str(tmp_path / "a.jsonl")], "train")
    detected = prepare(shards, request(tmp_path, text_tokenizer))
    overridden = prepare(shards, request(tmp_path, text_tokenizer, dialect="preference"))
    assert (dict(detected.dialects), dict(overridden.dialects)) == ({"a.jsonl": "hh"}, {"a.jsonl": "preference"})
    assert pairs_of(detected, text_tokenizer)["a.jsonl:1"][1] == " same words<eos>"
    assert pairs_of(overridden, text_tokenizer)["a.jsonl:1"][1] == " words<eos>"


def test_each_raw_block_is_a_task_of_its_own(tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that Ray Data does not merge blocks of small rows: one large shard must not become one task."""
    (tmp_path / "a.jsonl").write_bytes(jsonl([pair(i) for i in range(64)]))
    shards = find_shards([str(tmp_path / "a.jsonl")], "train")
    before = ray_stream.DataContext.get_current().target_max_block_size
    rows: list[int] = []
    prepare(shards, request(tmp_path, text_tokenizer, block_pairs=4), on_progress=rows.append)
    assert rows == list(range(4, 65, 4))
    assert ray_stream.DataContext.get_current().target_max_block_size == before


def test_a_retried_block_writes_the_same_files(tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([pair(1), {"chosen": "x"}, pair(2)]))
    recipe = tokenize_block.BlockRecipe(Truncation(), str(tmp_path / "cache"), str(tmp_path / "quarantine"))
    shard = Shard("a.jsonl", str(tmp_path / "a.jsonl"))
    (raw,) = ray_stream.raw_blocks(shard, 0, ray_stream.Slicing("auto", 10))
    outcomes = [tokenize_block.tokenize_block(raw, text_tokenizer, recipe) for _ in range(2)]
    assert outcomes[0] == outcomes[1]
    assert len(list((tmp_path / "cache/tokenized").iterdir())) == 1
    assert len(quarantined(tmp_path)) == 1


def test_the_quarantine_of_an_earlier_run_is_removed(tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "a.jsonl"
    shards = [Shard("a.jsonl", str(path))]
    path.write_bytes(jsonl([pair(1), {"chosen": "x"}]))
    prepare(shards, request(tmp_path, text_tokenizer))
    assert len(quarantined(tmp_path)) == 1
    path.write_bytes(jsonl([pair(1), pair(2)]))
    prepare(shards, request(tmp_path, text_tokenizer))
    assert quarantined(tmp_path) == []
