"""Building feeds from a plan: lengths, orders, readers and syncs, without Ray."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydpo.blocks.schema import Block
from raydpo.data.prepare import PreparedData
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.readers import DatasetReference, StoreReader, WaitingReader, ZeroReference
from raydpo.reference.store import ReferenceStore
from raydpo.stages.feeds import (
    blocks_in_training_order,
    data_digest,
    eval_feed_spec,
    fingerprint,
    log_prob_reader,
    plan_sync,
    train_feed_spec,
    train_schedule,
)
from raydpo.stages.plan import RunPlan, plan_run
from raydpo.stages.tokenize import RunData
from tests.stages.plan_helpers import CPU_NODE, job_of

STORE = ReferenceStore("cache", ReferenceIdentity("weights", "architecture", None, "{}"))
SYNC = {"sync_ref_model": True, "ref_model_sync_steps": 3, "num_workers": 1, "reference_num_workers": 1}


def plan_of(model: Path, folder: Path, **options: Any) -> RunPlan:
    return plan_run(job_of(model, folder, **options), [CPU_NODE])


def prepared(*blocks: Block) -> PreparedData:
    return PreparedData(blocks, 0, 0, {}, {}, {}, 0, {}, 0)


def block(name: str) -> Block:
    return Block(content=name, shard="shard", index=0, pairs=4, tokens=40, url=f"{name}.parquet")


def test_the_training_feed_follows_the_options(tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_of(
        tiny_model, tmp_path, num_workers=2, per_device_train_batch_size=3, data_seed=7, loss_type="orpo", use_peft=True
    )
    spec = train_feed_spec(plan)
    assert (spec.seed, spec.sampling, spec.global_batch, spec.ranks) == (7, "random", 6, 2)
    assert spec.with_prompts, "orpo counts the prompts' likelihood"
    assert spec.update_flops.token == 2 * spec.planner.flops.token, "frozen weights need no weight gradient"
    schedule = train_schedule(plan, pairs=20)
    assert (schedule.steps_per_epoch, schedule.total_steps) == (4, 12)


def test_held_out_pairs_are_read_in_the_order_of_the_files(tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_model, tmp_path, num_workers=2, per_device_eval_batch_size=5)
    spec = eval_feed_spec(plan, train_feed_spec(plan))
    assert (spec.sampling, spec.global_batch, spec.sync) == ("sequential", 10, None)


@pytest.mark.parametrize(
    ("options", "store", "reader"),
    [
        ({"loss_type": "simpo"}, None, ZeroReference),
        ({"reference_from_dataset": True}, None, DatasetReference),
        ({"reference_schedule": "staged"}, STORE, StoreReader),
        ({"cpus_per_worker": 1, "reference_cpus_per_worker": 1}, STORE, WaitingReader),
    ],
)
def test_the_reader_that_feeds_get(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], store: ReferenceStore | None, reader: type
) -> None:
    found = log_prob_reader(plan_of(tiny_model, tmp_path, **options), store)
    assert type(found) is reader
    assert found.digest == (STORE.digest if store else {ZeroReference: "none", DatasetReference: "given"}[reader])


def test_blocks_are_scored_in_training_order_after_the_held_out_ones(tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_model, tmp_path, shuffle_window=1)
    train, held_out = prepared(*map(block, "abcdef")), prepared(block("x"))
    order = blocks_in_training_order(plan, RunData(train, held_out))
    windows = train_feed_spec(plan).order(train.blocks, epoch=0).windows
    assert order == [block("x"), *(train.blocks[window.blocks[0]] for window in windows)]
    assert [entry.content for entry in order[1:]] != list("abcdef"), "shuffled"
    assert sorted(entry.content for entry in order) == list("abcdefx")


def test_a_checkpoint_fingerprint_has_reference_data_and_syncs(tiny_model: Path, tmp_path: Path) -> None:
    blocks = [block("a"), block("b")]
    assert data_digest(blocks) != data_digest(blocks[::-1]), "the order of pairs depends on the order of blocks"
    weighted = [blocks[0], replace(blocks[1], weights="digest")]
    digests = [data_digest(some) for some in (blocks, weighted, [blocks[0], replace(blocks[1], margins="digest")])]
    assert len(set(digests)) == 3, "updates depend on weights and margins"
    plan = plan_of(tiny_model, tmp_path, **SYNC, ref_model_mixup_alpha=0.25)
    sync = plan_sync(plan, STORE, train_schedule(plan, 100))
    found = fingerprint(WaitingReader(STORE), blocks, sync)
    assert found == {
        "reference": STORE.digest,
        "data": data_digest(blocks),
        "reference sync": "0.25 every 3 updates",
    }
    assert set(fingerprint(ZeroReference(), blocks, None)) == {"reference", "data"}


@pytest.mark.parametrize(
    ("options", "kept", "after_last"),
    [
        ({}, None, True),
        ({"save_total_limit": 2}, 3, True),
        ({"save_strategy": "no"}, 1, False),
        ({"save_strategy": "no", "eval_strategy": "epoch"}, 1, True),
    ],
)
def test_versions_are_kept_for_the_checkpoints_that_need_them(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], kept: int | None, after_last: bool
) -> None:
    plan = plan_of(tiny_model, tmp_path, **SYNC, **options)
    sync = plan_sync(plan, STORE, train_schedule(plan, 100))
    assert sync is not None
    assert (sync.kept, sync.after_last, sync.lora) == (kept, after_last, False)
    assert plan_sync(plan_of(tiny_model, tmp_path), STORE, train_schedule(plan, 100)) is None
