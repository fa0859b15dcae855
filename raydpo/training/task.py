"""What the driver tells the train workers, and what rank 0 says at the end."""

from dataclasses import dataclass
from typing import Any

from raydpo.config import JobConfig
from raydpo.feed.schedule import Schedule
from raydpo.models.attention.choice import AttentionChoice
from raydpo.models.source import ModelSource
from raydpo.tr_dpo.schedule import SyncPlan


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
