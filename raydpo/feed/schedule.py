"""How long a run is, in updates and in pairs."""

from dataclasses import dataclass

from raydpo.batching.order import position_of, steps_per_epoch


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
    def from_options(pairs: int, global_batch: int, *, num_train_epochs: float, max_steps: int) -> "Schedule":
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
