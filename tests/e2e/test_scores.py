"""A run gives the same results whether scores are computed before training, during it, or come with the data."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.errors import ConfigError
from tests.e2e.jobs import Run, rows, run_job, write_rows

pytestmark = pytest.mark.usefixtures("ray_local")

PAIRS, HELD_OUT = 24, 5
TIMES = {"tokens_per_second", "computed_tokens_per_second", "pairs_per_second", "data_wait"}


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pipelined")
    held_out = write_rows(folder / "held_out.jsonl", rows(HELD_OUT, seed=3))
    return {
        "model_name_or_path": str(tiny_model),
        "dataset_name": write_rows(folder / "pairs.jsonl", rows(PAIRS)),
        "eval_dataset_name": held_out,
        "eval_strategy": "epoch",
        "per_device_train_batch_size": 4,
        "block_pairs": 6,
        "shuffle_window": 2,
        "learning_rate": 1e-3,
        "reference_cpus_per_worker": 1,
    }


@pytest.fixture(scope="module")
def staged_and_pipelined(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A staged run, and a run with the default schedule, which is pipelined if there is room; with separate caches."""
    folder = tmp_path_factory.mktemp("runs")
    staged = run_job(folder / "staged", **job, cache_dir=str(folder / "one"), reference_schedule="staged")
    return staged, run_job(folder / "pipelined", **job, cache_dir=str(folder / "other"))


def test_pipelined_scoring_runs_during_training(staged_and_pipelined: tuple[Run, Run]) -> None:
    staged, pipelined = staged_and_pipelined
    assert {"reference", "training"} <= staged.summary["seconds"].keys()
    assert "reference and training" in pipelined.summary["seconds"]
    for run in staged_and_pipelined:
        assert run.summary["reference"]["completions_scored"] == 2 * (PAIRS + HELD_OUT)


def test_staged_and_pipelined_results_are_bit_for_bit_equal(staged_and_pipelined: tuple[Run, Run]) -> None:
    staged, pipelined = staged_and_pipelined
    for expected, actual in zip(staged.all_lines(), pipelined.all_lines(), strict=True):
        assert {name: value for name, value in actual.items() if name not in TIMES} == {
            name: value for name, value in expected.items() if name not in TIMES
        }
    assert pipelined.ledger() == staged.ledger()
    weights = [(run.folder / "model" / "model.safetensors").read_bytes() for run in staged_and_pipelined]
    assert weights[0] == weights[1]


def test_pipelined_without_room_for_scoring_and_train_workers_is_refused(job: dict[str, Any], tmp_path: Path) -> None:
    options = {**job, "reference_cpus_per_worker": 2, "reference_schedule": "pipelined"}
    with pytest.raises(ConfigError, match=r"=pipelined needs room for 1 train workers .* 1 scoring workers"):
        run_job(tmp_path, **options, cache_dir=str(tmp_path / "cache"))


def with_logps(content: list[dict[str, str]], folder: Path) -> list[dict[str, Any]]:
    """Return the rows with the model's log-probs: a value per token for chosen, the sum for rejected."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def logps(row: dict[str, str], side: str) -> list[float]:
        prompt = len(
            tokenizer(row["prompt"]).input_ids
        )  # one token per byte, so prompt and completion can be concatenated
        ids = torch.tensor(tokenizer(row["prompt"] + row[side] + tokenizer.eos_token).input_ids)
        with torch.no_grad():
            all_logps = model(ids[None]).logits[0].log_softmax(-1)
        picked: list[float] = all_logps[prompt - 1 : -1].gather(1, ids[prompt:, None])[:, 0].tolist()
        return picked

    return [
        {**row, "ref_chosen_logps": logps(row, "chosen"), "ref_rejected_logps": sum(logps(row, "rejected"))}
        for row in content
    ]


def test_log_probs_from_the_dataset_give_the_same_run(
    staged_and_pipelined: tuple[Run, Run], job: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    files = {
        "dataset_name": write_rows(tmp_path / "pairs.jsonl", with_logps(rows(PAIRS), tiny_model)),
        "eval_dataset_name": write_rows(tmp_path / "held_out.jsonl", with_logps(rows(HELD_OUT, seed=3), tiny_model)),
    }
    cache = tmp_path / "cache"
    run = run_job(tmp_path / "run", **{**job, **files}, cache_dir=str(cache), reference_from_dataset=True)
    assert run.summary["reference"]["identity"] == "given"
    assert not (cache / "scored").exists()
    assert len(run.lines) == len(staged_and_pipelined[0].lines) == PAIRS / 4
    for actual, expected in zip(run.lines, staged_and_pipelined[0].lines, strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert actual["rewards/margins"] == pytest.approx(expected["rewards/margins"], rel=1e-3, abs=1e-5)
    assert run.ledger() == staged_and_pipelined[0].ledger()
