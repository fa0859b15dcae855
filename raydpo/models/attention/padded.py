"""Converting a packed row to one padded row per completion, for models that cannot share a prompt."""

from dataclasses import dataclass

import numpy as np

from raydpo.batching.flops import padded_width
from raydpo.batching.micro_batch import Layout, MicroBatch
from raydpo.blocks.schema import IntArray


@dataclass(frozen=True)
class PaddedRows:
    """A micro-batch as R rows of W tokens, each a prompt with one completion, padded on the right."""

    input_ids: IntArray
    """[R, W]: token ids, padded with 0, which the attention mask hides."""
    attention_mask: IntArray
    """[R, W]: 1 for a token, 0 for padding."""
    multiplicity: IntArray
    """[R, W]: number of the 2B sequences that contain the row's completion; 0 for padding."""
    predictors: IntArray
    """[N]: index into the flattened R * W tokens of the token that predicts each of `MicroBatch.targets`."""


@dataclass(frozen=True)
class RowSpan:
    """The completion of a padded row."""

    prompt: int
    """Index of its prompt in the layout."""
    start: int
    """Index of the completion's first token in the packed row."""
    stop: int
    """Index after its last token in the packed row."""


def row_spans(layout: Layout) -> list[RowSpan]:
    """Return the completion of each padded row, in the order of the layout; a layout without any has no rows here."""
    return [RowSpan(prompt, start, stop) for start, stop, prompt in layout.completions]


def to_padded_rows(batch: MicroBatch) -> PaddedRows:
    """Return one row per completion, in the order of the layout.

    A batch without completions gives one row with one visible token.
    """
    spans, lengths = _spans(batch), row_lengths(batch)
    width = padded_width(max(lengths))
    input_ids, attention_mask, multiplicity = (np.zeros((len(spans), width), dtype=np.int64) for _ in range(3))
    for row, ((begin, end, start, stop), length) in enumerate(zip(spans, lengths, strict=True)):
        input_ids[row, :length] = np.concatenate([batch.input_ids[begin:end], batch.input_ids[start:stop]])
        attention_mask[row, :length] = 1
        multiplicity[row, :length] = batch.multiplicity[start] if stop > start else 0
    return PaddedRows(input_ids, attention_mask, multiplicity, _predictors(batch, width))


def row_lengths(batch: MicroBatch) -> list[int]:
    """Return the number of tokens of each row, without padding."""
    return [end - begin + stop - start for begin, end, start, stop in _spans(batch)]


def _spans(batch: MicroBatch) -> list[tuple[int, int, int, int]]:
    """Return, for each row, the span of its prompt and that of its completion in the packed row."""
    layout = batch.layout
    return [(*layout.prompts[prompt], start, stop) for start, stop, prompt in layout.completions] or [(0, 1, 0, 0)]


def _predictors(batch: MicroBatch, width: int) -> IntArray:
    """Return the index into the flattened rows of `width` tokens of each target's predictor, the token before it.

    A prompt's own targets are predicted in the row of its first completion.
    """
    layout = batch.layout
    place = np.zeros(len(batch.input_ids), dtype=np.int64)  # of each token of the packed row in the flattened rows
    for row, (start, stop, prompt) in reversed(list(enumerate(layout.completions))):
        begin, end = layout.prompts[prompt]
        place[begin:end] = np.arange(row * width, row * width + end - begin)
        place[start:stop] = np.arange(row * width + end - begin, row * width + end - begin + stop - start)
    return place[batch.target_positions] - 1
