"""Whole runs of an encoder-decoder: against a plain loop, with the exported model, and with kept scores."""

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.data.seq2seq_tokenizers import T5, build_seq2seq_tokenizer
from tests.e2e.jobs import Run, rows, run_job, write_rows
from tests.models.seq2seq_models import CORE, build, plain_logps

BETA, RATE = 0.3, 3e-3


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
        "learning_rate": RATE,
        "beta": BETA,
        "train_sampling_strategy": "sequential",
        "max_prompt_length": 20,
        "max_completion_length": 24,
        "is_encoder_decoder": True,
    }


def held_out() -> list[dict[str, str]]:
    return rows(5, seed=1)


def load(folder: Path) -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


def dpo(policy: Any, reference: Any, tokenizer: Any, batch: list[dict[str, str]]) -> dict[str, Tensor]:
    """Return the mean loss and log-probs of pairs, with the models and the tokenizer of transformers alone."""
    chosen, rejected, losses = [], [], []
    for row in batch:
        prompt = tokenizer(row["prompt"], truncation=True, max_length=20)["input_ids"]
        sides = [
            tokenizer(text_target=row[side], truncation=True, max_length=24)["input_ids"]
            for side in ("chosen", "rejected")
        ]
        better, worse = (plain_logps(policy, prompt, side).sum() for side in sides)
        with torch.no_grad():
            ref_better, ref_worse = (plain_logps(reference, prompt, side).sum() for side in sides)
        chosen.append(better)
        rejected.append(worse)
        losses.append(-F.logsigmoid(BETA * ((better - ref_better) - (worse - ref_worse))))
    means = map(torch.mean, map(torch.stack, (losses, chosen, rejected)))
    return dict(zip(("loss", "logps/chosen", "logps/rejected"), means, strict=True))


def plain_training(base: Path) -> tuple[list[dict[str, float]], Any]:
    """Return the metrics of each update of a plain loop, and the trained model."""
    policy, reference, tokenizer = load(base), load(base), AutoTokenizer.from_pretrained(base)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0)
    batches, history = [rows(8)[start : start + 2] for start in range(0, 8, 2)], []
    for step, batch in enumerate(batches):
        values = dpo(policy, reference, tokenizer, batch)
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / len(batches))
        optimizer.zero_grad()
        values["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        history.append({name: value.item() for name, value in {**values, "grad_norm": norm}.items()})
    return history, policy


def assert_evaluated(run: Run, base: Path) -> None:
    """Assert that a run's last evaluation is that of its exported model, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model")
    with torch.no_grad():
        wanted = dpo(load(run.folder / "model"), load(base), tokenizer, held_out())
    for name, value in wanted.items():
        assert last_evaluation(run)[f"eval_{name}"] == pytest.approx(value.item(), rel=1e-5, abs=1e-5), name


def last_evaluation(run: Run) -> dict[str, float]:
    return [line for line in run.all_lines() if "eval_loss" in line][-1]


def test_a_run_equals_a_plain_loop_and_a_second_run_scores_nothing(
    ray_local: None, job: dict[str, Any], tmp_path: Path
) -> None:
    base = Path(job["model_name_or_path"])
    first = run_job(tmp_path / "first", **job)
    assert first.summary["reference"]["first_loss"] == pytest.approx(log(2), abs=1e-5)
    assert first.summary["reference"]["completions_scored"] == 2 * (8 + 5)
    history, policy = plain_training(base)
    for line, values in zip(first.lines, history, strict=True):
        for name, value in values.items():
            assert line[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (line["step"], name)
    start, end, wanted = load(base).state_dict(), load(first.folder / "model").state_dict(), policy.state_dict()
    for name, tensor in wanted.items():
        assert (end[name] - tensor).norm() <= 1e-4 * tensor.norm(), name
    assert (end["shared.weight"] - start["shared.weight"]).norm() > 0.003 * start["shared.weight"].norm()
    assert_evaluated(first, base)
    assert first.summary["forward_check"]["policy"]["gap"] < 1e-5
    second = run_job(tmp_path / "second", **{**job, "learning_rate": 1e-4, "num_workers": 2, "zero_stage": 3})
    assert second.summary["reference"]["completions_scored"] == 0
    assert second.summary["rows"]["reused"] == 8
    assert_evaluated(second, base)
