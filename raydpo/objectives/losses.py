"""The preference losses, one function each; `LOSSES` names them as TRL's `loss_type` does.

Shapes: B pairs. Symbols: pi is the policy, ref the reference, y+ the chosen and y- the rejected completion, x the
prompt, beta the strength of the pull towards the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of whole completions, each the sum over its tokens: four vectors [B], natural log, float32 or 64."""

    chosen: Tensor
    """log pi(y+ | x)"""
    rejected: Tensor
    """log pi(y- | x)"""
    ref_chosen: Tensor
    """log ref(y+ | x)"""
    ref_rejected: Tensor
    """log ref(y- | x)"""

    @property
    def chosen_logratios(self) -> Tensor:
        """log pi(y+ | x) - log ref(y+ | x), [B]."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_logratios(self) -> Tensor:
        """log pi(y- | x) - log ref(y- | x), [B]."""
        return self.rejected - self.ref_rejected


def sigmoid(logps: PairLogps, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h) -> [B], with h the difference of the two log-ratios.

    Rafailov et al. 2023 (Direct Preference Optimization), eq. 7. e is `label_smoothing`, the chance that a label is
    flipped: conservative DPO, Mitchell 2023 (A note on DPO with noisy preferences), eq. 3. TRL 1.16 ignores it here.
    """
    scaled = beta * (logps.chosen_logratios - logps.rejected_logratios)
    return -(1 - label_smoothing) * F.logsigmoid(scaled) - label_smoothing * F.logsigmoid(-scaled)


Loss = Callable[..., Tensor]

LOSSES: dict[str, Loss] = {"sigmoid": sigmoid}
"""`loss_type` to its function, called as `loss(logps, beta=..., label_smoothing=...)`."""
