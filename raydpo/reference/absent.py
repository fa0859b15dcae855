"""What stands in the place of the reference's scores where none are scored: nothing, or what the rows carry."""

from dataclasses import dataclass

import numpy as np

from raydpo.reference.store import ScoredBlock, TokenizedBlock, scores_table
from raydpo.schema import Block


@dataclass(frozen=True)
class NoReference:
    """Reads blocks as `ReferenceStore` does; a reference that finds all completions alike."""

    digest: str = "none"
    """What a checkpoint holds in the place of the reference's identity."""

    def read(self, block: Block) -> ScoredBlock:
        """A block's pairs, with reference log-probs of 0."""
        tokenized = TokenizedBlock(block)
        pairs = [tokenized.pair(row) for row in range(len(tokenized))]
        chosen = [np.zeros(len(pair.chosen_ids), dtype=np.float32) for pair in pairs]
        rejected = [np.zeros(len(pair.rejected_ids), dtype=np.float32) for pair in pairs]
        return ScoredBlock(tokenized, scores_table(chosen, rejected), block.url)


@dataclass(frozen=True)
class GivenReference:
    """Reads blocks as `ReferenceStore` does; the scores are those that their rows carried."""

    digest: str = "given"
    """In the place of an identity: a block's content counts its scores."""

    def read(self, block: Block) -> ScoredBlock:
        """A block's pairs and scores."""
        tokenized = TokenizedBlock(block)
        return ScoredBlock(tokenized, tokenized.table, block.url)


Unscored = NoReference | GivenReference
