"""What happens to the pairs of a block that kills every scoring worker."""

import json
from pathlib import Path

import pytest

from raydpo.blocks.schema import IntArray
from raydpo.data.prepare import PreparedData
from raydpo.errors import DataError
from raydpo.reference.failed_blocks import quarantine_blocks
from tests.reference.scoring import PAIRS_PER_BLOCK, make_blocks


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    blocks = make_blocks(tmp_path, 3)
    return PreparedData(
        blocks=tuple(blocks),
        rows_read=20,
        rows_quarantined=2,
        bad_reasons={"empty completion": 2},
        dialects={},
        files={block.shard: f"/data/{block.shard}" for block in blocks},
        dropped_prompt_tails=0,
        template_losses={},
        longest=12,
    )


def decode(ids: IntArray) -> str:
    return " ".join(map(str, ids))


def test_pairs_of_a_failed_block_are_quarantined(data: PreparedData, tmp_path: Path) -> None:
    remaining = quarantine_blocks(data, data.blocks[1:2], str(tmp_path / "quarantine"), decode, max_bad_rows=8)
    assert remaining.blocks == (data.blocks[0], data.blocks[2])
    assert remaining.rows_read == remaining.pairs + remaining.rows_quarantined
    assert remaining.bad_reasons == {"empty completion": 2, "kills the scorer": PAIRS_PER_BLOCK}
    (file,) = (tmp_path / "quarantine").rglob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {row["file"] for row in rows} == {"/data/shard-1.jsonl"}
    assert all(len(row["content"].split("\n---\n")) == 3 for row in rows)


def test_too_many_pairs_in_failed_blocks_are_an_error(data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"8 bad rows, more than max_bad_rows=7: 6 of them .* /data/shard-1\.jsonl"):
        quarantine_blocks(data, data.blocks[1:2], str(tmp_path), decode, max_bad_rows=7)


def test_no_remaining_block_is_an_error(data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no good row is left"):
        quarantine_blocks(data, data.blocks, str(tmp_path), decode, max_bad_rows=None)


def test_without_failed_blocks_nothing_changes(data: PreparedData, tmp_path: Path) -> None:
    assert quarantine_blocks(data, (), str(tmp_path / "quarantine"), decode, max_bad_rows=0) == data
    assert not (tmp_path / "quarantine").exists()
