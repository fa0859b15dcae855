"""When and how the reference is synced towards the policy (TR-DPO)."""

from dataclasses import dataclass

from raydpo.batching.order import position_of, step_of
from raydpo.models.source import ModelSource
from raydpo.reference.identity import ReferenceIdentity


@dataclass(frozen=True)
class SyncSchedule:
    """When the reference takes after the policy: a window of updates lies between one time and the next."""

    every: int
    """Updates of a window (`ref_model_sync_steps`)."""
    total_steps: int
    """Updates of the run, with which the last window ends."""

    def window(self, position: int, pairs: int, global_batch: int) -> tuple[int, int]:
        """The positions (first, and after the last) of the window that the batch at a position is in."""
        first = step_of(position, pairs, global_batch) // self.every * self.every
        last = min(first + self.every, self.total_steps)
        return position_of(first, pairs, global_batch), position_of(last, pairs, global_batch)


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
