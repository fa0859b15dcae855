"""Each loss: values computed by hand, its gradient compared with finite differences, and its value at the reference."""

from math import exp, log, log1p
from typing import Any

import pytest
import torch
from torch import Tensor

from raydpo.config import LossConfig
from raydpo.config.loss_types import LOSS_TYPES
from raydpo.objectives.objective import LOSSES, loss_at_reference, needs_global_batch, pair_losses
from raydpo.objectives.pairs import COLUMNS, from_table
from tests.objectives.pairs import pairs_of, random_table

BETA = 0.5


def ls(x: float) -> float:
    """Return log sigmoid(x)."""
    return -log1p(exp(-x))


def s(x: float) -> float:
    """Return sigmoid(x)."""
    return 1 / (1 + exp(-x))


def odds(p: float) -> float:
    return p / (1 - p)


# Values for one pair with a = 2, b = -1, h = 3, 4 and 5 tokens; log pi(y+) = -10, log pi(y-) = -14; beta = 0.5.
VALUES: list[tuple[str, dict[str, Any], float]] = [
    ("sigmoid", {}, -ls(1.5)),
    ("sigmoid", {"label_smoothing": 0.1}, -0.9 * ls(1.5) - 0.1 * ls(-1.5)),
    ("hinge", {}, 0.0),  # 1 - 0.5 * 3 < 0
    ("hinge", {"beta": 0.2}, 0.4),
    ("ipo", {}, (2 / 4 + 1 / 5 - 1) ** 2),
    ("exo_pair", {}, s(1.5) * (ls(1.5) - log(0.999)) + s(-1.5) * (ls(-1.5) - log(0.001))),
    ("exo_pair", {"label_smoothing": 0.2}, s(1.5) * (ls(1.5) - log(0.8)) + s(-1.5) * (ls(-1.5) - log(0.2))),
    ("nca_pair", {}, -ls(1.0) - 0.5 * ls(-1.0) - 0.5 * ls(0.5)),
    ("robust", {"label_smoothing": 0.1}, (-0.9 * ls(1.5) + 0.1 * ls(-1.5)) / 0.8),
    ("bco_pair", {}, -ls(1.0) - ls(0.5)),
    ("sppo_hard", {}, (2 - 1) ** 2 + (-1 + 1) ** 2),
    ("aot", {}, -ls(1.5)),  # one pair: nothing to sort
    ("aot", {"label_smoothing": 0.1}, -0.9 * ls(1.5) - 0.1 * ls(-1.5)),
    ("aot_unpaired", {}, -ls(1.5)),
    ("apo_zero", {}, 1 - s(1.0) + s(-0.5)),
    ("apo_down", {}, s(1.0) + 1 - s(1.5)),
    ("discopop", {"discopop_tau": 0.5}, -ls(1.5) * (1 - s(3.0)) + exp(-1.5) * s(3.0)),
    ("sft", {}, 10 / 4),
    ("sigmoid_norm", {}, -ls(0.5 * (2 / 4 + 1 / 5))),
    ("rpo_bwd_kl", {}, log(0.5) - 0.5 * (ls(1.5) + ls(-1.5))),  # without a margin
    ("simpo", {"simpo_gamma": 0.3}, -ls(0.5 * (-10 / 4 + 14 / 5) - 0.3)),
    ("orpo", {}, 10 / 4 - 0.5 * ls(log(odds(exp(-10 / 4))) - log(odds(exp(-14 / 5))))),
    # f'(u) at log u = 2 and -1: 1 - 1/u, log(2u / (1 + u)), (u^(alpha - 1) - 1) / (alpha - 1)
    ("sigmoid", {"f_divergence_type": "forward_kl"}, -ls(0.5 * (-exp(-2) + exp(1)))),
    ("sigmoid", {"f_divergence_type": "js_divergence"}, -ls(0.5 * (ls(2) - ls(-1)))),
    ("sigmoid", {"f_divergence_type": "alpha_divergence"}, -ls(0.5 * (exp(-1) - exp(0.5)) / -0.5)),
    ("ipo", {"f_divergence_type": "forward_kl"}, ((1 - exp(-2)) / 4 - (1 - exp(1)) / 5 - 1) ** 2),
    ("sigmoid_norm", {"f_divergence_type": "js_divergence"}, -ls(0.5 * ((log(2) + ls(2)) / 4 - (log(2) + ls(-1)) / 5))),
    ("hinge", {"f_divergence_type": "js_divergence"}, 1 - 0.5 * (ls(2) - ls(-1))),
]


@pytest.mark.parametrize(("name", "options", "expected"), VALUES)
def test_value_of_one_pair(name: str, options: dict[str, Any], expected: float) -> None:
    loss = LossConfig(**{"beta": BETA, "loss_type": (name,), **options})
    assert pair_losses(pairs_of({}), loss).tolist() == pytest.approx([expected], rel=1e-12, abs=1e-12)


def test_every_loss_has_a_value_above() -> None:
    assert {name for name, _, _ in VALUES} == set(LOSSES) == set(LOSS_TYPES)


def variants() -> list[LossConfig]:
    """Return each loss with its defaults and with the options that it supports."""
    found = [LossConfig(beta=0.3, loss_type=(name,)) for name in LOSSES]
    found += [
        LossConfig(beta=0.3, loss_type=(name,), f_divergence_type=divergence)
        for name, kind in LOSS_TYPES.items()
        for divergence in ("forward_kl", "js_divergence", "alpha_divergence")
        if kind.supports_divergence
    ]
    found += [
        LossConfig(beta=0.3, loss_type=(name,), label_smoothing=0.2)
        for name, kind in LOSS_TYPES.items()
        if kind.supports_smoothing
    ]
    found.append(LossConfig(beta=0.3, loss_type=("sigmoid", "bco_pair", "sft"), loss_weights=(0.8, 0.2, 1.0)))
    found.append(LossConfig(beta=0.3, loss_type=("aot", "sft"), rpo_alpha=0.5))
    return found


def label(loss: LossConfig) -> str:
    return f"{'+'.join(loss.loss_type)}-{loss.f_divergence_type}-{loss.label_smoothing}"


each_variant = pytest.mark.parametrize("loss", variants(), ids=label)


@each_variant
def test_gradient_matches_finite_differences(loss: LossConfig) -> None:
    table = random_table(5)
    # Only the policy's log-probs: a sort is not differentiable at ties, and token counts do not depend on the policy.
    columns = [COLUMNS.index(name) for name in ("chosen", "rejected", "nll")]

    def objective(policy: Tensor) -> Tensor:
        full_table = table.clone()
        full_table[:, columns] = policy
        return pair_losses(from_table(full_table), loss)

    assert torch.autograd.gradcheck(objective, table[:, columns].clone().requires_grad_(), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_gradient_of_weighted_quantiles_matches_finite_differences(name: str) -> None:
    table = random_table(6)
    table[:, COLUMNS.index("sample_weights")] = torch.tensor([0.3, 2.0, 0.0, 1.1, 0.7, 3.0])
    columns = [COLUMNS.index(name) for name in ("chosen", "rejected")]

    def objective(policy: Tensor) -> Tensor:
        full_table = table.clone()
        full_table[:, columns] = policy
        return pair_losses(from_table(full_table), LossConfig(beta=0.3, loss_type=name)).mean()

    assert torch.autograd.gradcheck(objective, table[:, columns].clone().requires_grad_(), eps=1e-6, atol=1e-7)


@each_variant
def test_the_order_of_pairs_does_not_matter(loss: LossConfig) -> None:
    table = random_table(6)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    original, reordered = pair_losses(from_table(table), loss), pair_losses(from_table(table[order]), loss)
    assert original.mean().item() == pytest.approx(reordered.mean().item(), rel=1e-12)
    if not needs_global_batch(loss):
        torch.testing.assert_close(original[order], reordered, rtol=1e-12, atol=0)


AT_REFERENCE = {
    "sigmoid": log(2),
    "hinge": 1.0,
    "ipo": 1 / (4 * 0.3**2),
    "exo_pair": 0.5 * (log(0.5) - log(0.999)) + 0.5 * (log(0.5) - log(0.001)),
    "nca_pair": 2 * log(2),
    "robust": log(2),
    "bco_pair": 2 * log(2),
    "sppo_hard": 2 / (4 * 0.3**2),
    "aot": log(2),
    "aot_unpaired": log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * log(2) + 0.5,
    "sigmoid_norm": log(2),
}


@pytest.mark.parametrize("name", sorted(AT_REFERENCE))
def test_loss_is_constant_at_the_reference(name: str) -> None:
    table = random_table(4)
    table[:, COLUMNS.index("ref_chosen")] = table[:, COLUMNS.index("chosen")]
    table[:, COLUMNS.index("ref_rejected")] = table[:, COLUMNS.index("rejected")]
    loss = LossConfig(beta=0.3, loss_type=(name,))
    assert pair_losses(from_table(table), loss).tolist() == pytest.approx([AT_REFERENCE[name]] * 4, rel=1e-12)
    assert loss_at_reference(loss) == pytest.approx(AT_REFERENCE[name], rel=1e-12)


def test_every_constant_at_the_reference_is_in_the_table() -> None:
    constant = {name for name in LOSSES if loss_at_reference(LossConfig(loss_type=(name,))) is not None}
    assert constant == set(AT_REFERENCE)


def test_losses_that_depend_on_the_data_have_no_constant() -> None:
    options: list[dict[str, Any]] = [
        {"loss_type": "sft"},
        {"loss_type": "orpo"},
        {"loss_type": "simpo"},
        {"rpo_alpha": 0.1},
        {"use_weighting": True},
        {"reference_free": True},
    ]
    assert [loss_at_reference(LossConfig(**changes)) for changes in options] == [None] * len(options)


def test_label_smoothing_leaves_the_constant_ln_2() -> None:
    assert loss_at_reference(LossConfig(label_smoothing=0.3)) == pytest.approx(log(2), rel=1e-12)


def mean(loss: LossConfig, *rows: dict[str, float]) -> float:
    return pair_losses(pairs_of(*rows), loss).mean().item()


def test_aot_sorts_the_batch() -> None:
    """Check pi(y+) - pi(y-) of 4 and 1 with the reference's 1 and 2: sorted, 1 - 1 and 4 - 2; unsorted, 3 and -1."""
    rows = (
        {"ref_chosen": -12, "ref_rejected": -13},
        {"chosen": -9, "rejected": -10, "ref_chosen": -8, "ref_rejected": -10},
    )
    assert mean(LossConfig(beta=BETA, loss_type="aot"), *rows) == pytest.approx((-ls(0.0) - ls(1.0)) / 2, rel=1e-12)
    assert mean(LossConfig(beta=BETA), *rows) == pytest.approx((-ls(1.5) - ls(-0.5)) / 2, rel=1e-12)


def test_aot_unpaired_sorts_chosen_and_rejected() -> None:
    """Check a of 2 and -1 with b of -1 and 0: sorted, -1 + 1 and 2 - 0."""
    rows = ({}, {"chosen": -9, "rejected": -10, "ref_chosen": -8, "ref_rejected": -10})
    expected = (-ls(0.0) - ls(1.0)) / 2
    assert mean(LossConfig(beta=BETA, loss_type="aot_unpaired"), *rows) == pytest.approx(expected, rel=1e-12)


def test_sft_is_the_mean_over_tokens_and_not_over_pairs() -> None:
    rows = ({"nll": 2.0, "nll_tokens": 1.0}, {"nll": 6.0, "nll_tokens": 7.0})
    assert mean(LossConfig(loss_type="sft"), *rows) == pytest.approx(8 / 8)


def test_weighted_mix_is_the_weighted_sum() -> None:
    mix = LossConfig(beta=BETA, loss_type=("sigmoid", "bco_pair", "sft"), loss_weights=(0.8, 0.2, 1.0))
    assert mean(mix, {}) == pytest.approx(-0.8 * ls(1.5) + 0.2 * (-ls(1.0) - ls(0.5)) + 2.5, rel=1e-12)


@pytest.mark.parametrize("options", [{"rpo_alpha": 0.4}, {"cpo_alpha": 0.4}])
def test_the_likelihood_is_added_to_the_preference_loss(options: dict[str, Any]) -> None:
    assert mean(LossConfig(beta=BETA, **options), {}) == pytest.approx(-ls(1.5) + 0.4 * 2.5, rel=1e-12)


def test_weights_multiply_the_preference_loss_and_not_the_likelihood() -> None:
    loss = LossConfig(beta=BETA, loss_type=("sigmoid", "sft"), use_weighting=True)
    assert mean(loss, {"weights": 0.25}) == pytest.approx(-0.25 * ls(1.5) + 2.5, rel=1e-12)


def test_rewards_of_bco_are_centred_by_their_mean() -> None:
    pairs = pairs_of({}).with_reward_mean(0.75)
    loss = LossConfig(beta=BETA, loss_type="bco_pair", bco_running_mean=True)
    assert pair_losses(pairs, loss).tolist() == pytest.approx([-ls(1.0 - 0.75) - ls(0.5 + 0.75)], rel=1e-12)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha_divergence"])
@pytest.mark.parametrize("logratio", [-500.0, 500.0])
def test_divergences_stay_finite(divergence: str, logratio: float) -> None:
    loss = LossConfig(f_divergence_type=divergence)
    pairs = pairs_of({"chosen": logratio, "ref_chosen": 0.0})
    assert torch.isfinite(pair_losses(pairs, loss)).all()


def test_log_odds_of_a_completion_with_probability_1_stay_finite() -> None:
    loss = LossConfig(loss_type="orpo")
    assert torch.isfinite(pair_losses(pairs_of({"chosen": 0.0, "nll": 0.0}), loss)).all()
