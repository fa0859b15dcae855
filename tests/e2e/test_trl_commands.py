"""Commands and config files from TRL's documentation run as they are, with local models and data under those names."""

import json
import os
import shutil
import subprocess
import sys
from math import cos, log, pi
from pathlib import Path

import pytest

from raydpo.batching.order import EpochOrder
from tests.e2e.jobs import read_lines, rows, run_job, write_rows

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


def run(job: str, arguments: list[str], folder: Path) -> str:
    """Run a program of jobs/ in a folder, with a separate home folder, and return its standard output."""
    environment = {**os.environ, "RAY_ADDRESS": "local", "HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_documented_config_file_for_dpo_runs(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "Qwen" / "Qwen2.5-0.5B")
    pairs = [
        {side: f"\n\nHuman: {row['prompt']}\n\nAssistant:{row[side]}" for side in ("chosen", "rejected")}
        for row in rows(16)
    ]
    write_rows(tmp_path / "anthropic" / "hh-rlhf" / "train.jsonl", pairs)
    write_rows(tmp_path / "anthropic" / "hh-rlhf" / "test.jsonl", pairs[:4])
    (tmp_path / "dpo_config.yaml").write_text(
        "# dpo_config.yaml\n"
        "model_name_or_path: Qwen/Qwen2.5-0.5B\n"
        "dataset_name: anthropic/hh-rlhf\n"
        "accelerate_config: zero2  # or path/to/my/accelerate/config.yaml\n"
    )
    printed = run("dpo", ["--config", "dpo_config.yaml"], tmp_path)
    (folder,) = (tmp_path / "runs").glob("dpo-*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rows"]["pairs"] == 16
    assert summary["training"]["updates"] == 6  # 3 epochs of 2 batches of 8
    assert summary["reference"]["first_loss"] == pytest.approx(log(2), abs=1e-4)
    assert (folder / "model" / "model.safetensors").exists()
    assert "note:" not in printed


def test_the_documented_command_for_orpo_runs(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "Qwen" / "Qwen2-0.5B-Instruct")
    write_rows(tmp_path / "trl-lib" / "ultrafeedback_binarized" / "train.jsonl", rows(8))
    command = (
        "--model_name_or_path Qwen/Qwen2-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized "
        "--num_train_epochs 1 --output_dir Qwen2-0.5B-ORPO"
    )
    printed = run("orpo", [*command.split(), "--no_remove_unused_columns"], tmp_path)
    folder = tmp_path / "Qwen2-0.5B-ORPO"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["training"]["updates"] == 1
    assert summary["reference"]["completions_scored"] == 0
    (line,) = [line for line in read_lines(folder / "metrics.jsonl") if "grad_norm" in line]
    # ORPO paper, eq. 6: the NLL of the chosen completion plus lambda (here beta) times the odds-ratio loss.
    assert line["loss"] == pytest.approx(line["nll_loss"] - 0.1 * line["log_odds_ratio"], rel=1e-5)
    assert (folder / "model" / "model.safetensors").exists()
    assert [text for text in printed.splitlines() if text.startswith("note:")] == [
        "note: remove_unused_columns=false has no effect here: columns that are not needed are never read"
    ]


@pytest.mark.usefixtures("ray_local")
def test_options_of_training_arguments_are_honoured(tiny_model: Path, tmp_path: Path) -> None:
    options = {
        "model_name_or_path": str(tiny_model),
        "dataset_name": write_rows(tmp_path / "pairs.jsonl", rows(12)),
        "cache_dir": str(tmp_path / "cache"),
        "num_train_epochs": 2,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.5},
        "logging_strategy": "epoch",
        "logging_first_step": True,
        "seed": 1,
        "data_seed": 2,
    }
    done = run_job(tmp_path / "run", **options)
    assert [line["step"] for line in done.lines] == [1, 6, 12]
    # Half a cosine from the peak to half of it over 12 updates; a line reports the learning rate its update used.
    cosines = [(1 + cos(pi * (step - 1) / 12)) / 2 for step in (1, 6, 12)]
    assert [line["learning_rate"] for line in done.lines] == pytest.approx([5e-5 * (1 + part) for part in cosines])
    rows_trained = [
        int(pair.rsplit(":", 1)[1]) for entry in done.ledger() if entry["epoch"] == 0 for pair in entry["pairs"]
    ]
    order = EpochOrder([12], seed=2, epoch=0, window=16, shuffle=True)
    assert [row - min(rows_trained) for row in rows_trained] == order.window_rows(0)[:, 1].tolist()
