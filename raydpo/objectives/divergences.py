"""f-divergences: which distance from the reference the policy is charged for."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.config import LossConfig

LARGEST_EXPONENT = 80.0  # exp of much more is no float32


def f_prime(logratios: Tensor, loss: LossConfig) -> Tensor:
    """f'(u) at u = pi / ref, from log-ratios log u, [B] -> [B], with f'(1) = 0.

    Wang et al. 2023 (Beyond Reverse KL, arXiv 2309.16240), table 1. With the reverse KL this is log u itself, which is
    DPO; the alpha-divergence goes to it as alpha goes to 1.
    """
    if loss.f_divergence_type == "forward_kl":  # f'(u) = 1 - 1/u
        return -_expm1(-logratios)
    if loss.f_divergence_type == "js_divergence":  # f'(u) = log(2u / (1 + u))
        return math.log(2) + F.logsigmoid(logratios)
    power = loss.f_alpha_divergence_coef - 1
    if loss.f_divergence_type == "alpha_divergence" and abs(power) > 1e-6:  # f'(u) = (u^(alpha - 1) - 1) / (alpha - 1)
        return _expm1(power * logratios) / power
    return logratios


def _expm1(x: Tensor) -> Tensor:
    return torch.expm1(x.clamp(max=LARGEST_EXPONENT))
