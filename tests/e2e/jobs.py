"""Helpers for tests that run the main job: training data, ways to run the job, and readers for a run's files."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = "red green blue cat dog bird runs sleeps sings fast slow now here there soon".split()


def rows(count: int, seed: int = 0, words: tuple[int, int] = (1, 8)) -> list[dict[str, str]]:
    """Return distinct text pairs of various lengths; each completion has between words[0] and words[1] words."""
    draw = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    return [
        {"prompt": f"{number} {text(1, 6)}:", "chosen": f" {text(*words)}.", "rejected": f" {text(*words)}!"}
        for number in range(count)
    ]


def write_rows(path: Path, content: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as JSONL and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


@dataclass(frozen=True)
class Run:
    """A finished run: its summary and its output folder."""

    summary: dict[str, Any]
    folder: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl that report training updates."""
        return [line for line in self.all_lines() if "grad_norm" in line]

    def all_lines(self) -> list[dict[str, Any]]:
        """Return all lines of metrics.jsonl, evaluations included."""
        return read_lines(self.folder / "metrics.jsonl")

    def ledger(self) -> list[dict[str, Any]]:
        """Return the entries of the ledger, one per update."""
        files = sorted((self.folder / "ledger").glob("*.jsonl"))
        return [entry for file in files for entry in read_lines(file)]

    def quarantine(self) -> list[dict[str, Any]]:
        """Return the quarantine entries, one per bad row."""
        files = sorted((self.folder / "quarantine").rglob("*.jsonl"))
        return [entry for file in files for entry in read_lines(file)]


def write_neighbour(model: Path, folder: Path, distance: float) -> Path:
    """Write a model whose weights all differ slightly from another model's, and return its folder.

    The folder has no tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM

    neighbour = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in neighbour.parameters():
            parameter.add_(distance * torch.randn_like(parameter))
    neighbour.save_pretrained(folder)
    return folder


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the parsed lines of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _defaults(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "num_workers": 1,
        "zero_stage": 0,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "cpus_per_worker": 1,
        "max_failures": 1,  # on a busy machine Ray Train may mistake its live controller for a dead one
    }


def run_job(folder: Path, **options: Any) -> Run:
    """Run the pipeline in this process, on the Ray instance that is already running."""
    from raydpo import config, pipeline

    return Run(pipeline.run(config.from_flat({**_defaults(folder), **options})), folder)


def run_until(checkpoint: str, folder: Path, **options: Any) -> None:
    """Run the job in a separate process, and kill it with SIGKILL once Ray Train has recorded the named checkpoint."""
    import ray

    command = [sys.executable, "jobs/dpo.py", *flags({**_defaults(folder), "max_failures": 0, **options})]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    snapshot = folder / "checkpoints" / "checkpoint_manager_snapshot.json"  # written only when a checkpoint is complete
    deadline = time.monotonic() + 180
    try:
        while not (snapshot.exists() and checkpoint in snapshot.read_text()):
            assert time.monotonic() < deadline, f"{checkpoint} did not appear"
            assert process.poll() is None, "the job ended too early"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def flags(options: dict[str, Any]) -> list[str]:
    """Return the options as command-line flags."""
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]
