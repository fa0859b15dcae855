"""Padded rows made from a packed row: one row per completion, and the new position of each target's predictor."""

import numpy as np

from raydpo.batching.micro_batch import Layout, MicroBatch
from raydpo.models.attention.padded import to_padded_rows

NONE = np.zeros(0, dtype=np.int64)


def micro_batch(row: list[int], multiplicity: list[int], layout: Layout, targets: list[int]) -> MicroBatch:
    """Return a micro-batch with only the values that padded rows are made from."""
    return MicroBatch(
        input_ids=np.array(row),
        position_ids=NONE,
        multiplicity=np.array(multiplicity),
        layout=layout,
        predictors=NONE,
        target_positions=np.array([row.index(token) for token in targets], dtype=np.int64),
        targets=np.array(targets, dtype=np.int64),
        target_index=NONE,
        sequence_index=NONE,
        prompt_target_index=NONE,
        prompt_pair_index=NONE,
        ref_logps=np.zeros(0, dtype=np.float32),
        pair_ids=("pair",),
    )


# Prompt 11 12 13 with completions 21 22 and 31 32 33 34 35 36, prompt 41 42 with completion 51, two padding tokens.
ROW = [11, 12, 13, 21, 22, 31, 32, 33, 34, 35, 36, 41, 42, 51, 0, 0]
LAYOUT = Layout(prompts=((0, 3), (11, 13), (14, 16)), completions=((3, 5, 0), (5, 11, 0), (13, 14, 1)))
MULTIPLICITY = [4, 4, 4, 3, 3, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0]
COMPLETIONS = [21, 22, 31, 32, 33, 34, 35, 36, 51]


def test_each_completion_has_a_row_padded_to_a_multiple_of_eight() -> None:
    rows = to_padded_rows(micro_batch(ROW, MULTIPLICITY, LAYOUT, COMPLETIONS))
    padding = [0] * 7
    assert rows.input_ids.tolist() == [
        [11, 12, 13, 21, 22, 0, 0, 0, *padding, 0],
        [11, 12, 13, 31, 32, 33, 34, 35, 36, *padding],
        [41, 42, 51, 0, 0, 0, 0, 0, 0, *padding],
    ]
    assert rows.attention_mask.tolist() == [[1] * 5 + [0] * 11, [1] * 9 + [0] * 7, [1] * 3 + [0] * 13]
    assert rows.multiplicity.tolist() == [[3] * 5 + [0] * 11, [1] * 9 + [0] * 7, [2] * 3 + [0] * 13]
    assert rows.predictors.tolist() == [2, 3, 18, 19, 20, 21, 22, 23, 33]


def test_prompts_that_are_targets_are_predicted_in_the_row_of_their_first_completion() -> None:
    rows = to_padded_rows(micro_batch(ROW, MULTIPLICITY, LAYOUT, [*COMPLETIONS, 12, 13, 42]))
    assert rows.predictors.tolist() == [2, 3, 18, 19, 20, 21, 22, 23, 33, 0, 1, 32]


def test_each_predictor_is_the_token_before_its_target() -> None:
    targets = [*COMPLETIONS, 12, 13, 42]
    rows = to_padded_rows(micro_batch(ROW, MULTIPLICITY, LAYOUT, targets))
    assert rows.input_ids.reshape(-1)[rows.predictors + 1].tolist() == targets


def test_a_batch_without_pairs_gives_one_visible_token() -> None:
    rows = to_padded_rows(micro_batch([0], [0], Layout(prompts=((0, 1),), completions=()), []))
    assert rows.input_ids.tolist() == [[0] * 8]
    assert rows.attention_mask.tolist() == [[1] + [0] * 7]
    assert rows.multiplicity.sum() == 0
    assert len(rows.predictors) == 0
