"""What counts as a gap between log-probs, and as the spread of logits."""

import math

import numpy as np
import pytest
import torch

from raydpo.models.comparison import mean_gap, spread_of


def test_a_token_that_the_model_rules_out_is_no_gap_however_it_is_written() -> None:
    ours, own = (np.array(values, dtype=np.float32) for values in ([-1.0, -1e9], [-1.5, -np.inf]))
    assert mean_gap(ours, own) == pytest.approx(0.25)
    assert mean_gap(np.array([-1.0, np.nan], dtype=np.float32), own) == math.inf


def test_the_spread_is_that_of_the_entries_that_are_not_ruled_out() -> None:
    assert spread_of(torch.tensor([[1.0, 3.0, -1e9], [5.0, 7.0, -torch.inf]])) == pytest.approx(1.0)
