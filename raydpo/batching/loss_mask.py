"""Loss masks (`loss_on` assistant): leaving the masked tokens of completions out of a micro-batch's targets.

A masked token is an input of the forward, and no log-prob of it is computed or counted.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raydpo.batching.micro_batch import MicroBatch
from raydpo.blocks.schema import BoolArray, IntArray, TokenizedPair, targets_of


def joint_mask(members: Sequence[TokenizedPair]) -> BoolArray | None:
    """Return the loss masks of the pairs' 2B completions, [their tokens]; None if no pair has a mask.

    The order is that of `MicroBatch.target_index`: the chosen completions of all pairs, then the rejected ones.
    """
    sides = [(pair.chosen_ids, pair.chosen_loss_mask) for pair in members]
    sides += [(pair.rejected_ids, pair.rejected_loss_mask) for pair in members]
    if all(mask is None for _, mask in sides):
        return None
    return np.concatenate([targets_of(mask, len(ids)) for ids, mask in sides])


def without_masked(batch: MicroBatch, mask: BoolArray) -> MicroBatch:
    """Return the micro-batch without the entries of `target_index` whose `mask` [M] is false.

    Targets that no pair needs afterwards are left out of the N targets too, so that no logits are computed for them. A
    completion that two pairs have in common, but with different masks, keeps the targets of both.
    """
    target_index = batch.target_index[mask]
    kept = np.zeros(len(batch.targets), dtype=np.bool_)
    kept[target_index] = kept[batch.prompt_target_index] = True
    renumbered = np.cumsum(kept) - 1
    return replace(
        batch,
        predictors=batch.predictors[kept],
        target_positions=batch.target_positions[kept],
        targets=batch.targets[kept],
        target_index=renumbered[target_index],
        sequence_index=batch.sequence_index[mask],
        prompt_target_index=renumbered[batch.prompt_target_index],
    )


def count_masked(uses: Sequence[tuple[int, IntArray, BoolArray | None]]) -> int:
    """Return the number of tokens of distinct completions that are masked in every use.

    A use is the index of a completion among the distinct ones, its token ids, and the loss mask of the pair that has
    it.
    """
    if all(mask is None for *_, mask in uses):
        return 0
    targets: dict[int, BoolArray] = {}
    for completion, ids, mask in uses:
        targets[completion] = targets.get(completion, np.zeros(len(ids), dtype=np.bool_)) | targets_of(mask, len(ids))
    return sum(int(np.count_nonzero(~mask)) for mask in targets.values())
