"""FLOPs, compared with the visible positions of an attention mask and with the published formula."""

import numpy as np
import pytest

from raydpo.batching.flops import FlopsModel, padded_width, visible_pairs
from raydpo.batching.prefix_tree import PromptTree


def zeros(length: int) -> np.ndarray:
    return np.zeros(length, dtype=np.int64)


def tree(prompt: int, *completions: int) -> PromptTree:
    return PromptTree(zeros(prompt), tuple(map(zeros, completions)), (0,), (0,), (len(completions) - 1,))


def visible_in_mask(prompt: int, completions: tuple[int, ...], window: int | None) -> int:
    """Return the number of (query, key) pairs of a packed row that its attention mask shows."""
    lengths = (prompt, *completions)
    segment = np.repeat(np.arange(len(lengths)), lengths)
    starts = (0, *[prompt] * len(completions))
    position = np.concatenate([np.arange(length) + start for length, start in zip(lengths, starts, strict=True)])
    same_sequence = (segment[:, None] == segment[None, :]) | (segment[None, :] == 0)
    distance = position[:, None] - position[None, :]
    mask = same_sequence & (distance >= 0) & (distance < (window or len(segment)))
    return int(mask.sum())


@pytest.mark.parametrize("window", [None, 1, 3, 7, 50])
@pytest.mark.parametrize("shape", [(1, (1, 1)), (5, (4, 6)), (9, (2,)), (3, (8, 1, 5, 13)), (20, (3, 30))])
def test_attention_flops_count_the_visible_positions_of_the_mask(
    shape: tuple[int, tuple[int, ...]], window: int | None
) -> None:
    prompt, completions = shape
    flops = FlopsModel(0.0, 0.0, ((1.0, window),))
    assert flops.forward(tree(prompt, *completions)) == visible_in_mask(prompt, completions, window)


def test_flops_of_layers_with_and_without_a_window_are_summed() -> None:
    both = FlopsModel(0.0, 0.0, ((2.0, None), (10.0, 3)))
    assert both.forward(tree(5, 4, 6)) == 2 * visible_in_mask(5, (4, 6), None) + 10 * visible_in_mask(5, (4, 6), 3)


def test_the_body_computes_all_tokens_and_the_head_completion_tokens() -> None:
    assert FlopsModel(1.0, 0.0, ()).forward(tree(5, 4, 6)) == 15
    assert FlopsModel(0.0, 1.0, ()).forward(tree(5, 4, 6)) == 10


def test_padded_rows_are_computed_over_their_width() -> None:
    assert FlopsModel(1.0, 0.0, ()).forward_padded(tree(5, 4, 6), 16) == 32
    assert FlopsModel(0.0, 1.0, ()).forward_padded(tree(5, 4, 6), 16) == 10
    assert FlopsModel(0.0, 0.0, ((1.0, None),)).forward_padded(tree(5, 4, 6), 16) == 2 * visible_pairs(16)
    assert [padded_width(longest) for longest in (1, 8, 9, 16)] == [8, 8, 16, 16]


@pytest.mark.parametrize(("prompt", "chosen", "rejected"), [(166, 329, 298), (165, 78, 79), (2000, 10, 30)])
def test_flops_of_a_training_step_match_the_formula_of_mfu(prompt: int, chosen: int, rejected: int) -> None:
    parameters, hidden, layers, vocabulary = 3.6e8, 896, 24, 151_936
    flops = FlopsModel(2 * parameters, 2 * hidden * vocabulary, ((4 * hidden * layers, None),))
    tokens = prompt + chosen + rejected
    formula = 6 * parameters * tokens + 6 * hidden * vocabulary * (chosen + rejected)
    formula += 6 * hidden * layers * ((prompt + chosen) ** 2 + (prompt + rejected) ** 2 - prompt**2)
    # The formula counts half of the square; the causal triangle has half of the diagonal in addition.
    diagonal = 6 * hidden * layers * tokens
    counted = flops.update().forward(tree(prompt, chosen, rejected))
    assert counted == pytest.approx(formula + diagonal, rel=1e-12)
    assert counted == pytest.approx(formula, rel=1e-3)


def test_frozen_weights_need_no_weight_gradient() -> None:
    assert FlopsModel(1.0, 10.0, ((100.0, None), (1000.0, 4))).update(frozen=True) == FlopsModel(
        2.0, 20.0, ((300.0, None), (3000.0, 4))
    )
