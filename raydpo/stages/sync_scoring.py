"""Scoring for a reference that changes during training (TR-DPO): the pool scores what the feeds request."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import ray

from raydpo.blocks.schema import Block
from raydpo.feed.handle import FeedHandle
from raydpo.models.source import ModelSource
from raydpo.reference.pool import ScoringReport, check_none_failed, score, total
from raydpo.reference.scorer import ScorerSpec
from raydpo.reference.store import ReferenceStore
from raydpo.runtime.actors import get_result
from raydpo.stages.plan import RunPlan
from raydpo.stages.score import ScoringProgress, scorer_spec
from raydpo.tr_dpo.version import ReferenceVersion

STOP_CHECK_S = 1.0
"""Seconds between two checks whether the run is over."""
JOIN_S = 0.1
"""Seconds to wait for the other feed's request, so that one load of the reference scores both."""


def serve_requests(
    plan: RunPlan,
    store: ReferenceStore,
    feeds: Sequence[FeedHandle],
    progress: ScoringProgress,
    stopped: Callable[[], bool],
) -> ScoringReport:
    """Score what the feeds request from each version of the reference, until `stopped()` is true.

    Requests of later feeds are scored first: the held-out pairs come last in `feeds`, and are evaluated first.
    """
    known = [""] * len(feeds)
    pending = [feed.next_request("") for feed in feeds]
    reports = []
    while not stopped():
        if not ray.wait(pending, num_returns=1, timeout=STOP_CHECK_S)[0]:
            continue
        answered, _ = ray.wait(pending, num_returns=len(pending), timeout=JOIN_S)
        blocks_of: dict[ReferenceVersion, list[Block]] = {}
        for index in reversed([index for index, reference in enumerate(pending) if reference in answered]):
            if request := get_result(pending[index]):
                blocks_of.setdefault(request.version, []).extend(request.blocks)
                known[index] = request.name
            pending[index] = feeds[index].next_request(known[index])
        for version, blocks in blocks_of.items():
            reports.append(_score_version(plan, store, version, blocks, progress, stopped))
    return total(reports)


def _score_version(
    plan: RunPlan,
    store: ReferenceStore,
    version: ReferenceVersion,
    blocks: Sequence[Block],
    progress: ScoringProgress,
    stopped: Callable[[], bool],
) -> ScoringReport:
    version_store = replace(store, identity=version.identity, model=display_name(plan, version))
    report = score(blocks, version_store, version_spec(plan, version), plan.reference.group, progress, stopped)
    check_none_failed(report, "remove the rows that it is made of")
    return report


def version_spec(plan: RunPlan, version: ReferenceVersion) -> ScorerSpec:
    """Return what a scoring worker needs to load a version of the reference."""
    spec = scorer_spec(plan)
    if not version.folder:
        return spec
    source = ModelSource(version.folder, version.folder, None)
    model = replace(spec.model, adapter=source) if plan.job.adapter.use_peft else replace(spec.model, source=source)
    return replace(spec, model=model)


def display_name(plan: RunPlan, version: ReferenceVersion) -> str:
    """Return the name of a version of the reference, for messages and for the store's list."""
    first = plan.reference.display_name
    return f"{first}, synced by the run in {plan.run_dir.path}" if version.folder else first
