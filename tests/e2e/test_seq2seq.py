"""Whole runs of an encoder-decoder: the model by transformers alone, and a second run that scores nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.data.seq2seq_tokenizers import T5, build_seq2seq_tokenizer
from tests.e2e.jobs import Run, rows, run_job, write_rows
from tests.models.seq2seq_models import CORE, build, plain_logps

BETA = 0.3


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("seq2seq")
    build(CORE["t5"]()).save_pretrained(folder / "base")
    build_seq2seq_tokenizer(T5).save_pretrained(folder / "base")
    return {
        "model_name_or_path": str(folder / "base"),
        "dataset_name": write_rows(folder / "train.jsonl", rows(8)),
        "eval_dataset_name": write_rows(folder / "held-out.jsonl", held_out()),
        "eval_strategy": "steps",
        "cache_dir": str(folder / "cache"),
        "learning_rate": 1e-3,
        "beta": BETA,
        "max_prompt_length": 20,
        "max_completion_length": 24,
        "is_encoder_decoder": True,
    }


def held_out() -> list[dict[str, str]]:
    return rows(5, seed=1)


def plain_evaluation(policy: Path, reference: Path) -> dict[str, float]:
    """Return loss and log-probs of the held-out pairs, with the models and the tokenizer of transformers alone."""
    models = [
        AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (policy, reference)
    ]
    tokenizer = AutoTokenizer.from_pretrained(policy)
    chosen, rejected, losses = [], [], []
    for row in held_out():
        prompt = tokenizer(row["prompt"], truncation=True, max_length=20)["input_ids"]
        sides = [
            tokenizer(text_target=row[side], truncation=True, max_length=24)["input_ids"]
            for side in ("chosen", "rejected")
        ]
        with torch.no_grad():
            (a, b), (c, d) = ([plain_logps(model, prompt, side).sum() for side in sides] for model in models)
        chosen.append(a)
        rejected.append(b)
        losses.append(-F.logsigmoid(BETA * ((a - c) - (b - d))))
    return {
        "eval_loss": torch.stack(losses).mean().item(),
        "eval_logps/chosen": torch.stack(chosen).mean().item(),
        "eval_logps/rejected": torch.stack(rejected).mean().item(),
    }


def last_evaluation(run: Run) -> dict[str, float]:
    return [line for line in run.all_lines() if "eval_loss" in line][-1]


def test_a_run_ends_with_the_model_that_it_evaluated_and_a_second_run_scores_nothing(
    ray_local: None, job: dict[str, Any], tmp_path: Path
) -> None:
    first = run_job(tmp_path / "first", **job)
    assert first.summary["reference"]["first_loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert first.summary["reference"]["completions_scored"] == 2 * (8 + 5)
    base, model = Path(job["model_name_or_path"]), tmp_path / "first" / "model"
    wanted, found = plain_evaluation(model, base), last_evaluation(first)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert abs(wanted["eval_logps/chosen"] - plain_evaluation(base, base)["eval_logps/chosen"]) > 0.1
    second = run_job(tmp_path / "second", **{**job, "learning_rate": 1e-4, "num_workers": 2, "zero_stage": 3})
    assert second.summary["reference"]["completions_scored"] == 0
    assert second.summary["rows"]["reused"] == 8
    wanted, found = plain_evaluation(tmp_path / "second" / "model", base), last_evaluation(second)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
