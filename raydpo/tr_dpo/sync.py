"""The train workers' side of TR-DPO: they write the next version of the reference where the scoring pool loads it."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from raydpo.errors import ResumeError
from raydpo.models.export import ExportTarget, Gather
from raydpo.models.source import local_adapter, local_folder
from raydpo.reference.fingerprint import adapter_digest, identify
from raydpo.reference.identity import ReferenceIdentity
from raydpo.tr_dpo.mixing import StoredWeights, check_mixable, read_terms, write_mixed_adapter, write_mixed_model
from raydpo.tr_dpo.schedule import SyncPlan
from raydpo.tr_dpo.version import ReferenceVersion

UNNAMED = "unnamed"
"""Folder of a version that is being written, until its digest is known."""


class ReferenceSync:
    """The version of the reference in force on one rank, and its replacement when a sync is due."""

    def __init__(
        self,
        plan: SyncPlan,
        model: Any,
        target: ExportTarget,
        gather: Gather,
        announce: Callable[[ReferenceVersion], None],
    ) -> None:
        """Start with the first reference.

        `target.folder` is the folder of all versions. `announce` is called with each version that comes into force.
        Raises ModelError where policy and reference cannot be mixed: here, hours before the first sync.
        """
        self.version = ReferenceVersion(plan.identity)
        """The version in force."""
        self._plan = plan
        self._model = model
        self._target = target
        self._gather = gather
        self._announce = announce
        check_mixable_with_reference(model, plan)

    def start(self, version: ReferenceVersion | None) -> None:
        """Put into force the version that a checkpoint resumes with (None: the first reference). All ranks call it.

        Raises ResumeError where that version's folder is missing or changed.
        """
        found = find_version(version or self.version, self._plan, self._target)
        self._put_into_force(found)

    def sync(self) -> None:
        """Mix the policy into the reference, and put the new version into force. All ranks call it."""
        self._put_into_force(sync_reference(self._model, self.version, self._plan, self._target, self._gather))

    def prune(self) -> None:
        """Remove the versions that no checkpoint resumes with. Call it after the checkpoint that names the new one."""
        if self._target.is_main:
            prune_versions(self._target.folder, self._plan.kept)

    def _put_into_force(self, version: ReferenceVersion) -> None:
        self.version = version
        self._announce(version)


def check_mixable_with_reference(model: Any, plan: SyncPlan) -> None:
    """Raise ModelError where the policy and the first reference cannot be mixed."""
    if not plan.lora:
        StoredWeights(local_folder(plan.source)).check(model)
        return
    check_mixable(model)
    if plan.adapter:
        read_terms(local_adapter(plan.adapter))


def sync_reference(
    model: Any, previous: ReferenceVersion, plan: SyncPlan, target: ExportTarget, gather: Gather
) -> ReferenceVersion:
    """Mix the policy into the previous version and return the new one. All ranks call it, and rank 0 writes.

    The new version's folder lies in `target.folder` and is named by its digest.
    """
    unnamed = os.path.join(target.folder, UNNAMED)
    unnamed_target = dataclasses.replace(target, folder=unnamed)
    if plan.lora:
        first = local_adapter(plan.adapter) if plan.adapter else None
        write_mixed_adapter(model, unnamed_target, gather, previous.folder or first, plan.alpha)
    else:
        write_mixed_model(model, unnamed_target, gather, previous.folder or local_folder(plan.source), plan.alpha)
    version: list[ReferenceVersion | None] = [None]
    if target.is_main:
        identity = identify_version(unnamed, plan)
        folder = os.path.join(target.folder, identity.digest)
        shutil.rmtree(folder, ignore_errors=True)  # an earlier attempt at the same updates may have left it
        os.rename(unnamed, folder)
        version = [ReferenceVersion(identity, folder)]
    torch.distributed.broadcast_object_list(version, src=0)
    assert version[0] is not None, "rank 0 broadcasts it"
    return version[0]


def prune_versions(folder: str, kept: int | None) -> None:
    """Remove all but the `kept` newest versions in a folder; None keeps all."""
    if kept is not None and os.path.isdir(folder):
        newest = sorted(os.scandir(folder), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in newest[kept:]:
            shutil.rmtree(entry.path, ignore_errors=True)


def identify_version(folder: str, plan: SyncPlan) -> ReferenceIdentity:
    """Return the identity of the version in a folder, read from its files."""
    if plan.lora:
        return dataclasses.replace(plan.identity, adapter=adapter_digest(folder))
    return identify(folder, None, json.loads(plan.identity.numerics))


def find_version(version: ReferenceVersion, plan: SyncPlan, target: ExportTarget) -> ReferenceVersion:
    """Return a checkpoint's version with the folder it lies in now: where it was written, or in `target.folder`.

    All ranks call it, and rank 0 reads the folder. Raises ResumeError on all ranks where it is missing or changed.
    """
    if version.folder and not os.path.isdir(version.folder):
        version = dataclasses.replace(version, folder=os.path.join(target.folder, os.path.basename(version.folder)))
    fault = [_fault_of(version, plan) if target.is_main else ""]
    torch.distributed.broadcast_object_list(fault, src=0)
    if fault[0]:
        raise ResumeError(fault[0])
    return version


def _fault_of(version: ReferenceVersion, plan: SyncPlan) -> str:
    """Return the message for a version that is missing or changed; empty for one that is as it was."""
    if version.folder and not os.path.isdir(version.folder):
        return (
            f"the reference of that checkpoint is gone: there is no folder {version.folder}; bring it back, or resume "
            "from another checkpoint with resume_from_checkpoint"
        )
    identity = identify_version(version.folder, plan) if version.folder else plan.identity
    if identity == version.identity:
        return ""
    return (
        f"the reference in {version.folder or plan.source.name} has changed since the checkpoint: its digest is "
        f"{identity.digest}, and was {version.identity.digest}; bring back the files of that time, or start over in "
        "another output_dir"
    )
