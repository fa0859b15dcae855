"""The driver's checks of the checkpoint that a run resumes from, before anything is written or started."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from raydpo.config import JobConfig, from_flat
from raydpo.config.reading import read_yaml
from raydpo.config.resume import changes, check_changes, note_on, recorded
from raydpo.errors import ResumeError
from raydpo.runtime import storage
from raydpo.training import checkpoint
from raydpo.training.task import TrainTask

CHECKPOINTS = "checkpoints"
"""Ray Train's name of the run, if its storage path is the run's own folder."""
AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Found:
    """The checkpoint that a run resumes from."""

    folder: str
    """Its absolute path or URL."""
    own: bool
    """Whether the run itself wrote it, and did not have it named."""


def storage_of(job: JobConfig, run_dir: str) -> tuple[str, str]:
    """Return where checkpoints lie: Ray Train's storage path, and the name of the run in it."""
    if job.run.storage_path is None:
        return run_dir, CHECKPOINTS
    return storage.absolute(job.run.storage_path), job.run.run_name or os.path.basename(run_dir.rstrip("/"))


def with_absolute_path(job: JobConfig) -> JobConfig:
    """Return the job with an absolute path of its checkpoint, as workers run in other working directories."""
    path = job.run.resume_from_checkpoint
    if path in (AUTO, NONE):
        return job
    return dataclasses.replace(job, run=dataclasses.replace(job.run, resume_from_checkpoint=storage.absolute(path)))


def find(job: JobConfig, run_dir: str) -> Found | None:
    """Return the checkpoint that the run resumes from: the newest of its own, else the one that is named.

    Raises ResumeError where the options ask for another one than Ray Train will take.
    """
    named = job.run.resume_from_checkpoint
    newest = _newest(job, run_dir)
    if named == NONE:
        if newest and job.run.storage_path:
            raise ResumeError(
                f"resume_from_checkpoint=none starts over, but storage_path={job.run.storage_path} holds {newest} of a "
                "run of this name, from which Ray Train would go on; set another run_name, or remove that folder"
            )
        return None
    if newest is None:
        return None if named == AUTO else Found(named, own=False)
    if named != AUTO and os.path.dirname(named.rstrip("/")) == os.path.dirname(newest) and named.rstrip("/") != newest:
        raise ResumeError(
            f"resume_from_checkpoint={named} is a checkpoint of this run, which goes on from its newest one, {newest}; "
            "set another output_dir to go on from the older one, or leave the option out"
        )
    return Found(newest, own=True)


def _newest(job: JobConfig, run_dir: str) -> str | None:
    """Return the newest checkpoint in the run's storage; None if there is none."""
    folder = storage.join(*storage_of(job, run_dir))
    snapshot = storage.join(folder, CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
    if not storage.exists(snapshot):
        return None
    try:
        newest = json.loads(storage.read_bytes(snapshot))["latest_checkpoint_result"]
    except ValueError as error:  # Ray Train writes it in place, so a crash can cut it short
        raise ResumeError(
            f"{snapshot} was cut short ({error}); remove it, and pass the newest folder beside it with "
            "resume_from_checkpoint, or none to start over"
        ) from error
    return storage.join(folder, newest["checkpoint_dir_name"]) if newest else None


def check_options(job: JobConfig, run_dir: str) -> list[str]:
    """Return notes on the options that a resume changes; an empty list if the run starts anew.

    Raises ResumeError where there is no checkpoint to resume from, or where it is of a run with another option that
    must stay the same. The run's own folder must not have been written to.
    """
    found = find(job, run_dir)
    if found is None:
        return []
    content = checkpoint.read_content(found.folder)
    before = _recorded(content, found)
    if before is None:
        return [f"{found.folder} is of an earlier version and records no options, so they are not checked"]
    differences = changes(before, job)
    check_changes(differences, found.folder, own_folder=found.own)
    named = job.run.resume_from_checkpoint
    unused = [f"resume_from_checkpoint={named} is not used again: the run goes on from its own {found.folder}"]
    notes = unused if found.own and named not in (AUTO, found.folder) else []
    return [*notes, *filter(None, [note_on(differences, found.folder)])]


def _recorded(content: Mapping[str, Any], found: Found) -> dict[str, Any] | None:
    """Return the options of the run that wrote a checkpoint; None where they are not known.

    An earlier version wrote them only into config.yaml of the run's folder, two folders above the checkpoint.
    """
    if "options" in content:
        return dict(content["options"])
    if storage.is_remote(found.folder):
        return None
    path = Path(found.folder).parents[1] / "config.yaml"
    return recorded(from_flat(read_yaml(str(path)))) if path.is_file() else None


def check_resume(task: TrainTask) -> list[str]:
    """Return notes on the checkpoint that the run resumes from, before workers start.

    Raises ResumeError where it is damaged, or belongs to another run by its fingerprint. Files behind a URL are checked
    by the workers.
    """
    found = find(task.job, task.run_dir)
    if found is None:
        return []
    content = checkpoint.read_content(found.folder)
    if not storage.is_remote(found.folder):
        checkpoint.check_files(Path(found.folder), content)
    checkpoint.check_fingerprint(found.folder, content, task.fingerprint, task.policy.group.workers)
    notes = checkpoint.unchecked(found.folder, content, task.fingerprint)
    before, now = content.get("total_steps"), task.schedule.total_steps
    if before not in (None, now):
        notes.append(
            f"{found.folder} is of a run of {before} updates, and this one has {now}; the learning rate follows the "
            f"schedule of {now} updates from here on"
        )
    return notes
