"""The objective of a run: the loss functions that its options name, weighted and added up."""

from collections.abc import Callable

import torch
from torch import Tensor

from raydpo.config import LossConfig
from raydpo.config.loss_types import LOSS_TYPES
from raydpo.objectives import losses
from raydpo.objectives.divergences import FPrime, f_prime
from raydpo.objectives.pairs import PairLogps


def _f_prime(loss: LossConfig) -> FPrime:
    return f_prime(loss.f_divergence_type, loss.f_alpha_divergence_coef)


LOSSES: dict[str, Callable[[PairLogps, LossConfig], Tensor]] = {
    "sigmoid": lambda pairs, o: losses.sigmoid(
        pairs, beta=o.beta, label_smoothing=o.smoothing("sigmoid"), f_prime=_f_prime(o)
    ),
    "hinge": lambda pairs, o: losses.hinge(pairs, beta=o.beta, f_prime=_f_prime(o)),
    "ipo": lambda pairs, o: losses.ipo(pairs, beta=o.beta, f_prime=_f_prime(o)),
    "exo_pair": lambda pairs, o: losses.exo_pair(
        pairs, beta=o.beta, label_smoothing=o.smoothing("exo_pair"), f_prime=_f_prime(o)
    ),
    "nca_pair": lambda pairs, o: losses.nca_pair(pairs, beta=o.beta),
    "robust": lambda pairs, o: losses.robust(
        pairs, beta=o.beta, label_smoothing=o.smoothing("robust"), f_prime=_f_prime(o)
    ),
    "bco_pair": lambda pairs, o: losses.bco_pair(pairs, beta=o.beta),
    "sppo_hard": lambda pairs, o: losses.sppo_hard(pairs, beta=o.beta),
    "aot": lambda pairs, o: losses.aot(pairs, beta=o.beta, label_smoothing=o.smoothing("aot")),
    "aot_unpaired": lambda pairs, o: losses.aot_unpaired(
        pairs, beta=o.beta, label_smoothing=o.smoothing("aot_unpaired")
    ),
    "apo_zero": lambda pairs, o: losses.apo_zero(pairs, beta=o.beta),
    "apo_down": lambda pairs, o: losses.apo_down(pairs, beta=o.beta),
    "discopop": lambda pairs, o: losses.discopop(pairs, beta=o.beta, tau=o.discopop_tau, f_prime=_f_prime(o)),
    "sft": lambda pairs, o: losses.sft(pairs),
    "sigmoid_norm": lambda pairs, o: losses.sigmoid_norm(pairs, beta=o.beta, f_prime=_f_prime(o)),
    "rpo_bwd_kl": lambda pairs, o: losses.rpo_bwd_kl(pairs, beta=o.beta),
    "simpo": lambda pairs, o: losses.simpo(
        pairs, beta=o.beta, gamma=o.simpo_gamma, label_smoothing=o.smoothing("simpo")
    ),
    "orpo": lambda pairs, o: losses.orpo(pairs, beta=o.beta),
}
"""Each value of `loss_type`, with the loss function and the options that its parameters come from."""


def pair_losses(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """Return the objective's part for each pair [B]; the objective of a batch is their mean.

    Where `needs_global_batch` is true, the parts are right only if `pairs` is the whole global batch. WPO's weights
    multiply the preference losses (Zhou et al. 2024, arXiv 2406.11827, eq. 2) and leave the likelihood term alone; the
    weights of rows multiply both. Losses over quantiles belong to no single pair, and apply the weights themselves.
    """
    total = torch.zeros_like(pairs.chosen)
    for name, weight in zip(loss.loss_type, loss.loss_weights or [1.0] * len(loss.loss_type), strict=True):
        values = LOSSES[name](pairs, loss)
        if name != "sft":
            values = values * pairs.weights
        if not LOSS_TYPES[name].needs_global_batch:
            values = values * pairs.relative_weights
        total = total + weight * values
    likelihood = (loss.rpo_alpha or 0.0) + loss.cpo_alpha
    return total + likelihood * (losses.sft(pairs) * pairs.relative_weights) if likelihood else total


def needs_global_batch(loss: LossConfig) -> bool:
    """Return whether a pair's loss depends on the other pairs of the global batch."""
    return loss.bco_running_mean or any(LOSS_TYPES[name].needs_global_batch for name in loss.loss_type)


def counts_prompts(loss: LossConfig) -> bool:
    """Return whether the likelihood term counts the prompt's tokens next to the chosen completion's, as in ORPO."""
    return "orpo" in loss.loss_type


def has_likelihood(loss: LossConfig) -> bool:
    """Return whether the objective has a likelihood term of the chosen completions."""
    return bool({"sft", "orpo"} & set(loss.loss_type) or loss.rpo_alpha or loss.cpo_alpha)


def loss_at_reference(loss: LossConfig) -> float | None:
    """Return the objective's value where the policy equals its reference; None where it depends on the data.

    It is the value for pairs without margins, and with weights as `sample_weights=mean` uses them.
    """
    if has_likelihood(loss) or loss.use_weighting or not loss.needs_reference or loss.needs_margin:
        return None
    zeros, ones = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    same = PairLogps(zeros, zeros, zeros, zeros, ones, ones, zeros, ones, ones, ones, zeros, mean_nll_tokens=1.0)
    return pair_losses(same, loss).item()
