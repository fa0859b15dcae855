"""Pairs to the padded arrays that one forward takes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raydpo.schema import IntArray, MicroBatch, ScoredPair, TokenizedPair

PAD_TO_MULTIPLE = 8
"""Rows are padded to a multiple of this many tokens: matrix units want it, and allocators see fewer shapes."""


def collate(pairs: Sequence[TokenizedPair]) -> MicroBatch:
    """B pairs as 2B right-padded rows, the B chosen first (see `MicroBatch`); without pairs, a dummy of one row."""
    sequences = [np.concatenate([pair.prompt_ids, pair.chosen_ids]) for pair in pairs]
    sequences += [np.concatenate([pair.prompt_ids, pair.rejected_ids]) for pair in pairs]
    completions = [len(pair.chosen_ids) for pair in pairs] + [len(pair.rejected_ids) for pair in pairs]
    rows = max(len(sequences), 1)
    longest = max((len(sequence) for sequence in sequences), default=1)
    width = -(-longest // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
    input_ids = np.zeros((rows, width), dtype=np.int64)
    attention_mask = np.zeros((rows, width), dtype=np.int64)
    attention_mask[:, 0] = 1  # a row that attends to nothing gives nan in some kernels: the dummy sees one token
    predictors: list[IntArray] = []
    for row, (sequence, tokens) in enumerate(zip(sequences, completions, strict=True)):
        input_ids[row, : len(sequence)] = sequence
        attention_mask[row, : len(sequence)] = 1
        first = row * width + len(sequence) - tokens - 1  # the last prompt token predicts the first completion token
        predictors.append(np.arange(first, first + tokens, dtype=np.int64))
    positions = np.concatenate(predictors) if predictors else np.zeros(0, dtype=np.int64)
    return MicroBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        predictors=positions,
        targets=input_ids.reshape(-1)[positions + 1],
        completion=np.repeat(np.arange(len(sequences), dtype=np.int64), completions),
        ref_logps=np.zeros(0, dtype=np.float32),
        pair_ids=tuple(pair.pair_id for pair in pairs),
    )


def collate_scored(pairs: Sequence[ScoredPair]) -> MicroBatch:
    """As `collate`, with the reference's log-probs in the order of the completion tokens."""
    scores = [pair.ref_chosen_logps for pair in pairs] + [pair.ref_rejected_logps for pair in pairs]
    return replace(collate(pairs), ref_logps=np.concatenate(scores)) if pairs else collate(pairs)
