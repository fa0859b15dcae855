"""The four sides of the comparison, each run in processes of its own, and what is measured of a run."""

import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import job, stats, trl_side
from tests.bench.memory import watch

ROOT = Path(__file__).parents[2]
UNCHECKPOINTED = {"gradient_checkpointing": False}
"""Of raydpo, where that is its own default on a CPU, and of TRL where it is tuned."""
SIDES = {"default": "TRL default", "tuned": "TRL tuned", "patched": "TRL tuned and patched", "raydpo": "raydpo"}


@dataclass(frozen=True)
class Setup:
    """What all sides have in common."""

    folder: Path
    """For models, data and what the runs write."""
    model: Path
    threads: int
    gpu: bool
    micro_batch: int
    """Pairs a forward of TRL's."""
    accumulation: int
    """Forwards an update; with `micro_batch`, the global batch."""
    precompute_batch: int
    """Pairs a forward of TRL's reference, where that is tuned."""

    @property
    def global_batch(self) -> int:
        """Pairs an update."""
        return self.micro_batch * self.accumulation

    @property
    def options(self) -> dict[str, Any]:
        """What is said to each side, in words that both know: the defaults of TRL, apart from precision on the CPU."""
        return {
            "beta": 0.1,
            "learning_rate": 1e-6,
            "max_length": 1024,
            "num_train_epochs": 1,
            "per_device_train_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "train_sampling_strategy": "sequential",
            "bf16": self.gpu,
            "logging_steps": 10,
        }

    @property
    def env(self) -> dict[str, str]:
        """Of every process."""
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        return {
            **threads,
            "PYTHONPATH": str(ROOT),  # this checkout, whatever is installed
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.folder / "datasets"),
        }


@dataclass(frozen=True)
class Figures:
    """What is measured of a run; None where that cannot be."""

    pairs: int
    updates: int
    end_to_end: float
    """Pairs/s of reference and training, one after the other, in the steady state."""
    training: float | None
    """Pairs/s of the updates alone."""
    reference: float | None
    """Pairs/s of the reference alone."""
    first_step: float
    """Seconds from the start of the process to the end of the first update."""
    train_memory: int
    """Bytes: most that the training process had in use at one time."""
    job_memory: int
    """Bytes: most that all processes had in use at one time."""
    gpu_memory: int
    seconds: float
    """Of the whole command."""
    extra: Mapping[str, float]
    """TRL: padded. raydpo: data_wait, tokens_per_second, mfu."""


_numbers = itertools.count()


def new_folder(setup: Setup, name: str) -> Path:
    """A folder that no run has used."""
    folder = setup.folder / f"{next(_numbers):03d}-{name}"
    folder.mkdir(parents=True)
    return folder


def run(setup: Setup, side: str, rows: Path, options: Mapping[str, Any] | None = None) -> Figures:
    """One run of a side on the pairs in a file; `options` go over those of the setup."""
    if side == "raydpo":
        return run_raydpo(setup, rows, {**UNCHECKPOINTED, **(options or {})})
    figures, _ = run_trl(setup, side, rows, options or {}, warm_up=2)
    return figures


def trl_task(setup: Setup, side: str, rows: Path, folder: Path, options: Mapping[str, Any]) -> trl_side.Task:
    """What TRL is to do as the side default, tuned or patched."""
    tuned = {
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": setup.precompute_batch,
        **UNCHECKPOINTED,
    }
    said = {**setup.options, **(tuned if side != "default" else {})}
    grouped = side != "default" and "train_sampling_strategy" not in options
    if grouped:
        del said["train_sampling_strategy"]
    return trl_side.Task(
        model=str(setup.model),
        rows=str(rows),
        output=str(folder / "output"),
        options={**said, **options},
        grouped=grouped,
        compact=side == "patched",
    )


def run_trl(
    setup: Setup, side: str, rows: Path, options: Mapping[str, Any], *, warm_up: int
) -> tuple[Figures, list[dict[str, Any]]]:
    """One run of TRL -> figures, its log. With `train_sampling_strategy` in `options`, pairs are not grouped."""
    folder = new_folder(setup, side)
    task = dataclasses.replace(trl_task(setup, side, rows, folder, options), warm_up=warm_up)
    task_path, result_path = folder / "task.json", folder / "result.json"
    task_path.write_text(json.dumps(dataclasses.asdict(task)))
    command = [sys.executable, "-m", "tests.bench.trl_side", str(task_path), str(result_path)]
    watched = watch(command, folder / "log", env=setup.env, gpu=setup.gpu)
    result = trl_side.Result(**json.loads(result_path.read_text()))
    pairs, seconds = len(rows.read_text().splitlines()), sum(result.updates)
    alone = None if result.reference is None else seconds - (0 if result.beforehand else result.reference)
    figures = Figures(
        pairs=pairs,
        updates=len(result.updates),
        end_to_end=pairs / (seconds + (result.reference or 0 if result.beforehand else 0)),
        training=alone and pairs / alone,
        reference=result.reference and pairs / result.reference,
        first_step=result.first_update - watched.started,
        train_memory=watched.peaks.own[watched.root],
        job_memory=watched.peaks.together,
        gpu_memory=watched.peaks.gpu,
        seconds=watched.seconds,
        extra={"padded": result.padded},
    )
    return figures, result.history


def run_raydpo(setup: Setup, rows: Path, options: Mapping[str, Any], entry: Sequence[str] = (str(job.JOB),)) -> Figures:
    """One run of jobs/dpo.py, with a cache of its own, so that the reference is scored. `entry`: as `job.run`."""
    folder = new_folder(setup, "raydpo")
    pairs = len(rows.read_text().splitlines())
    given = {
        **setup.options,
        "logging_first_step": True,
        "block_pairs": job.block_pairs(pairs, setup.global_batch),
        **options,
    }
    finished = job.run(setup, rows, folder, given, entry)
    lines, peaks = finished.lines, finished.watched.peaks
    training = stats.training_rate(lines, setup.global_batch)
    reference = stats.scoring_rate(finished.blocks)
    names = ("data_wait", "tokens_per_second", "computed_tokens_per_second", "mfu")
    return Figures(
        pairs=pairs,
        updates=finished.updates,
        end_to_end=stats.both(reference, training),
        training=training,
        reference=reference,
        first_step=finished.first_update - finished.watched.started,
        train_memory=peaks.of("TrainWorker"),
        job_memory=peaks.together,
        gpu_memory=peaks.gpu,
        seconds=finished.watched.seconds,
        extra={name: stats.steady(lines, name, setup.global_batch) for name in names if name in lines[-1]},
    )
