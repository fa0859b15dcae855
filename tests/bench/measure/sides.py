"""The four sides of the comparison, each run in its own processes, and the figures measured per run."""

import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import stats
from tests.bench.measure import job, trl_side
from tests.bench.measure.memory import watch

ROOT = Path(__file__).parents[3]
UNCHECKPOINTED = {"gradient_checkpointing": False}
"""Options of raydpo, for which this is the default on a CPU, and of TRL tuned."""
SIDES = {"default": "TRL default", "tuned": "TRL tuned", "patched": "TRL tuned and patched", "raydpo": "raydpo"}


@dataclass(frozen=True)
class Setup:
    """The settings that all sides share."""

    folder: Path
    """Folder for models, data and the files that the runs write."""
    model: Path
    threads: int
    gpu: bool
    micro_batch: int
    """Number of pairs per forward of TRL."""
    accumulation: int
    """Number of forwards per update; times `micro_batch`, it is the global batch."""
    precompute_batch: int
    """Number of pairs per forward of the reference in TRL tuned."""

    @property
    def global_batch(self) -> int:
        """Return the number of pairs per update."""
        return self.micro_batch * self.accumulation

    @property
    def options(self) -> dict[str, Any]:
        """Return the options of all sides, which are TRL's defaults apart from the precision on a CPU."""
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
        """Return the environment variables of every process."""
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        return {
            **threads,
            "PYTHONPATH": str(ROOT),  # import this checkout, not an installed version
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.folder / "datasets"),
        }


@dataclass(frozen=True)
class Figures:
    """The figures measured in one run; None for those that cannot be measured."""

    pairs: int
    updates: int
    end_to_end: float
    """Steady-state rate of reference and training, one after the other, in pairs/s."""
    training: float | None
    """Rate of the updates alone, in pairs/s."""
    reference: float | None
    """Rate of the reference alone, in pairs/s."""
    first_step: float
    """Time from the start of the process to the end of the first update, in seconds."""
    train_memory: int
    """Peak memory of the training process, in bytes."""
    job_memory: int
    """Peak memory of all processes together, in bytes."""
    gpu_memory: int
    seconds: float
    """Time of the whole command, in seconds."""
    extra: Mapping[str, float]
    """Further figures: padded for TRL; data_wait, tokens_per_second, computed_tokens_per_second and mfu for raydpo."""


_numbers = itertools.count()


def new_folder(setup: Setup, name: str) -> Path:
    """Create and return a folder that no other run uses."""
    folder = setup.folder / f"{next(_numbers):03d}-{name}"
    folder.mkdir(parents=True)
    return folder


def run(setup: Setup, side: str, rows: Path, options: Mapping[str, Any] | None = None) -> Figures:
    """Run a side once on the pairs in a file; `options` override those of the setup."""
    if side == "raydpo":
        return run_raydpo(setup, rows, {**UNCHECKPOINTED, **(options or {})})
    figures, _ = run_trl(setup, side, rows, options or {}, warm_up=2)
    return figures


def trl_task(setup: Setup, side: str, rows: Path, folder: Path, options: Mapping[str, Any]) -> trl_side.Task:
    """Return TRL's task as the side default, tuned or patched."""
    tuned = {
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": setup.precompute_batch,
        **UNCHECKPOINTED,
    }
    shared = {**setup.options, **(tuned if side != "default" else {})}
    group_equal_keys = side != "default" and "train_sampling_strategy" not in options
    if group_equal_keys:
        del shared["train_sampling_strategy"]
    return trl_side.Task(
        model=str(setup.model),
        rows=str(rows),
        output=str(folder / "output"),
        options={**shared, **options},
        group_equal_keys=group_equal_keys,
        compact=side == "patched",
    )


def run_trl(
    setup: Setup, side: str, rows: Path, options: Mapping[str, Any], *, warm_up: int
) -> tuple[Figures, list[dict[str, Any]]]:
    """Run TRL once, and return its figures and its log.

    Pairs are not grouped by length if `options` has `train_sampling_strategy`.
    """
    folder = new_folder(setup, side)
    task = dataclasses.replace(trl_task(setup, side, rows, folder, options), warm_up=warm_up)
    task_path, result_path = folder / "task.json", folder / "result.json"
    task_path.write_text(json.dumps(dataclasses.asdict(task)))
    command = [sys.executable, "-m", "tests.bench.measure.trl_side", str(task_path), str(result_path)]
    watched = watch(command, folder / "log", env=setup.env, gpu=setup.gpu)
    result = trl_side.Result(**json.loads(result_path.read_text()))
    pairs, seconds = len(rows.read_text().splitlines()), sum(result.updates)
    training_seconds = None if result.reference is None else seconds - (0 if result.precomputed else result.reference)
    figures = Figures(
        pairs=pairs,
        updates=len(result.updates),
        end_to_end=pairs / (seconds + (result.reference or 0 if result.precomputed else 0)),
        training=training_seconds and pairs / training_seconds,
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
    """Run jobs/dpo.py once, with an empty cache, so that the reference is scored; `entry` is that of `job.run`."""
    folder = new_folder(setup, "raydpo")
    pairs = len(rows.read_text().splitlines())
    job_options = {
        **setup.options,
        "logging_first_step": True,
        "block_pairs": job.block_pairs(pairs, setup.global_batch),
        **options,
    }
    finished = job.run(setup, rows, folder, job_options, entry)
    lines, peaks = finished.lines, finished.watched.peaks
    training = stats.training_rate(lines, setup.global_batch)
    reference = stats.scoring_rate(finished.blocks)
    names = ("data_wait", "tokens_per_second", "computed_tokens_per_second", "mfu")
    return Figures(
        pairs=pairs,
        updates=finished.updates,
        end_to_end=stats.sequential_rate(reference, training),
        training=training,
        reference=reference,
        first_step=finished.first_update - finished.watched.started,
        train_memory=peaks.of("TrainWorker"),
        job_memory=peaks.together,
        gpu_memory=peaks.gpu,
        seconds=finished.watched.seconds,
        extra={name: stats.steady(lines, name, setup.global_batch) for name in names if name in lines[-1]},
    )
