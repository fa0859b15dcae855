"""TR-DPO in the train workers: they write the new reference where the pool will load it from."""

import dataclasses
import json
import os
import shutil
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
"""Folder of a reference that is being written, until its digest is known."""


def check_sync(model: Any, sync: SyncPlan) -> None:
    """ModelError where policy and first reference cannot be mixed; asked at the start, hours before they are."""
    if not sync.lora:
        StoredWeights(local_folder(sync.source)).check(model)
        return
    check_mixable(model)
    if sync.adapter:
        read_terms(local_adapter(sync.adapter))


def sync_reference(
    model: Any, previous: ReferenceVersion, sync: SyncPlan, target: ExportTarget, gather: Gather
) -> ReferenceVersion:
    """Mix the policy into the reference -> the new one; all ranks call it, rank 0 writes.

    `target` is the folder of references; each of them lies in one of its own there, named by its digest.
    """
    unnamed = os.path.join(target.folder, UNNAMED)
    into = dataclasses.replace(target, folder=unnamed)
    if sync.lora:
        first = local_adapter(sync.adapter) if sync.adapter else None
        write_mixed_adapter(model, into, gather, previous.folder or first, sync.alpha)
    else:
        write_mixed_model(model, into, gather, previous.folder or local_folder(sync.source), sync.alpha)
    found: list[ReferenceVersion | None] = [None]
    if target.is_main:
        identity = identity_of(unnamed, sync)
        folder = os.path.join(target.folder, identity.digest)
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt at the same updates
        os.rename(unnamed, folder)
        found = [ReferenceVersion(identity, folder)]
    torch.distributed.broadcast_object_list(found, src=0)
    assert found[0] is not None, "rank 0 gives it"
    return found[0]


def prune_versions(folder: str, kept: int | None) -> None:
    """Remove all but the newest references; None keeps all."""
    if kept is not None and os.path.isdir(folder):
        newest = sorted(os.scandir(folder), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in newest[kept:]:
            shutil.rmtree(entry.path, ignore_errors=True)


def identity_of(folder: str, sync: SyncPlan) -> ReferenceIdentity:
    """Of a reference that training made, read from its folder."""
    if sync.lora:
        return dataclasses.replace(sync.identity, adapter=adapter_digest(folder))
    return identify(folder, None, json.loads(sync.identity.numerics))


def find_version(reference: ReferenceVersion, sync: SyncPlan, folder: str, *, is_main: bool) -> ReferenceVersion:
    """The reference of a checkpoint where it lies now: where it was written, or in this run's `folder` of them.

    ResumeError on all ranks, which all call it, unless it is there as it was; rank 0 reads it.
    """
    if reference.folder and not os.path.isdir(reference.folder):
        reference = dataclasses.replace(reference, folder=os.path.join(folder, os.path.basename(reference.folder)))
    wrong = [""]
    if is_main:
        wrong = [_wrong_with(reference, sync)]
    torch.distributed.broadcast_object_list(wrong, src=0)
    if wrong[0]:
        raise ResumeError(wrong[0])
    return reference


def _wrong_with(reference: ReferenceVersion, sync: SyncPlan) -> str:
    if reference.folder and not os.path.isdir(reference.folder):
        return (
            f"the reference of that checkpoint is gone: there is no folder {reference.folder}; bring it back, or go on "
            "from another checkpoint with resume_from_checkpoint"
        )
    identity = identity_of(reference.folder, sync) if reference.folder else sync.identity
    if identity == reference.identity:
        return ""
    return (
        f"the reference in {reference.folder or sync.source.name} has changed since the checkpoint: its digest is "
        f"{identity.digest}, and was {reference.identity.digest}; bring back what it was, or start over in another "
        "output_dir"
    )
