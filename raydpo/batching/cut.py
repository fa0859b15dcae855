"""How pairs become micro-batches, for the scorer and the trainer alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from raydpo.batching.planner import plan
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

    def of(self, pairs: Sequence[TokenizedPair], ranks: int) -> list[list[list[Tree]]]:
        """Of each rank the micro-batches, each as the trees in it; an empty one is a dummy forward."""
        # A tree goes to one rank as a whole: with more than a share of the pairs, it would leave other ranks idle.
        trees = grow(pairs, self.tokens, max_pairs=1 if self.padded else -(-len(pairs) // ranks))
        plans = plan(trees, ranks, self.tokens, self.work, padded=self.padded)
        return [[[trees[index] for index in group] for group in rank_plan] for rank_plan in plans]
