"""One forward of a micro-batch: what it says of each token, and of each pair."""

from typing import Any

import torch
from torch import Tensor

from raydpo.config import LossConfig
from raydpo.models.device import to_device
from raydpo.models.head import TokenLogps, Wanted
from raydpo.models.logprobs import completion_sums
from raydpo.objectives.objective import counts_prompts
from raydpo.objectives.pairs import PairLogps, tail_weights
from raydpo.schema import MicroBatch


def forward(
    engine: Any, micro_batch: MicroBatch, loss: LossConfig, mean_nll_tokens: float, *, with_statistics: bool
) -> tuple[TokenLogps, PairLogps]:
    """Log-probs of the M completion tokens, and of the pairs with the reference's beside; as `loss` counts them.

    `mean_nll_tokens` is that of the global batch (see `PairLogps`).
    """
    wanted = Wanted(statistics=with_statistics, collision=loss.use_weighting)
    every = TokenLogps(*engine(micro_batch, wanted))
    tokens = every.pick(to_device(micro_batch.tokens, engine.device))
    prompt_logps = every.logps[to_device(micro_batch.prompt_tokens, engine.device)]
    return tokens, _pair_logps(tokens, prompt_logps, micro_batch, loss, mean_nll_tokens)


def _pair_logps(
    tokens: TokenLogps, prompt_logps: Tensor, micro_batch: MicroBatch, loss: LossConfig, mean_nll_tokens: float
) -> PairLogps:
    """The sums over each completion, of its tokens' log-probs [M] and those of the prompts [P]."""
    logps, device, pairs = tokens.logps, tokens.logps.device, micro_batch.pairs
    completion = to_device(micro_batch.completion, device)
    reference = to_device(micro_batch.ref_logps, device)

    def sums(values: Tensor) -> tuple[Tensor, Tensor]:
        chosen, rejected = completion_sums(values, completion, 2 * pairs).chunk(2) if pairs else (values, values)
        return chosen, rejected

    (chosen_tokens, rejected_tokens), (chosen_plain, _) = sums(torch.ones_like(logps)), sums(logps)
    nll, nll_tokens = -chosen_plain, chosen_tokens
    if counts_prompts(loss):
        prompt = to_device(micro_batch.prompt, device)
        nll = nll - completion_sums(prompt_logps, prompt, pairs)
        nll_tokens = nll_tokens + completion_sums(torch.ones_like(prompt_logps), prompt, pairs)
    weights = torch.ones_like(chosen_tokens)
    if loss.use_weighting:  # Zhou et al. 2024 (WPO), eq. 2, each token held against how sure the policy is there
        chosen, rejected = sums((logps - tokens.collision).detach())
        weights = torch.exp(chosen / chosen_tokens + rejected / rejected_tokens)
    if loss.ld_alpha is not None:
        weight = tail_weights(completion, pairs, loss.ld_alpha)
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
        mean_nll_tokens=mean_nll_tokens,
    )
