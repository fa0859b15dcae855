"""The loss functions, named after the values of `loss_type`: B pairs in, one loss per pair [B] out.

Each function takes the parameters that its formula has and nothing else; `objective.LOSSES` fills them from the run's
options. The objective of a batch is the mean over its pairs. Symbols in the formulas: a = log pi(y+|x) - log ref(y+|x),
b the same for y-, h = a - b, s the logistic function, e the label smoothing. With an f-divergence other than the
reverse KL, `f_prime` replaces the log-ratios a and b (see `divergences`). m is the pair's margin, 0 where its row has
none: Amini et al. 2024 (Direct Preference Optimization with an Offset, arXiv 2402.10571) subtract it from beta h, as do
all losses here that compare beta h with a threshold. A margin is a difference of scores, so with chosen and rejected
exchanged, as by label smoothing, it changes its sign like h.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.objectives.divergences import FPrime, reverse_kl
from raydpo.objectives.pairs import PairLogps
from raydpo.objectives.quantiles import integrate_quantiles


def _gap(pairs: PairLogps, f_prime: FPrime) -> Tensor:
    """Return h [B]."""
    return f_prime(pairs.chosen_logratios) - f_prime(pairs.rejected_logratios)


def _mean_gap(pairs: PairLogps, f_prime: FPrime) -> Tensor:
    """Return a / |y+| - b / |y-| [B]: h with each completion's log-ratio divided by its number of tokens."""
    chosen, rejected = f_prime(pairs.chosen_logratios), f_prime(pairs.rejected_logratios)
    return chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens


def _smoothed(x: Tensor, label_smoothing: float) -> Tensor:
    """Return -(1 - e) log s(x) - e log s(-x): the cross-entropy with labels that are wrong with probability e."""
    return -(1 - label_smoothing) * F.logsigmoid(x) - label_smoothing * F.logsigmoid(-x)


def sigmoid(pairs: PairLogps, *, beta: float, label_smoothing: float, f_prime: FPrime) -> Tensor:
    """Return -(1 - e) log s(beta h - m) - e log s(m - beta h).

    Rafailov et al. 2023 (Direct Preference Optimization), eq. 7. With e > 0 it is conservative DPO: Mitchell 2023 (A
    note on DPO with noisy preferences), eq. 3, which TRL 1.x ignores. With a margin it is ODPO.
    """
    return _smoothed(beta * _gap(pairs, f_prime) - pairs.margins, label_smoothing)


def hinge(pairs: PairLogps, *, beta: float, f_prime: FPrime) -> Tensor:
    """Return max(0, 1 - (beta h - m)).

    Liu et al. 2023 (Statistical Rejection Sampling), the hinge loss on normalised likelihoods.
    """
    return torch.relu(1 - (beta * _gap(pairs, f_prime) - pairs.margins))


def ipo(pairs: PairLogps, *, beta: float, f_prime: FPrime) -> Tensor:
    """Return (a / |y+| - b / |y-| - 1 / (2 beta))^2.

    Azar et al. 2023 (A General Theoretical Paradigm), eq. 17 with tau = beta. The paper does not mention the mean over
    tokens, but its authors' code and TRL take it.
    """
    return (_mean_gap(pairs, f_prime) - 1 / (2 * beta)) ** 2


def exo_pair(pairs: PairLogps, *, beta: float, label_smoothing: float, f_prime: FPrime) -> Tensor:
    """Return s(beta h) (log s(beta h) - log(1 - e)) + s(-beta h) (log s(-beta h) - log e); e must be above 0.

    Ji et al. 2024 (Towards Efficient Exact Optimization), eq. 16: the reverse KL divergence from the policy's
    preference to a preference that is wrong with probability e.
    """
    x = beta * _gap(pairs, f_prime)
    smoothing = torch.tensor(label_smoothing, dtype=x.dtype, device=x.device)
    right = torch.sigmoid(x) * (F.logsigmoid(x) - torch.log1p(-smoothing))
    wrong = torch.sigmoid(-x) * (F.logsigmoid(-x) - torch.log(smoothing))
    return right + wrong


def nca_pair(pairs: PairLogps, *, beta: float) -> Tensor:
    """Return -log s(beta a) - log s(-beta a) / 2 - log s(-beta b) / 2.

    Chen et al. 2024 (Noise Contrastive Alignment), the NCA loss for one preferred and one other completion.
    """
    chosen, rejected = beta * pairs.chosen_logratios, beta * pairs.rejected_logratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def robust(pairs: PairLogps, *, beta: float, label_smoothing: float, f_prime: FPrime) -> Tensor:
    """Return (-(1 - e) log s(beta h - m) + e log s(m - beta h)) / (1 - 2 e).

    Chowdhury et al. 2024 (Provably Robust DPO): where a share e of the labels is flipped, its expectation is the loss
    on clean labels.
    """
    x = beta * _gap(pairs, f_prime) - pairs.margins
    return (-(1 - label_smoothing) * F.logsigmoid(x) + label_smoothing * F.logsigmoid(-x)) / (1 - 2 * label_smoothing)


def bco_pair(pairs: PairLogps, *, beta: float) -> Tensor:
    """Return -log s(beta a - delta) - log s(-(beta b - delta)).

    Jung et al. 2024 (Binary Classifier Optimization). delta is `pairs.reward_mean`: the mean of all rewards so far with
    `bco_running_mean`, as in the paper, and 0 without, as in TRL 1.x.
    """
    chosen = beta * pairs.chosen_logratios - pairs.reward_mean
    rejected = beta * pairs.rejected_logratios - pairs.reward_mean
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sppo_hard(pairs: PairLogps, *, beta: float) -> Tensor:
    """Return (a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2.

    Wu et al. 2024 (Self-Play Preference Optimization), eq. 4.7, where y+ wins with probability 1 and eta = 1 / beta.
    """
    half = 0.5 / beta
    return (pairs.chosen_logratios - half) ** 2 + (pairs.rejected_logratios + half) ** 2


def aot(pairs: PairLogps, *, beta: float, label_smoothing: float) -> Tensor:
    """Return -(1 - e) log s(beta d) - e log s(-beta d) for each quantile d of the batch, in the order of quantiles.

    Melnyk et al. 2024 (Distributional Preference Alignment via Optimal Transport), paired: d is the difference between
    the sorted log pi(y+|x) - log pi(y-|x) and the sorted log ref(y+|x) - log ref(y-|x). A pair's weight is the mass of
    its value in both distributions.
    """
    return _transport(
        pairs, pairs.chosen - pairs.rejected, pairs.ref_chosen - pairs.ref_rejected, beta, label_smoothing
    )


def _transport(pairs: PairLogps, one: Tensor, other: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Return the loss of the differences between the quantiles of `one` and of `other`, times their weights [B]."""
    parts = integrate_quantiles(one, other, pairs.sample_weights, lambda gap: _smoothed(beta * gap, label_smoothing))
    return parts / pairs.mean_weight


def aot_unpaired(pairs: PairLogps, *, beta: float, label_smoothing: float) -> Tensor:
    """Return the loss of `aot`, where d is the difference between the sorted a and the sorted b (unpaired)."""
    return _transport(pairs, pairs.chosen_logratios, pairs.rejected_logratios, beta, label_smoothing)


def apo_zero(pairs: PairLogps, *, beta: float) -> Tensor:
    """Return 1 - s(beta a) + s(beta b), which raises y+ and lowers y-.

    D'Oosterlinck et al. 2024 (Anchored Preference Optimization), eq. 7: for data in which y+ is better than the
    model's own completions.
    """
    return 1 - torch.sigmoid(beta * pairs.chosen_logratios) + torch.sigmoid(beta * pairs.rejected_logratios)


def apo_down(pairs: PairLogps, *, beta: float) -> Tensor:
    """Return s(beta a) + 1 - s(beta h), which lowers y+ and lowers y- further.

    D'Oosterlinck et al. 2024 (Anchored Preference Optimization), eq. 8: for data in which y+ is worse than the model's
    own completions.
    """
    gap = pairs.chosen_logratios - pairs.rejected_logratios
    return torch.sigmoid(beta * pairs.chosen_logratios) + 1 - torch.sigmoid(beta * gap)


def discopop(pairs: PairLogps, *, beta: float, tau: float, f_prime: FPrime) -> Tensor:
    """Return -(1 - m) log s(x) + m exp(-x), with x = beta h and m = s(x / tau).

    Lu et al. 2024 (Discovering Preference Optimization Algorithms), eq. 5.
    """
    x = beta * _gap(pairs, f_prime)
    share = torch.sigmoid(x / tau)
    return -(1 - share) * F.logsigmoid(x) + share * torch.exp(-x)


def sft(pairs: PairLogps) -> Tensor:
    """Return each pair's share of the global batch's mean negative log-likelihood per token of y+.

    A pair counts by its number of tokens, so the mean over pairs is the mean over tokens. Pang et al. 2024 (Iterative
    Reasoning Preference Optimization) and Xu et al. 2024 (CPO), eq. 5, add this term to a preference loss.
    """
    return pairs.nll / pairs.mean_nll_tokens


def sigmoid_norm(pairs: PairLogps, *, beta: float, f_prime: FPrime) -> Tensor:
    """Return -log s(beta (a / |y+| - b / |y-|) - m). Lambert et al. 2024 (Tulu 3), length-normalised DPO."""
    return -F.logsigmoid(beta * _mean_gap(pairs, f_prime) - pairs.margins)


def rpo_bwd_kl(pairs: PairLogps, *, beta: float) -> Tensor:
    """Return s(m) (log s(m) - log s(beta h)) + s(-m) (log s(-m) - log s(-beta h)).

    NVIDIA 2024 (Nemotron-4 340B, arXiv 2406.11704), reward-aware preference optimisation: the KL divergence between two
    preferences, that of the rewards (m = eta (r+ - r-)) and that of the policy. It is 0 at beta h = m, so that the
    policy also learns by how much a completion is better. NeMo calls it rpo_bwd_kl.
    """
    x, margins = beta * _gap(pairs, reverse_kl), pairs.margins
    right = torch.sigmoid(margins) * (F.logsigmoid(margins) - F.logsigmoid(x))
    wrong = torch.sigmoid(-margins) * (F.logsigmoid(-margins) - F.logsigmoid(-x))
    return right + wrong


def simpo(pairs: PairLogps, *, beta: float, gamma: float, label_smoothing: float) -> Tensor:
    """Return -(1 - e) log s(x) - e log s(-x), with x = beta (log pi(y+|x) / |y+| - log pi(y-|x) / |y-|) - gamma - m.

    Meng et al. 2024 (SimPO), eq. 6, whose target margin gamma is the same for all pairs.
    """
    gap = pairs.chosen_mean - pairs.rejected_mean
    return _smoothed(beta * gap - gamma - pairs.margins, label_smoothing)


def orpo(pairs: PairLogps, *, beta: float) -> Tensor:
    """Return the likelihood term of x and y+ minus beta log s(log odds(y+|x) - log odds(y-|x)).

    Hong et al. 2024 (ORPO), eq. 6 and 7 with lambda = beta.
    """
    return sft(pairs) - beta * F.logsigmoid(log_odds_ratio(pairs))


def log_odds_ratio(pairs: PairLogps) -> Tensor:
    """Return log odds(y+|x) - log odds(y-|x) [B].

    The odds are p / (1 - p), where p is the geometric mean of a completion's token probabilities: Hong et al. 2024
    (ORPO), eq. 3 and 4.
    """
    return _log_odds(pairs.chosen_mean) - _log_odds(pairs.rejected_mean)


def _log_odds(logp: Tensor) -> Tensor:
    # expm1 computes log(1 - p) accurately where p is near 1, as for a memorised completion.
    return logp - torch.log(-torch.expm1(logp.clamp(max=-1e-7)))
