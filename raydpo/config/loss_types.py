"""The objectives by name, and what options go with each; their formulas are the functions in objectives/losses.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LossType:
    """One value of `loss_type`; its function in objectives/losses.py has the same name."""

    source: str
    """Name, paper and, where it is the formula as it stands, equation."""
    divergence: bool = False
    """It is a function of the gap between the two log-ratios, which an f-divergence may reshape (f_divergence_type)."""
    smoothing: bool = False
    """It has a form for labels that are wrong with probability label_smoothing."""
    needs_global_batch: bool = False
    """It is no sum over pairs: a pair's part depends on all other pairs of the global batch."""
    reference: bool = True
    """It holds the policy against a reference; else it takes the mean log-prob a token of the policy alone."""


LOSS_TYPES = {
    "sigmoid": LossType("DPO, arXiv 2305.18290, eq. 7", divergence=True, smoothing=True),
    "hinge": LossType("RSO, arXiv 2309.06657", divergence=True),
    "ipo": LossType("IPO, arXiv 2310.12036, eq. 17, on means over tokens", divergence=True),
    "exo_pair": LossType("EXO, arXiv 2402.00856, eq. 16", divergence=True, smoothing=True),
    "nca_pair": LossType("NCA, arXiv 2402.05369, two completions"),
    "robust": LossType("Robust DPO, arXiv 2403.00409", divergence=True, smoothing=True),
    "bco_pair": LossType("BCO, arXiv 2404.04656"),
    "sppo_hard": LossType("SPPO, arXiv 2405.00675, eq. 4.7 with P of 1 and 0"),
    "aot": LossType("AOT, arXiv 2406.05882, paired", smoothing=True, needs_global_batch=True),
    "aot_unpaired": LossType("AOT, arXiv 2406.05882, unpaired", smoothing=True, needs_global_batch=True),
    "apo_zero": LossType("APO, arXiv 2408.06266, eq. 7"),
    "apo_down": LossType("APO, arXiv 2408.06266, eq. 8"),
    "discopop": LossType("DiscoPOP, arXiv 2406.08414, eq. 5", divergence=True),
    "sft": LossType("Negative log-likelihood of the chosen completions, mean over their tokens"),
    "sigmoid_norm": LossType("Tulu 3's length-normalised DPO, arXiv 2411.15124", divergence=True),
    "simpo": LossType("SimPO, arXiv 2405.14734, eq. 6", smoothing=True, reference=False),
    "orpo": LossType("ORPO, arXiv 2403.07691, eq. 6 and 7", reference=False),
}
"""The names are TRL's; `aot_pair`, its old name of `aot_unpaired`, is understood too."""

OLD_NAMES = {"aot_pair": "aot_unpaired"}
EXO_LABEL_SMOOTHING = 1e-3  # exo_pair has the logarithm of it, so it cannot do with 0
F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
