"""A TR-DPO run equals a plain torch loop whose reference is a model in memory, mixed with the policy at each sync."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.errors import ResumeError
from tests.e2e import plain
from tests.e2e.adapters import write_adapter
from tests.e2e.jobs import Run, rows, run_job, run_until, write_rows
from tests.models.merged import merged_weights

pytestmark = pytest.mark.usefixtures("ray_local")

PAIRS, BATCH, EPOCHS = rows(9), 2, 2
HELD_OUT = rows(3, seed=1)
STEPS = 10
EVERY, ALPHA = 3, 0.6
SYNCS = [3, 6, 9]
PLAIN = {"learning_rate": 5e-3, "beta": 0.1, "max_grad_norm": 1.0}


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sync")
    return {
        "model_name_or_path": str(tiny_model),
        "dataset_name": write_rows(folder / "pairs.jsonl", PAIRS),
        "eval_dataset_name": write_rows(folder / "held_out.jsonl", HELD_OUT),
        "eval_strategy": "steps",
        "eval_steps": 100,  # only at the start and at the end
        "cache_dir": str(folder / "cache"),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": EPOCHS,
        "learning_rate": PLAIN["learning_rate"],
        "block_pairs": 4,
        "shuffle_window": 2,
        "save_steps": 4,
        "sync_ref_model": True,
        "ref_model_sync_steps": EVERY,
        "ref_model_mixup_alpha": ALPHA,
    }


def plain_training(policy: Any, reference: Any, tokenizer: Any, run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    """Train on the pairs of the run's ledger; yield (step, metrics) of each update and evaluation.

    The reference is a model in memory that is mixed with the policy at each sync.
    """
    order = [[PAIRS[int(pair.rpartition(":")[2]) - 1] for pair in entry["pairs"]] for entry in run.ledger()]

    def evaluation() -> dict[str, float]:
        with torch.no_grad():
            _, metrics = plain.dpo(policy, reference, tokenizer, HELD_OUT, PLAIN["beta"])
        return {f"eval_{name}": value for name, value in metrics.items()}

    yield 0, evaluation()
    for step, metrics in enumerate(plain.updates(policy, reference, tokenizer, order, PLAIN), start=1):
        yield step, metrics
        if step in SYNCS:
            policy_weights = merged_weights(policy)
            with torch.no_grad():
                for name, weight in reference.state_dict().items():
                    weight.mul_(1 - ALPHA).add_(policy_weights[name], alpha=ALPHA)
        if step == STEPS:
            yield step, evaluation()


def assert_metrics_equal(run: Run, expected: Iterator[tuple[int, dict[str, float]]]) -> None:
    lines = {(line["step"], "eval_loss" in line): line for line in run.all_lines() if len(line) > 6}
    counts: Counter[bool] = Counter()
    for step, metrics in expected:
        is_evaluation = "eval_loss" in metrics
        for name, value in metrics.items():
            assert lines[(step, is_evaluation)][name] == pytest.approx(value, rel=1e-5, abs=1e-5), f"{name} at {step}"
        counts[is_evaluation] += 1
    assert counts == {False: STEPS, True: 2}


def test_full_training_resumed_after_a_kill_equals_the_plain_loop(
    tiny_model: Path, job: dict[str, Any], tmp_path: Path
) -> None:
    run_until("checkpoint-4", tmp_path, **job)
    run = run_job(tmp_path, **job)
    assert 4 <= run.summary["training"]["resumed_at"] < STEPS
    policy, reference = (AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2))
    assert_metrics_equal(run, plain_training(policy, reference, AutoTokenizer.from_pretrained(tiny_model), run))
    # Each sync interval's pairs are scored once, by the reference version of that interval.
    assert run.summary["reference"]["syncs"] == len(SYNCS)
    weights_file = run.folder / "references" / run.summary["reference"]["identity_at_end"] / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    with pytest.raises(ResumeError, match="has changed since the checkpoint"):
        run_job(tmp_path, **job)


def test_adapter_training_equals_the_plain_loop(tiny_model: Path, job: dict[str, Any], tmp_path: Path) -> None:
    sft = write_adapter(tiny_model, tmp_path / "sft", seed=1)
    run = run_job(tmp_path / "run", **job, model_adapter_name=str(sft), zero_stage=3)
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(sft), is_trainable=True)
    reference = AutoModelForCausalLM.from_pretrained(tiny_model)
    reference.load_state_dict(merged_weights(policy))
    assert_metrics_equal(run, plain_training(policy, reference, AutoTokenizer.from_pretrained(tiny_model), run))
