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
from raydpo.reference.failed_blocks import set_aside
from raydpo.reference.fingerprint import identify
from raydpo.reference.pool import ScoringReport, check_none_poisonous, score, total
from raydpo.reference.readers import AwaitedStore, GivenReference, NoReference, Unscored
from raydpo.reference.scorer import ScorerSpec
from raydpo.reference.store import ReferenceStore
from raydpo.reporting.console import Stage
from raydpo.runtime import storage
from raydpo.runtime.actors import answer
from raydpo.stages.plan import Setting
from raydpo.tr_dpo.schedule import SyncPlan, SyncSchedule
from raydpo.tr_dpo.version import AskedStore, MovedReference

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

    def told(self) -> str:
        """For the end of a line."""
        return self._share


def reference_store(setting: Setting) -> ReferenceStore | Unscored:
    """Where the reference's log-probs are kept, by what they depend on."""
    if not setting.job.loss.needs_reference:
        return NoReference()
    if not setting.job.scores_reference:
        return GivenReference()
    reference = setting.reference
    numerics = {
        "dtype": reference.precision,
        "attention": reference.attention.implementation or "default",
        "device": "cuda" if reference.gpu else "cpu",
    }
    if quantization := setting.job.reference.reference_quantization:
        numerics["quantization"] = quantization
    return ReferenceStore(
        storage.absolute(setting.job.data.cache_dir),
        identify(reference.source.folder, reference.adapter.folder if reference.adapter else None, numerics),
        reference.described,
    )


def scorer_of(setting: Setting) -> ScorerSpec:
    """What an actor of the pool loads."""
    model, reference = setting.job.model, setting.reference
    return ScorerSpec(
        source=reference.source,
        adapter=reference.adapter,
        dtype=reference.precision,
        attention=reference.attention,
        trust_remote_code=model.trust_remote_code,
        quantization=setting.job.reference.reference_quantization,
        gpus=reference.group.gpus,
        cut=reference.cut,
        logits_chunk_tokens=model.logits_chunk_tokens,
        torch_compile=model.torch_compile,
    )


def reader_of(setting: Setting, store: ReferenceStore | Unscored) -> Scores:
    """Where the feeds read: the store itself, or what waits for scores that are to come."""
    if not isinstance(store, ReferenceStore) or not setting.pipelined:
        return store
    return AskedStore(store) if setting.job.reference.sync_ref_model else AwaitedStore(store)


def sync_plan(setting: Setting, store: ReferenceStore | Unscored, schedule: Schedule) -> SyncPlan | None:
    """How the reference takes after the policy, where it does."""
    options, run = setting.job.reference, setting.job.run
    if not options.sync_ref_model or not isinstance(store, ReferenceStore):
        return None
    # A checkpoint is written at each sync, so that those kept go on with the newest references.
    limit = 0 if run.save_strategy == "no" else run.save_total_limit
    return SyncPlan(
        schedule=SyncSchedule(options.ref_model_sync_steps, schedule.total_steps),
        alpha=options.ref_model_mixup_alpha,
        source=setting.reference.source,
        adapter=setting.reference.adapter,
        identity=store.identity,
        lora=setting.job.adapter.use_peft,
        kept=None if limit is None else limit + 1,
    )


def score_reference(setting: Setting, store: ReferenceStore | Unscored, blocks: Sequence[Block]) -> ScoringReport:
    """Reference log-probs of every block: read where they are known, scored by the pool where they are not."""
    if not isinstance(store, ReferenceStore):
        return ScoringReport()
    stage = Stage("Reference", "pairs")
    report = score(blocks, store, scorer_of(setting), setting.reference.group, stage.update)
    stage.done(f"{report.completions_scored:,} completions scored, {report.completions_reused:,} reused")
    return report


def score_blocks(
    setting: Setting,
    store: ReferenceStore,
    blocks: Sequence[Block],
    progress: Progress,
    stopped: Callable[[], bool],
) -> ScoringReport:
    """Score blocks in the order given while training reads them, until done or `stopped()`."""
    report = score(blocks, store, scorer_of(setting), setting.reference.group, progress, stopped)
    check_none_poisonous(report, "set reference_schedule=staged, and it goes to quarantine")
    return report


def score_as_asked(
    setting: Setting, store: ReferenceStore, feeds: Sequence[Any], progress: Progress, stopped: Callable[[], bool]
) -> ScoringReport:
    """Score what the feeds, held-out pairs last, ask for by references that change, until `stopped()`."""
    known = [""] * len(feeds)
    reports = []
    while not stopped():
        asked = [answer(feed.asked.remote(name)) for feed, name in zip(feeds, known, strict=True)]
        wanted: dict[MovedReference, list[Block]] = {}  # together, as each pool has to load its reference
        for each in filter(None, reversed(asked)):  # the train workers evaluate before they go on
            wanted.setdefault(each.reference, []).extend(each.blocks)
        for reference, blocks in wanted.items():
            moved = replace(store, identity=reference.identity, model=described(setting, reference))
            scorer = moved_scorer(setting, reference)
            reports.append(score(blocks, moved, scorer, setting.reference.group, progress, stopped))
            check_none_poisonous(reports[-1], "take the rows out that it is made of")
        known = [new.name if new else old for new, old in zip(asked, known, strict=True)]
        time.sleep(ASK_S)
    return total(reports)


def moved_scorer(setting: Setting, reference: MovedReference) -> ScorerSpec:
    """What an actor of the pool loads for a reference that training made."""
    scorer = scorer_of(setting)
    if not reference.folder:
        return scorer
    source = ModelSource(reference.folder, reference.folder, None)
    return replace(scorer, adapter=source) if setting.job.adapter.use_peft else replace(scorer, source=source)


def described(setting: Setting, reference: MovedReference) -> str:
    """A reference that training made, for people."""
    first = setting.reference.described
    return f"{first}, moved by the run in {setting.run_dir.path}" if reference.folder else first


def without_poisonous(
    setting: Setting, scoring: ScoringReport, train: PreparedData, held_out: PreparedData | None
) -> tuple[PreparedData, PreparedData | None]:
    """The data without the blocks that no scorer survived."""

    def kept(data: PreparedData, folder: Path) -> PreparedData:
        decode, most = setting.tokenizer.decode, setting.job.data.max_bad_rows
        return set_aside(data, scoring.poisonous, str(folder), lambda ids: str(decode(ids)), most)

    quarantine = setting.run_dir.quarantine
    return kept(train, quarantine), kept(held_out, quarantine / "held_out") if held_out else None
