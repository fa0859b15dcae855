"""Column names and schemas of blocks, and the records that stages pass to each other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Columns of tokenized blocks and of their scores, named as in TRL's DPOTrainer.
PAIR_ID = "pair_id"
PROMPT_IDS = "prompt_ids"
CHOSEN_IDS = "chosen_ids"
REJECTED_IDS = "rejected_ids"
REF_CHOSEN_LOGPS = "ref_chosen_logps"
REF_REJECTED_LOGPS = "ref_rejected_logps"
CHOSEN_LOSS_MASK = "chosen_loss_mask"
REJECTED_LOSS_MASK = "rejected_loss_mask"
WEIGHT = "weight"
MARGIN = "margin"
IMAGES = "images"

TOKENIZED_SCHEMA = pa.schema(
    [
        pa.field(PAIR_ID, pa.string(), nullable=False),
        pa.field(PROMPT_IDS, pa.list_(pa.int32()), nullable=False),
        pa.field(CHOSEN_IDS, pa.list_(pa.int32()), nullable=False),
        pa.field(REJECTED_IDS, pa.list_(pa.int32()), nullable=False),
    ]
)
"""Columns of a tokenized pair, whose two sequences are `prompt_ids + chosen_ids` and `prompt_ids + rejected_ids`."""

SCORES_SCHEMA = pa.schema(
    [
        pa.field(REF_CHOSEN_LOGPS, pa.list_(pa.float32()), nullable=False),
        pa.field(REF_REJECTED_LOGPS, pa.list_(pa.float32()), nullable=False),
    ]
)
"""Columns of scores: the reference log-prob (natural log) of each completion token, one row per row of the block."""

DATASET_LOGPS_SCHEMA = pa.schema([*TOKENIZED_SCHEMA, *SCORES_SCHEMA])
"""Columns of a tokenized pair with the reference log-probs from its row of the dataset (`reference_from_dataset`)."""

LOSS_MASK_FIELDS = (
    pa.field(CHOSEN_LOSS_MASK, pa.list_(pa.bool_()), nullable=False),
    pa.field(REJECTED_LOSS_MASK, pa.list_(pa.bool_()), nullable=False),
)
"""Further columns of a block with masked tokens (`loss_on` assistant): whether each completion token is a target."""
EXTRAS_FIELDS = {name: pa.field(name, pa.float32(), nullable=False) for name in (WEIGHT, MARGIN)}
"""Columns that a block's file has after the others where rows have a weight other than 1 or a margin other than 0."""

IMAGES_TYPE = pa.list_(pa.string())
IMAGES_FIELD = pa.field(IMAGES, IMAGES_TYPE, nullable=False)
"""Last column of a block's file where prompts have images: the digest of each image, in the order of its tokens."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


def targets_of(mask: BoolArray | None, tokens: int) -> BoolArray:
    """Return whether each token of a completion is a target of the loss, [tokens]; without a mask, all of them are."""
    return np.ones(tokens, dtype=np.bool_) if mask is None else mask


@dataclass(frozen=True)
class Block:
    """Up to `block_pairs` tokenized pairs of one shard: the unit of scoring, of retries and of the shuffle window."""

    content: str
    """SHA-256 (hex) of the pairs' token ids. The scores depend on it, and it names the block's file."""
    shard: str
    """Name of the shard that the pairs come from, unique in the run."""
    index: int
    """Position of the block in its shard, from 0."""
    pairs: int
    """Number of valid pairs in the block (at least 1)."""
    tokens: int
    """Number of tokens in the block: prompt + chosen + rejected of each pair, with the prompt counted once."""
    url: str
    """Path or URL of the tokenized Parquet file."""
    rows: tuple[int, ...] | None = None
    """Rows of the file that form the block, in order, if it is a part of another block (None: all rows)."""
    loss_masks: str = ""
    """SHA-256 (hex) of the file's loss masks, on which training depends and the scores do not; empty without any."""
    weights: str = ""
    """SHA-256 (hex) of the weights in the block's file; empty if all are 1. The scores do not depend on it."""
    margins: str = ""
    """SHA-256 (hex) of the margins in the block's file; empty if all are 0. The scores do not depend on it."""
    images: str = ""
    """SHA-256 (hex) of the images of the block's prompts, of which `content` depends; empty without any."""

    def part(self, rows: Sequence[int]) -> "Block":
        """Return some rows of the block, given in order, as a block with scores of its own.

        Return the block itself if these are all of its rows.
        """
        if len(rows) == self.pairs:
            return self
        content = hashlib.sha256(f"{self.content}:{','.join(map(str, rows))}".encode()).hexdigest()
        return replace(self, content=content, pairs=len(rows), rows=tuple(rows))


@dataclass(frozen=True)
class TokenizedPair:
    """A pair as the reference model reads it: token ids, each [tokens]."""

    pair_id: str
    prompt_ids: IntArray
    chosen_ids: IntArray
    rejected_ids: IntArray
    chosen_loss_mask: BoolArray | None = field(default=None, kw_only=True)
    """[tokens]: whether each token of the chosen completion is a target of the loss; None: every token is."""
    rejected_loss_mask: BoolArray | None = field(default=None, kw_only=True)
    """[tokens]: the mask of the rejected completion's tokens; None: every token is a target."""
    images: tuple[str, ...] = field(default=(), kw_only=True)
    """Digest of each image of the prompt, in the order of its tokens."""

    @property
    def chosen_targets(self) -> int:
        """Number of tokens of the chosen completion that are targets of the loss."""
        mask = self.chosen_loss_mask
        return len(self.chosen_ids) if mask is None else int(np.count_nonzero(mask))

    @property
    def length(self) -> int:
        """Number of tokens of the longer of the two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True)
class ScoredPair(TokenizedPair):
    """A pair as training reads it: with the reference log-prob of each completion token, each [tokens]."""

    ref_chosen_logps: FloatArray
    ref_rejected_logps: FloatArray
    weight: float = 1.0
    """Weight of the pair's loss, from its row."""
    margin: float = 0.0
    """Margin of the pair, from its row, before `margin_scale`."""
