"""The objectives, one function each, under the names of `loss_type`: B pairs in, a loss a pair [B] out.

The objective of a batch is the mean over its pairs. In the formulas a = log pi(y+|x) - log ref(y+|x), b the same of y-,
h = a - b, s the logistic function, e the label smoothing; the papers stand in raydpo/config/loss_types.py.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.config import LossConfig
from raydpo.config.loss_types import LOSS_TYPES
from raydpo.objectives.divergences import f_prime
from raydpo.objectives.pairs import PairLogps


def _gap(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """h, reshaped by the f-divergence: f'(pi/ref) of y+ less that of y-."""
    return f_prime(pairs.chosen_logratios, loss) - f_prime(pairs.rejected_logratios, loss)


def _mean_gap(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """The same with each side divided by its tokens."""
    chosen, rejected = f_prime(pairs.chosen_logratios, loss), f_prime(pairs.rejected_logratios, loss)
    return chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens


def _smoothed(x: Tensor, smoothing: float) -> Tensor:
    """-(1 - e) log s(x) - e log s(-x): cross-entropy with labels that are wrong with probability e."""
    return -(1 - smoothing) * F.logsigmoid(x) - smoothing * F.logsigmoid(-x)


def sigmoid(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """-(1 - e) log s(beta h) - e log s(-beta h).

    Rafailov et al. 2023 (Direct Preference Optimization), eq. 7; with e, conservative DPO: Mitchell 2023 (A note on DPO
    with noisy preferences), eq. 3, which TRL 1.x ignores.
    """
    return _smoothed(loss.beta * _gap(pairs, loss), loss.smoothing("sigmoid"))


def hinge(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """max(0, 1 - beta h).

    Liu et al. 2023 (Statistical Rejection Sampling), the hinge loss on normalised likelihoods.
    """
    return torch.relu(1 - loss.beta * _gap(pairs, loss))


def ipo(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """(a / |y+| - b / |y-| - 1 / (2 beta))^2.

    Azar et al. 2023 (A General Theoretical Paradigm), eq. 17 with tau = beta. Its authors average over tokens, which
    the paper leaves unsaid; so does TRL.
    """
    return (_mean_gap(pairs, loss) - 1 / (2 * loss.beta)) ** 2


def exo_pair(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """s(beta h) (log s(beta h) - log(1 - e)) + s(-beta h) (log s(-beta h) - log e).

    Ji et al. 2024 (Towards Efficient Exact Optimization), eq. 16: the reverse KL from the policy's preference to one
    that is wrong with probability e, which must be above 0.
    """
    x = loss.beta * _gap(pairs, loss)
    smoothing = torch.tensor(loss.smoothing("exo_pair"), dtype=x.dtype, device=x.device)
    right = torch.sigmoid(x) * (F.logsigmoid(x) - torch.log1p(-smoothing))
    wrong = torch.sigmoid(-x) * (F.logsigmoid(-x) - torch.log(smoothing))
    return right + wrong


def nca_pair(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """-log s(beta a) - log s(-beta a) / 2 - log s(-beta b) / 2.

    Chen et al. 2024 (Noise Contrastive Alignment), the NCA loss for a preferred and another completion.
    """
    chosen, rejected = loss.beta * pairs.chosen_logratios, loss.beta * pairs.rejected_logratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def robust(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """(-(1 - e) log s(beta h) + e log s(-beta h)) / (1 - 2 e).

    Chowdhury et al. 2024 (Provably Robust DPO): in expectation the loss on clean labels, where a share e is flipped.
    """
    x, smoothing = loss.beta * _gap(pairs, loss), loss.smoothing("robust")
    return (-(1 - smoothing) * F.logsigmoid(x) + smoothing * F.logsigmoid(-x)) / (1 - 2 * smoothing)


def bco_pair(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """-log s(beta a - delta) - log s(-(beta b - delta)).

    Jung et al. 2024 (Binary Classifier Optimization). delta is the mean of the rewards so far with `bco_running_mean`,
    as in the paper; else 0, as in TRL 1.x.
    """
    chosen = loss.beta * pairs.chosen_logratios - pairs.reward_mean
    rejected = loss.beta * pairs.rejected_logratios - pairs.reward_mean
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sppo_hard(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2.

    Wu et al. 2024 (Self-Play Preference Optimization), eq. 4.7, where y+ wins surely and eta = 1 / beta.
    """
    half = 0.5 / loss.beta
    return (pairs.chosen_logratios - half) ** 2 + (pairs.rejected_logratios + half) ** 2


def aot(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """-(1 - e) log s(beta d) - e log s(-beta d) for each quantile d of the batch, [B] in the order of the quantiles.

    Melnyk et al. 2024 (Distributional Preference Alignment via Optimal Transport), paired: d is the difference of the
    sorted log pi(y+|x) - log pi(y-|x) and the sorted log ref(y+|x) - log ref(y-|x).
    """
    policy = torch.sort(pairs.chosen - pairs.rejected).values
    reference = torch.sort(pairs.ref_chosen - pairs.ref_rejected).values
    return _smoothed(loss.beta * (policy - reference), loss.smoothing("aot"))


def aot_unpaired(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """As `aot`, with d the difference of the sorted a and the sorted b."""
    chosen, rejected = torch.sort(pairs.chosen_logratios).values, torch.sort(pairs.rejected_logratios).values
    return _smoothed(loss.beta * (chosen - rejected), loss.smoothing("aot_unpaired"))


def apo_zero(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """1 - s(beta a) + s(beta b): up with y+, down with y-.

    D'Oosterlinck et al. 2024 (Anchored Preference Optimization), eq. 7: where y+ is better than what the model writes.
    """
    return 1 - torch.sigmoid(loss.beta * pairs.chosen_logratios) + torch.sigmoid(loss.beta * pairs.rejected_logratios)


def apo_down(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """s(beta a) + 1 - s(beta h): down with y+, further down with y-.

    D'Oosterlinck et al. 2024 (Anchored Preference Optimization), eq. 8: where y+ is worse than what the model writes.
    """
    gap = pairs.chosen_logratios - pairs.rejected_logratios
    return torch.sigmoid(loss.beta * pairs.chosen_logratios) + 1 - torch.sigmoid(loss.beta * gap)


def discopop(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """-(1 - m) log s(x) + m exp(-x), with x = beta h and m = s(x / discopop_tau).

    Lu et al. 2024 (Discovering Preference Optimization Algorithms), eq. 5.
    """
    x = loss.beta * _gap(pairs, loss)
    share = torch.sigmoid(x / loss.discopop_tau)
    return -(1 - share) * F.logsigmoid(x) + share * torch.exp(-x)


def sft(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """The pair's part of the global batch's mean negative log-likelihood a token, -log pi(y+|x) over all tokens of y+.

    A pair counts by its tokens, so the mean over pairs is the mean over tokens. Pang et al. 2024 (Iterative Reasoning
    Preference Optimization) and CPO (Xu et al. 2024, eq. 5) add this to a preference loss.
    """
    return pairs.nll / pairs.mean_nll_tokens


def sigmoid_norm(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """-log s(beta (a / |y+| - b / |y-|)). Lambert et al. 2024 (Tulu 3), length-normalised DPO."""
    return -F.logsigmoid(loss.beta * _mean_gap(pairs, loss))


def simpo(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """-(1 - e) log s(x) - e log s(-x), with x = beta (log pi(y+|x) / |y+| - log pi(y-|x) / |y-|) - gamma.

    Meng et al. 2024 (SimPO), eq. 6.
    """
    gap = pairs.chosen_mean - pairs.rejected_mean
    return _smoothed(loss.beta * gap - loss.simpo_gamma, loss.smoothing("simpo"))


def orpo(pairs: PairLogps, loss: LossConfig) -> Tensor:
    """The likelihood term of x and y+ together, less beta log s(log odds of y+ less log odds of y-).

    Hong et al. 2024 (ORPO), eq. 6 and 7 with lambda = beta.
    """
    return sft(pairs, loss) - loss.beta * F.logsigmoid(log_odds_ratio(pairs))


def log_odds_ratio(pairs: PairLogps) -> Tensor:
    """log odds(y+|x) - log odds(y-|x), [B]; odds p / (1 - p) of the geometric mean p of the tokens' probabilities.

    Hong et al. 2024 (ORPO), eq. 3 and 4.
    """
    return _log_odds(pairs.chosen_mean) - _log_odds(pairs.rejected_mean)


def _log_odds(logp: Tensor) -> Tensor:
    # log(1 - p) by expm1, since p is near 1 for a completion that the policy knows by heart.
    return logp - torch.log(-torch.expm1(logp.clamp(max=-1e-7)))


Loss = Callable[[PairLogps, LossConfig], Tensor]

LOSSES: dict[str, Loss] = {name: globals()[name] for name in LOSS_TYPES}
"""`loss_type` to its function."""
