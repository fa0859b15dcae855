"""Scoring in a thread, next to a reader that waits for the scores."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raydpo.blocks.block import TokenizedBlock, write_scores
from raydpo.blocks.schema import Block
from raydpo.errors import ModelError, ReferenceMismatch, TrainingError
from raydpo.reference.background import BackgroundScoring
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.pool import ScoringReport, check_none_failed
from raydpo.reference.readers import WaitingReader
from raydpo.reference.store import ReferenceStore
from tests.reference.scoring import make_blocks


@pytest.fixture
def store(tmp_path: Path) -> ReferenceStore:
    return ReferenceStore(str(tmp_path / "cache"), ReferenceIdentity("weights", "architecture", None, "numerics"))


def write(store: ReferenceStore, block: Block) -> None:
    import numpy as np

    pairs = [TokenizedBlock(block).pair(row) for row in range(block.pairs)]
    sides = [[np.zeros(len(ids), dtype=np.float32) for ids in side] for side in zip(*map(sides_of, pairs), strict=True)]
    write_scores(store.url(block), *sides)


def sides_of(pair: object) -> tuple[object, object]:
    return pair.chosen_ids, pair.rejected_ids  # type: ignore[attr-defined]


def test_a_reader_waits_for_the_block_that_it_needs(store: ReferenceStore, tmp_path: Path) -> None:
    first, second = make_blocks(tmp_path, 2)
    second_allowed = threading.Event()

    def score(stopped: Callable[[], bool]) -> ScoringReport:
        write(store, first)
        assert second_allowed.wait(10)
        write(store, second)
        return ScoringReport(forwards=2)

    with BackgroundScoring(score, lambda message: None) as scoring:
        reader = WaitingReader(store)
        assert len(reader.read(first)) == first.pairs
        threading.Timer(0.3, second_allowed.set).start()
        assert len(reader.read(second)) == second.pairs
        assert second_allowed.is_set()
    assert scoring.report.forwards == 2


def test_a_scoring_failure_reaches_the_reader_and_is_raised_by_the_run(store: ReferenceStore, tmp_path: Path) -> None:
    (block,) = make_blocks(tmp_path, 1)
    reader = WaitingReader(store)

    def score(stopped: Callable[[], bool]) -> ScoringReport:
        raise ModelError("the reference has no memory")

    def fail(message: str) -> None:
        reader.failure = message

    def train() -> None:
        with pytest.raises(ReferenceMismatch, match="the reference has no memory"):
            reader.read(block)
        raise TrainingError("training failed")

    with pytest.raises(ModelError, match="the reference has no memory"), BackgroundScoring(score, fail):
        train()


def test_a_failed_block_ends_a_run_that_waits_for_it(store: ReferenceStore, tmp_path: Path) -> None:
    (block,) = make_blocks(tmp_path, 1)
    reader = WaitingReader(store)

    def fail(message: str) -> None:
        reader.failure = message

    def score(stopped: Callable[[], bool]) -> ScoringReport:
        report = ScoringReport(failed_blocks=(block,))
        check_none_failed(report, "set reference_schedule=staged")
        return report

    with (
        pytest.raises(ReferenceMismatch, match=r"shard-0\.jsonl .*killed every scoring worker.*schedule=staged"),
        BackgroundScoring(score, fail),
    ):
        reader.read(block)


def test_scoring_stops_when_training_ends() -> None:
    def score(stopped: Callable[[], bool]) -> ScoringReport:
        end = time.monotonic() + 10
        while not stopped():
            assert time.monotonic() < end
            time.sleep(0.01)
        return ScoringReport(forwards=1)

    with BackgroundScoring(score, lambda message: None) as scoring:
        pass
    assert scoring.report.forwards == 1
