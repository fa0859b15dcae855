"""Batches of the feed: each pair once, in the requested order, equally many forwards per rank; and their rates."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydpo.batching.flops import FlopsModel
from raydpo.batching.planner import MicroBatchPlanner
from raydpo.blocks import schema
from raydpo.blocks.block import TokenizedBlock, write_scores
from raydpo.blocks.schema import Block
from raydpo.feed.batches import BatchSource, FeedSpec
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.readers import WaitingReader, ZeroReference
from raydpo.reference.store import ReferenceStore
from raydpo.runtime import storage
from raydpo.tr_dpo.schedule import SyncSchedule
from raydpo.tr_dpo.version import ReferenceVersion
from raydpo.training.throughput import Throughput

FLOPS = FlopsModel(token=2.0, completion_token=10.0, attention=())
PAIRS = 24


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> list[Block]:
    """Return two blocks; pair i has prompt i mod 4 with 6 tokens, and its own completions with 3 tokens each."""
    found = []
    for index in range(2):
        rows = range(index * PAIRS // 2, (index + 1) * PAIRS // 2)
        table = schema.pa.Table.from_pylist(
            [
                {
                    schema.PAIR_ID: f"{row:02}",
                    schema.PROMPT_IDS: [1 + row % 4] * 6,
                    schema.CHOSEN_IDS: [100 + row] * 3,
                    schema.REJECTED_IDS: [200 + row] * 3,
                }
                for row in rows
            ],
            schema=schema.TOKENIZED_SCHEMA,
        )
        url = str(tmp_path_factory.mktemp("blocks") / "block.parquet")
        storage.write_table(url, table)
        found.append(Block(f"content-{index}", "shard", index, len(rows), 12 * len(rows), url))
    return found


def source(blocks: list[Block], **changes: Any) -> BatchSource:
    options = {
        "seed": 1,
        "sampling": "random",
        "window": 2,
        "global_batch": 6,
        "planner": MicroBatchPlanner(tokens=40, flops=FLOPS, padded=False),
        "update_flops": FLOPS.update(),
        "ranks": 2,
        **changes,
    }
    return BatchSource(blocks, ZeroReference(), FeedSpec(**options))


def epoch(feed: BatchSource, number: int = 0) -> list[str]:
    """Return the pair ids of an epoch, in order."""
    positions = range(number * PAIRS, (number + 1) * PAIRS, 6)
    return [pair.pair_id for position in positions for pair in feed.pairs(position)]


def prompt_of(pair_id: str) -> int:
    return int(pair_id) % 4


def test_group_by_prompt_puts_pairs_of_one_prompt_together(blocks: list[Block]) -> None:
    all_pairs = [f"{row:02}" for row in range(PAIRS)]
    grouped, plain = epoch(source(blocks, sampling="group_by_prompt")), epoch(source(blocks))
    assert epoch(source(blocks, sampling="sequential")) == all_pairs
    assert sorted(grouped) == sorted(plain) == all_pairs
    assert plain != all_pairs
    changes = [prompt_of(one) != prompt_of(other) for one, other in pairwise(grouped)]
    assert sum(changes) == 3, "four prompts, one after the other"
    assert grouped != epoch(source(blocks, sampling="group_by_prompt"), 1), "each epoch has an order of its own"
    assert grouped[7:] == [pair for start in (6, 12, 18) for pair in epoch_part(blocks, start)][1:], "from any position"


def epoch_part(blocks: list[Block], position: int) -> list[str]:
    """Return the pair ids at a position, from a feed that has returned nothing before."""
    return [pair.pair_id for pair in source(blocks, sampling="group_by_prompt").pairs(position)]


def test_a_grouped_batch_computes_its_prompt_once(blocks: list[Block]) -> None:
    (batch,) = source(
        blocks, sampling="group_by_prompt", ranks=1, planner=MicroBatchPlanner(100, FLOPS, padded=False)
    ).rank_batches(0)
    assert batch.tokens == 6 * 2 * (6 + 3)
    assert batch.computed_tokens == 6 + 6 * 2 * 3
    assert batch.flops == 3 * (2 * batch.computed_tokens + 10 * 36)
    assert [micro.pairs for micro in batch.micro_batches] == [6]


def test_batches_are_planned_for_padded_rows_once_packed_rows_are_given_up(blocks: list[Block]) -> None:
    options = {"sampling": "group_by_prompt", "ranks": 1}
    padded = MicroBatchPlanner(100, FLOPS, padded=True)
    (expected,) = source(blocks, **options, planner=padded).rank_batches(0)
    packed = source(blocks, **options, planner=replace(padded, padded=False))
    (found,) = packed.rank_batches(0, padded=True)
    assert [micro.pair_ids for micro in found.micro_batches] == [micro.pair_ids for micro in expected.micro_batches]
    assert found.computed_tokens == expected.computed_tokens == 6 * 12
    assert len(packed.rank_batches(0)[0].micro_batches) < len(found.micro_batches)


def test_ranks_get_each_pair_once_in_equally_many_forwards(blocks: list[Block]) -> None:
    for position in range(0, 2 * PAIRS, 6):
        batches = source(blocks).rank_batches(position)
        assert len({len(batch.micro_batches) for batch in batches}) == 1
        used = [name for batch in batches for micro in batch.micro_batches for name in micro.pair_ids]
        assert sorted(used) == sorted(batches[0].pair_ids)
        assert len(used) == 6
        assert max(len(micro.input_ids) for batch in batches for micro in batch.micro_batches) <= 40


def test_every_forward_of_a_batch_with_images_has_one() -> None:
    """The vision tower is a collective under ZeRO-3: each rank runs it in each forward of a global batch, or none."""
    ids = np.ones(3, dtype=np.int64)
    pairs = [schema.ScoredPair(str(row), ids + row, ids, ids + 1, ids[:3] * 0.0, ids * 0.0) for row in range(6)]

    def spares(images: tuple[str, ...], ranks: int) -> list[str | None]:
        members = [replace(pair, images=images if pair.pair_id == "4" else ()) for pair in pairs]
        feed = source([Block("content", "shard", 0, len(pairs), 60, "")], ranks=ranks, global_batch=7)
        feed.pairs = lambda position, version=None: members  # type: ignore[method-assign]
        batches = [batch for rank in feed.rank_batches(0) for batch in rank.micro_batches]
        assert len(batches) > 2 or ranks == 1
        return [batch.spare_image if not any(batch.images) else "its own" for batch in batches]

    found = spares(("a", "b"), ranks=4)
    assert sorted(set(map(str, found))) == ["a", "its own"]
    assert found.count("its own") == 1
    assert set(map(str, spares(("a",), ranks=1))) <= {"None", "its own"}
    assert set(spares((), ranks=4)) == {None}


@pytest.mark.parametrize("with_prompts", [False, True])
def test_weights_and_margins_go_with_their_pairs(with_prompts: bool, blocks: list[Block], tmp_path: Path) -> None:
    table = storage.read_table(blocks[0].url)
    for name, values in ((schema.WEIGHT, np.arange(12.0)), (schema.MARGIN, -np.arange(12.0))):
        table = table.append_column(schema.EXTRAS_FIELDS[name], [schema.pa.array(values, schema.pa.float32())])
    url = str(tmp_path / "weighted.parquet")
    storage.write_table(url, table)
    feed = source([replace(blocks[0], url=url), blocks[1]], with_prompts=with_prompts)
    seen = 0.0
    for position in range(0, PAIRS, 6):
        batches = feed.rank_batches(position)
        for batch in batches:
            for micro in batch.micro_batches:
                numbers = [float(name) if int(name) < 12 else None for name in micro.pair_ids]
                assert micro.sample_weights.tolist() == [1.0 if number is None else number for number in numbers]
                assert micro.margins.tolist() == [0.0 if number is None else -number for number in numbers]
        weights = [float(name) if int(name) < 12 else 1.0 for name in batches[0].pair_ids]
        assert {batch.weight for batch in batches} == {sum(weights)}
        assert {batch.mean_weight for batch in batches} == {sum(weights) / 6}
        assert {batch.mean_nll_tokens for batch in batches} == {3 + 5 * with_prompts}
        seen += sum(weights)
    assert seen == sum(range(12)) + 12


def write_fake_scores(store: ReferenceStore, blocks: Sequence[Block]) -> None:
    """Write scores that identify their token: its id plus one half."""
    for block in blocks:
        pairs = [TokenizedBlock(block).pair(row) for row in range(block.pairs)]
        sides = ([pair.chosen_ids for pair in pairs], [pair.rejected_ids for pair in pairs])
        write_scores(store.url(block), *([(ids + 0.5).astype("f4") for ids in side] for side in sides))


@pytest.mark.parametrize("sampling", ["random", "group_by_prompt"])
def test_each_version_scores_only_the_pairs_of_its_interval(sampling: str, blocks: list[Block], tmp_path: Path) -> None:
    """Check intervals of 3 updates with 4 updates per epoch; the last interval is shortened by the end of the run."""
    without_sync = source(blocks, sampling=sampling, window=1)
    spec = FeedSpec(**{**vars(without_sync._spec), "sync": SyncSchedule(every=3, total_steps=8)})
    scored: Counter[str] = Counter()
    store = ReferenceStore(str(tmp_path), ReferenceIdentity("first", "", None, "{}"))
    for interval, positions in enumerate([(0, 6, 12), (18, 24, 30), (36, 42)]):
        feed = BatchSource(blocks, WaitingReader(store), spec)
        version = ReferenceVersion(ReferenceIdentity(f"weights {interval}", "", None, "{}"))
        requests = [feed.request(position, version) for position in positions]
        assert {request.name for request in requests} == {requests[0].name}, "one request for the whole interval"
        assert len(set(map(repr, requests))) == 1
        write_fake_scores(replace(store, identity=version.identity), requests[0].blocks)
        for position in reversed(positions):  # from any position, as after a resume
            pairs = feed.pairs(position, version)
            assert [pair.pair_id for pair in pairs] == [pair.pair_id for pair in without_sync.pairs(position)]
            for pair in pairs:
                assert pair.ref_chosen_logps.tolist() == (pair.chosen_ids + 0.5).tolist()
                assert pair.ref_rejected_logps.tolist() == (pair.rejected_ids + 0.5).tolist()
        requested = [name for block in requests[0].blocks for name in TokenizedBlock(block).pair_ids]
        assert sorted(requested) == sorted(
            pair.pair_id for position in positions for pair in without_sync.pairs(position)
        )
        scored.update(requested)
    assert set(scored.values()) == {2}, "once per epoch"


def test_held_out_pairs_are_all_scored_by_each_version(blocks: list[Block]) -> None:
    version = ReferenceVersion(ReferenceIdentity("weights", "", None, "{}"))
    request = source(blocks, sampling="sequential").request(0, version)
    assert request.blocks == tuple(blocks)
    assert request.version == version


def test_rates_are_computed_from_the_batches(blocks: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    (batch,) = source(blocks, ranks=1, sampling="sequential").rank_batches(0)
    rates = Throughput(peak_flops=1e4)
    rates.add(batch)
    rates.wait(0.5)
    now = 102.0
    values = rates.values()
    assert values["pairs_per_second"] == 3.0
    assert values["tokens_per_second"] == 6 * 2 * 9 / 2
    assert values["computed_tokens_per_second"] == batch.computed_tokens / 2
    assert values["data_wait"] == 0.25
    assert values["mfu"] == pytest.approx(batch.flops / 2 / 1e4)
    now = 103.0
    assert rates.values()["pairs_per_second"] == 0.0, "a line covers the time since the previous line"
    assert "mfu" not in Throughput(peak_flops=None).values()
