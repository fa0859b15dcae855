"""The main job's metrics and weights equal a plain torch loop's, for one and two workers and several ZeRO stages."""

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.e2e import plain
from tests.e2e.jobs import Run, rows, run_job, write_neighbour, write_rows

pytestmark = pytest.mark.usefixtures("ray_local")

PAIRS = 22  # 5 steps of 4 and one of 2
OPTIONS = {"batch": 4, "learning_rate": 5e-4, "beta": 0.3, "max_grad_norm": 0.5}
JOB = {
    "train_sampling_strategy": "sequential",
    "learning_rate": OPTIONS["learning_rate"],
    "beta": OPTIONS["beta"],
    "max_grad_norm": OPTIONS["max_grad_norm"],
    "block_pairs": 5,
    "per_device_train_batch_size": 2,
}


@pytest.fixture(scope="module")
def reference(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference that differs from the policy, so that the first loss is not the constant ln 2."""
    return write_neighbour(tiny_model, tmp_path_factory.mktemp("reference"), 0.02)


@pytest.fixture(scope="module")
def job(tiny_model: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options that all runs share."""
    folder = tmp_path_factory.mktemp("numbers")
    return {
        **JOB,
        "model_name_or_path": str(tiny_model),
        "reference_model": str(reference),
        "dataset_name": write_rows(folder / "pairs.jsonl", rows(PAIRS)),
        "cache_dir": str(folder / "cache"),
    }


@pytest.fixture(scope="module")
def one_worker(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_job(tmp_path_factory.mktemp("one"), **job, gradient_accumulation_steps=2)


@pytest.fixture(scope="module")
def expected(tiny_model: Path, reference: Path) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    return plain.train(tiny_model, reference, rows(PAIRS), OPTIONS)


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.folder / "model" / "model.safetensors")


def assert_weights_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert that the weights agree to 1e-4 of each tensor's norm.

    Single weights are not compared: AdamW divides a gradient by its own size, so a weight whose gradient is only
    rounding error moves by the learning rate in either direction.
    """
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert (tensor - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


def assert_steps_close(run: Run, history: list[dict[str, float]]) -> None:
    """Assert that the metrics of each step agree to 1e-5 relative."""
    assert len(run.lines) == len(history) == 6
    for line, plain_line in zip(run.lines, history, strict=True):
        for name, value in plain_line.items():
            # A reward is a small difference of large sums, so its error is that of the sums.
            floor = 1e-5 * OPTIONS["beta"] * abs(plain_line["logps/chosen"]) if name.startswith("rewards") else 0
            assert line[name] == pytest.approx(value, rel=1e-5, abs=floor), (line["step"], name)


def assert_own_forward(run: Run, layout: str) -> None:
    """Assert that policy and reference were compared with their own forward, in this layout."""
    for proof in run.summary["forward_check"].values():
        assert (proof["model_type"], proof["dtype"], proof["layout"]) == ("llama", "float32", layout)
        assert proof["gap"] <= proof["tolerance"] / 10
        assert proof["fallback"] is None
    assert run.summary["forward_check"]["policy"]["train_gap"] <= proof["tolerance"] / 10


def test_metrics_of_each_step_equal_the_plain_loop(one_worker: Run, expected: Any) -> None:
    assert_steps_close(one_worker, expected[0])


def test_padded_rows_and_small_micro_batches_equal_the_plain_loop(
    tmp_path: Path, job: dict[str, Any], expected: Any
) -> None:
    memory_options = {"share_prompts": False, "tokens_per_micro_batch": 100, "logits_chunk_tokens": 7}
    run = run_job(tmp_path, **job, gradient_accumulation_steps=2, gradient_checkpointing=True, **memory_options)
    assert run.summary["reference"]["completions_reused"] == 0, (
        "scores of another attention implementation are not reused"
    )
    assert run.summary["training"]["attention"].startswith("plain")
    assert_own_forward(run, "padded")
    assert_steps_close(run, expected[0])


def test_trained_weights_equal_the_plain_loop(one_worker: Run, expected: Any, tiny_model: Path) -> None:
    start, end = load_file(tiny_model / "model.safetensors"), weights(one_worker)
    change = (end["lm_head.weight"] - start["lm_head.weight"]).norm() / start["lm_head.weight"].norm()
    assert change > 0.01, "training hardly changed the weights, so comparing them proves nothing"
    assert_weights_close(weights(one_worker), expected[1])


@pytest.mark.parametrize("stage", [2, 3])
def test_two_workers_equal_one(stage: int, job: dict[str, Any], one_worker: Run, tmp_path: Path) -> None:
    two = run_job(tmp_path, **job, num_workers=2, zero_stage=stage)
    for line, one_line in zip(two.lines, one_worker.lines, strict=True):
        for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
            assert line[name] == pytest.approx(one_line[name], rel=1e-4), (line["step"], name)
    assert_weights_close(weights(two), weights(one_worker))
    assert [entry["pairs"] for entry in two.ledger()] == [entry["pairs"] for entry in one_worker.ledger()]
    model = AutoModelForCausalLM.from_pretrained(two.folder / "model")
    assert not model.training
    proof = two.summary["forward_check"]["policy"]
    assert max(proof["gap"], proof["train_gap"]) <= proof["tolerance"] / 10


def test_first_loss_is_ln_2_when_the_policy_is_the_reference(job: dict[str, Any], tmp_path: Path) -> None:
    options = {**job, "reference_model": None, "max_steps": 1, "train_sampling_strategy": "random"}
    run = run_job(tmp_path, **options)
    assert run.summary["reference"]["first_loss"] == pytest.approx(log(2), abs=1e-6)
    assert run.summary["reference"]["drift_max"] < 1e-4
    assert run.lines[0]["rewards/accuracies"] <= 1.0


@pytest.mark.parametrize("stage", [0, 2])
def test_bf16_losses_stay_close_to_float32(stage: int, job: dict[str, Any], one_worker: Run, tmp_path: Path) -> None:
    half = run_job(tmp_path, **job, gradient_accumulation_steps=2, zero_stage=stage, bf16=True)
    assert half.summary["training"]["precision"] == "bfloat16"
    for line, one_line in zip(half.lines, one_worker.lines, strict=True):
        assert line["loss"] == pytest.approx(one_line["loss"], abs=0.03), line["step"]
    assert weights(half)["lm_head.weight"].dtype == torch.bfloat16
