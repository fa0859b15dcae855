"""Jobs and nodes for the tests of plans: nothing is started."""

from pathlib import Path
from typing import Any

from raydpo import config
from raydpo.config import JobConfig
from raydpo.runtime.resources import Node

CPU_NODE = Node(cpus=4, gpus=0)
GPU_NODE = Node(cpus=16, gpus=8)


def job_of(model: Path, folder: Path, **options: Any) -> JobConfig:
    """Return a job with these options over a model and a data set that is not read."""
    defaults = {
        "model_name_or_path": str(model),
        "dataset_name": "pairs.jsonl",
        "output_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
    }
    return config.from_flat({**defaults, **options})
