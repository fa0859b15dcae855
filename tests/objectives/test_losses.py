"""Each loss: a value worked out by hand, its gradient against finite differences, what it is at the reference."""

from math import exp, log, log1p

import pytest
import torch
from torch import Tensor

from raydpo.objectives.losses import LOSSES, PairLogps
from raydpo.objectives.metrics import pair_metrics


def logps(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float) -> PairLogps:
    values = (chosen, rejected, ref_chosen, ref_rejected)
    return PairLogps(*(torch.tensor([value], dtype=torch.float64) for value in values))


def log_sigmoid(x: float) -> float:
    return -log1p(exp(-x))


# h = (-10 + 12) - (-14 + 13) = 3; beta = 0.5
PAIR = (-10.0, -14.0, -12.0, -13.0)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sigmoid", {"beta": 0.5}, -log_sigmoid(1.5)),
        ("sigmoid", {"beta": 0.5, "label_smoothing": 0.1}, -0.9 * log_sigmoid(1.5) - 0.1 * log_sigmoid(-1.5)),
    ],
)
def test_value(name: str, options: dict[str, float], expected: float) -> None:
    assert LOSSES[name](logps(*PAIR), **options).tolist() == pytest.approx([expected], rel=1e-12)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradient(name: str, label_smoothing: float) -> None:
    torch.manual_seed(0)
    values = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(4)]

    def loss(*four: Tensor) -> Tensor:
        return LOSSES[name](PairLogps(*four), beta=0.3, label_smoothing=label_smoothing)

    assert torch.autograd.gradcheck(loss, values, eps=1e-6, atol=1e-8)


def test_sigmoid_is_ln_2_where_policy_is_reference() -> None:
    for label_smoothing in (0.0, 0.3):
        loss = LOSSES["sigmoid"](logps(-3, -4, -3, -4), beta=0.7, label_smoothing=label_smoothing)
        assert loss.tolist() == pytest.approx([log(2)], rel=1e-12)


def test_rewards() -> None:
    metrics = pair_metrics(logps(*PAIR), beta=0.5)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "rewards/chosen": 1.0,
            "rewards/rejected": -0.5,
            "rewards/accuracies": 1.0,
            "rewards/margins": 1.5,
            "logps/chosen": -10.0,
            "logps/rejected": -14.0,
        }
    )


def test_equal_rewards_are_no_success() -> None:
    assert pair_metrics(logps(-3, -4, -3, -4), beta=0.5)["rewards/accuracies"].item() == 0.0
