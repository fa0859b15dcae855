"""The objective of a run: its losses, weighed and added up."""

import torch
from torch import Tensor

from raydpo.config import LossConfig
from raydpo.config.loss_types import LOSS_TYPES
from raydpo.objectives.losses import LOSSES, sft
from raydpo.objectives.pairs import PairLogps


def losses(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """The objective's part of each pair, [B]; the objective of a batch is their mean.

    Where `needs_global_batch`, the parts are right only if `pairs` is the whole global batch. WPO's weights multiply
    the preference terms (Zhou et al. 2024, arXiv 2406.11827, eq. 2) and leave the likelihood term alone.
    """
    total = torch.zeros_like(pairs.chosen)
    for name, weight in zip(loss.loss_type, loss.loss_weights or [1.0] * len(loss.loss_type), strict=True):
        values = LOSSES[name](pairs, loss)
        total = total + weight * (values if name == "sft" else values * pairs.weights)
    likelihood = (loss.rpo_alpha or 0.0) + loss.cpo_alpha
    return total + likelihood * sft(pairs, loss) if likelihood else total


def needs_global_batch(loss: LossConfig) -> bool:
    """True where a pair's part depends on the other pairs of the global batch."""
    return loss.bco_running_mean or any(LOSS_TYPES[name].needs_global_batch for name in loss.loss_type)


def counts_prompts(loss: LossConfig) -> bool:
    """True where the likelihood term counts the prompt beside the chosen completion, as ORPO's does."""
    return "orpo" in loss.loss_type


def has_likelihood(loss: LossConfig) -> bool:
    """True where the objective holds the chosen completions' likelihood."""
    return bool({"sft", "orpo"} & set(loss.loss_type) or loss.rpo_alpha or loss.cpo_alpha)


def at_reference(loss: LossConfig) -> float | None:
    """What the objective is where the policy equals its reference; None where that depends on the data."""
    if has_likelihood(loss) or loss.use_weighting or not loss.needs_reference:
        return None
    zeros, ones = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    same = PairLogps(zeros, zeros, zeros, zeros, ones, ones, zeros, ones, ones, mean_nll_tokens=1.0)
    return losses(same, loss).item()
