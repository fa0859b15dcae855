"""raydpo's side of the comparison: runs jobs/dpo.py as a user does, and reads the files that the run writes."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.measure.memory import Watched, watch
from tests.e2e.jobs import flags, read_lines

if TYPE_CHECKING:
    from tests.bench.measure.sides import Setup

JOB = Path(__file__).parents[3] / "jobs" / "dpo.py"


@dataclass(frozen=True)
class Finished:
    """A run that has ended successfully."""

    watched: Watched
    lines: list[dict[str, Any]]
    """The lines of metrics.jsonl that report updates."""
    updates: int
    blocks: list[tuple[float, int]]
    """(time at which its file was written, number of pairs) of each scored block."""
    first_update: float
    """Time at which the first update's line of metrics was written, in seconds since the epoch."""


def block_pairs(pairs: int, global_batch: int) -> int:
    """Return the number of pairs per block, in whole global batches, for about four blocks.

    All scored blocks except the first are timed.
    """
    return max(pairs // 4 // global_batch, 1) * global_batch


def job_flags(setup: "Setup", rows: Path, folder: Path, options: Mapping[str, Any]) -> list[str]:
    """Return the command-line flags of a run of jobs/dpo.py."""
    fixed = {
        "model_name_or_path": setup.model,
        "dataset_name": rows,
        "output_dir": folder / "output",
        "cache_dir": folder / "cache",
        "save_strategy": "no",
        "resume_from_checkpoint": "none",
        "reference_schedule": "staged",  # so that reference and training can be timed separately
    }
    threads = {} if setup.gpu else {"cpus_per_worker": setup.threads, "reference_cpus_per_worker": setup.threads}
    return flags({**fixed, **threads, **options})


def run(
    setup: "Setup", rows: Path, folder: Path, options: Mapping[str, Any], entry: Sequence[str] = (str(JOB),)
) -> Finished:
    """Run the job in an empty folder; `entry` is the script, or -m and the module, that Python runs."""
    metrics = folder / "output" / "metrics.jsonl"
    first_update: list[float] = []

    def note_first_update() -> None:
        if not first_update and metrics.exists() and any("grad_norm" in line for line in _complete_lines(metrics)):
            first_update.append(time.time())

    command = [sys.executable, *entry, *job_flags(setup, rows, folder, options)]
    watched = watch(command, folder / "log", env=setup.env, gpu=setup.gpu, on_tick=note_first_update)
    summary = json.loads((folder / "output" / "summary.json").read_text())
    return Finished(
        watched=watched,
        lines=[line for line in read_lines(metrics) if "grad_norm" in line],
        updates=summary["training"]["updates"],
        blocks=scored_blocks(folder / "cache"),
        first_update=first_update[0],
    )


def _complete_lines(path: Path) -> list[str]:
    """Return the complete lines of a file that another process is writing."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def scored_blocks(cache: Path) -> list[tuple[float, int]]:
    """Return (time at which its file was written, number of pairs) of each scored block in a cache."""
    import pyarrow.parquet as pq

    files = sorted((cache / "scored").rglob("*.parquet"))
    return [(file.stat().st_mtime, pq.read_metadata(file).num_rows) for file in files]
