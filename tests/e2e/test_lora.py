"""LoRA training under ZeRO-3 uses the base model as the reference and exports an adapter that PEFT can load."""

from math import log
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.exported import dpo_metrics
from tests.e2e.jobs import rows, run_job, write_rows

pytestmark = pytest.mark.usefixtures("ray_local")


def test_lora_under_zero_3_learns_and_exports_a_loadable_adapter(tiny_model: Path, tmp_path: Path) -> None:
    run = run_job(
        tmp_path / "run",
        model_name_or_path=str(tiny_model),
        dataset_name=write_rows(tmp_path / "pairs.jsonl", rows(12)),
        eval_dataset_name=write_rows(tmp_path / "held-out.jsonl", rows(5, seed=1)),
        eval_strategy="epoch",
        cache_dir=str(tmp_path / "cache"),
        use_peft=True,
        zero_stage=3,
        num_workers=2,
        num_train_epochs=4,
        learning_rate=2e-2,
        gradient_checkpointing=True,
        save_total_limit=2,
        save_steps=3,
    )
    assert run.summary["reference"]["first_loss"] == pytest.approx(log(2), abs=1e-6)
    assert run.lines[-1]["loss"] < 0.6
    assert sorted(path.name for path in (run.folder / "checkpoints").glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-9",
    ]
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = base(ids).logits.detach().clone()
    adapted = PeftModel.from_pretrained(base, run.folder / "model")
    assert not torch.allclose(adapted(ids).logits, before, atol=1e-2), "the adapter has no effect"
    assert AutoTokenizer.from_pretrained(run.folder / "model").chat_template
    evaluation = run.summary["evaluation"]
    for name, value in dpo_metrics(run.folder / "model", tiny_model, rows(5, seed=1)).items():
        assert evaluation["after"][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    check = run.summary["export_check"]
    assert check["loaded"] == "whole"
    assert check["gap"] < 1e-5 < check["tolerance"]
    assert evaluation["before"]["eval_loss"] == pytest.approx(log(2), abs=1e-6)
    assert evaluation["before"]["step"] == 0
    assert evaluation["after"]["step"] == 12
