"""An objective sees the whole global batch: loss and gradient do not depend on the micro-batches, the number of ranks,
or on whether shared prompts and completions are computed once (packed rows) or each in a padded row.

Losses are compared to 1e-6 and gradients to 1e-5, relative, with one backward through the full logits of all pairs.
"""

from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.config import LossConfig
from raydpo.models.completion_logps import CompletionLogps
from raydpo.objectives.objective import pair_losses
from raydpo.training.global_batch_loss import RewardMean
from raydpo.training.metric_sums import MetricSums
from raydpo.training.step import Objective, forward, train_micro_batches
from tests.training.ranks import (
    PAIRS,
    SEED,
    Engine,
    Split,
    Update,
    batch_of,
    gradient_of,
    model,
    run_in_processes,
    scored_pairs,
    update,
)

BETA = 0.2
ALL = list(range(PAIRS))
ONE_RANK: list[Split] = [
    [[ALL]],
    [[[pair] for pair in ALL]],
    [[ALL[9:], [], ALL[:1], ALL[1:9][::-1]]],
]
TWO_RANKS: list[Split] = [
    [[ALL[:8]], [ALL[8:]]],
    [[ALL[::2][:3], ALL[::2][3:]], [ALL[1::2], []]],
]


def reference_values() -> dict[str, Tensor]:
    """Return, by name, log-probs from full logits, reference log-probs and token counts, [pairs], and the weights."""
    policy = model()
    lists: dict[str, list[Tensor]] = defaultdict(list)
    for pair in scored_pairs():
        for side, ids, scores in (
            ("chosen", pair.chosen_ids, pair.ref_chosen_logps),
            ("rejected", pair.rejected_ids, pair.ref_rejected_logps),
        ):
            row = torch.tensor([*pair.prompt_ids, *ids])[None]
            logps = policy(input_ids=row).logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]
            completion = logps[len(pair.prompt_ids) - 1 :]
            lists[side].append(completion.sum())
            lists[f"ref_{side}"].append(torch.tensor(scores).sum())
            lists["n" if side == "chosen" else "m"].append(torch.tensor(float(len(ids))))
            if side == "chosen":
                lists["prompt"].append(logps[: len(pair.prompt_ids) - 1].sum())
                lists["p"].append(torch.tensor(float(len(pair.prompt_ids) - 1)))
    stacked = {name: torch.stack(values) for name, values in lists.items()}
    stacked["a"] = stacked["chosen"] - stacked["ref_chosen"]
    stacked["b"] = stacked["rejected"] - stacked["ref_rejected"]
    return stacked | dict(policy.named_parameters())


def aot(x: dict[str, Tensor]) -> Tensor:
    policy, reference = x["chosen"] - x["rejected"], x["ref_chosen"] - x["ref_rejected"]
    return -F.logsigmoid(BETA * (policy.sort().values - reference.sort().values)).mean()


def aot_unpaired(x: dict[str, Tensor]) -> Tensor:
    return -F.logsigmoid(BETA * (x["a"].sort().values - x["b"].sort().values)).mean()


def sigmoid_and_sft(x: dict[str, Tensor]) -> Tensor:
    return -F.logsigmoid(BETA * (x["a"] - x["b"])).mean() - 0.5 * x["chosen"].sum() / x["n"].sum()


def bco(x: dict[str, Tensor]) -> Tensor:
    delta = BETA * torch.cat([x["a"], x["b"]]).mean().detach()
    return (-F.logsigmoid(BETA * x["a"] - delta) - F.logsigmoid(-(BETA * x["b"] - delta))).mean()


def orpo(x: dict[str, Tensor]) -> Tensor:
    chosen, rejected = (x["chosen"] / x["n"]).exp(), (x["rejected"] / x["m"]).exp()
    odds_ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    nll = -(x["chosen"].sum() + x["prompt"].sum()) / (x["n"].sum() + x["p"].sum())
    return nll - BETA * F.logsigmoid(odds_ratio.log()).mean()


CASES: list[tuple[LossConfig, Callable[[dict[str, Tensor]], Tensor]]] = [
    (LossConfig(beta=BETA, loss_type="aot"), aot),
    (LossConfig(beta=BETA, loss_type="aot_unpaired"), aot_unpaired),
    (LossConfig(beta=BETA, loss_type=("sigmoid", "sft"), loss_weights=(1.0, 0.5)), sigmoid_and_sft),
    (LossConfig(beta=BETA, loss_type=("aot", "sft"), loss_weights=(1.0, 0.0)), aot),
    (LossConfig(beta=BETA, loss_type="bco_pair", bco_running_mean=True), bco),
    (LossConfig(beta=BETA, loss_type="orpo"), orpo),
]


@pytest.fixture(scope="module")
def updates(single_rank: None, tmp_path_factory: pytest.TempPathFactory) -> list[list[Update]]:
    """The updates of each case under each split, [case][split]."""
    losses = [loss for loss, _ in CASES]
    one = [[update(split, loss, 0) for split in ONE_RANK] for loss in losses]
    padded = [[update(ONE_RANK[0], loss, 0, shares=False)] for loss in losses]
    two = run_in_processes(TWO_RANKS, losses, tmp_path_factory.mktemp("ranks"))
    return [[*packed, *plain, *ranks] for packed, plain, ranks in zip(one, padded, two, strict=True)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: "+".join(CASES[case][0].loss_type))
def test_any_split_gives_the_loss_and_gradient_of_the_global_batch(case: int, updates: list[list[Update]]) -> None:
    values = reference_values()
    expected = CASES[case][1](values)
    parameters = [value for value in values.values() if isinstance(value, torch.nn.Parameter)]
    gradient = torch.cat([grad.flatten() for grad in torch.autograd.grad(expected, parameters)])
    assert gradient.norm() > 1e-3, "the gradient must not be zero"
    assert len(updates[case]) == len(ONE_RANK) + 1 + len(TWO_RANKS)
    for result in updates[case]:
        assert result.loss == pytest.approx(expected.item(), rel=1e-6)
        assert (result.gradient - gradient).norm() <= 1e-5 * gradient.norm()


def test_aot_per_micro_batch_is_a_different_loss() -> None:
    """Sorting each half alone pairs other quantiles, so the equality of splits above is not trivial."""
    values = reference_values()
    pairs = {name: value for name, value in values.items() if value.shape == (PAIRS,)}
    halves = [aot({name: value[half] for name, value in pairs.items()}).item() for half in (slice(8), slice(8, 16))]
    assert abs(sum(halves) / 2 - aot(values).item()) > 1e-3


def test_the_mean_of_rewards_is_over_all_ranks(updates: list[list[Update]]) -> None:
    values = reference_values()
    expected = BETA * torch.cat([values["a"], values["b"]]).mean().item()
    case = next(index for index, (loss, _) in enumerate(CASES) if loss.bco_running_mean)
    for result in updates[case]:
        assert result.reward_mean == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("single_rank")
def test_both_forwards_use_the_same_dropout_masks() -> None:
    """With dropout, the gradient equals that of one forward and backward under the same seed."""
    loss, split = CASES[0][0], ONE_RANK[0]
    policy = CompletionLogps(model(dropout=0.3, shares=True), shares=True)
    batch = batch_of(split, loss, 0)
    torch.manual_seed(SEED)
    _, pairs = forward(Engine(policy), batch.micro_batches[0], loss, batch, with_statistics=False)
    pair_losses(pairs, loss).mean().backward()
    gradient = gradient_of(policy)
    result = update(split, loss, 0, dropout=0.3)
    assert (result.gradient - gradient).norm() <= 1e-5 * gradient.norm()
    without = update(split, loss, 0)
    assert (without.gradient - gradient).norm() > 1e-2 * gradient.norm(), "dropout had no effect"


@pytest.mark.usefixtures("single_rank")
@pytest.mark.parametrize("logging", [False, True])
def test_vocabulary_statistics_are_computed_on_logging_steps_only(logging: bool) -> None:
    engine, sums = Engine(CompletionLogps(model(shares=True), shares=True)), MetricSums()
    objective = Objective(CASES[0][0], 0.0, RewardMean())
    batch = batch_of(ONE_RANK[0], objective.loss, 0)
    for _, tokens in train_micro_batches(engine, batch, objective, sums, seed=SEED, with_statistics=logging):
        assert (len(tokens.entropy) > 0) == logging
    names = sums.totals(engine.device).keys()
    assert {"loss", "rewards/margins", "logps/chosen"} <= names
    assert ({"entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"} <= names) == logging
