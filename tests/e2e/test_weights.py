"""Weights and margins of rows, in whole runs with two workers: a plain loop in which a row is given as often."""

from math import exp, log
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e import plain
from tests.e2e.jobs import Run, rows, run_job, write_neighbour, write_rows

pytestmark = pytest.mark.usefixtures("ray_local")

PAIRS, BATCH = 12, 4
WEIGHTS = [2, 1, 0, 3, 1, 1, 4, 1, 0, 0, 0, 0]  # the last update has no weight at all
MARGINS = [0.5, -1.0, 0.0, 2.0, 0.25, 0.0, 1.5, 0.1, 0.0, 0.0, 0.0, 0.0]
OPTIONS = {"learning_rate": 5e-4, "beta": 0.3, "max_grad_norm": 0.5}


def weighted_rows() -> list[dict[str, Any]]:
    """Return rows with weights and margins; the first half has scores, of whose difference the margin is the log."""
    found: list[dict[str, Any]] = []
    for index, row in enumerate(rows(PAIRS)):
        scores = {"score_chosen": 3 + exp(MARGINS[index]), "score_rejected": 3}
        found.append({**row, "weight": WEIGHTS[index], **(scores if index < 6 else {"margin": MARGINS[index]})})
    return found


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options that the runs share."""
    folder = tmp_path_factory.mktemp("weights")
    return {
        **OPTIONS,
        "model_name_or_path": str(tiny_model),
        "reference_model": str(write_neighbour(tiny_model, folder / "reference", 0.02)),
        "train_sampling_strategy": "sequential",
        "margin_from_scores": "log",
        "block_pairs": 5,
        "cache_dir": str(folder / "cache"),
    }


@pytest.fixture(scope="module")
def run(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    data = write_rows(folder / "pairs.jsonl", weighted_rows())
    return run_job(folder / "out", **job, dataset_name=data, num_workers=2, zero_stage=2)


def test_updates_equal_those_of_rows_given_as_often(run: Run, job: dict[str, Any]) -> None:
    repeated = [
        [
            {**row, "margin": margin}
            for row, weight, margin in list(zip(rows(PAIRS), WEIGHTS, MARGINS, strict=True))[start : start + BATCH]
            for _ in range(weight)
        ]
        for start in range(0, PAIRS, BATCH)
    ]
    assert [len(batch) for batch in repeated] == [6, 7, 0]
    policy = AutoModelForCausalLM.from_pretrained(job["model_name_or_path"])
    reference = AutoModelForCausalLM.from_pretrained(job["reference_model"])
    # The last batch is not made; the schedule of the learning rate has three updates all the same.
    steps = plain.updates(
        policy, reference, AutoTokenizer.from_pretrained(job["model_name_or_path"]), repeated, OPTIONS
    )
    for line, expected in zip(run.lines[:2], steps, strict=False):
        for name in ("loss", "grad_norm"):
            assert line[name] == pytest.approx(expected[name], rel=1e-4), (line["step"], name)
    assert run.lines[0]["loss"] != pytest.approx(log(2), abs=1e-2)


def test_rows_without_weight_are_in_the_ledger_and_change_nothing(run: Run) -> None:
    assert [len(entry["pairs"]) for entry in run.ledger()] == [4, 4, 4]
    assert (run.lines[2]["loss"], run.lines[2]["grad_norm"]) == (0.0, 0.0)
    assert run.summary["rows"]["weights"] == PAIRS
    assert run.summary["rows"]["margins"] == PAIRS
    assert run.summary["reference"]["first_loss_warning"] == ""


def test_other_weights_reuse_the_scores(run: Run, job: dict[str, Any], tmp_path: Path) -> None:
    other = [{**row, "weight": 1 + index} for index, row in enumerate(weighted_rows())]
    second = run_job(tmp_path / "out", **job, dataset_name=write_rows(tmp_path / "pairs.jsonl", other), max_steps=1)
    assert second.summary["reference"]["completions_scored"] == 0
    assert second.summary["reference"]["completions_reused"] == run.summary["reference"]["completions_scored"] > 0
