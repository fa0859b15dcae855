"""Scoring ahead of training, while that goes on: the same run, bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from raydpo.errors import ConfigError
from tests.e2e.jobs import Run, rows, run_job, write_rows

pytestmark = pytest.mark.usefixtures("ray_local")

TIMES = {"tokens_per_second", "computed_tokens_per_second", "pairs_per_second", "data_wait"}


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pipelined")
    held_out = write_rows(folder / "held_out.jsonl", rows(5, seed=3))
    return {
        "model_name_or_path": str(tiny_model),
        "dataset_name": write_rows(folder / "pairs.jsonl", rows(24)),
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
        assert run.summary["reference"]["completions_scored"] == 2 * (24 + 5)


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
