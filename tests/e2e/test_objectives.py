"""Objectives that are more than a sum over pairs: optimal transport (AOT), and the auxiliary loss of MoE models."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from tests.e2e.jobs import rows, run_job, write_rows

pytestmark = pytest.mark.usefixtures("ray_local")


def test_aot_sorts_over_the_global_batch_of_all_workers(tiny_model: Path, tmp_path: Path) -> None:
    """One worker with 16 pairs per forward equals two workers with 8 pairs each, split over several forwards."""
    job: dict[str, Any] = {
        "model_name_or_path": str(tiny_model),
        "dataset_name": write_rows(tmp_path / "pairs.jsonl", rows(32)),
        "eval_dataset_name": write_rows(tmp_path / "held_out.jsonl", rows(7, seed=1)),
        "cache_dir": str(tmp_path / "cache"),
        "loss_type": "aot",
        "learning_rate": 5e-4,
        "num_train_epochs": 1.5,
        "eval_strategy": "epoch",
    }
    one = run_job(tmp_path / "one", **job, per_device_train_batch_size=16, per_device_eval_batch_size=7)
    two = run_job(
        tmp_path / "two",
        **job,
        num_workers=2,
        zero_stage=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=2,
    )
    assert len(one.lines) == len(two.lines) == 3
    for line, other in zip(one.lines, two.lines, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-6), line["step"]
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5), line["step"]
    assert abs(one.lines[-1]["loss"] - one.lines[0]["loss"]) > 1e-3, "the loss did not change"
    evaluations = [[line for line in run.all_lines() if "eval_loss" in line] for run in (one, two)]
    for line, other in zip(*evaluations, strict=True):
        for name in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen", "eval_entropy"):
            assert line[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), (line["step"], name)


@pytest.fixture
def mixtral(tiny_model: Path, tmp_path: Path) -> Path:
    """A Mixtral model with two experts, one active per token, and the tokenizer of the tiny model."""
    folder = tmp_path / "mixtral"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        num_experts_per_tok=1,
        router_aux_loss_coef=0.02,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=1,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def test_the_auxiliary_loss_is_added_and_balances_the_experts(mixtral: Path, tmp_path: Path) -> None:
    content = rows(8)
    job = run_job(
        tmp_path / "run",
        model_name_or_path=str(mixtral),
        dataset_name=write_rows(tmp_path / "pairs.jsonl", content),
        cache_dir=str(tmp_path / "cache"),
        train_sampling_strategy="sequential",
        per_device_train_batch_size=4,
        router_aux_loss_coef=0.5,
        learning_rate=1e-2,
        num_train_epochs=4,
        gradient_checkpointing=True,
    )
    # At the first update the policy is the reference; the expected value is from the model's own forward on both
    # completions of each pair.
    model, tokenizer = MixtralForCausalLM.from_pretrained(mixtral), AutoTokenizer.from_pretrained(mixtral)
    texts = [row["prompt"] + row[side] + tokenizer.eos_token for side in ("chosen", "rejected") for row in content[:4]]
    inputs = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected = model(**inputs, output_router_logits=True).aux_loss.item()
    assert job.lines[0]["aux_loss"] == pytest.approx(expected, rel=1e-5)
    assert job.lines[0]["loss"] == pytest.approx(-F.logsigmoid(torch.zeros(())).item() + 0.5 * expected, rel=1e-5)
    assert job.lines[-1]["aux_loss"] < job.lines[0]["aux_loss"], "expert usage did not become more even"
