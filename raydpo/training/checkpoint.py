"""Sharded checkpoints in Ray Train's storage: writing one, and resuming from one."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch

from raydpo.errors import ResumeError
from raydpo.tr_dpo.version import ReferenceVersion

TAG = "engine"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class TrainState:
    """The state of a run after an update, apart from the weights and the optimizer."""

    step: int = 0
    """Number of updates made."""
    position: int = 0
    """Number of pairs trained on since the start of the run."""
    tokens: int = 0
    """Number of tokens seen over all ranks, without padding."""
    sums: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Sum and weight of each metric since the last line of metrics, over all ranks."""
    rewards: Sequence[float] = (0.0, 0.0)
    """Sum and number of all rewards so far; used with bco_running_mean."""
    reference: ReferenceVersion | None = None
    """Version of the reference in force; None if it never changes."""


def name(step: int) -> str:
    """Return the name of a checkpoint's folder, the same as in Hugging Face's Trainer."""
    return f"checkpoint-{step}"


def save(engine: Any, state: TrainState, fingerprint: Mapping[str, str], metrics: Mapping[str, float]) -> None:
    """Write each rank's shards and let Ray Train collect them; every rank must call it.

    The checkpoint counts once all ranks have reported theirs. `state.json` lists every file with its size, so that a
    checkpoint that lost one is detected before it is used.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folder = Path(tempfile.mkdtemp(prefix="raydpo-checkpoint-"))
    engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)
    mine = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    files: list[dict[str, int]] = [{}] * world
    torch.distributed.all_gather_object(files, mine)
    if rank == 0:
        content = {
            **asdict(state),
            "num_workers": world,
            "fingerprint": dict(fingerprint),
            "files": {path: size for shard in files for path, size in sorted(shard.items())},
        }
        (folder / STATE_FILE).write_text(json.dumps(content, indent=2))
    ray.train.report(
        {"step": state.step, **metrics},
        checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
        checkpoint_dir_name=name(state.step),
    )
    shutil.rmtree(folder, ignore_errors=True)


def restore(engine: Any, checkpoint: ray.train.Checkpoint, fingerprint: Mapping[str, str]) -> TrainState:
    """Load a checkpoint into the engine and return its state. Raises ResumeError if it does not fit or is damaged."""
    with checkpoint.as_directory() as directory:
        folder = Path(directory)
        state = read_state(folder, fingerprint, torch.distributed.get_world_size())
        loaded, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
    if loaded is None:
        raise ResumeError(
            f"DeepSpeed found no checkpoint in {checkpoint.path}; choose another with resume_from_checkpoint"
        )
    return state


def read_state(folder: Path, fingerprint: Mapping[str, str], num_workers: int) -> TrainState:
    """Return a checkpoint's state. Raises ResumeError unless its files are whole and it belongs to this run."""
    try:
        content = json.loads((folder / STATE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ResumeError(
            f"{folder} is not a whole checkpoint ({STATE_FILE}: {error}); remove it to go on from the one before, or "
            "pass another with resume_from_checkpoint"
        ) from error
    for path, size in content["files"].items():
        if not (folder / path).is_file() or (folder / path).stat().st_size != size:
            raise ResumeError(
                f"{folder / path} is missing or not {size} bytes long; remove the checkpoint to go on from an older one"
            )
    if content["num_workers"] != num_workers:
        raise ResumeError(
            f"{folder} was written by {content['num_workers']} workers and this run has {num_workers}; resume with "
            f"num_workers={content['num_workers']}"
        )
    for what in {**content["fingerprint"], **fingerprint}:
        before, now = content["fingerprint"].get(what, "none"), fingerprint.get(what, "none")
        if before != now:
            raise ResumeError(
                f"{folder} was trained with another {what} ({before}, now {now}); bring back that {what}, or start "
                "over in another output_dir"
            )
    reference = content["reference"] and ReferenceVersion.from_dict(content["reference"])
    return TrainState(
        **{key: content[key] for key in ("step", "position", "tokens", "sums", "rewards")}, reference=reference
    )
