"""Metrics of pairs, compared with values computed by hand."""

from math import exp, log, log1p
from typing import Any

import pytest
import torch

from raydpo.config import LossConfig
from raydpo.objectives.metrics import pair_metrics
from raydpo.objectives.pairs import tail_weights
from tests.objectives.pairs import pairs_of


def metrics_of(loss: LossConfig, **row: float) -> dict[str, float]:
    return {name: value.item() for name, value in pair_metrics(pairs_of(row), loss).items()}


def test_rewards_against_a_reference() -> None:
    assert metrics_of(LossConfig(beta=0.5)) == pytest.approx(
        {
            "rewards/chosen": 1.0,
            "rewards/rejected": -0.5,
            "rewards/accuracies": 1.0,
            "rewards/margins": 1.5,
            "logps/chosen": -10.0,
            "logps/rejected": -14.0,
        }
    )


def test_equal_rewards_count_as_wrong() -> None:
    metrics = metrics_of(LossConfig(), chosen=-3, ref_chosen=-3, rejected=-4, ref_rejected=-4)
    assert metrics["rewards/accuracies"] == 0.0


@pytest.mark.parametrize("options", [{"loss_type": "simpo"}, {"loss_type": "ipo", "reference_free": True}])
def test_without_a_reference_rewards_are_means_over_tokens(options: dict[str, Any]) -> None:
    metrics = metrics_of(LossConfig(beta=0.5, **options))
    assert metrics["logps/chosen"] == pytest.approx(-10 / 4)
    assert metrics["rewards/rejected"] == pytest.approx(0.5 * -14 / 5)
    assert metrics["rewards/margins"] == pytest.approx(0.5 * (-10 / 4 + 14 / 5))


def test_log_odds_of_orpo() -> None:
    chosen, rejected = exp(-10 / 4), exp(-14 / 5)
    log_odds = log(chosen / (1 - chosen)) - log(rejected / (1 - rejected))
    metrics = metrics_of(LossConfig(loss_type="orpo"))
    assert metrics["log_odds_chosen"] == pytest.approx(log_odds)
    assert metrics["log_odds_ratio"] == pytest.approx(-log1p(exp(-log_odds)))


def test_tail_weights_apply_beyond_the_shorter_completion() -> None:
    """Check two pairs: chosen of 2 and 3 tokens, rejected of 4 and 1."""
    completion = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 3])
    expected = [1, 1, 1, 0.5, 0.5, 1, 1, 0.5, 0.5, 1]
    assert tail_weights(completion, 2, 0.5).tolist() == expected
    assert tail_weights(torch.zeros(0, dtype=torch.int64), 0, 0.5).tolist() == []
