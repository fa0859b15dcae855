"""Margins of pairs: each loss that has one, by its formula, and that no other changes; weights are in training/."""

from math import exp, log, log1p
from typing import Any

import pytest

from raydpo.config import LossConfig
from raydpo.config.loss_types import LOSS_TYPES
from raydpo.objectives.objective import loss_at_reference, pair_losses
from tests.objectives.pairs import pairs_of

BETA = 0.5


def ls(x: float) -> float:
    """Return log sigmoid(x)."""
    return -log1p(exp(-x))


def s(x: float) -> float:
    """Return sigmoid(x)."""
    return 1 / (1 + exp(-x))


# One pair with a = 2, b = -1, beta h = 1.5, 4 and 5 tokens, log pi(y+) = -10, log pi(y-) = -14, and a margin of 0.7.
VALUES: list[tuple[str, dict[str, Any], float]] = [
    ("sigmoid", {}, -ls(1.5 - 0.7)),  # ODPO
    ("sigmoid", {"label_smoothing": 0.1}, -0.9 * ls(1.5 - 0.7) - 0.1 * ls(0.7 - 1.5)),
    ("sigmoid", {"f_divergence_type": "forward_kl"}, -ls(0.5 * (-exp(-2) + exp(1)) - 0.7)),
    ("hinge", {}, 0.2),  # 1 - (1.5 - 0.7)
    ("robust", {"label_smoothing": 0.1}, (-0.9 * ls(1.5 - 0.7) + 0.1 * ls(0.7 - 1.5)) / 0.8),
    ("sigmoid_norm", {}, -ls(0.5 * (2 / 4 + 1 / 5) - 0.7)),
    ("simpo", {"simpo_gamma": 0.3}, -ls(0.5 * (-10 / 4 + 14 / 5) - 0.3 - 0.7)),
    ("rpo_bwd_kl", {}, s(0.7) * (ls(0.7) - ls(1.5)) + s(-0.7) * (ls(-0.7) - ls(-1.5))),
]


@pytest.mark.parametrize(("name", "options", "expected"), VALUES)
def test_value_of_one_pair_with_a_margin(name: str, options: dict[str, Any], expected: float) -> None:
    loss = LossConfig(**{"beta": BETA, "loss_type": (name,), **options})
    assert pair_losses(pairs_of({"margins": 0.7}), loss).tolist() == pytest.approx([expected], rel=1e-12)


def test_every_loss_with_a_margin_has_a_value_above() -> None:
    assert {name for name, _, _ in VALUES} == {name for name, kind in LOSS_TYPES.items() if kind.supports_margin}


@pytest.mark.parametrize("name", sorted(name for name, kind in LOSS_TYPES.items() if not kind.supports_margin))
def test_other_losses_do_not_depend_on_the_margin(name: str) -> None:
    loss = LossConfig(beta=BETA, loss_type=(name,))
    assert pair_losses(pairs_of({"margins": 0.7}), loss).tolist() == pair_losses(pairs_of({}), loss).tolist()


def test_a_negative_margin_asks_for_less() -> None:
    """A pair whose scores contradict its label is pulled apart less than one without a margin."""
    loss = LossConfig(beta=BETA)
    assert pair_losses(pairs_of({"margins": -0.7}), loss).tolist() == pytest.approx([-ls(1.5 + 0.7)], rel=1e-12)


def test_rpo_is_0_where_the_rewards_differ_by_the_margin() -> None:
    loss = LossConfig(beta=BETA, loss_type="rpo_bwd_kl")
    assert pair_losses(pairs_of({"margins": 1.5}), loss).tolist() == pytest.approx([0.0], abs=1e-12)
    assert loss_at_reference(loss) is None, "it depends on the margins"
    assert pair_losses(pairs_of({}), loss).tolist() == pytest.approx([log(0.5) - 0.5 * (ls(1.5) + ls(-1.5))], rel=1e-12)
