"""The result of a run: summary.json, and its main figures on the console."""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from raydpo.blocks.schema import Block
from raydpo.data.images.rows import total_images
from raydpo.data.mixtures.mixture import EntryRows
from raydpo.data.prepare import PreparedData
from raydpo.objectives.objective import loss_at_reference
from raydpo.reference.pool import ScoringReport
from raydpo.reference.readers import DatasetReference, ZeroReference
from raydpo.reference.store import ReferenceStore
from raydpo.stages.feeds import log_prob_reader
from raydpo.stages.plan import RunPlan
from raydpo.stages.tokenize import RunData
from raydpo.training.task import TrainReport


@dataclass(frozen=True)
class PreparedRun:
    """The results of the stages before training."""

    data: RunData
    scoring: ScoringReport
    store: ReferenceStore | None
    """Store of the reference's log-probs; None where no reference is scored."""


class Stopwatch:
    """Measures the seconds of each stage."""

    def __init__(self) -> None:
        """Start the first stage now."""
        self.seconds: dict[str, float] = {}
        self._lap = time.monotonic()

    def lap(self, stage: str) -> None:
        """End a stage and start the next."""
        now = time.monotonic()
        self.seconds[stage], self._lap = now - self._lap, now


FIRST_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""Tolerance of the first loss by dtype, relative to the objective's value at the reference (or to 1, if that is more).
Half types round a log-prob differently in batches of other shapes."""

PACKAGES = ("raydpo", "ray", "torch", "transformers", "deepspeed", "peft", "datasets")


def summarize(
    plan: RunPlan, prepared: PreparedRun, report: TrainReport, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Write summary.json and return it: counts, reference, first and last metrics, seconds per stage, versions."""
    lines = plan.run_dir.lines()
    training = [line for line in lines if "grad_norm" in line]
    evaluations = [line for line in lines if any(name.startswith("eval_") for name in line)]
    first = next((line for line in lines if "reference_drift/mean" in line), {})
    summary = {
        "output_dir": str(plan.run_dir.path),
        "model": report.model_dir,
        "rows": _rows(prepared.data),
        "training": {
            "updates": report.steps,
            "resumed_at": report.resumed_at,
            "pairs_trained": report.pairs_trained,
            "workers": plan.policy.group.workers,
            "precision": plan.policy.precision,
            "attention": f"{plan.policy.attention.backend}: {plan.policy.attention.reason}",
            "tokens_per_micro_batch": plan.policy.planner.tokens,
        },
        "reference": {
            **_reference(plan, prepared),
            **_syncs(report),
            "first_loss": first.get("loss"),
            "first_loss_warning": check_first_loss(plan, first.get("loss"), prepared.data.train.blocks),
            "drift_mean": first.get("reference_drift/mean"),
            "drift_max": first.get("reference_drift/max"),
        },
        "forward_check": {"policy": report.forward_check, **_reference_check(prepared)},
        "metrics": training[-1] if training else {},
        "evaluation": {"before": evaluations[0], "after": evaluations[-1]} if evaluations else {},
        **_environment(seconds),
    }
    plan.run_dir.write_summary(summary)
    return summary


def summarize_scoring(plan: RunPlan, prepared: PreparedRun, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Write summary.json of a run that scores and does not train, and return it."""
    summary = {
        "output_dir": str(plan.run_dir.path),
        "rows": _rows(prepared.data),
        "reference": _reference(plan, prepared),
        "forward_check": _reference_check(prepared),
        **_environment(seconds),
    }
    plan.run_dir.write_summary(summary)
    return summary


def _rows(data: RunData) -> dict[str, Any]:
    train, held_out = data.train, data.held_out
    counts = {name: _counts(part) for name, part in held_out.items()}
    return {
        **_counts(train),
        "reasons": dict(train.bad_reasons),
        "template_losses": dict(train.template_losses),
        "weights": train.extras_counts.weights,
        "margins": train.extras_counts.margins,
        **_images(data),
        **{f"held_out_{what}": sum(part[what] for part in counts.values()) for what in _counts(train)},
        **({"held_out_sets": counts} if any(held_out) else {}),
        "datasets": [_entry_rows(entry, data) for entry in data.entries],
    }


def _images(data: RunData) -> dict[str, Any]:
    """Return the counts of the images of all rows; nothing without images."""
    counts = total_images(part.images for part in (data.train, *data.held_out.values()))
    reused = counts.read - counts.processed
    found = {"read": counts.read, "distinct": counts.distinct, "processed": counts.processed, "reused": reused}
    return {"images": found} if counts.read else {}


def _counts(part: PreparedData) -> dict[str, int]:
    return {
        "read": part.rows_read,
        "reused": part.rows_reused,
        "quarantined": part.rows_quarantined,
        "pairs": part.pairs,
    }


def _entry_rows(found: EntryRows, data: RunData) -> dict[str, Any]:
    """Return the counts of one data set: rows in its files, taken for training, held out from it, and bad ones."""
    parts = [data.train, *([data.held_out[""]] if found.held_out and "" in data.held_out else [])]
    counts = [part.by_shard[shard.name] for part in parts for shard in found.shards if shard.name in part.by_shard]
    read = sum(count.read for count in counts)
    return {
        **found.entry.plain(),
        "weight": found.entry.weight,
        "rows": read if found.rows is None else found.rows,
        "taken": read if found.taken is None else found.taken,
        "held_out": found.held_out,
        "quarantined": sum(count.quarantined for count in counts),
    }


def _reference(plan: RunPlan, prepared: PreparedRun) -> dict[str, Any]:
    scoring = prepared.scoring
    return {
        "identity": log_prob_reader(plan, prepared.store).digest,
        "completions_scored": scoring.completions_scored,
        "completions_reused": scoring.completions_reused,
        "completions_computed": scoring.completions_computed,
        "forwards": scoring.forwards,
        "scorers_lost": scoring.scorers_lost,
    }


def _reference_check(prepared: PreparedRun) -> dict[str, Any]:
    """Return the worst proof of a scoring worker's forward; None where no scoring worker loaded the reference."""
    checks = prepared.scoring.forward_checks
    return {"reference": max(checks, key=lambda check: check.gap).summary() if checks else None}


def _syncs(report: TrainReport) -> dict[str, Any]:
    """Return, under TR-DPO, the number of syncs and the reference in force at the end."""
    return {} if report.reference is None else {"syncs": report.syncs, "identity_at_end": report.reference}


def _environment(seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "seconds": {stage: round(spent, 1) for stage, spent in seconds.items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def check_first_loss(plan: RunPlan, first_loss: float | None, blocks: Sequence[Block] = ()) -> str:
    """Return a warning if a policy that equals its reference does not start with the loss that it must have, else "".

    For sigmoid that loss is -log sigmoid(0) = ln 2, for any beta and label_smoothing (Rafailov et al. 2023, eq. 7).
    With margins in the blocks, or weights as they are given, it depends on the data.
    """
    expected = loss_at_reference(plan.job.loss)
    if first_loss is None or expected is None or not plan.starts_from_reference:
        return ""
    weighted = any(block.weights for block in blocks)
    # A loss of exactly 0 is that of pairs which all have a weight of 0.
    if any(block.margins for block in blocks) or (
        weighted and (first_loss == 0 or plan.job.loss.sample_weights == "as_given")
    ):
        return ""
    if plan.job.reference.reference_quantization:  # it is close to the policy, but not equal
        return ""
    widest = max(FIRST_LOSS_TOLERANCE[model.precision] for model in (plan.policy, plan.reference))
    tolerance = widest * max(1.0, abs(expected))
    if abs(first_loss - expected) <= tolerance:
        return ""
    return (
        f"the first loss is {first_loss:.6f} and not {expected:.6f} within {tolerance:g}, so policy and reference do "
        "not compute the same: look for a difference between their nodes (GPU type, attention implementation, "
        "library versions), or for dropout that is on"
    )


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print the main figures of a run, and where its files are."""
    rows, reference = summary["rows"], summary["reference"]
    print()
    print(f"{'Rows':<12} {rows['read']:,} read = {rows['pairs']:,} pairs + {rows['quarantined']:,} in quarantine")
    sampled = [part for part in rows["datasets"] if part["taken"] < part["rows"]]
    for part in sampled:
        out = f", {part['held_out']:,} held out" if part["held_out"] else ""
        print(f"{'':<12} {part['taken']:,} of {part['rows']:,} rows of {part['path']}{out}")
    if rows["reasons"]:
        print(f"{'':<12} reasons: {', '.join(f'{count:,} {why}' for why, count in rows['reasons'].items())}")
    if images := rows.get("images"):
        print(
            f"{'Images':<12} {images['read']:,} read, {images['distinct']:,} different, {images['processed']:,} "
            "processed in this run"
        )
    if rows["template_losses"]:
        losses = ", ".join(f"{kind} of {count:,}" for kind, count in rows["template_losses"].items())
        print(f"{'':<12} trained on without what the chat template drops: {losses} pairs")
    if reference["identity"] == ZeroReference.digest:
        print(f"{'Reference':<12} none: the objective takes no reference")
    elif reference["identity"] == DatasetReference.digest:
        print(f"{'Reference':<12} log-probs of the data set")
    else:
        lost = f"; scoring workers lost: {reference['scorers_lost']}" if reference["scorers_lost"] else ""
        print(
            f"{'Reference':<12} {reference['completions_scored']:,} completions scored, "
            f"{reference['completions_reused']:,} reused (identity {reference['identity']}){lost}"
        )
    if "syncs" in reference:
        times, last = reference["syncs"], reference["identity_at_end"]
        print(f"{'':<12} syncs with the policy: {times}; identity at the end {last} (references/)")
    if "training" in summary:
        _print_training(summary)
    else:
        print(f"{'Other files':<12} {summary['output_dir']} (summary.json, quarantine/)")


def _print_training(summary: Mapping[str, Any]) -> None:
    reference, metrics = summary["reference"], summary["metrics"]
    if reference["first_loss"] is not None:
        print(
            f"{'First loss':<12} {reference['first_loss']:.6f}; policy against reference "
            f"{reference['drift_mean']:.1e} per token on average, {reference['drift_max']:.1e} at most"
        )
    proof = summary["forward_check"]["policy"]
    print(
        f"{'Own forward':<12} {proof['layout']} rows differ from it by {proof['gap']:.1e} nats per token "
        f"(tolerance {proof['tolerance']:.1e})"
    )
    if proof["fallback"]:
        print(f"warning: packed rows were given up for padded rows, as {proof['fallback']}")
    if reference["first_loss_warning"]:
        print(f"warning: {reference['first_loss_warning']}")
    if metrics:
        print(
            f"{'Last':<12} loss {metrics['loss']:.4f}, reward accuracy {metrics['rewards/accuracies']:.3f}, "
            f"margin {metrics['rewards/margins']:.3f}"
        )
    if summary["evaluation"]:
        before, after = summary["evaluation"]["before"], summary["evaluation"]["after"]
        for name in summary["rows"].get("held_out_sets", [""]):
            prefix = f"eval_{name}_" if name else "eval_"
            print(
                f"{'Held out':<12} {name and f'{name}: '}loss {before[f'{prefix}loss']:.4f} -> "
                f"{after[f'{prefix}loss']:.4f}, reward accuracy {before[f'{prefix}rewards/accuracies']:.3f} -> "
                f"{after[f'{prefix}rewards/accuracies']:.3f}, margin {before[f'{prefix}rewards/margins']:.3f} -> "
                f"{after[f'{prefix}rewards/margins']:.3f}"
            )
    print(f"{'Model':<12} {summary['model']}")
    files = "summary.json, metrics.jsonl, ledger/, quarantine/, checkpoints/"
    print(f"{'Other files':<12} {summary['output_dir']} ({files})")
