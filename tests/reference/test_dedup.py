"""Which completions are scored and which scores are reused: each prompt with each completion is scored once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from raydpo.blocks import schema
from raydpo.blocks.block import TokenizedBlock, write_scores
from raydpo.blocks.schema import Block, IntArray
from raydpo.reference import dedup
from raydpo.reference.dedup import NOTHING_REUSED, ReusedScores, fill_in, find_reused_scores, unique_completions
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.store import ReferenceStore
from raydpo.runtime import storage

BLOCKS, PAIRS = 5, 12


def completion_key(prompt: IntArray, ids: IntArray) -> tuple[int, ...]:
    """Return a key of a prompt with a completion, which is to be scored once."""
    return (*prompt.tolist(), -1, *ids.tolist())


@pytest.fixture
def blocks(tmp_path: Path) -> list[Block]:
    """Return blocks with few prompts and completions, so that most of them are in several pairs and blocks."""
    draw = np.random.default_rng(3)
    found = []
    for index in range(BLOCKS):
        rows = [
            {
                schema.PAIR_ID: f"{index}:{row}",
                schema.PROMPT_IDS: [7] * int(draw.integers(1, 4)),
                schema.CHOSEN_IDS: [7, int(draw.integers(6))],
                schema.REJECTED_IDS: [8] * int(draw.integers(1, 5)),
            }
            for row in range(PAIRS)
        ]
        url = str(tmp_path / f"{index}.parquet")
        storage.write_table(url, schema.pa.Table.from_pylist(rows, schema=schema.TOKENIZED_SCHEMA))
        found.append(Block(f"content-{index}", "shard", index, PAIRS, 100, url))
    return found


def score(store: ReferenceStore, block: Block, reused: ReusedScores) -> Counter[tuple[int, ...]]:
    """Write fake scores that identify their completion, as a scorer would; return how often each one was scored."""
    tokenized = TokenizedBlock(block)
    unique = unique_completions([tokenized.pair(row) for row in range(PAIRS)], reused)
    scored: Counter[tuple[int, ...]] = Counter()
    logps = {}
    for entry in unique:
        for ids, places in zip(entry.completions, entry.places, strict=True):
            assert places, "a completion has no place in the block"
            scored[completion_key(entry.prompt, ids)] += 1
            logps.update(dict.fromkeys(places, np.array([*ids, len(entry.prompt)], dtype=np.float32)))
    assert set(scored.values()) <= {1}, "a completion is scored twice"
    no_logps = np.zeros(0, dtype=np.float32)
    sides = ([logps.get((row, side), no_logps) for row in range(PAIRS)] for side in (0, 1))
    write_scores(store.part_url(block) if reused.source_blocks else store.url(block), *sides)
    return scored


@pytest.mark.parametrize("max_sources", [1, 16])
def test_each_completion_is_scored_in_one_block(
    max_sources: int, blocks: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, "MAX_SOURCE_BLOCKS", max_sources)
    store = ReferenceStore(str(tmp_path / "cache"), ReferenceIdentity("", "", None, "{}"))
    reused = find_reused_scores(blocks)
    assert max(len(entry.source_blocks) for entry in reused.values()) == min(max_sources, 3)
    scored: Counter[tuple[int, ...]] = Counter()
    for block in reversed(blocks):  # no block waits for earlier ones
        scored += score(store, block, reused.get(block.content, NOTHING_REUSED))
    all_completions = []
    for block in blocks:
        if block.content in reused:
            assert fill_in(store, block, reused[block.content])
            assert not Path(store.part_url(block)).exists()
        tokenized = TokenizedBlock(block)
        chosen, rejected = store.read_scores(store.url(block))
        for row in range(PAIRS):
            pair = tokenized.pair(row)
            for ids, values in ((pair.chosen_ids, chosen[row]), (pair.rejected_ids, rejected[row])):
                assert values.tolist() == [*ids, len(pair.prompt_ids)]
                all_completions.append(completion_key(pair.prompt_ids, ids))
    assert set(scored) == set(all_completions)
    assert len(all_completions) > 2 * len(scored)
    if max_sources == 16:
        assert set(scored.values()) == {1}


def test_a_block_is_not_filled_in_if_a_source_block_is_missing(blocks: list[Block], tmp_path: Path) -> None:
    store = ReferenceStore(str(tmp_path / "cache"), ReferenceIdentity("", "", None, "{}"))
    block = blocks[-1]
    reused = find_reused_scores(blocks)[block.content]
    score(store, block, reused)
    for source in reused.source_blocks[:-1]:
        score(store, source, NOTHING_REUSED)
    assert not fill_in(store, block, reused)
    Path(store.url(reused.source_blocks[-1])).write_bytes(b"PAR1, but cut off")
    assert not fill_in(store, block, reused)
    assert not Path(store.url(block)).exists()
