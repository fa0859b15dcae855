"""The loss masks of a block's pairs, as columns of its file, and their digest."""

import hashlib
from collections.abc import Sequence

from raydpo.blocks.schema import BoolArray, targets_of
from raydpo.data.tokenization import EncodedPair


def loss_masks(pairs: Sequence[EncodedPair]) -> list[list[BoolArray]]:
    """Return the loss masks of all chosen and of all rejected completions; none if every token is a target."""
    if all(pair.chosen_mask is None and pair.rejected_mask is None for pair in pairs):
        return []
    return [
        [targets_of(pair.chosen_mask, len(pair.chosen_ids)) for pair in pairs],
        [targets_of(pair.rejected_mask, len(pair.rejected_ids)) for pair in pairs],
    ]


def digest_of_masks(masks: Sequence[Sequence[BoolArray]]) -> str:
    """Return the SHA-256 (hex) of a block's loss masks, whose lengths are those of its tokens; empty without masks."""
    return hashlib.sha256(b"".join(mask.tobytes() for side in masks for mask in side)).hexdigest() if masks else ""
