"""The layout of a packed row in the form that kernels need, compared token by token with the rule it implements."""

from itertools import product

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from raydpo.batching.micro_batch import Layout
from raydpo.models.attention.segments import Segments

CPU = torch.device("cpu")
# A prompt of 3 tokens with completions of 2 and 3, a prompt of 2 with a completion of 1, a prompt without one.
LAYOUT = Layout(prompts=((0, 3), (8, 10), (11, 13)), completions=((3, 5, 0), (5, 8, 0), (10, 11, 1)))
# Written by hand: for each token of the row, the tokens it sees, nearest first.
SEEN = [
    [0],
    [1, 0],
    [2, 1, 0],
    [3, 2, 1, 0],
    [4, 3, 2, 1, 0],
    [5, 2, 1, 0],
    [6, 5, 2, 1, 0],
    [7, 6, 5, 2, 1, 0],
    [8],
    [9, 8],
    [10, 9, 8],
    [11],
    [12, 11],
]


def seen(window: int | None) -> torch.Tensor:
    """Return [13, 13], True if a query sees a key; a window keeps only the nearest of these keys."""
    mask = torch.zeros(13, 13, dtype=torch.bool)
    for query, keys in enumerate(SEEN):
        mask[query, keys[:window]] = True
    return mask


@pytest.mark.parametrize("window", [None, 1, 2, 3, 5])
def test_a_block_mask_hides_what_a_token_does_not_see(window: int | None) -> None:
    block_mask = Segments(LAYOUT, CPU).block_mask(window)
    assert torch.equal(create_mask(block_mask.mask_mod, None, None, 13, 13, CPU)[0, 0], seen(window))


def test_sequences_for_varlen_have_the_keys_that_their_last_query_sees() -> None:
    index = Segments(LAYOUT, CPU).varlen
    assert index.cu_seq_q.tolist() == [0, 5, 8, 11, 13]
    assert index.cu_seq_k.tolist() == [0, 5, 11, 14, 16]
    assert index.gather is not None
    assert index.gather.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12]
    assert (index.max_q, index.max_k) == (5, 6)
    assert index.cu_seq_q.dtype == index.cu_seq_k.dtype == torch.int32


def test_nothing_is_gathered_if_no_prompt_is_shared() -> None:
    index = Segments(Layout(prompts=((0, 3), (5, 7)), completions=((3, 5, 0),)), CPU).varlen
    assert index.gather is None
    assert index.cu_seq_q.tolist() == index.cu_seq_k.tolist() == [0, 5, 7]


def test_a_window_that_no_sequence_exceeds_is_none() -> None:
    segments = Segments(LAYOUT, CPU)  # its longest sequence has 6 tokens
    assert [segments.window(size) for size in (None, 7, 6, 5)] == [None, None, None, 5]


def test_a_mask_is_lower_right_and_the_causal_square_needs_none() -> None:
    segments = Segments(LAYOUT, CPU)
    assert segments.mask(5, 5, None) is None
    assert segments.mask(5, 5, 5) is None
    for (queries, keys), window in product([(2, 5), (3, 3), (1, 4)], [None, 2, 4]):
        mask = segments.mask(queries, keys, window)
        for query, key in product(range(queries), range(keys)):
            distance = (query + keys - queries) - key  # number of positions from the key to the query
            assert (mask is None and queries == keys) or mask[query, key] == (0 <= distance < (window or keys))


@pytest.mark.parametrize(
    "layout",
    [
        Layout(prompts=((0, 3),), completions=((4, 6, 0),)),
        Layout(prompts=((0, 3), (5, 8)), completions=((8, 9, 0), (3, 5, 0))),
        Layout(prompts=((1, 3),), completions=()),
    ],
)
def test_a_layout_with_gaps_or_overlaps_is_refused(layout: Layout) -> None:
    with pytest.raises(ValueError, match="contiguous and in order"):
        Segments(layout, CPU)


def test_a_dummy_row_is_one_segment() -> None:
    segments = Segments(Layout(prompts=((0, 1),), completions=()), CPU)
    assert (segments.tokens, segments.longest, segments.lengths) == (1, 1, [1])
