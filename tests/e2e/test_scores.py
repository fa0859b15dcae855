"""Where scores come from - before training, beside it, or with the data - the run is the same."""

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
def both(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Staged, and as it comes by itself where there is room for scorer and trainer; each with a store of its own."""
    folder = tmp_path_factory.mktemp("runs")
    staged = run_job(folder / "staged", **job, cache_dir=str(folder / "one"), reference_schedule="staged")
    return staged, run_job(folder / "pipelined", **job, cache_dir=str(folder / "other"))


def test_both_were_at_work_at_once(both: tuple[Run, Run]) -> None:
    staged, pipelined = both
    assert {"reference", "training"} <= staged.summary["seconds"].keys()
    assert "reference and training" in pipelined.summary["seconds"]
    for run in both:
        assert run.summary["reference"]["completions_scored"] == 2 * (PAIRS + HELD_OUT)


def test_results_are_the_same_bit_for_bit(both: tuple[Run, Run]) -> None:
    staged, pipelined = both
    for there, here in zip(staged.every_line(), pipelined.every_line(), strict=True):
        assert {name: value for name, value in here.items() if name not in TIMES} == {
            name: value for name, value in there.items() if name not in TIMES
        }
    assert pipelined.ledger() == staged.ledger()
    weights = [(run.folder / "model" / "model.safetensors").read_bytes() for run in both]
    assert weights[0] == weights[1]


def test_without_room_for_both_it_is_refused(job: dict[str, Any], tmp_path: Path) -> None:
    options = {**job, "reference_cpus_per_worker": 2, "reference_schedule": "pipelined"}
    with pytest.raises(ConfigError, match=r"reference_schedule=pipelined needs room for 1 train workers .* 1 scorers"):
        run_job(tmp_path, **options, cache_dir=str(tmp_path / "cache"))


def with_logps(content: list[dict[str, str]], folder: Path) -> list[dict[str, Any]]:
    """The rows with the model's log-probs: of chosen a value a token, of rejected the sum."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def logps(row: dict[str, str], side: str) -> list[float]:
        prompt = len(tokenizer(row["prompt"]).input_ids)  # a token a byte, so that texts can be put together
        ids = torch.tensor(tokenizer(row["prompt"] + row[side] + tokenizer.eos_token).input_ids)
        with torch.no_grad():
            every = model(ids[None]).logits[0].log_softmax(-1)
        found: list[float] = every[prompt - 1 : -1].gather(1, ids[prompt:, None])[:, 0].tolist()
        return found

    return [
        {**row, "ref_chosen_logps": logps(row, "chosen"), "ref_rejected_logps": sum(logps(row, "rejected"))}
        for row in content
    ]


def test_log_probs_that_the_rows_carry_give_the_same_run(
    both: tuple[Run, Run], job: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    files = {
        "dataset_name": write_rows(tmp_path / "pairs.jsonl", with_logps(rows(PAIRS), tiny_model)),
        "eval_dataset_name": write_rows(tmp_path / "held_out.jsonl", with_logps(rows(HELD_OUT, seed=3), tiny_model)),
    }
    cache = tmp_path / "cache"
    given = run_job(tmp_path / "run", **{**job, **files}, cache_dir=str(cache), reference_from_dataset=True)
    assert given.summary["reference"]["identity"] == "given"
    assert not (cache / "scored").exists()
    assert len(given.lines) == len(both[0].lines) == PAIRS / 4
    for here, there in zip(given.lines, both[0].lines, strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
        assert here["rewards/margins"] == pytest.approx(there["rewards/margins"], rel=1e-3, abs=1e-5)
    assert given.ledger() == both[0].ledger()
