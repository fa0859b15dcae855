"""What the driver tells the train workers, and what rank 0 says at the end."""

from dataclasses import dataclass
from typing import Any

from raydpo.batching.order import SyncSchedule, position_of, steps_per_epoch
from raydpo.config import JobConfig
from raydpo.models.attention import AttentionChoice
from raydpo.models.source import ModelSource
from raydpo.reference.identity import ReferenceIdentity


@dataclass(frozen=True)
class Schedule:
    """How long a run is; a position counts pairs since its start."""

    pairs: int
    """Pairs an epoch."""
    global_batch: int
    """Pairs an update."""
    total_steps: int
    """Updates in all."""

    @staticmethod
    def of(pairs: int, global_batch: int, *, num_train_epochs: float, max_steps: int) -> "Schedule":
        """`max_steps` where it is set, else the updates of `num_train_epochs` (rounded up), as Hugging Face counts."""
        steps = max_steps if max_steps > 0 else -int(-num_train_epochs * steps_per_epoch(pairs, global_batch) // 1)
        return Schedule(pairs, global_batch, steps)

    @staticmethod
    def one_epoch(pairs: int, global_batch: int) -> "Schedule":
        """One pass, as evaluation makes it."""
        return Schedule(pairs, global_batch, steps_per_epoch(pairs, global_batch))

    @property
    def steps_per_epoch(self) -> int:
        """Updates an epoch."""
        return steps_per_epoch(self.pairs, self.global_batch)

    @property
    def end(self) -> int:
        """Position after the last update."""
        return self.position_after(self.total_steps)

    def position_after(self, step: int) -> int:
        """Position after an update."""
        return position_of(step, self.pairs, self.global_batch)

    def ends_epoch(self, position: int) -> bool:
        """True where a position lies between two epochs."""
        return position % self.pairs == 0


@dataclass(frozen=True)
class SyncPlan:
    """TR-DPO: how the reference takes after the policy."""

    schedule: SyncSchedule
    alpha: float
    """The policy's share of the new reference (`ref_model_mixup_alpha`)."""
    source: ModelSource
    """The first reference."""
    adapter: ModelSource | None
    """The LoRA adapter on it."""
    identity: ReferenceIdentity
    """Of both."""
    lora: bool
    """True where the policy is a LoRA adapter on the same base."""
    kept: int | None
    """References to keep, the newest: those that checkpoints go on with. None: all."""

    @property
    def fingerprint(self) -> dict[str, str]:
        """What a checkpoint must share."""
        return {"reference sync": f"{self.alpha:g} every {self.schedule.every} updates"}


@dataclass(frozen=True)
class TrainTask:
    """All that a train worker needs; the same for each of them."""

    job: JobConfig
    source: ModelSource
    adapter: ModelSource | None
    """The LoRA adapter that training goes on from."""
    precision: str
    """float32, bfloat16 or float16."""
    attention: AttentionChoice
    gpu: bool
    schedule: Schedule
    feed: Any
    """Handle of the actor that gives training batches."""
    eval_feed: Any
    """Handle of the actor that gives held-out batches, or None."""
    eval_schedule: Schedule | None
    drift_tolerance: float | None
    """Mean |policy - reference| a token, in nats, past which the first update is not made; None: no limit."""
    run_dir: str
    """Absolute path that every node sees."""
    fingerprint: dict[str, str]
    """Digests of reference and data, which a checkpoint must share."""
    sync: SyncPlan | None
    """How the reference takes after the policy; None where it stays as it is."""


@dataclass(frozen=True)
class TrainReport:
    """What rank 0 says when training is over."""

    steps: int
    """Updates of the run, those before a resume counted in."""
    resumed_at: int
    """Updates that a checkpoint had already."""
    pairs_trained: int
    """Pairs since the start of the run; a pair counts once an epoch."""
    reference: str | None
    """With a reference that changes: digest of the one in force at the end."""
    syncs: int
    """How often it changed."""
    model_dir: str
