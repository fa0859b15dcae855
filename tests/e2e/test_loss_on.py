"""Runs on conversations whose completions have several turns, with the loss on assistant turns only."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.jobs import Run, run_job, write_rows

pytestmark = pytest.mark.usefixtures("ray_local")

PAIRS, HELD_OUT = 8, 3
TURN_OF = {"assistant": "<assistant>{}<eos>", "user": "<user>{}", "tool": "<user>{}"}
"""How the template of the model renders a turn of each role."""


def conversations(count: int) -> list[dict[str, Any]]:
    """Return pairs whose chosen completion has two or three assistant turns, and whose rejected one has one or two."""

    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    rows = []
    for number in range(count):
        chosen = [turn("assistant", f"red {number}"), turn("user", "and now?"), turn("assistant", "green")]
        rejected = [turn("assistant", f"blue {number}!")]
        if number % 2:
            chosen += [turn("tool", f"{number} fast"), turn("assistant", "here")]
            rejected += [turn("user", "cat?"), turn("assistant", "no")]
        rows.append({"prompt": [turn("user", f"{number} dogs")], "chosen": chosen, "rejected": rejected})
    return rows


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run on all tokens, and then one on those of assistant turns, with the same cache."""
    folder = tmp_path_factory.mktemp("loss-on")
    job = {
        "model_name_or_path": str(tiny_model),
        "dataset_name": write_rows(folder / "pairs.jsonl", conversations(PAIRS)),
        "eval_dataset_name": write_rows(folder / "held_out.jsonl", conversations(HELD_OUT)),
        "eval_strategy": "epoch",
        "cache_dir": str(folder / "cache"),
        "per_device_train_batch_size": PAIRS,
        "learning_rate": 1e-3,
        "train_sampling_strategy": "group_by_prompt",
    }
    return (
        run_job(folder / "completion", **job, loss_on="completion"),
        run_job(folder / "assistant", **job, loss_on="assistant"),
    )


def plain_logps(folder: Path, rows: list[dict[str, Any]], side: str, *, assistant_only: bool) -> float:
    """Return the mean over rows of the log-prob of a completion's tokens, from the model's own forward."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total = 0.0
    for row in rows:
        pieces = [(TURN_OF[message["role"]].format(message["content"]), False) for message in row["prompt"]]
        pieces.append(("<assistant>", False))
        for number, message in enumerate(row[side]):
            text = TURN_OF[message["role"]].format(message["content"])
            if message["role"] == "assistant":
                text = text.removeprefix("<assistant>")
                pieces += [("<assistant>", not assistant_only)] * (number > 0) + [(text, True)]
            else:
                pieces.append((text, not assistant_only))
        found = [(token, counted) for text, counted in pieces for token in tokenizer(text).input_ids]
        ids, counted = torch.tensor([token for token, _ in found]), torch.tensor([flag for _, flag in found])
        with torch.no_grad():
            logps = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        total += float(logps[counted[1:]].sum())
    return total / len(rows)


def test_the_loss_of_assistant_turns_starts_at_ln_2_on_scores_of_the_other_run(runs: tuple[Run, Run]) -> None:
    completion, assistant = runs
    assert completion.summary["reference"]["completions_scored"] > 0
    assert assistant.summary["reference"]["completions_scored"] == 0
    for run in runs:
        first = run.all_lines()[1] if "eval_loss" in run.all_lines()[0] else run.all_lines()[0]
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert first["reference_drift/max"] < 1e-4
        assert run.all_lines()[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert completion.summary["reference"]["identity"] == assistant.summary["reference"]["identity"]


def test_metrics_of_training_and_evaluation_are_those_of_the_counted_tokens(
    runs: tuple[Run, Run], tiny_model: Path
) -> None:
    for run, assistant_only in zip(runs, (False, True), strict=True):
        for rows, line, prefix in (
            (conversations(PAIRS), run.lines[0], ""),
            (conversations(HELD_OUT), run.all_lines()[0], "eval_"),
        ):
            for side in ("chosen", "rejected"):
                expected = plain_logps(tiny_model, rows, side, assistant_only=assistant_only)
                assert line[f"{prefix}logps/{side}"] == pytest.approx(expected, rel=1e-5)
    completion, assistant = (run.lines[0] for run in runs)
    assert completion["num_tokens"] == assistant["num_tokens"], "masked tokens are inputs"
    assert completion["grad_norm"] != pytest.approx(assistant["grad_norm"], rel=1e-2)
