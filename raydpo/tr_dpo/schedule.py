"""When and how the reference is synced towards the policy (TR-DPO). Imports no torch, as the feed imports it."""

from dataclasses import dataclass

from raydpo.batching.order import position_of, step_of
from raydpo.models.source import ModelSource
from raydpo.reference.identity import ReferenceIdentity


@dataclass(frozen=True)
class SyncSchedule:
    """Divides a run into sync intervals: the updates between one sync of the reference and the next."""

    every: int
    """Number of updates in a sync interval (`ref_model_sync_steps`)."""
    total_steps: int
    """Number of updates in the run; the last interval ends with them."""

    def interval(self, position: int, pairs: int, global_batch: int) -> tuple[int, int]:
        """Return the positions (start, stop) of the sync interval of the global batch at `position`.

        Positions count pairs since the start of the run; `pairs` is the size of an epoch.
        """
        first = step_of(position, pairs, global_batch) // self.every * self.every
        last = min(first + self.every, self.total_steps)
        return position_of(first, pairs, global_batch), position_of(last, pairs, global_batch)


@dataclass(frozen=True)
class SyncPlan:
    """How the reference is synced towards the policy in this run."""

    schedule: SyncSchedule
    alpha: float
    """The policy's share of the new reference (`ref_model_mixup_alpha`)."""
    source: ModelSource
    """Model of the first reference."""
    adapter: ModelSource | None
    """LoRA adapter of the first reference; None without one."""
    identity: ReferenceIdentity
    """Identity of the first reference, its adapter included."""
    lora: bool
    """Whether the policy is a LoRA adapter on the reference's base model."""
    kept: int | None
    """Number of newest versions to keep, which are those that checkpoints resume with; None keeps all."""
    after_last: bool
    """Whether a sync after the last update has a use: a final evaluation or a checkpoint reads its version."""

    @property
    def fingerprint(self) -> dict[str, str]:
        """What a checkpoint and the run that resumes from it must have in common."""
        return {"reference sync": f"{self.alpha:g} every {self.schedule.every} updates"}

    def due(self, step: int) -> bool:
        """Return whether the reference is synced after update `step` (counted from 1)."""
        return step % self.schedule.every == 0 and (self.after_last or step != self.schedule.total_steps)

    def syncs_until(self, step: int) -> int:
        """Return the number of syncs in the first `step` updates."""
        return sum(map(self.due, range(1, step + 1)))

    def steps_of_interval(self, step: int) -> range:
        """Return the steps after which an evaluation reads the version in force after update `step`.

        A sync comes before the evaluation of the same step, so the step that ends the interval is left out, except
        the last of the run.
        """
        stop = (step // self.schedule.every + 1) * self.schedule.every
        return range(step, min(stop, self.schedule.total_steps + 1))
