"""Whatever a row holds, it is in a block with all of its words or in quarantine with a reason; nothing ends the run."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from transformers import PreTrainedTokenizerFast

from raydpo.data.dialects.detect import DIALECTS
from raydpo.data.ray_stream import Slicing, raw_blocks
from raydpo.data.shards import Shard
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockRecipe, tokenize_block
from tests.data.fuzz_rows import Row, as_line, rows, sides_of, words_of

ROWS, BATCH = 2000, 20
"""Number of rows, and of rows per file: rows that share a file and a block must not harm each other."""


def table_of(batch: list[Row]) -> pa.Table:
    """Return the rows as a table; a column that a row does not have is null there."""
    names = list(dict.fromkeys(name for row in batch for name in row))
    return pa.table({name: pa.array([row.get(name) for row in batch]) for name in names})


def parquet_rows(batch: list[Row]) -> list[Row]:
    """Return those rows that can stand together in one table of Arrow, with the types of the first ones."""
    kept: list[Row] = []
    for row in filter(None, batch):
        try:
            table_of([*kept, row])
        except (pa.ArrowException, OverflowError, TypeError, UnicodeEncodeError):
            continue
        kept.append(row)
    return kept


def write_parquet(batch: list[Row], path: Path) -> bool:
    """Write a Parquet file; return False if Parquet cannot hold such rows: its objects need at least one key."""
    try:
        pq.write_table(table_of(batch), path)
    except pa.ArrowException:
        return False
    return True


def tokenized(
    url: str, folder: Path, tokenizer: Any, dialect: str
) -> tuple[dict[int, dict[str, Any]], dict[int, str], str]:
    """Return a file's good rows (number to token ids), its bad rows (number to reason), and its dialect."""
    recipe = BlockRecipe(Truncation(), str(folder / "cache"), str(folder / "quarantine"))
    good: dict[int, dict[str, Any]] = {}
    bad: dict[int, str] = {}
    found = ""
    for raw in raw_blocks(Shard("rows", url), 0, Slicing(dialect, BATCH // 3)):
        outcome = tokenize_block(raw, tokenizer, recipe)
        found = outcome.dialect
        if outcome.block is not None:
            table = pq.read_table(outcome.block.url).to_pylist()
            good |= {int(part["pair_id"].split(":")[1]): part for part in table}
        assert sum(outcome.bad_reasons.values()) + (outcome.block.pairs if outcome.block else 0) == outcome.rows
    for path in (folder / "quarantine").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            bad[record["row"]] = record["reason"]
    return good, bad, found


def check(batch: list[Row], url: str, folder: Path, tokenizer: Any, dialect: str) -> int:
    """Check that each row of a file is good with all its words or bad with a reason; return the number of good rows."""
    good, bad, found = tokenized(url, folder, tokenizer, dialect)
    assert sorted([*good, *bad]) == list(range(1, len(batch) + 1))
    assert all(bad.values())
    for number, part in good.items():
        sides = sides_of(batch[number - 1], found)
        for side, words in zip(("chosen_ids", "rejected_ids"), sides, strict=True):
            text = tokenizer.decode([*part["prompt_ids"], *part[side]], clean_up_tokenization_spaces=False)
            lost = words - words_of(text)
            assert not lost, f"{sorted(lost)} of {json.dumps(batch[number - 1])} are not in {text}"
    return len(good)


def random_rows(count: int) -> list[Row]:
    """Return the first `count` rows that hypothesis makes; they are the same in every run."""
    made: list[Row] = []

    @settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(rows())
    def collect(row: Row) -> None:
        made.append(row)

    collect()
    return made[:count]


def test_random_rows_are_in_blocks_with_their_words_or_in_quarantine(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    made = random_rows(ROWS)
    assert len(made) == ROWS
    good = {"jsonl": 0, "parquet": 0}
    for number, start in enumerate(range(0, ROWS, BATCH)):
        batch = made[start : start + BATCH]
        dialect = DIALECTS[number // 3 % len(DIALECTS)] if number % 3 == 2 else "auto"
        for kind in good:
            folder = tmp_path / f"{number}.{kind}"
            folder.mkdir()
            path = folder / f"rows.{kind}"
            if kind == "jsonl":
                path.write_text("\n".join(map(as_line, batch)))
            else:
                batch = parquet_rows(batch)
                if not batch or not write_parquet(batch, path):
                    continue
            good[kind] += check(batch, str(path), folder, chat_tokenizer, dialect)
    assert good["jsonl"] > ROWS // 8
    assert good["parquet"] > ROWS // 50
