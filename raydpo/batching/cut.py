"""How pairs become micro-batches, for the scorer and the trainer alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from raydpo.batching.planner import RankPlan, plan
from raydpo.batching.trees import Tree, grow
from raydpo.batching.work import Work
from raydpo.schema import TokenizedPair


@dataclass(frozen=True)
class Cut:
    """What micro-batches are like; it changes the speed of a forward, and its result by no more than rounding."""

    tokens: int
    """Tokens of a micro-batch, each prompt counted once; only a single pair may have more."""
    work: Work
    """What micro-batches and ranks are balanced by."""
    padded: bool
    """True where the model cannot share prompts, so that each completion becomes a padded row of its own."""
    multiple: int = 1
    """Packed rows are filled up to a multiple of this many tokens."""

    def of(self, pairs: Sequence[TokenizedPair], ranks: int) -> tuple[list[Tree], list[RankPlan]]:
        """The pairs as trees, and each rank's micro-batches as lists of indices into these."""
        # A tree goes to one rank as a whole: with more than a share of the pairs, it would leave other ranks idle.
        trees = grow(pairs, self.tokens, max_pairs=1 if self.padded else -(-len(pairs) // ranks))
        return trees, plan(trees, ranks, self.tokens, self.work, padded=self.padded)
