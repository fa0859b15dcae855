"""Pairs to the padded arrays that one forward takes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raydpo.schema import IntArray, MicroBatch, ScoredPair, TokenizedPair

PAD_TO_MULTIPLE = 8
"""Rows are padded to a multiple of this many tokens: matrix units want it, and allocators see fewer shapes."""


def collate(pairs: Sequence[TokenizedPair], *, with_prompts: bool = False) -> MicroBatch:
    """B pairs as 2B right-padded rows, the B chosen first (see `MicroBatch`); without pairs, a dummy of one row.

    `with_prompts` makes the tokens of the chosen rows' prompts targets too.
    """
    sequences = [np.concatenate([pair.prompt_ids, pair.chosen_ids]) for pair in pairs]
    sequences += [np.concatenate([pair.prompt_ids, pair.rejected_ids]) for pair in pairs]
    prompts = [len(pair.prompt_ids) for pair in pairs]
    rows = max(len(sequences), 1)
    longest = max((len(sequence) for sequence in sequences), default=1)
    width = -(-longest // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
    input_ids = np.zeros((rows, width), dtype=np.int64)
    attention_mask = np.zeros((rows, width), dtype=np.int64)
    attention_mask[:, 0] = 1  # a row that attends to nothing gives nan in some kernels: the dummy sees one token
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
        attention_mask[row, : len(sequence)] = 1
    # The token before a token predicts it: the last prompt token predicts the first completion token.
    spans = [
        (row, prompt - 1, len(sequence) - 1)
        for row, (sequence, prompt) in enumerate(zip(sequences, prompts * 2, strict=True))
    ]
    prompt_spans = [(row, 0, prompt - 1) for row, prompt in enumerate(prompts)] if with_prompts else []
    predictors = _positions(spans + prompt_spans, width)
    return MicroBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        predictors=predictors,
        targets=input_ids.reshape(-1)[predictors + 1],
        completion=_owners(spans),
        prompt=_owners(prompt_spans),
        ref_logps=np.zeros(0, dtype=np.float32),
        pair_ids=tuple(pair.pair_id for pair in pairs),
    )


def collate_scored(pairs: Sequence[ScoredPair], *, with_prompts: bool = False) -> MicroBatch:
    """As `collate`, with the reference's log-probs in the order of the completion tokens."""
    batch = collate(pairs, with_prompts=with_prompts)
    scores = [pair.ref_chosen_logps for pair in pairs] + [pair.ref_rejected_logps for pair in pairs]
    return replace(batch, ref_logps=np.concatenate(scores)) if pairs else batch


def _positions(spans: Sequence[tuple[int, int, int]], width: int) -> IntArray:
    """The flat indices of spans (row, first, stop) in rows of `width`."""
    parts = [np.arange(row * width + first, row * width + stop, dtype=np.int64) for row, first, stop in spans]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _owners(spans: Sequence[tuple[int, int, int]]) -> IntArray:
    """The row of each position of the spans."""
    rows = np.array([row for row, _, _ in spans], dtype=np.int64)
    return np.repeat(rows, [stop - first for _, first, stop in spans]) if spans else rows
