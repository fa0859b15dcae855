"""Bad rows are quarantined and counted, and reference scores are reused across runs."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydpo import config, pipeline
from raydpo.blocks.block import write_scores
from raydpo.errors import ConfigError, DataError, ReferenceMismatch
from raydpo.runtime import storage
from tests.e2e.jobs import Run, rows, run_job, write_rows

pytestmark = pytest.mark.usefixtures("ray_local")

GOOD = rows(5)
BAD: dict[int, bytes] = {  # line number: line
    2: b'{"prompt": "p", "chosen": "c"',
    3: b'{"prompt": "p", "chosen": "\xff\xfe", "rejected": "r"}',
    5: b'{"prompt": "p", "chosen": "c"}',
    6: b'{"prompt": "p", "chosen": null, "rejected": "r"}',
    8: b'{"prompt": "p", "chosen": 3, "rejected": "r"}',
    9: b'{"prompt": "p", "chosen": "same", "rejected": "same"}',
    11: b'{"prompt": "p", "chosen": "", "rejected": "r"}',
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A shard with bad rows of each kind between good ones, and a truncated gzip shard."""
    folder = tmp_path_factory.mktemp("shards")
    good = iter(GOOD)
    lines = [BAD[number] if number in BAD else json.dumps(next(good)).encode() for number in range(1, 13)]
    assert not list(good)
    (folder / "mixed.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    compressed = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows(500, seed=1)), mtime=0)
    (folder / "cut.jsonl.gz").write_bytes(compressed[: len(compressed) // 2])
    return [str(folder / "mixed.jsonl"), str(folder / "cut.jsonl.gz")]


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "model_name_or_path": str(tiny_model),
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
    }


@pytest.fixture(scope="module")
def run(job: dict[str, Any], shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_job(tmp_path_factory.mktemp("rows"), **job, dataset_name=shards)


def test_each_bad_row_is_in_quarantine_with_its_line_number(run: Run, shards: list[str]) -> None:
    mixed = {row["row"]: row for row in run.quarantine() if row["file"] == shards[0]}
    assert sorted(mixed) == sorted(BAD)
    for number, row in mixed.items():
        assert row["reason"]
        assert row["content"].startswith('{"prompt": "p"')
        assert row["shard"] == "mixed.jsonl", number
    truncated = [row for row in run.quarantine() if row["file"] == shards[1]]
    assert len(truncated) == 1
    assert truncated[0]["row"] > 100
    assert len({row["reason"] for row in mixed.values()}) >= 5, "different faults have different reasons"


def test_counts_add_up(run: Run) -> None:
    counts = run.summary["rows"]
    assert counts["read"] == counts["pairs"] + counts["quarantined"]
    assert counts["quarantined"] == len(run.quarantine()) == len(BAD) + 1
    assert sum(counts["reasons"].values()) == counts["quarantined"]


def test_max_bad_rows_0_refuses_a_bad_row(job: dict[str, Any], shards: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"max_bad_rows=0.*row 2 of .*mixed\.jsonl"):
        run_job(tmp_path, **job, dataset_name=shards[0], max_bad_rows=0)
    assert not (tmp_path / "metrics.jsonl").exists(), "training must not start"
    assert not (tmp_path / "checkpoints").exists()


def test_a_second_run_with_other_options_scores_nothing(
    run: Run, job: dict[str, Any], shards: list[str], tmp_path: Path
) -> None:
    scored = run.summary["reference"]
    assert scored["completions_scored"] == 2 * run.summary["rows"]["pairs"]
    assert scored["forwards"] > 0
    added = write_rows(tmp_path / "added.jsonl", rows(5, seed=2))
    ahead = score_only(tmp_path / "ahead", {**job, "dataset_name": [*shards, added]})["reference"]
    assert ahead["completions_reused"] == 2 * run.summary["rows"]["pairs"]
    assert ahead["completions_scored"] == 2 * 5, "only the added shard is scored"

    changes = {"learning_rate": 1e-4, "beta": 0.4, "loss_type": "ipo", "ld_alpha": 0.5, "seed": 7}
    second = run_job(tmp_path / "run", **{**job, **changes}, dataset_name=[*shards, added]).summary["reference"]
    assert (second["forwards"], second["completions_scored"]) == (0, 0)
    assert second["completions_reused"] == ahead["completions_reused"] + 2 * 5
    assert second["identity"] == ahead["identity"] == scored["identity"]


def score_only(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run the pipeline of jobs/score_reference.py in this process and return its summary."""
    return pipeline.score_only(config.from_flat({**options, "output_dir": str(folder)}, "score_reference"))


def test_scoring_an_objective_without_a_reference_is_refused(
    job: dict[str, Any], shards: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="loss_type=orpo takes no reference"):
        score_only(tmp_path, {**job, "dataset_name": shards, "loss_type": "orpo"})


def test_reference_drift_above_the_tolerance_is_refused(job: dict[str, Any], tmp_path: Path) -> None:
    """Scores may drift if the scoring workers' GPUs compute differently; this test alters the stored scores instead."""
    data = {"dataset_name": write_rows(tmp_path / "pairs.jsonl", rows(8)), "cache_dir": str(tmp_path / "cache")}
    score_only(tmp_path / "ahead", {**job, **data})
    (file,) = (tmp_path / "cache" / "scored").rglob("*.parquet")
    columns = [column.to_pylist() for column in storage.read_table(str(file)).columns]
    write_scores(str(file), *([np.array(row, dtype=np.float32) - 0.5 for row in column] for column in columns))
    with pytest.raises(ReferenceMismatch, match=r"0\.5 nats per token .*reference_drift_tolerance=0\.001"):
        run_job(tmp_path / "run", **{**job, **data})
    assert not (tmp_path / "run" / "model").exists()
