"""How long a run is, in updates and in pairs."""

from dataclasses import dataclass

from raydpo.batching.order import position_of, steps_per_epoch


@dataclass(frozen=True)
class Schedule:
    """Length of a run. A position counts pairs since the start of the run."""

    pairs: int
    """Number of pairs per epoch."""
    global_batch: int
    """Number of pairs per update; the last update of an epoch takes what is left."""
    total_steps: int
    """Number of updates in the run."""

    @staticmethod
    def from_options(pairs: int, global_batch: int, *, num_train_epochs: float, max_steps: int) -> "Schedule":
        """Return a run of `max_steps` updates if that is above 0, else of `num_train_epochs`, rounded up."""
        steps = max_steps if max_steps > 0 else -int(-num_train_epochs * steps_per_epoch(pairs, global_batch) // 1)
        return Schedule(pairs, global_batch, steps)

    @staticmethod
    def one_epoch(pairs: int, global_batch: int) -> "Schedule":
        """Return the schedule of a single pass over the pairs, as evaluation makes it."""
        return Schedule(pairs, global_batch, steps_per_epoch(pairs, global_batch))

    @property
    def steps_per_epoch(self) -> int:
        """Number of updates per epoch."""
        return steps_per_epoch(self.pairs, self.global_batch)

    @property
    def end(self) -> int:
        """Position after the last update."""
        return self.position_after(self.total_steps)

    def position_after(self, step: int) -> int:
        """Return the position after update `step` (counted from 1)."""
        return position_of(step, self.pairs, self.global_batch)

    def ends_epoch(self, position: int) -> bool:
        """Return whether a position lies between two epochs."""
        return position % self.pairs == 0
