"""What the driver hands to the train workers, and what rank 0 reports at the end.

Imports neither torch nor ray: Ray Train's controller unpickles a `TrainTask` before it asks for workers.
"""

import math
from dataclasses import dataclass
from typing import Any

from raydpo.config import JobConfig
from raydpo.feed.handle import FeedHandle
from raydpo.feed.schedule import Schedule
from raydpo.models.plan import ModelPlan
from raydpo.tr_dpo.schedule import SyncPlan


@dataclass(frozen=True)
class EvalSet:
    """One set of held-out pairs."""

    name: str
    """Name that the user gave it; empty for the set without a name."""
    feed: FeedHandle
    schedule: Schedule

    @property
    def prefix(self) -> str:
        """What its metrics begin with, as in Hugging Face's Trainer: eval_, or eval_NAME_."""
        return f"eval_{self.name}_" if self.name else "eval_"


@dataclass(frozen=True)
class TrainTask:
    """Everything that a train worker needs; the same for each of them."""

    job: JobConfig
    policy: ModelPlan
    deepspeed_config: dict[str, Any]
    schedule: Schedule
    feed: FeedHandle
    """Feed of the training pairs."""
    eval_sets: tuple[EvalSet, ...]
    """The sets of held-out pairs; empty without any."""
    drift_tolerance: float | None
    """Largest mean |policy - reference| per token, in nats, with which the first update is made; None: no limit."""
    run_dir: str
    """Absolute path of output_dir, which every node sees."""
    fingerprint: dict[str, str]
    """Digests of reference and data, which a checkpoint and the run that resumes from it must have in common."""
    sync: SyncPlan | None
    """How the reference is synced towards the policy; None if it never changes."""
    chat_template: str | None = None
    """Chat template that replaces the tokenizer's in exports; None: its own."""

    def logging_due(self, step: int) -> bool:
        """Return whether update `step` gets a line of metrics."""
        run = self.job.run
        first = run.logging_first_step and step == 1
        return first or self._is_last(step) or self._due(run.logging_strategy, step, run.logging_steps)

    def evaluation_due(self, step: int) -> bool:
        """Return whether the held-out pairs are evaluated after update `step`; the last update always is followed."""
        optim = self.job.optim
        return self._is_last(step) or self._due(optim.eval_strategy, step, optim.eval_steps or 1)

    def checkpoint_due(self, step: int, *, synced: bool) -> bool:
        """Return whether a checkpoint is written after update `step`: also after the last, and after a sync."""
        run = self.job.run
        extra = run.save_strategy != "no" and (synced or self._is_last(step))
        return extra or self._due(run.save_strategy, step, run.save_steps)

    def sync_due(self, step: int) -> bool:
        """Return whether the reference is synced after update `step`."""
        return self.sync is not None and self.sync.due(step)

    def _is_last(self, step: int) -> bool:
        return step == self.schedule.total_steps

    def _due(self, strategy: str, step: int, every: float) -> bool:
        """Return whether a strategy (no, steps or epoch) names update `step`.

        `every` below 1 is a share of all updates, rounded up, as in transformers' Trainer.
        """
        if every < 1:
            every = math.ceil(every * self.schedule.total_steps)
        ends_epoch = self.schedule.ends_epoch(self.schedule.position_after(step))
        return {"no": False, "steps": step % every == 0, "epoch": ends_epoch}[strategy]


@dataclass(frozen=True)
class TrainReport:
    """What rank 0 reports when training is over."""

    steps: int
    """Number of updates of the run, including those before a resume."""
    resumed_at: int
    """Number of updates that the checkpoint already had; 0 for a run from the start."""
    pairs_trained: int
    """Number of pairs trained on since the start of the run; a pair counts once per epoch."""
    reference: str | None
    """Digest of the version of the reference in force at the end; None if it never changes."""
    syncs: int
    """Number of syncs of the reference."""
    model_dir: str
    """Folder of the trained model or adapter."""
    forward_check: dict[str, Any]
    """How far the policy's log-probs were from those of its own forward (`models.forward_check`), for summary.json."""
