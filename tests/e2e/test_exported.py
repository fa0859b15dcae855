"""What a run exports is what it evaluated last: by transformers and peft alone, for each way to train."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.exported import dpo_metrics
from tests.e2e.jobs import rows, run_job, write_rows

pytestmark = pytest.mark.usefixtures("ray_local")

MTP = {"mtp.fc.weight": torch.arange(8.0).to(torch.bfloat16), "model.layers.2.eh_proj.weight": torch.ones(2, 3)}


def with_further_head(tiny_model: Path, folder: Path) -> Path:
    """Write the tiny model with weights that predict further tokens, which its class does not load."""
    shutil.copytree(tiny_model, folder)
    save_file(load_file(folder / "model.safetensors") | MTP, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"zero_stage": 3, "num_workers": 2},
        pytest.param({}, marks=pytest.mark.whole),
        pytest.param({"use_peft": True, "gradient_checkpointing": True}, marks=pytest.mark.whole),
        pytest.param({"zero_stage": 2, "share_prompts": "false"}, marks=pytest.mark.whole),
    ],
    ids=str,
)
def test_an_export_has_the_metrics_of_the_last_evaluation(
    options: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    base, held_out = with_further_head(tiny_model, tmp_path / "base"), rows(5, seed=1)
    run = run_job(
        tmp_path / "run",
        model_name_or_path=str(base),
        dataset_name=write_rows(tmp_path / "pairs.jsonl", rows(12)),
        eval_dataset_name=write_rows(tmp_path / "held-out.jsonl", held_out),
        eval_strategy="epoch",
        cache_dir=str(tmp_path / "cache"),
        learning_rate=1e-2,
        save_strategy="no",
        **options,
    )
    before, after = (run.summary["evaluation"][when] for when in ("before", "after"))
    assert abs(after["eval_loss"] - before["eval_loss"]) > 1e-2, "the policy was trained"
    for name, value in dpo_metrics(run.folder / "model", base, held_out).items():
        assert after[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    check, adapter = run.summary["export_check"], "use_peft" in options
    assert check["loaded"] == "whole"
    assert check["gap"] < 1e-5 < check["tolerance"]
    written = load_file(run.folder / "model" / ("adapter_model.safetensors" if adapter else "model.safetensors"))
    if not adapter:
        assert all(torch.equal(written[name], tensor) for name, tensor in MTP.items())
        assert "2 weights that LlamaForCausalLM does not load are carried" in check["carried"]
