"""The values of `loss_type` and their properties; the functions of the same names in objectives/losses.py compute them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LossType:
    """The properties of one value of `loss_type`."""

    source: str
    """Name, paper and, if the loss is exactly one of its equations, that equation."""
    divergence: bool = False
    """Whether f_divergence_type applies: the loss is a function of the difference of the two log-ratios, which an
    f-divergence may transform."""
    smoothing: bool = False
    """Whether label_smoothing applies: the loss is defined for labels that are wrong with that probability."""
    needs_global_batch: bool = False
    """Whether a pair's loss depends on the other pairs of the global batch, so that it is no sum over pairs."""
    reference: bool = True
    """Whether the loss compares the policy with a reference; else it uses the policy's mean log-probs per token only."""


LOSS_TYPES = {
    "sigmoid": LossType("DPO, arXiv 2305.18290, eq. 7", divergence=True, smoothing=True),
    "hinge": LossType("RSO, arXiv 2309.06657", divergence=True),
    "ipo": LossType("IPO, arXiv 2310.12036, eq. 17, on means over tokens", divergence=True),
    "exo_pair": LossType("EXO, arXiv 2402.00856, eq. 16", divergence=True, smoothing=True),
    "nca_pair": LossType("NCA, arXiv 2402.05369, two completions"),
    "robust": LossType("Robust DPO, arXiv 2403.00409", divergence=True, smoothing=True),
    "bco_pair": LossType("BCO, arXiv 2404.04656"),
    "sppo_hard": LossType("SPPO, arXiv 2405.00675, eq. 4.7 with win probabilities 1 and 0"),
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
"""The properties of each value of `loss_type`, by TRL's names; `OLD_NAMES` has those that TRL used before."""

OLD_NAMES = {"aot_pair": "aot_unpaired"}
EXO_LABEL_SMOOTHING = 1e-3  # default for exo_pair, which takes its logarithm, so that it must not be 0
F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
