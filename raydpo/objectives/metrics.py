"""What is reported of a batch of pairs, under TRL's names."""

import torch
from torch import Tensor

from raydpo.objectives.losses import PairLogps


def pair_metrics(logps: PairLogps, *, beta: float) -> dict[str, Tensor]:
    """Per-pair values, each [B] and detached; their mean over pairs is what is logged.

    A reward is beta times a log-ratio (Rafailov et al. 2023, below eq. 7); an accuracy is 1 where the chosen
    completion has the higher reward, so equal rewards (the untrained policy) count 0, as in TRL.
    """
    chosen_rewards = beta * logps.chosen_logratios.detach()
    rejected_rewards = beta * logps.rejected_logratios.detach()
    return {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/accuracies": (chosen_rewards > rejected_rewards).to(torch.float32),
        "rewards/margins": chosen_rewards - rejected_rewards,
        "logps/chosen": logps.chosen.detach(),
        "logps/rejected": logps.rejected.detach(),
    }
