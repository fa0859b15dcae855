"""Reference log-probs of a run: where they are kept, and the scoring pool that computes those that are missing."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from raydpo.blocks.schema import Block
from raydpo.data.prepare import PreparedData
from raydpo.reference.failed_blocks import quarantine_blocks
from raydpo.reference.fingerprint import identify
from raydpo.reference.pool import ScoringReport, check_none_failed, score
from raydpo.reference.scorer import ScorerSpec
from raydpo.reference.store import ReferenceStore
from raydpo.reporting.console import Stage
from raydpo.runtime import storage
from raydpo.stages.plan import RunPlan
from raydpo.stages.tokenize import HELD_OUT, RunData


class ScoringProgress:
    """The share of pairs scored so far, as the end of the line of progress of training."""

    def __init__(self) -> None:
        """Start without a share."""
        self.note = ""

    def __call__(self, done: int, total: int) -> None:
        """Note that `done` of `total` pairs are scored."""
        self.note = f", reference {done / total:.0%}"


def reference_store(plan: RunPlan) -> ReferenceStore | None:
    """Return the store of the reference's log-probs; None where no reference is scored. Reads the model's weights."""
    if not plan.job.scores_reference:
        return None
    reference = plan.reference
    numerics = {
        "dtype": reference.precision,
        "attention": reference.attention.implementation or "default",
        "device": "cuda" if reference.gpu else "cpu",
    }
    if quantization := plan.job.reference.reference_quantization:
        numerics["quantization"] = quantization
    if reference.own_length:
        numerics["rope"] = "own length"
    return ReferenceStore(
        storage.absolute(plan.job.data.cache_dir),
        identify(reference.source.folder, reference.adapter.folder if reference.adapter else None, numerics),
        reference.display_name,
    )


def scorer_spec(plan: RunPlan) -> ScorerSpec:
    """Return what a scoring worker needs to load the reference."""
    model = plan.job.model
    return ScorerSpec(
        model=plan.reference,
        trust_remote_code=model.trust_remote_code,
        quantization=plan.job.reference.reference_quantization,
        logits_chunk_tokens=model.logits_chunk_tokens,
        torch_compile=model.torch_compile,
    )


def score_reference(plan: RunPlan, store: ReferenceStore | None, blocks: Sequence[Block]) -> ScoringReport:
    """Score the blocks that have no scores in the store, and return when all have; without a store do nothing."""
    if store is None:
        return ScoringReport()
    stage = Stage("Reference", "pairs")
    report = score(blocks, store, scorer_spec(plan), plan.reference.group, stage.update)
    stage.done(f"{report.completions_scored:,} completions scored, {report.completions_reused:,} reused")
    return report


def score_in_background(
    plan: RunPlan,
    store: ReferenceStore,
    blocks: Sequence[Block],
    progress: ScoringProgress,
    stopped: Callable[[], bool],
) -> ScoringReport:
    """Score blocks in the given order while training reads them, until all have scores or `stopped()` is true."""
    report = score(blocks, store, scorer_spec(plan), plan.reference.group, progress, stopped)
    check_none_failed(report, "set reference_schedule=staged, which puts its rows into quarantine")
    return report


def quarantine_failed(plan: RunPlan, scoring: ScoringReport, data: RunData) -> RunData:
    """Return the data without the blocks that no scoring worker survived, whose rows go to quarantine."""

    def without_failed(part: PreparedData, folder: str) -> PreparedData:
        decode, max_bad_rows = plan.tokenizer.decode, plan.job.data.max_bad_rows
        return quarantine_blocks(part, scoring.failed_blocks, folder, lambda ids: str(decode(ids)), max_bad_rows)

    quarantine = plan.run_dir.quarantine
    held_out = {name: without_failed(part, str(quarantine / HELD_OUT / name)) for name, part in data.held_out.items()}
    return replace(data, train=without_failed(data.train, str(quarantine)), held_out=held_out)
