"""The values of `loss_type` and their properties; objectives/losses.py has their formulas under the same names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LossType:
    """The properties of one value of `loss_type`."""

    source: str
    """Name, paper and, if the loss is exactly one of its equations, that equation."""
    supports_divergence: bool = False
    """Whether f_divergence_type applies: the loss is a function of the difference of the two log-ratios, which an
    f-divergence may transform."""
    supports_smoothing: bool = False
    """Whether label_smoothing applies: the loss is defined for labels that are wrong with that probability."""
    needs_global_batch: bool = False
    """Whether a pair's loss depends on the other pairs of the global batch, so that it is no sum over pairs."""
    supports_margin: bool = False
    """Whether a pair's margin applies: the loss compares the pair's reward difference with it."""
    needs_margin: bool = False
    """Whether the loss is undefined for a pair without a margin."""
    needs_reference: bool = True
    """Whether the loss compares the policy with a reference; else it takes the policy's mean log-probs per token."""


LOSS_TYPES = {
    "sigmoid": LossType(
        "DPO, arXiv 2305.18290, eq. 7", supports_divergence=True, supports_smoothing=True, supports_margin=True
    ),
    "hinge": LossType("RSO, arXiv 2309.06657", supports_divergence=True, supports_margin=True),
    "ipo": LossType("IPO, arXiv 2310.12036, eq. 17, on means over tokens", supports_divergence=True),
    "exo_pair": LossType("EXO, arXiv 2402.00856, eq. 16", supports_divergence=True, supports_smoothing=True),
    "nca_pair": LossType("NCA, arXiv 2402.05369, two completions"),
    "robust": LossType(
        "Robust DPO, arXiv 2403.00409", supports_divergence=True, supports_smoothing=True, supports_margin=True
    ),
    "bco_pair": LossType("BCO, arXiv 2404.04656"),
    "sppo_hard": LossType("SPPO, arXiv 2405.00675, eq. 4.7 with win probabilities 1 and 0"),
    "aot": LossType("AOT, arXiv 2406.05882, paired", supports_smoothing=True, needs_global_batch=True),
    "aot_unpaired": LossType("AOT, arXiv 2406.05882, unpaired", supports_smoothing=True, needs_global_batch=True),
    "apo_zero": LossType("APO, arXiv 2408.06266, eq. 7"),
    "apo_down": LossType("APO, arXiv 2408.06266, eq. 8"),
    "discopop": LossType("DiscoPOP, arXiv 2406.08414, eq. 5", supports_divergence=True),
    "sft": LossType("Negative log-likelihood of the chosen completions, mean over their tokens"),
    "sigmoid_norm": LossType(
        "Tulu 3's length-normalised DPO, arXiv 2411.15124", supports_divergence=True, supports_margin=True
    ),
    "rpo_bwd_kl": LossType(
        "Reward-aware preference optimisation, arXiv 2406.11704", supports_margin=True, needs_margin=True
    ),
    "simpo": LossType(
        "SimPO, arXiv 2405.14734, eq. 6", supports_smoothing=True, supports_margin=True, needs_reference=False
    ),
    "orpo": LossType("ORPO, arXiv 2403.07691, eq. 6 and 7", needs_reference=False),
}
"""The properties of each value of `loss_type`, by TRL's names (`rpo_bwd_kl`, which TRL does not have, by NeMo's);
`OLD_NAMES` has those that TRL used before."""

OLD_NAMES = {"aot_pair": "aot_unpaired"}
EXO_LABEL_SMOOTHING = 1e-3  # default for exo_pair, which takes its logarithm, so that it must not be 0
F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
