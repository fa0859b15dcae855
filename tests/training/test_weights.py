"""Weights and margins of rows in an update: a weight of k equals the row given k times, for every loss and any split.

Losses are compared to 1e-6 and gradients to 1e-5, relative, with one backward through a plain torch loop over the
repeated rows (`plain.py`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from raydpo.blocks.schema import ScoredPair
from raydpo.config import LossConfig
from raydpo.config.loss_types import LOSS_TYPES
from raydpo.feed.batches import RankBatch
from raydpo.feed.schedule import Schedule
from raydpo.models.completion_logps import CompletionLogps
from raydpo.training.evaluation import evaluate
from raydpo.training.global_batch_loss import RewardMean
from raydpo.training.step import Objective
from raydpo.training.task import EvalSet
from tests.training import plain
from tests.training.plain import BETA, LOSSES, Values
from tests.training.ranks import (
    PAIRS,
    Engine,
    Split,
    Update,
    batch_of,
    model,
    run_in_processes,
    scored_pairs,
    update,
)

ALL = list(range(PAIRS))
TIMES = [2, 1, 0, 3, 1, 1, 2, 5, 1, 0, 2, 1, 1, 4, 1, 2]
MARGINS = [0.0, 0.5, -0.7, 1.5, 0.25, 3.0, 0.0, -0.1, 0.9, 2.0, 0.3, -1.2, 0.6, 0.0, 1.1, 0.4]
SCALE = 0.5
ONE_RANK: list[Split] = [[[ALL]], [[ALL[9:], [], ALL[:1], ALL[1:9][::-1]]]]
TWO_RANKS: list[Split] = [[[ALL[::2][:3], ALL[::2][3:]], [ALL[1::2], []]]]


def config(**options: Any) -> LossConfig:
    return LossConfig(**{"beta": BETA, **options})


def single(name: str) -> LossConfig:
    return config(loss_type=name, margin_scale=SCALE if LOSS_TYPES[name].supports_margin else 1.0)


CASES: dict[str, tuple[LossConfig, Any]] = {
    **{name: (single(name), LOSSES[name]) for name in LOSSES},
    "sigmoid, smoothed": (
        config(label_smoothing=0.2, margin_scale=SCALE),
        lambda x: plain.smoothed(BETA * (x["a"] - x["b"]) - x["margin"], 0.2),
    ),
    "robust, smoothed": (
        config(loss_type="robust", label_smoothing=0.2, margin_scale=SCALE),
        lambda x: (
            (0.8 * plain.smoothed(z := BETA * (x["a"] - x["b"]) - x["margin"]) - 0.2 * plain.smoothed(-z))
            / (1 - 2 * 0.2)
        ),
    ),
    "aot, smoothed": (
        config(loss_type="aot_unpaired", label_smoothing=0.2),
        lambda x: plain.smoothed(BETA * (x["a"].sort().values - x["b"].sort().values), 0.2),
    ),
    "bco, running mean": (config(loss_type="bco_pair", bco_running_mean=True), plain.bco_running_mean),
    "rpo_alpha": (
        config(rpo_alpha=0.4, margin_scale=SCALE),
        lambda x: LOSSES["sigmoid"](x) + 0.4 * plain.sft(x),
    ),
    "ld_alpha": (config(ld_alpha=0.3, margin_scale=SCALE), LOSSES["sigmoid"]),
    "wpo": (
        config(loss_type=("sigmoid", "sft"), use_weighting=True, margin_scale=SCALE),
        lambda x: x["wpo"] * LOSSES["sigmoid"](x) + plain.sft(x),
    ),
    "sum": (
        config(loss_type=("sigmoid", "bco_pair", "sft"), loss_weights=(0.8, 0.2, 1.0), margin_scale=SCALE),
        lambda x: 0.8 * LOSSES["sigmoid"](x) + 0.2 * plain.bco(x) + plain.sft(x),
    ),
    "aot + sft": (
        config(loss_type=("aot", "sft"), loss_weights=(1.0, 0.5)),
        lambda x: LOSSES["aot"](x) + 0.5 * plain.sft(x),
    ),
}


def weighted_pairs(weights: Sequence[float] = TIMES) -> list[ScoredPair]:
    numbers = zip(scored_pairs(), weights, MARGINS, strict=True)
    return [replace(pair, weight=float(weight), margin=margin) for pair, weight, margin in numbers]


@cache
def plain_forward(ld_alpha: float) -> tuple[Values, list[Tensor]]:
    """Return the numbers of the pairs from the plain loop, and the parameters that they depend on."""
    policy = model()
    return plain.log_probs(policy, weighted_pairs(), ld_alpha), list(policy.parameters())


def expected(name: str, times: Sequence[int] = TIMES) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of a case on the rows repeated `times` times, from the plain loop."""
    loss, formula = CASES[name]
    x, parameters = plain_forward(1.0 if loss.ld_alpha is None else loss.ld_alpha)
    value = formula(plain.repeated({**x, "margin": loss.margin_scale * x["margin"]}, times)).mean()
    grads = torch.autograd.grad(value, parameters, retain_graph=True)
    return value, torch.cat([grad.flatten() for grad in grads])


@pytest.fixture(scope="module")
def updates(single_rank: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Update]]:
    """The updates of each case with weights and margins, under each split."""
    losses, pairs = [loss for loss, _ in CASES.values()], weighted_pairs()
    one = [[update(split, loss, 0, pairs=pairs) for split in ONE_RANK] for loss in losses]
    two = run_in_processes(TWO_RANKS, losses, tmp_path_factory.mktemp("ranks"), pairs)
    return {name: [*packed, *ranks] for name, packed, ranks in zip(CASES, one, two, strict=True)}


def assert_equal(result: Update, loss: Tensor, gradient: Tensor) -> None:
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert (result.gradient - gradient).norm() <= 1e-5 * gradient.norm()


def test_every_loss_is_here() -> None:
    assert set(LOSSES) == set(LOSS_TYPES)


@pytest.mark.parametrize("name", CASES)
def test_a_weight_is_the_row_given_as_often(name: str, updates: dict[str, list[Update]]) -> None:
    loss, gradient = expected(name)
    assert gradient.norm() > 1e-3, "the gradient must not be zero"
    assert len(updates[name]) == len(ONE_RANK) + len(TWO_RANKS)
    for result in updates[name]:
        assert_equal(result, loss, gradient)
    unweighted, _ = expected(name, [1] * PAIRS)
    assert unweighted.item() != pytest.approx(loss.item(), rel=1e-4), "the weights must matter"


@pytest.mark.usefixtures("single_rank")
@pytest.mark.parametrize("name", ["sigmoid", "aot", "sum", "bco, running mean"])
def test_the_scale_of_weights_does_not_matter_unless_they_are_used_as_given(name: str) -> None:
    pairs = weighted_pairs([0.37 * times for times in TIMES])
    loss, gradient = expected(name)
    assert_equal(update(ONE_RANK[1], CASES[name][0], 0, pairs=pairs), loss, gradient)
    mean = 0.37 * sum(TIMES) / PAIRS
    as_given = replace(CASES[name][0], sample_weights="as_given")
    assert_equal(update(ONE_RANK[1], as_given, 0, pairs=pairs), mean * loss, mean * gradient)


@pytest.mark.usefixtures("single_rank")
@pytest.mark.parametrize("sample_weights", ["mean", "as_given"])
@pytest.mark.parametrize("name", ["sigmoid", "aot", "orpo", "bco, running mean"])
def test_a_batch_whose_weights_are_all_0_changes_nothing(name: str, sample_weights: str) -> None:
    loss = replace(CASES[name][0], sample_weights=sample_weights)
    result = update(ONE_RANK[0], loss, 0, pairs=weighted_pairs([0.0] * PAIRS))
    assert result.loss == 0.0
    assert not result.gradient.any()
    assert result.reward_mean == 0.0


def test_the_mean_of_rewards_is_weighted(updates: dict[str, list[Update]]) -> None:
    x = plain.repeated(plain_forward(1.0)[0], TIMES)
    mean = BETA * torch.cat([x["a"], x["b"]]).mean().item()
    for result in updates["bco, running mean"]:
        assert result.reward_mean == pytest.approx(mean, rel=1e-5)


class TwoBatches:
    """A feed of the held-out pairs in two batches, whose mean weights differ."""

    def __init__(self, loss: LossConfig) -> None:
        pairs = weighted_pairs()
        self._batches = {
            start: batch_of([[list(range(8))]], loss, 0, pairs[start : start + 8], start) for start in (0, 8)
        }

    def get(self, position: int, stop: int) -> RankBatch:
        return self._batches[position]


@pytest.mark.usefixtures("single_rank")
@pytest.mark.parametrize("name", ["sigmoid", "sft", "aot", "sum"])
def test_the_loss_of_an_evaluation_is_weighted_over_all_held_out_pairs(name: str) -> None:
    loss = CASES[name][0]
    engine: Any = Engine(CompletionLogps(model(shares=True), shares=True))
    feed: Any = TwoBatches(loss)
    held_out = EvalSet("", feed, Schedule.one_epoch(PAIRS, 8))
    metrics = evaluate(engine, feed, held_out, Objective(loss, 0.0, RewardMean()))
    assert metrics["eval_loss"] == pytest.approx(expected(name)[0].item(), rel=1e-6)
    chosen = plain_forward(1.0)[0]["chosen"]
    assert metrics["eval_logps/chosen"] == pytest.approx(chosen.mean().item(), rel=1e-5), "all pairs count alike"
