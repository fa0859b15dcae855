"""How scores come: where they are kept, who computes them, and when - before training, beside it, or as it asks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raydpo.blocks.schema import Block
from raydpo.data.prepare import PreparedData
from raydpo.feed.batches import Scores
from raydpo.feed.schedule import Schedule
from raydpo.models.source import ModelSource
from raydpo.reference.failed_blocks import quarantine_blocks
from raydpo.reference.fingerprint import identify
from raydpo.reference.pool import ScoringReport, check_none_failed, score, total
from raydpo.reference.readers import DatasetReference, Unscored, WaitingReader, ZeroReference
from raydpo.reference.scorer import ScorerSpec
from raydpo.reference.store import ReferenceStore
from raydpo.reporting.console import Stage
from raydpo.runtime import storage
from raydpo.runtime.actors import get_result
from raydpo.stages.plan import RunPlan
from raydpo.tr_dpo.schedule import SyncPlan, SyncSchedule
from raydpo.tr_dpo.version import OnDemandReader, ReferenceVersion

ASK_S = 0.1
"""How often the feeds are asked what they wait for."""


class Progress:
    """How much of the scoring is done, for the line of progress of training."""

    def __init__(self) -> None:
        """Nothing is scored yet."""
        self._share = ""

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` pairs are."""
        self._share = f", reference {done / total:.0%}"

    def summary_line(self) -> str:
        """For the end of a line."""
        return self._share


def reference_store(plan: RunPlan) -> ReferenceStore | Unscored:
    """Where the reference's log-probs are kept, by what they depend on."""
    if not plan.job.loss.needs_reference:
        return ZeroReference()
    if not plan.job.scores_reference:
        return DatasetReference()
    reference = plan.reference
    numerics = {
        "dtype": reference.precision,
        "attention": reference.attention.implementation or "default",
        "device": "cuda" if reference.gpu else "cpu",
    }
    if quantization := plan.job.reference.reference_quantization:
        numerics["quantization"] = quantization
    return ReferenceStore(
        storage.absolute(plan.job.data.cache_dir),
        identify(reference.source.folder, reference.adapter.folder if reference.adapter else None, numerics),
        reference.display_name,
    )


def scorer_of(plan: RunPlan) -> ScorerSpec:
    """What an actor of the pool loads."""
    model, reference = plan.job.model, plan.reference
    return ScorerSpec(
        source=reference.source,
        adapter=reference.adapter,
        dtype=reference.precision,
        attention=reference.attention,
        trust_remote_code=model.trust_remote_code,
        quantization=plan.job.reference.reference_quantization,
        gpus=reference.group.gpus,
        planner=reference.planner,
        logits_chunk_tokens=model.logits_chunk_tokens,
        torch_compile=model.torch_compile,
    )


def reader_of(plan: RunPlan, store: ReferenceStore | Unscored) -> Scores:
    """Where the feeds read: the store itself, or what waits for scores that are to come."""
    if not isinstance(store, ReferenceStore) or not plan.pipelined:
        return store
    return OnDemandReader(store) if plan.job.reference.sync_ref_model else WaitingReader(store)


def sync_plan(plan: RunPlan, store: ReferenceStore | Unscored, schedule: Schedule) -> SyncPlan | None:
    """How the reference takes after the policy, where it does."""
    options, run = plan.job.reference, plan.job.run
    if not options.sync_ref_model or not isinstance(store, ReferenceStore):
        return None
    # A checkpoint is written at each sync, so that those kept go on with the newest references.
    limit = 0 if run.save_strategy == "no" else run.save_total_limit
    return SyncPlan(
        schedule=SyncSchedule(options.ref_model_sync_steps, schedule.total_steps),
        alpha=options.ref_model_mixup_alpha,
        source=plan.reference.source,
        adapter=plan.reference.adapter,
        identity=store.identity,
        lora=plan.job.adapter.use_peft,
        kept=None if limit is None else limit + 1,
    )


def score_reference(plan: RunPlan, store: ReferenceStore | Unscored, blocks: Sequence[Block]) -> ScoringReport:
    """Reference log-probs of every block: read where they are known, scored by the pool where they are not."""
    if not isinstance(store, ReferenceStore):
        return ScoringReport()
    stage = Stage("Reference", "pairs")
    report = score(blocks, store, scorer_of(plan), plan.reference.group, stage.update)
    stage.done(f"{report.completions_scored:,} completions scored, {report.completions_reused:,} reused")
    return report


def score_blocks(
    plan: RunPlan,
    store: ReferenceStore,
    blocks: Sequence[Block],
    progress: Progress,
    stopped: Callable[[], bool],
) -> ScoringReport:
    """Score blocks in the order given while training reads them, until done or `stopped()`."""
    report = score(blocks, store, scorer_of(plan), plan.reference.group, progress, stopped)
    check_none_failed(report, "set reference_schedule=staged, and it goes to quarantine")
    return report


def serve_requests(
    plan: RunPlan, store: ReferenceStore, feeds: Sequence[Any], progress: Progress, stopped: Callable[[], bool]
) -> ScoringReport:
    """Score what the feeds, held-out pairs last, ask for by references that change, until `stopped()`."""
    known = [""] * len(feeds)
    reports = []
    while not stopped():
        asked = [get_result(feed.asked.remote(name)) for feed, name in zip(feeds, known, strict=True)]
        wanted: dict[ReferenceVersion, list[Block]] = {}  # together, as each pool has to load its reference
        for each in filter(None, reversed(asked)):  # the train workers evaluate before they go on
            wanted.setdefault(each.reference, []).extend(each.blocks)
        for reference, blocks in wanted.items():
            version = replace(store, identity=reference.identity, model=display_name(plan, reference))
            scorer = scorer_of_version(plan, reference)
            reports.append(score(blocks, version, scorer, plan.reference.group, progress, stopped))
            check_none_failed(reports[-1], "take the rows out that it is made of")
        known = [new.name if new else old for new, old in zip(asked, known, strict=True)]
        time.sleep(ASK_S)
    return total(reports)


def scorer_of_version(plan: RunPlan, reference: ReferenceVersion) -> ScorerSpec:
    """What an actor of the pool loads for a reference that training made."""
    scorer = scorer_of(plan)
    if not reference.folder:
        return scorer
    source = ModelSource(reference.folder, reference.folder, None)
    return replace(scorer, adapter=source) if plan.job.adapter.use_peft else replace(scorer, source=source)


def display_name(plan: RunPlan, reference: ReferenceVersion) -> str:
    """A reference that training made, for people."""
    first = plan.reference.display_name
    return f"{first}, moved by the run in {plan.run_dir.path}" if reference.folder else first


def quarantine_failed(
    plan: RunPlan, scoring: ScoringReport, train: PreparedData, held_out: PreparedData | None
) -> tuple[PreparedData, PreparedData | None]:
    """The data without the blocks that no scorer survived."""

    def kept(data: PreparedData, folder: Path) -> PreparedData:
        decode, most = plan.tokenizer.decode, plan.job.data.max_bad_rows
        return quarantine_blocks(data, scoring.failed_blocks, str(folder), lambda ids: str(decode(ids)), most)

    quarantine = plan.run_dir.quarantine
    return kept(train, quarantine), kept(held_out, quarantine / "held_out") if held_out else None
