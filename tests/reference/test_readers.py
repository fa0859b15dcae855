"""Readers of reference log-probs: zeros, those of the data set, stored scores, and scores still to be written."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raydpo.blocks import schema
from raydpo.blocks.block import TokenizedBlock, write_scores
from raydpo.blocks.schema import Block
from raydpo.errors import ReferenceMismatch
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.readers import DatasetReference, LogpReader, StoreReader, WaitingReader, ZeroReference
from raydpo.reference.store import ReferenceStore
from raydpo.runtime import storage
from tests.reference.scoring import make_blocks

FIRST, SECOND = (ReferenceIdentity(name, "", None, "{}") for name in ("first", "second"))


@pytest.fixture
def block(tmp_path: Path) -> Block:
    return make_blocks(tmp_path, 1)[0]


@pytest.fixture
def store(tmp_path: Path) -> ReferenceStore:
    return ReferenceStore(str(tmp_path / "cache"), FIRST)


def write(store: ReferenceStore, block: Block, value: float) -> None:
    """Write scores that all have the same value."""
    pairs = [TokenizedBlock(block).pair(row) for row in range(block.pairs)]
    sides = ([pair.chosen_ids for pair in pairs], [pair.rejected_ids for pair in pairs])
    write_scores(store.url(block), *([np.full(len(ids), value, dtype=np.float32) for ids in side] for side in sides))


def values(reader: LogpReader, block: Block) -> set[float]:
    """Return the different reference log-probs of a block, after checking that there is one per completion token."""
    found: set[float] = set()
    scored = reader.read(block)
    for row in range(block.pairs):
        pair = scored.pair(row)
        assert len(pair.ref_chosen_logps) == len(pair.chosen_ids)
        assert len(pair.ref_rejected_logps) == len(pair.rejected_ids)
        found |= {*pair.ref_chosen_logps.tolist(), *pair.ref_rejected_logps.tolist()}
    return found


def test_without_a_reference_all_log_probs_are_0(block: Block) -> None:
    assert values(ZeroReference(), block) == {0.0}


def test_log_probs_of_the_data_set_are_read_as_they_are(block: Block, tmp_path: Path) -> None:
    table = storage.read_table(block.url)
    for name, ids in ((schema.REF_CHOSEN_LOGPS, schema.CHOSEN_IDS), (schema.REF_REJECTED_LOGPS, schema.REJECTED_IDS)):
        column = [[-0.5] * len(row) for row in table.column(ids).to_pylist()]
        table = table.append_column(name, schema.pa.array(column, schema.pa.list_(schema.pa.float32())))
    url = str(tmp_path / "with-log-probs.parquet")
    storage.write_table(url, table)
    assert values(DatasetReference(), replace(block, url=url)) == {-0.5}


def test_a_store_reader_reads_the_scores_of_the_store(store: ReferenceStore, block: Block) -> None:
    write(store, block, -2.0)
    reader = StoreReader(store)
    assert reader.digest == store.digest
    assert values(reader, block) == {-2.0}
    reader.fail("no more scores")  # it never waits for scores
    assert values(reader, block) == {-2.0}


def test_a_waiting_reader_waits_for_scores(store: ReferenceStore, block: Block) -> None:
    started = time.monotonic()
    threading.Timer(0.3, write, (store, block, -3.0)).start()
    assert values(WaitingReader(store), block) == {-3.0}
    assert time.monotonic() - started >= 0.3


def test_a_waiting_reader_stops_with_the_reason(store: ReferenceStore, block: Block) -> None:
    reader = WaitingReader(store)
    threading.Timer(0.2, reader.fail, ("the scoring workers died",)).start()
    with pytest.raises(ReferenceMismatch, match="the scoring workers died"):
        reader.read(block)
    write(store, block, -1.0)
    assert values(reader, block) == {-1.0}, "existing scores are read even after a failure"


def test_each_version_of_the_reference_has_scores_of_its_own(store: ReferenceStore, block: Block) -> None:
    write(store, block, -1.0)
    write(replace(store, identity=SECOND), block, -2.0)
    reader = WaitingReader(store)
    assert values(reader, block) == {-1.0}
    reader.switch_to(SECOND)
    assert reader.digest == SECOND.digest
    assert values(reader, block) == {-2.0}
    reader.switch_to(FIRST)
    assert values(reader, block) == {-1.0}
