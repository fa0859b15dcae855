"""The metrics of a batch of pairs, under TRL's names."""

import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.config import LossConfig
from raydpo.config.loss_types import LOSS_TYPES
from raydpo.objectives.losses import log_odds_ratio
from raydpo.objectives.pairs import PairLogps


def pair_metrics(pairs: PairLogps, loss: LossConfig) -> dict[str, Tensor]:
    """Return the value of each metric for each pair, [B] and detached; the mean over pairs is what is logged.

    A reward is beta times a log-ratio (Rafailov et al. 2023, below eq. 7). For simpo, orpo and CPO (ipo without a
    reference) it is beta times the mean log-prob per token. An accuracy is 1 where the chosen completion has the higher
    reward; equal rewards, as before the first update, count 0, as in TRL.
    """
    pairs = pairs.detached()
    is_cpo = loss.reference_free and "ipo" in loss.loss_type
    if all(LOSS_TYPES[name].needs_reference for name in loss.loss_type) and not is_cpo:
        chosen, rejected = pairs.chosen, pairs.rejected
        chosen_rewards, rejected_rewards = loss.beta * pairs.chosen_logratios, loss.beta * pairs.rejected_logratios
    else:
        chosen, rejected = pairs.chosen_mean, pairs.rejected_mean
        chosen_rewards, rejected_rewards = loss.beta * chosen, loss.beta * rejected
    values = {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/accuracies": (chosen_rewards > rejected_rewards).to(torch.float32),
        "rewards/margins": chosen_rewards - rejected_rewards,
        "logps/chosen": chosen,
        "logps/rejected": rejected,
    }
    if "orpo" in loss.loss_type:
        log_odds = log_odds_ratio(pairs)
        values |= {"log_odds_chosen": log_odds, "log_odds_ratio": F.logsigmoid(log_odds)}
    return values
