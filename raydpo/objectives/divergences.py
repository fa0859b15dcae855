"""f-divergences: the distance from the reference that the policy is charged for.

The objectives need only f', the derivative of f, at u = pi / ref. Each function below takes log-ratios log u [B] and
returns f'(u) [B], shifted so that f'(1) = 0. Source: Wang et al. 2023 (Beyond Reverse KL, arXiv 2309.16240), table 1.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

FPrime = Callable[[Tensor], Tensor]
"""Maps log-ratios log u [B] to f'(u) [B]."""

MAX_EXPONENT = 80.0
"""Largest exponent passed to exp, so that the result stays finite in float32."""


def reverse_kl(logratios: Tensor) -> Tensor:
    """Return log u. With this divergence the objectives are those of DPO."""
    return logratios


def forward_kl(logratios: Tensor) -> Tensor:
    """Return 1 - 1/u."""
    return -_expm1(-logratios)


def js_divergence(logratios: Tensor) -> Tensor:
    """Return log(2u / (1 + u)), for the Jensen-Shannon divergence."""
    return math.log(2) + F.logsigmoid(logratios)


def alpha_divergence(logratios: Tensor, alpha: float) -> Tensor:
    """Return (u^(alpha - 1) - 1) / (alpha - 1); its limit for alpha = 1 is the reverse KL divergence."""
    power = alpha - 1
    return _expm1(power * logratios) / power if abs(power) > 1e-6 else logratios


def f_prime(divergence: str, alpha: float) -> FPrime:
    """Return f' of a value of `f_divergence_type`; only alpha_divergence uses `alpha`. Raises KeyError for others."""
    functions: dict[str, FPrime] = {
        "reverse_kl": reverse_kl,
        "forward_kl": forward_kl,
        "js_divergence": js_divergence,
        "alpha_divergence": partial(alpha_divergence, alpha=alpha),
    }
    return functions[divergence]


def _expm1(x: Tensor) -> Tensor:
    return torch.expm1(x.clamp(max=MAX_EXPONENT))
