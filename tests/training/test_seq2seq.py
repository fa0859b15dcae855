"""Updates of encoder-decoders equal a plain torch loop, which runs the model's own forward of each pair alone."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.batching.collate import collate_scored
from raydpo.batching.prefix_tree import build_prompt_trees
from raydpo.blocks.schema import ScoredPair
from raydpo.config import LossConfig
from raydpo.feed.batches import RankBatch
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.loading import disable_dropout
from raydpo.training.global_batch_loss import RewardMean
from raydpo.training.metric_sums import MetricSums
from raydpo.training.step import Objective, train_micro_batches
from tests.models.seq2seq_models import CORE, VOCABULARY, build, plain_logps
from tests.training.ranks import Engine

BETA, LEARNING_RATE, UPDATES, PAIRS = 0.3, 1e-2, 5, 4


def pairs_of(reference: Any, seed: int) -> list[ScoredPair]:
    """Return pairs of many lengths, two of them with one prompt, with the log-probs of a reference."""
    draw = np.random.default_rng(seed)
    pairs: list[ScoredPair] = []
    for index in range(PAIRS):
        prompt, chosen, rejected = (draw.integers(5, VOCABULARY, draw.integers(1, 12)) for _ in range(3))
        if index == 1:
            prompt = pairs[0].prompt_ids
        with torch.no_grad():
            scores = [plain_logps(reference, prompt, ids).numpy() for ids in (chosen, rejected)]
        pairs.append(ScoredPair(f"pair-{index}", prompt, chosen, rejected, *scores))
    return pairs


def dpo(model: Any, pairs: Sequence[ScoredPair]) -> Tensor:
    losses = []
    for pair in pairs:
        chosen, rejected = (
            plain_logps(model, pair.prompt_ids, ids).sum() for ids in (pair.chosen_ids, pair.rejected_ids)
        )
        margin = (chosen - float(pair.ref_chosen_logps.sum())) - (rejected - float(pair.ref_rejected_logps.sum()))
        losses.append(-F.logsigmoid(BETA * margin))
    return torch.stack(losses).mean()


def orpo(model: Any, pairs: Sequence[ScoredPair]) -> Tensor:
    """Hong et al. 2024, eq. 6 and 7; the likelihood is that of completions, over all tokens of the batch."""
    likelihood, odds, tokens = torch.zeros(()), [], 0
    for pair in pairs:
        chosen, rejected = (plain_logps(model, pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids))
        likelihood = likelihood - chosen.sum()
        tokens += len(chosen)
        one, other = (logps.mean() - torch.log1p(-logps.mean().exp()) for logps in (chosen, rejected))
        odds.append(-F.logsigmoid(one - other))
    return likelihood / tokens + BETA * torch.stack(odds).mean()


def batch_of(pairs: Sequence[ScoredPair]) -> RankBatch:
    """Return the pairs as the feed gives them to one rank: two micro-batches, and one without pairs."""
    groups = [pairs[:3], pairs[3:], []]
    return RankBatch(
        start=0,
        stop=len(pairs),
        micro_batches=tuple(collate_scored(build_prompt_trees(group, 10**6), group) for group in groups),
        tokens=0,
        computed_tokens=0,
        flops=0.0,
        nll_tokens=sum(len(pair.chosen_ids) for pair in pairs),
        weight=float(len(pairs)),
        pair_ids=(),
    )


@pytest.mark.usefixtures("single_rank")
@pytest.mark.parametrize("family", ["t5", "bart", "mbart"])
@pytest.mark.parametrize(("loss_type", "plain"), [("sigmoid", dpo), ("orpo", orpo)])
def test_losses_and_weights_of_five_updates_equal_the_plain_loop(
    family: str, loss_type: str, plain: Callable[[Any, Sequence[ScoredPair]], Tensor]
) -> None:
    model = build(CORE[family]())
    reference, policy = copy.deepcopy(model), CompletionLogps(copy.deepcopy(model), shares=False)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    disable_dropout(policy)
    policy.train()
    ours, theirs = (torch.optim.SGD(one.parameters(), lr=LEARNING_RATE) for one in (policy.causal_lm, model))
    objective = Objective(LossConfig(loss_type=(loss_type,), beta=BETA), 0.0, RewardMean())
    for step in range(UPDATES):
        pairs, sums, engine = pairs_of(reference, step), MetricSums(), Engine(policy)
        for _ in train_micro_batches(engine, batch_of(pairs), objective, sums, seed=0, with_statistics=True):
            pass
        loss = plain(model, pairs)
        loss.backward()
        assert sums.means(engine.device)["loss"] == pytest.approx(loss.item(), rel=1e-5)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    start = dict(build(CORE[family]()).named_parameters())
    for (name, found), (_, wanted) in zip(policy.causal_lm.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=name)
    assert max(float((weight - start[name]).detach().abs().max()) for name, weight in model.named_parameters()) > 1e-3
