"""Which completions are scored, and which are taken from elsewhere: each prompt with each completion once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from raydpo import schema, storage
from raydpo.errors import DamagedFile
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.once import borrow, distinct, loans_of
from raydpo.reference.store import ReferenceStore, TokenizedBlock, write_scores
from raydpo.schema import Block, IntArray

BLOCKS, PAIRS = 5, 12


def completion(prompt: IntArray, ids: IntArray) -> tuple[int, ...]:
    """What it is that is to be scored once."""
    return (*prompt.tolist(), -1, *ids.tolist())


@pytest.fixture
def blocks(tmp_path: Path) -> list[Block]:
    """Of pairs of few prompts and few completions, so that most stand in several pairs and blocks."""
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


def test_each_completion_is_left_to_one_block(blocks: list[Block], tmp_path: Path) -> None:
    store = ReferenceStore(str(tmp_path / "cache"), ReferenceIdentity("", "", None, "{}"))
    loans = loans_of(blocks)
    scored: Counter[tuple[int, ...]] = Counter()
    for block in blocks:
        tokenized = TokenizedBlock(block)
        pairs = [tokenized.pair(row) for row in range(PAIRS)]
        known = borrow(store, loans[block.content]) if block.content in loans else {}
        different = distinct(pairs, known)
        logps = dict(known)
        for pair, places in zip(different.pairs, different.places, strict=True):
            for ids, its_places in zip((pair.chosen_ids, pair.rejected_ids), places, strict=True):
                scored[completion(pair.prompt_ids, ids)] += bool(its_places)
                # A stand-in for log-probs that tells what they are of.
                logps.update(dict.fromkeys(its_places, np.array([*ids, len(pair.prompt_ids)], dtype=np.float32)))
        assert different.completions == sum(bool(each) for places in different.places for each in places)
        assert sorted(logps) == [(row, side) for row in range(PAIRS) for side in (0, 1)]
        for (row, side), values in logps.items():
            pair = pairs[row]
            ids = (pair.chosen_ids, pair.rejected_ids)[side]
            assert values.tolist() == [*ids, len(pair.prompt_ids)]
        write_scores(store.url(block), *([logps[row, side] for row in range(PAIRS)] for side in (0, 1)))
    every = [
        completion(pair.prompt_ids, ids)
        for block in blocks
        for pair in (TokenizedBlock(block).pair(row) for row in range(PAIRS))
        for ids in (pair.chosen_ids, pair.rejected_ids)
    ]
    assert scored == Counter(set(every))
    assert len(every) > 2 * len(scored)


def test_what_a_block_cannot_lend_is_scored_again(blocks: list[Block], tmp_path: Path) -> None:
    store = ReferenceStore(str(tmp_path / "cache"), ReferenceIdentity("", "", None, "{}"))
    borrower = blocks[-1]
    loans = loans_of(blocks)[borrower.content]
    assert len(loans.lenders) > 1
    whole, damaged = loans.lenders[:2]
    values = [np.ones(2, dtype=np.float32)] * PAIRS
    write_scores(store.url(whole), values, values)
    Path(store.url(damaged)).write_bytes(b"PAR1, but cut off")
    with pytest.raises(DamagedFile):
        store.read_scores(damaged)
    known = borrow(store, loans)
    assert len(known) == (loans.places[:, 2] == 0).sum()
