"""Training continues an existing LoRA adapter, against each reference that is allowed with it."""

from math import log
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e import plain
from tests.e2e.adapters import write_adapter
from tests.e2e.jobs import rows, run_job, write_rows

pytestmark = pytest.mark.usefixtures("ray_local")

PAIRS = rows(8)


@pytest.fixture(scope="module")
def sft(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tiny_model, tmp_path_factory.mktemp("adapters") / "sft", seed=1)


@pytest.fixture(scope="module")
def job(tiny_model: Path, sft: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("job")
    return {
        "model_name_or_path": str(tiny_model),
        "model_adapter_name": str(sft),
        "dataset_name": write_rows(folder / "pairs.jsonl", PAIRS),
        "train_sampling_strategy": "sequential",
        "cache_dir": str(folder / "cache"),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
    }


def test_the_starting_adapter_is_the_default_reference(
    tiny_model: Path, sft: Path, job: dict[str, Any], tmp_path: Path
) -> None:
    run = run_job(tmp_path, **job, num_workers=2, zero_stage=3, gradient_checkpointing=True)
    assert run.lines[0]["loss"] == pytest.approx(log(2), abs=1e-6)
    assert run.summary["reference"]["drift_max"] < 1e-5
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (sft, run.folder / "model"))
    assert before.keys() == after.keys()
    assert all(0 < (after[name] - before[name]).abs().max() < 0.1 for name in before), "training continues the adapter"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(run.folder / "model"))


@pytest.mark.parametrize("reference_name", ["base", "other"])
def test_the_base_or_another_adapter_can_be_the_reference(
    reference_name: str, tiny_model: Path, sft: Path, job: dict[str, Any], tmp_path: Path
) -> None:
    reference: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    if reference_name == "other":
        reference_name = str(write_adapter(tiny_model, tmp_path / "other", seed=2))
        reference = PeftModel.from_pretrained(reference, reference_name)
    run = run_job(tmp_path / "run", **job, ref_adapter_name=reference_name)
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(sft))
    _, metrics = plain.dpo(policy, reference, AutoTokenizer.from_pretrained(tiny_model), PAIRS[:4], beta=0.1)
    expected = metrics["loss"]
    assert abs(expected - log(2)) > 1e-3
    assert run.lines[0]["loss"] == pytest.approx(expected, abs=1e-5)
