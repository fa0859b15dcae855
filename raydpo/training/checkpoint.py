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

from raydpo.config.resume import recorded
from raydpo.errors import ResumeError
from raydpo.runtime import storage
from raydpo.tr_dpo.version import ReferenceVersion
from raydpo.training.deepspeed_engine import DeepSpeedEngine
from raydpo.training.task import TrainTask

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


STRICT = frozenset({"reference", "data", "reference sync"})
"""Entries of the fingerprint that every checkpoint has where they apply; earlier versions wrote no others."""
NEEDED: dict[str, type] = {
    **dict.fromkeys(("step", "position", "tokens", "num_workers"), int),
    **dict.fromkeys(("sums", "fingerprint", "files"), dict),
    "rewards": list,
}
"""What `state.json` of every version has, with its type."""


def save(wrapper: DeepSpeedEngine, state: TrainState, task: TrainTask, metrics: Mapping[str, float]) -> None:
    """Write each rank's shards and let Ray Train collect them; every rank must call it.

    The checkpoint counts once all ranks have reported theirs. `state.json` lists every file with its size, so that a
    checkpoint that lost one is detected before it is used, and what a run that resumes from it must have in common.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folder = Path(tempfile.mkdtemp(prefix="raydpo-checkpoint-"))
    wrapper.engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)
    mine = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    files: list[dict[str, int]] = [{}] * world
    torch.distributed.all_gather_object(files, mine)
    if rank == 0:
        content = {
            **asdict(state),
            "num_workers": world,
            "total_steps": task.schedule.total_steps,
            "fingerprint": {**task.fingerprint, **wrapper.fingerprint},
            "options": recorded(task.job),
            "files": {path: size for shard in files for path, size in sorted(shard.items())},
        }
        (folder / STATE_FILE).write_text(json.dumps(content, indent=2))
    ray.train.report(
        {"step": state.step, **metrics},
        checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
        checkpoint_dir_name=name(state.step),
    )
    shutil.rmtree(folder, ignore_errors=True)


def restore(wrapper: DeepSpeedEngine, checkpoint: ray.train.Checkpoint, fingerprint: Mapping[str, str]) -> TrainState:
    """Load a checkpoint into the engine and return its state. Raises ResumeError if it does not fit or is damaged."""
    with checkpoint.as_directory() as directory:
        found = {**fingerprint, **wrapper.fingerprint}
        state = read_state(Path(directory), found, torch.distributed.get_world_size())
        wrapper.load(directory, TAG)
    return state


def read_content(folder: str) -> dict[str, Any]:
    """Return what `state.json` of a checkpoint says; `folder` is a path or a URL.

    Raises ResumeError where the folder is no checkpoint, or the file is not as this program writes it.
    """
    remedy = "give the path of a folder checkpoint-N in checkpoints/ of a run"
    try:
        content: Any = json.loads(storage.read_bytes(storage.join(folder, STATE_FILE)))
    except (OSError, ValueError) as error:
        raise ResumeError(
            f"{folder} is not a whole checkpoint of raydpo ({STATE_FILE}: {error}); {remedy}, with another output_dir"
        ) from error
    found = content if isinstance(content, dict) else {}
    lacking = [key for key, kind in NEEDED.items() if not isinstance(found.get(key), kind)]
    if lacking:
        raise ResumeError(f"{folder}/{STATE_FILE} lacks {', '.join(lacking)}, so it is no checkpoint; {remedy}")
    return found


def check_files(folder: Path, content: Mapping[str, Any]) -> None:
    """Raise ResumeError where a file of a checkpoint is missing or has another size than was written."""
    for path, size in content["files"].items():
        if not (folder / path).is_file() or (folder / path).stat().st_size != size:
            raise ResumeError(
                f"{folder / path} is missing or not {size} bytes long; go on from an older checkpoint, with its path "
                "as resume_from_checkpoint and another output_dir"
            )


def check_fingerprint(folder: str, content: Mapping[str, Any], fingerprint: Mapping[str, str], workers: int) -> None:
    """Raise ResumeError where a checkpoint was written by another number of workers, or belongs to another run."""
    if content["num_workers"] != workers:
        raise ResumeError(
            f"{folder} was written by {content['num_workers']} workers and this run has {workers}; resume with "
            f"num_workers={content['num_workers']}"
        )
    then = content["fingerprint"]
    for what in {**then, **fingerprint}:
        before, now = then.get(what, "none"), fingerprint.get(what, "none")
        unknown = what not in STRICT and "none" in (before, now)  # one of the two sides does not record it
        if before != now and not unknown:
            raise ResumeError(
                f"{folder} was trained with another {what} ({before}, now {now}); bring back that {what}, or start "
                "over in another output_dir"
            )


def unchecked(folder: str, content: Mapping[str, Any], fingerprint: Mapping[str, str]) -> list[str]:
    """Return a note on what a checkpoint of an earlier version does not record, if there is any."""
    lacking = [what for what in fingerprint if what not in content["fingerprint"] and what not in STRICT]
    if not lacking:
        return []
    return [
        f"{folder} is of an earlier version and does not record {', '.join(lacking)}, so it is not checked that this "
        "run has the same"
    ]


def read_state(folder: Path, fingerprint: Mapping[str, str], num_workers: int) -> TrainState:
    """Return a checkpoint's state. Raises ResumeError unless its files are whole and it belongs to this run."""
    content = read_content(str(folder))
    check_files(folder, content)
    check_fingerprint(str(folder), content, fingerprint, num_workers)
    reference = content.get("reference") and ReferenceVersion.from_dict(content["reference"])
    return TrainState(
        **{key: content[key] for key in ("step", "position", "tokens", "sums", "rewards")}, reference=reference
    )
