"""The options of the objective."""

from dataclasses import dataclass

from raydpo.config import fields
from raydpo.config.fields import Section, above, at_least, one_of, option, within
from raydpo.config.loss_types import EXO_LABEL_SMOOTHING, F_DIVERGENCES, LOSS_TYPES, OLD_NAMES
from raydpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    """The objective."""

    loss_type: tuple[str, ...] = option(
        ("sigmoid",),
        "Objective, or several that are added up: sigmoid is DPO's; the README says what each of them is.",
        one_of(*LOSS_TYPES),
    )
    loss_weights: tuple[float, ...] = option((), "Weight of each loss_type, in their order. Unset: 1 each.")
    beta: float = option(
        0.1,
        "Strength of the pull towards the reference; larger stays nearer to it. For ipo the paper's tau, for orpo its "
        "lambda.",
        above(0),
    )
    label_smoothing: float | None = option(
        None,
        "Share of pairs whose preference is taken to be the wrong way round: cDPO with sigmoid (TRL: without effect), "
        f"and as the papers have it with robust, exo_pair and aot. Unset: 0, but {EXO_LABEL_SMOOTHING:g} for exo_pair.",
        within(0, 0.5),
    )
    f_divergence_type: str = option(
        "reverse_kl", "Divergence that holds the policy near the reference.", one_of(*F_DIVERGENCES)
    )
    f_alpha_divergence_coef: float = option(0.5, "Alpha of f_divergence_type alpha_divergence; 1 is reverse_kl.")
    ld_alpha: float | None = option(
        None,
        "LD-DPO: weight of the tokens that lie beyond the length of the pair's shorter completion. Unset: 1.",
        fields.Rule("at least 0 and at most 1", lambda value: 0 <= value <= 1),
    )
    use_weighting: bool = option(False, "WPO: weigh each pair by how likely the policy is to write it.")
    rpo_alpha: float | None = option(
        None, "RPO: weight of the chosen completions' mean loss a token, added to the objective. Unset: 0.", at_least(0)
    )
    cpo_alpha: float = option(
        0.0, "The same under CPO's name (TRL's CPO: 1.0, which jobs/cpo.py has too).", at_least(0)
    )
    simpo_gamma: float = option(0.5, "Margin between the rewards that simpo aims at.", at_least(0))
    discopop_tau: float = option(0.05, "Temperature of discopop's blend of two losses.", above(0))
    bco_running_mean: bool = option(
        False, "bco_pair: count rewards from their running mean, as its paper does (TRL: from 0)."
    )
    reference_free: bool = option(False, "Take the reference to find all completions alike; none is scored.")
    router_aux_loss_coef: float | None = option(
        None,
        "Weight of the loss that keeps the experts of a mixture-of-experts model evenly used. Unset: as the model's "
        "config says.",
        at_least(0),
    )
    disable_dropout: bool = option(True, "Train without dropout, so that policy and reference differ by weights only.")

    def __post_init__(self) -> None:
        named = fields.convert(self.loss_type, tuple[str, ...]) or ("sigmoid",)
        object.__setattr__(self, "loss_type", tuple(OLD_NAMES.get(name, name) for name in named))
        super().__post_init__()
        self._check_weights()
        self._check_reference()
        self._check_forms()

    def _check_weights(self) -> None:
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            raise ConfigError(
                f"loss_weights={fields.show(self.loss_weights)} must give one number for each loss_type "
                f"({fields.show(self.loss_type)}); give {len(self.loss_type)}, or leave it out for 1 each"
            )

    def _check_reference(self) -> None:
        without = {name for name in self.loss_type if not LOSS_TYPES[name].reference}
        against = set(self.loss_type) - without - {"sft"}
        if without and against:
            raise ConfigError(
                f"loss_type={fields.show(self.loss_type)} mixes {min(without)}, which takes mean log-probs and no "
                f"reference, with {min(against)}, which takes sums against one; choose one kind (sft goes with both)"
            )

    def _check_forms(self) -> None:
        preference = [name for name in self.loss_type if name != "sft"]
        for name in preference:
            if self.f_divergence_type != "reverse_kl" and not LOSS_TYPES[name].divergence:
                formed = [other for other, kind in LOSS_TYPES.items() if kind.divergence]
                raise ConfigError(
                    f"f_divergence_type={self.f_divergence_type} has no form for loss_type {name}; leave it out, or "
                    f"choose among {', '.join(formed)}"
                )
            if self.use_weighting and LOSS_TYPES[name].needs_global_batch:
                raise ConfigError(
                    f"use_weighting has no meaning for loss_type {name}, whose sorted terms belong to no single pair; "
                    "leave one of them out"
                )
        if self.label_smoothing and not any(LOSS_TYPES[name].smoothing for name in preference):
            formed = [other for other, kind in LOSS_TYPES.items() if kind.smoothing]
            raise ConfigError(
                f"label_smoothing={self.label_smoothing:g} has no form for loss_type {fields.show(self.loss_type)}; "
                f"leave it out, or choose among {', '.join(formed)}"
            )
        if "exo_pair" in preference and self.label_smoothing == 0:
            raise ConfigError(
                "label_smoothing=0 must be above 0 for loss_type exo_pair, which takes its logarithm; leave it out for "
                f"{EXO_LABEL_SMOOTHING:g}"
            )
        if self.bco_running_mean and "bco_pair" not in preference:
            raise ConfigError("bco_running_mean is of loss_type bco_pair alone; leave it out, or choose that")

    @property
    def needs_reference(self) -> bool:
        """False where nothing depends on a reference, so that none is scored."""
        return not self.reference_free and all(LOSS_TYPES[name].reference for name in self.loss_type)

    def smoothing(self, loss_type: str) -> float:
        """The label smoothing of one of the losses: what the user set, else its own default."""
        default = EXO_LABEL_SMOOTHING if loss_type == "exo_pair" else 0.0
        return default if self.label_smoothing is None else self.label_smoothing

    def notices(self) -> list[str]:
        """What a user of TRL would not expect, to be said once."""
        if self.label_smoothing and "sigmoid" in self.loss_type:
            return [
                f"label_smoothing={self.label_smoothing:g} smooths loss_type sigmoid (conservative DPO); TRL 1.x takes "
                "the option and ignores it there"
            ]
        return []
