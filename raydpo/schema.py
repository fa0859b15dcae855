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

GIVEN_SCHEMA = pa.schema([*TOKENIZED_SCHEMA, *SCORES_SCHEMA])
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
class BadRow:
    """A row that cannot be trained on, as it stands in `quarantine/`."""

    shard: str
    row: int
    """From 1: the line in a JSONL file, the element of a JSON array, the row of a Parquet or Arrow file."""
    reason: str
    content: str
    """The row as text; undecodable bytes are escaped, long rows cut."""


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


@dataclass(frozen=True)
class Layout:
    """Where prompts and completions stand in a packed row of T tokens.

    Each token sees its own segment up to itself, and a completion sees its prompt beside. A prompt stands right before
    the first of its completions; positions go on from the prompt in each of them.
    """

    prompts: tuple[tuple[int, int], ...]
    """Of each prompt: index of its first token in the row, and after its last."""
    completions: tuple[tuple[int, int, int], ...]
    """Of each completion: first, after its last, and the index of its prompt."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward takes: B pairs in one packed row of T tokens, in which each prompt stands once, and each
    completion of it once, whichever pairs they are of.

    N tokens are predicted, M are counted: the tokens of the 2B completions (B chosen, then B rejected); and P more, of
    the pairs' prompts, where the objective counts their likelihood too (else P is 0). A rank that has no pair left in a
    global batch gets a batch with `pairs == 0` and a row of one token, so that all ranks make the same number of
    forwards (collectives in ZeRO-3 hang otherwise); its N is 0.
    """

    input_ids: IntArray
    """[T]"""
    position_ids: IntArray
    """[T]; position of the token in its prompt + completion, from 0."""
    uses: IntArray
    """[T]; in how many of the 2B sequences the token stands; 1 in a dummy, so that means over it are finite."""
    layout: Layout
    predictors: IntArray
    """[N]; the token in the row that predicts each target; the last of a prompt predicts its completions' first."""
    targets: IntArray
    """[N]; the completions' tokens, then, where they are wanted, the prompts' but the first of each."""
    tokens: IntArray
    """[M]; which of the N each token of the 2B completions is."""
    completion: IntArray
    """[M]; completion (0 .. 2B-1) that it belongs to; the tokens of one stand together and in order."""
    prompt_tokens: IntArray
    """[P]; which of the N each token of the pairs' prompts is."""
    prompt: IntArray
    """[P]; pair (0 .. B-1) that it belongs to."""
    ref_logps: FloatArray
    """[M]; the reference's log-prob of each completion token; [0] where the reference itself is being scored."""
    pair_ids: tuple[str, ...]
    """The B pairs."""

    @property
    def pairs(self) -> int:
        """B, or 0 for a rank's dummy batch."""
        return len(self.pair_ids)
