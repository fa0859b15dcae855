"""Column names, and the records that pass from one stage to the next."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Columns of the tokenized blocks and of their scores. The names are those of TRL's DPOTrainer.
PAIR_ID = "pair_id"
PROMPT_IDS = "prompt_ids"
CHOSEN_IDS = "chosen_ids"
REJECTED_IDS = "rejected_ids"
REF_CHOSEN_LOGPS = "ref_chosen_logps"
REF_REJECTED_LOGPS = "ref_rejected_logps"

TOKENIZED_SCHEMA = pa.schema(
    [
        pa.field(PAIR_ID, pa.string(), nullable=False),
        pa.field(PROMPT_IDS, pa.list_(pa.int32()), nullable=False),
        pa.field(CHOSEN_IDS, pa.list_(pa.int32()), nullable=False),
        pa.field(REJECTED_IDS, pa.list_(pa.int32()), nullable=False),
    ]
)
"""A tokenized pair: `prompt_ids + chosen_ids` and `prompt_ids + rejected_ids` are the two sequences."""

SCORES_SCHEMA = pa.schema(
    [
        pa.field(REF_CHOSEN_LOGPS, pa.list_(pa.float32()), nullable=False),
        pa.field(REF_REJECTED_LOGPS, pa.list_(pa.float32()), nullable=False),
    ]
)
"""The reference's log-prob of each completion token (natural log), row by row as in the tokenized block."""

DATASET_LOGPS_SCHEMA = pa.schema([*TOKENIZED_SCHEMA, *SCORES_SCHEMA])
"""A tokenized pair with the scores that its row carries."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """Up to `block_pairs` tokenized pairs of one shard: the unit of scoring, of retry and of the shuffle window."""

    content: str
    """SHA-256 (hex) of the pairs' token ids: what the scores depend on, and the name of the block's file."""
    shard: str
    """Name of the shard the rows came from, unique in the run."""
    index: int
    """Position among the blocks of that shard, from 0."""
    pairs: int
    """Good pairs in the block (at least 1)."""
    tokens: int
    """Tokens in the block: prompt + chosen + rejected, each prompt counted once."""
    url: str
    """Where the tokenized Parquet file lies."""
    rows: tuple[int, ...] | None = None
    """Of a part of a block: its rows in the file, in order. None: all of them."""

    def part(self, rows: Sequence[int]) -> "Block":
        """Some rows of the block, given in order, as a block with scores of its own; the block itself if it is all."""
        if len(rows) == self.pairs:
            return self
        content = hashlib.sha256(f"{self.content}:{','.join(map(str, rows))}".encode()).hexdigest()
        return replace(self, content=content, pairs=len(rows), rows=tuple(rows))


@dataclass(frozen=True)
class TokenizedPair:
    """A pair as the reference takes it: token ids, each [tokens]."""

    pair_id: str
    prompt_ids: IntArray
    chosen_ids: IntArray
    rejected_ids: IntArray

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True)
class ScoredPair(TokenizedPair):
    """A pair as training takes it: with the reference's log-prob of each completion token, each [tokens]."""

    ref_chosen_logps: FloatArray
    ref_rejected_logps: FloatArray
