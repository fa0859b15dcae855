"""raydpo's side: jobs/dpo.py as a user runs it, and what it leaves behind."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.memory import Watched, watch
from tests.e2e.jobs import flags, read_lines

if TYPE_CHECKING:
    from tests.bench.sides import Setup

JOB = Path(__file__).parents[2] / "jobs" / "dpo.py"


@dataclass(frozen=True)
class Finished:
    """A run that has ended well."""

    watched: Watched
    lines: list[dict[str, Any]]
    """Of metrics, as updates left them."""
    updates: int
    blocks: list[tuple[float, int]]
    """Of each scored block: when its file was written, and its pairs."""
    first_update: float
    """When the first update's line of metrics was there, in seconds since the epoch."""


def block_pairs(pairs: int, global_batch: int) -> int:
    """Pairs a block, so that there are four: of scored blocks all but the first are timed. Whole global batches."""
    return max(pairs // 4 // global_batch, 1) * global_batch


def command(setup: "Setup", rows: Path, folder: Path, options: Mapping[str, Any]) -> list[str]:
    """The options of a run of jobs/dpo.py, as words."""
    here = {
        "model_name_or_path": setup.model,
        "dataset_name": rows,
        "output_dir": folder / "output",
        "cache_dir": folder / "cache",
        "save_strategy": "no",
        "resume_from_checkpoint": "none",
        "reference_schedule": "staged",  # so that both can be timed
    }
    threads = {} if setup.gpu else {"cpus_per_worker": setup.threads, "reference_cpus_per_worker": setup.threads}
    return flags({**here, **threads, **options})


def run(
    setup: "Setup", rows: Path, folder: Path, options: Mapping[str, Any], entry: Sequence[str] = (str(JOB),)
) -> Finished:
    """Run the job in an empty folder. `entry`: what Python is to run."""
    metrics = folder / "output" / "metrics.jsonl"
    seen: list[float] = []

    def look() -> None:
        if not seen and metrics.exists() and any("grad_norm" in line for line in _whole_lines(metrics)):
            seen.append(time.time())

    words = [sys.executable, *entry, *command(setup, rows, folder, options)]
    watched = watch(words, folder / "log", env=setup.env, gpu=setup.gpu, on_tick=look)
    summary = json.loads((folder / "output" / "summary.json").read_text())
    return Finished(
        watched=watched,
        lines=[line for line in read_lines(metrics) if "grad_norm" in line],
        updates=summary["training"]["updates"],
        blocks=scored_blocks(folder / "cache"),
        first_update=seen[0],
    )


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file that another process is writing."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def scored_blocks(cache: Path) -> list[tuple[float, int]]:
    """Of each scored block in a cache: when its file was written, and its pairs."""
    import pyarrow.parquet as pq

    files = sorted((cache / "scored").rglob("*.parquet"))
    return [(file.stat().st_mtime, pq.read_metadata(file).num_rows) for file in files]
