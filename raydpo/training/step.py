"""The forwards and backwards of one update over a rank's micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydpo.batching.micro_batch import MicroBatch
from raydpo.config import LossConfig
from raydpo.feed.batches import RankBatch
from raydpo.models.completion_logps import completion_sums
from raydpo.models.device import to_device
from raydpo.models.head import TokenLogps, TokenStatsRequest
from raydpo.objectives.objective import counts_prompts, needs_global_batch, pair_losses
from raydpo.objectives.pairs import PairLogps, tail_weights
from raydpo.training.divergence import poisoned
from raydpo.training.global_batch_loss import RewardMean, loss_gradients
from raydpo.training.metric_sums import MetricSums, add_pair_sums, add_token_sums


@dataclass(frozen=True)
class Objective:
    """What an update minimises, and the state that it carries from one update to the next."""

    loss: LossConfig
    router_coefficient: float
    """Weight of the auxiliary loss of a mixture-of-experts model's router; 0 for dense models."""
    rewards: RewardMean


def train_micro_batches(
    engine: Any, batch: RankBatch, objective: Objective, sums: MetricSums, *, seed: int, with_statistics: bool
) -> Iterator[tuple[MicroBatch, TokenLogps]]:
    """Run forward and backward over this rank's share of a global batch, and yield after each micro-batch.

    The caller then makes the optimizer step. The loss is the mean over the global batch's pairs, in which a pair counts
    by its weight; if all weights are 0, loss and gradient are 0, and the step is made all the same. DeepSpeed averages
    gradients over ranks, so each rank's part is multiplied by the number of ranks. `seed` makes dropout the same in
    both forwards of a loss that needs two.
    """
    loss = objective.loss
    world = torch.distributed.get_world_size()
    last = len(batch.micro_batches) - 1
    weights: list[Tensor] | None = None
    if needs_global_batch(loss):
        torch.manual_seed(seed)
        weights, values = loss_gradients(_tables(engine, batch, loss), loss, objective.rewards)
        sums.add("loss", values.double().sum(), len(values))
    torch.manual_seed(seed)
    for index, micro_batch in enumerate(batch.micro_batches):
        engine.set_gradient_accumulation_boundary(index == last)
        tokens, pairs = forward(engine, micro_batch, loss, batch, with_statistics=with_statistics)
        if weights is not None:
            part = (pairs.table() * weights[index]).sum()
        else:
            values = pair_losses(pairs, loss)
            part = values.sum() / batch.pairs
            sums.add("loss", values.detach().double().sum(), len(values))
        # An empty micro-batch has no share, but must take part in the collectives of the backward.
        share = micro_batch.pairs / batch.pairs
        engine.backward(poisoned(part + objective.router_coefficient * share * tokens.router_loss) * world)
        add_router_sums(sums, tokens, micro_batch, objective.router_coefficient)
        add_pair_sums(sums, pairs, loss)
        if with_statistics:
            add_token_sums(sums, tokens, micro_batch)
        yield micro_batch, tokens


@torch.no_grad()
def _tables(engine: Any, batch: RankBatch, loss: LossConfig) -> list[Tensor]:
    forwards = (forward(engine, micro_batch, loss, batch, with_statistics=False) for micro_batch in batch.micro_batches)
    return [pairs.table() for _, pairs in forwards]


def add_router_sums(sums: MetricSums, tokens: TokenLogps, micro_batch: MicroBatch, coefficient: float) -> None:
    """Add the router's auxiliary loss to the sums of aux_loss and loss; do nothing for dense models."""
    if coefficient:
        weighted = tokens.router_loss.detach().double() * micro_batch.pairs
        sums.add("aux_loss", weighted, micro_batch.pairs)
        sums.add("loss", coefficient * weighted, 0)


def forward(
    engine: Any, micro_batch: MicroBatch, loss: LossConfig, batch: RankBatch, *, with_statistics: bool
) -> tuple[TokenLogps, PairLogps]:
    """Run one forward; return the log-probs of the M completion tokens, and the log-probs per pair for `loss`.

    `batch` is the global batch that the micro-batch is a part of.
    """
    request = TokenStatsRequest(statistics=with_statistics, collision=loss.use_weighting)
    every = TokenLogps(*engine(micro_batch, request))
    tokens = every.pick(to_device(micro_batch.target_index, engine.device))
    prompt_logps = every.logps[to_device(micro_batch.prompt_target_index, engine.device)]
    return tokens, _pair_logps(tokens, prompt_logps, micro_batch, loss, batch)


def _pair_logps(
    tokens: TokenLogps, prompt_logps: Tensor, micro_batch: MicroBatch, loss: LossConfig, batch: RankBatch
) -> PairLogps:
    """Sum log-probs of completion tokens [M] and of prompt tokens [P] per completion and pair."""
    logps, device, pairs = tokens.logps, tokens.logps.device, micro_batch.pairs
    sequence_index = to_device(micro_batch.sequence_index, device)
    reference = to_device(micro_batch.ref_logps, device)

    def sums(values: Tensor) -> tuple[Tensor, Tensor]:
        chosen, rejected = completion_sums(values, sequence_index, 2 * pairs).chunk(2) if pairs else (values, values)
        return chosen, rejected

    (chosen_tokens, rejected_tokens), (chosen_plain, _) = sums(torch.ones_like(logps)), sums(logps)
    nll, nll_tokens = -chosen_plain, chosen_tokens
    if counts_prompts(loss):
        prompt = to_device(micro_batch.prompt_pair_index, device)
        nll = nll - completion_sums(prompt_logps, prompt, pairs)
        nll_tokens = nll_tokens + completion_sums(torch.ones_like(prompt_logps), prompt, pairs)
    weights = torch.ones_like(chosen_tokens)
    if loss.use_weighting:  # Zhou et al. 2024 (WPO), eq. 2, relative to the policy's certainty at each token
        chosen, rejected = sums((logps - tokens.collision).detach())
        weights = torch.exp(chosen / chosen_tokens + rejected / rejected_tokens)
    if loss.ld_alpha is not None:
        weight = tail_weights(sequence_index, pairs, loss.ld_alpha)
        logps, reference = weight * logps, weight * reference
    (chosen, rejected), (ref_chosen, ref_rejected) = sums(logps), sums(reference)
    return PairLogps(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        nll=nll,
        nll_tokens=nll_tokens,
        weights=weights,
        sample_weights=to_device(micro_batch.sample_weights, device),
        margins=loss.margin_scale * to_device(micro_batch.margins, device),
        mean_nll_tokens=batch.mean_nll_tokens,
        mean_weight=batch.mean_weight if loss.sample_weights == "mean" else 1.0,
    )
