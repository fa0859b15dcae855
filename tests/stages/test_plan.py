"""The plan of a run: what follows from the options and the nodes, without Ray and before anything runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raydpo.errors import ConfigError, ModelError
from raydpo.runtime.resources import Node, WorkerGroup
from raydpo.stages.plan import RunPlan, is_pipelined, plan_run
from raydpo.stages.score import reference_store
from tests.e2e.jobs import write_neighbour
from tests.stages.plan_helpers import CPU_NODE, GPU_NODE, job_of


def plan_of(model: Path, folder: Path, nodes: list[Node] | None = None, **options: Any) -> RunPlan:
    return plan_run(job_of(model, folder, **options), nodes or [CPU_NODE])


def test_a_plan_for_a_laptop(tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_model, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert (plan.ranks, plan.global_batch, plan.eval_batch) == (1, 8, 8)
    assert (plan.policy.precision, plan.policy.gpu, plan.policy.group.cpus) == ("float32", False, 4)
    assert plan.deepspeed_config["zero_optimization"]["stage"] == 0
    assert plan.reference == plan.policy
    assert not plan.pipelined, "one worker takes all CPUs, so there is no room for both"
    assert not plan.run_dir.path.exists(), "a plan writes nothing"


def test_a_plan_for_a_node_with_gpus(tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_model, tmp_path, [GPU_NODE], per_device_train_batch_size=4, attn_implementation="sdpa")
    assert (plan.ranks, plan.global_batch) == (8, 32)
    assert (plan.policy.precision, plan.policy.gpu) == ("bfloat16", True)
    assert plan.deepspeed_config["zero_optimization"]["stage"] == 2
    assert plan.deepspeed_config["bf16"] == {"enabled": True}
    assert plan.policy.planner.multiple == 8


def test_rotary_factors_that_follow_the_length_are_part_of_the_reference(tiny_model: Path, tmp_path: Path) -> None:
    plain = plan_of(tiny_model, tmp_path)
    store = reference_store(plain)
    assert store is not None
    assert set(json.loads(store.identity.numerics)) == {"dtype", "attention", "device"}

    dynamic = tmp_path / "dynamic"
    shutil.copytree(tiny_model, dynamic)
    content = json.loads((dynamic / "config.json").read_text())
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    (dynamic / "config.json").write_text(json.dumps(content | {"rope_parameters": rope, "max_position_embeddings": 64}))
    for longest, follows in ((64, False), (65, True), (None, True)):
        plan = plan_of(dynamic, tmp_path, max_length=longest)
        store = reference_store(plan)
        assert store is not None
        assert (plan.policy.own_length, plan.policy.attention.shares) == (follows, not follows)
        assert ("rotary factors of each sequence's own length" in plan.policy.summary_line) == follows
        assert (json.loads(store.identity.numerics).get("rope") == "own length") == follows


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"reference_schedule": "auto"}, True),
        ({"reference_schedule": "pipelined"}, True),
        ({"reference_schedule": "staged"}, False),
        ({"loss_type": "orpo"}, False),
        ({"reference_from_dataset": True}, False),
    ],
)
def test_scoring_runs_next_to_training_if_there_is_room(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], expected: bool
) -> None:
    job = job_of(tiny_model, tmp_path, **options)
    half = WorkerGroup(1, gpus=0, cpus=2, resources={}, label_selector={})
    assert is_pipelined(job, half, half, [CPU_NODE]) is expected


@pytest.mark.parametrize("option", ["sync_ref_model=true", "reference_schedule=pipelined"])
def test_scoring_next_to_training_without_room_is_refused(tiny_model: Path, tmp_path: Path, option: str) -> None:
    name, _, value = option.partition("=")
    job = job_of(tiny_model, tmp_path, **{name: value})
    all_cpus = WorkerGroup(1, gpus=0, cpus=4, resources={}, label_selector={})
    with pytest.raises(ConfigError, match=f"{option} needs room for 1 train workers"):
        is_pipelined(job, all_cpus, all_cpus, [CPU_NODE])
    assert not is_pipelined(job_of(tiny_model, tmp_path), all_cpus, all_cpus, [CPU_NODE])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1e-3),
        ({"bf16": True}, 0.1),
        ({"fp16": True}, 0.02),
        ({"reference_dtype": "bfloat16"}, 0.1),
        ({"reference_drift_tolerance": 0.5}, 0.5),
        ({"disable_dropout": False}, None),
        ({"loss_type": "orpo"}, None),
        ({"reference_free": True}, None),
    ],
)
def test_drift_tolerance_follows_precision_and_options(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], expected: float | None
) -> None:
    nodes = [GPU_NODE] if "fp16" in options else None
    assert plan_of(tiny_model, tmp_path, nodes, attn_implementation="sdpa", **options).drift_tolerance == expected


def test_another_reference_has_no_drift_tolerance(tiny_model: Path, tmp_path: Path) -> None:
    other = write_neighbour(tiny_model, tmp_path / "other", 0.1)
    plan = plan_of(tiny_model, tmp_path, reference_model=str(other))
    assert not plan.starts_from_reference
    assert plan.drift_tolerance is None
    assert plan.reference.source.folder == str(other)


def test_options_that_do_not_fit_are_refused_before_anything_is_written(tiny_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "deepspeed.json"
    config.write_text(json.dumps({"train_batch_size": 4}))
    for options, error, message in (
        ({"deepspeed": str(config)}, ConfigError, "sets train_batch_size=4"),
        ({"num_workers": 8}, ConfigError, "num_workers=8"),
        ({"attn_implementation": "varlen"}, ModelError, "needs a GPU"),
        ({"router_aux_loss_coef": 0.1}, ModelError, "router_aux_loss_coef=0.1"),
    ):
        with pytest.raises(error, match=message):
            plan_of(tiny_model, tmp_path, **options)
    assert not (tmp_path / "run").exists()
