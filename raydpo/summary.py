"""What came of a run: summary.json, and the same in a few lines for people."""

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from raydpo.data.prepare import PreparedData
from raydpo.objectives.objective import at_reference
from raydpo.reference.absent import NoReference
from raydpo.reference.pool import ScoringReport
from raydpo.reference.store import ReferenceStore
from raydpo.setting import Setting
from raydpo.training.task import TrainReport


@dataclass(frozen=True)
class Outcome:
    """What the stages gave."""

    train: PreparedData
    held_out: PreparedData | None
    store: ReferenceStore | NoReference
    scoring: ScoringReport
    report: TrainReport


class Stopwatch:
    """Seconds a stage."""

    def __init__(self) -> None:
        """Start now."""
        self.seconds: dict[str, float] = {}
        self._lap = time.monotonic()

    def lap(self, stage: str) -> None:
        """The stage ends now."""
        now = time.monotonic()
        self.seconds[stage], self._lap = now - self._lap, now


FIRST_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""How far the first loss may be from the objective's value at the reference, as a share of it (at least of 1). Half
precision rounds a log-prob differently in batches of other shapes."""

PACKAGES = ("raydpo", "ray", "torch", "transformers", "deepspeed", "peft", "datasets")


def sum_up(setting: Setting, done: Outcome, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Write and return summary.json: counts, reference, first and last metrics, seconds a stage, versions."""
    lines = setting.run_dir.lines()
    training = [line for line in lines if "grad_norm" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    first = next((line for line in lines if "reference_drift/mean" in line), {})
    summary = {
        "output_dir": str(setting.run_dir.path),
        "model": done.report.model_dir,
        "rows": {
            "read": done.train.rows_read,
            "quarantined": done.train.rows_quarantined,
            "pairs": done.train.pairs,
            "reasons": dict(done.train.bad_reasons),
            "held_out_read": done.held_out.rows_read if done.held_out else 0,
            "held_out_quarantined": done.held_out.rows_quarantined if done.held_out else 0,
            "held_out_pairs": done.held_out.pairs if done.held_out else 0,
        },
        "training": {
            "updates": done.report.steps,
            "resumed_at": done.report.resumed_at,
            "pairs_trained": done.report.pairs_trained,
            "workers": setting.policy.group.workers,
            "precision": setting.policy.precision,
            "attention": f"{setting.policy.attention.backend}: {setting.policy.attention.reason}",
            "tokens_per_micro_batch": setting.policy.cut.tokens,
        },
        "reference": {
            "identity": done.store.digest,
            "completions_scored": done.scoring.completions_scored,
            "completions_reused": done.scoring.completions_reused,
            "first_loss": first.get("loss"),
            "first_loss_warning": check_first_loss(setting, first.get("loss")),
            "drift_mean": first.get("reference_drift/mean"),
            "drift_max": first.get("reference_drift/max"),
        },
        "metrics": training[-1] if training else {},
        "evaluation": {"before": evaluations[0], "after": evaluations[-1]} if evaluations else {},
        "seconds": {stage: round(spent, 1) for stage, spent in seconds.items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    setting.run_dir.write_summary(summary)
    return summary


def check_first_loss(setting: Setting, first_loss: float | None) -> str:
    """What is wrong where a policy that starts as its own reference does not begin with the loss it must; else nothing.

    For sigmoid that is -log sigmoid(0) = ln 2, for any beta and label_smoothing (Rafailov et al. 2023, eq. 7).
    """
    expected = at_reference(setting.job.loss)
    if first_loss is None or expected is None or setting.reference.source != setting.policy.source:
        return ""
    tolerance = FIRST_LOSS_TOLERANCE[setting.policy.precision] * max(1.0, abs(expected))
    if abs(first_loss - expected) <= tolerance:
        return ""
    return (
        f"the first loss is {first_loss:.6f} and not {expected:.6f} to {tolerance:g}, so the policy does not "
        "compute what its reference did: look for other numerics on the reference's nodes (GPU type, attention "
        "implementation, versions), or for dropout that is left on"
    )


def tell(summary: Mapping[str, Any]) -> None:
    """Print what came of the run, and where it lies."""
    rows, reference, metrics = summary["rows"], summary["reference"], summary["metrics"]
    print()
    print(f"{'Rows':<12} {rows['read']:,} read = {rows['pairs']:,} pairs + {rows['quarantined']:,} in quarantine")
    if rows["reasons"]:
        print(f"{'':<12} in quarantine: {', '.join(f'{count:,} {why}' for why, count in rows['reasons'].items())}")
    if reference["identity"] == NoReference.digest:
        print(f"{'Reference':<12} none: the objective takes none")
    else:
        print(
            f"{'Reference':<12} {reference['completions_scored']:,} completions scored, "
            f"{reference['completions_reused']:,} reused (identity {reference['identity']})"
        )
    if reference["first_loss"] is not None:
        print(
            f"{'First loss':<12} {reference['first_loss']:.6f}; policy against reference "
            f"{reference['drift_mean']:.1e} a token on average, {reference['drift_max']:.1e} at most"
        )
    if reference["first_loss_warning"]:
        print(f"warning: {reference['first_loss_warning']}")
    if metrics:
        print(
            f"{'Last':<12} loss {metrics['loss']:.4f}, reward accuracy {metrics['rewards/accuracies']:.3f}, "
            f"margin {metrics['rewards/margins']:.3f}"
        )
    if summary["evaluation"]:
        before, after = summary["evaluation"]["before"], summary["evaluation"]["after"]
        print(
            f"{'Held out':<12} loss {before['eval_loss']:.4f} -> {after['eval_loss']:.4f}, reward accuracy "
            f"{before['eval_rewards/accuracies']:.3f} -> {after['eval_rewards/accuracies']:.3f}, margin "
            f"{before['eval_rewards/margins']:.3f} -> {after['eval_rewards/margins']:.3f}"
        )
    print(f"{'Model':<12} {summary['model']}")
    print(f"{'All else':<12} {summary['output_dir']} (summary.json, metrics.jsonl, ledger/, quarantine/, checkpoints/)")
