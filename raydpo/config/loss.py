"""The options of the objective: loss, weights, reference and regularisation terms."""

from dataclasses import dataclass

from raydpo.config.fields import Rule, Section, above, at_least, convert, one_of, option, show, within
from raydpo.config.loss_types import EXO_LABEL_SMOOTHING, F_DIVERGENCES, LOSS_TYPES, OLD_NAMES
from raydpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    """The objective: the loss, its parameters and the terms added to it."""

    loss_type: tuple[str, ...] = option(
        ("sigmoid",),
        "Loss, or several losses that are added up. sigmoid is DPO; the README lists the paper of each.",
        one_of(*LOSS_TYPES),
    )
    loss_weights: tuple[float, ...] = option((), "Weight of each loss_type, in the same order. Unset: 1 each.")
    beta: float = option(
        0.1,
        "Strength of the pull towards the reference: larger values keep the policy closer to it. It is tau in ipo's "
        "paper and lambda in orpo's.",
        above(0),
    )
    label_smoothing: float | None = option(
        None,
        "Probability that a pair's preference label is wrong. sigmoid: conservative DPO (TRL: no effect); robust "
        "and exo_pair: as in their papers; aot, aot_unpaired and simpo: as in TRL. "
        f"Unset: 0, but {EXO_LABEL_SMOOTHING:g} for exo_pair.",
        within(0, 0.5),
    )
    f_divergence_type: str = option(
        "reverse_kl", "Divergence between policy and reference that the objective penalises.", one_of(*F_DIVERGENCES)
    )
    f_alpha_divergence_coef: float = option(0.5, "Alpha of f_divergence_type=alpha_divergence; 1 is reverse_kl.")
    ld_alpha: float | None = option(
        None,
        "LD-DPO: weight of the tokens beyond the length of the pair's shorter completion. Unset: 1.",
        Rule("at least 0 and at most 1", lambda value: 0 <= value <= 1),
    )
    use_weighting: bool = option(False, "WPO: weight each pair by the probability of its completions under the policy.")
    rpo_alpha: float | None = option(
        None,
        "RPO: weight of the chosen completions' mean negative log-likelihood per token, added to the objective. "
        "Unset: 0.",
        at_least(0),
    )
    cpo_alpha: float = option(
        0.0,
        "CPO: weight of the same term as rpo_alpha; the two add up. TRL: 1.0 in CPOConfig, as in jobs/cpo.py.",
        at_least(0),
    )
    loss_on: str = option(
        "completion",
        "Which tokens of completions of several turns have a loss. completion: all; assistant: those of assistant "
        "turns, while the turns of users and tools are input only. orpo's likelihood counts prompts either way.",
        one_of("completion", "assistant"),
    )
    simpo_gamma: float = option(
        0.5, "simpo: target margin between the rewards of the chosen and the rejected completion.", at_least(0)
    )
    discopop_tau: float = option(0.05, "discopop: temperature of the blend of its two losses.", above(0))
    bco_running_mean: bool = option(
        False, "bco_pair: subtract the running mean of the rewards, as in its paper. TRL: subtracts nothing."
    )
    reference_free: bool = option(
        False, "Use a uniform reference: all its log-probs are 0, and no scoring pool starts."
    )
    sample_weights: str = option(
        "mean",
        "How the column `weight` multiplies the losses of pairs. mean: divided by the global batch's mean weight, so "
        "that the loss keeps its scale and a weight of 2 equals the row given twice; as_given: unchanged; ignore: the "
        "column is not read. Rows without a weight have 1. Only the metrics loss and eval_loss are weighted.",
        one_of("mean", "as_given", "ignore"),
    )
    use_margins: bool = option(
        True,
        "Use the column `margin`, by which a pair's reward difference should be above 0, in losses that have one "
        "(ODPO: sigmoid). Rows without a margin have 0, a negative one asks for less than equal rewards. false: the "
        "column is not read.",
    )
    margin_from_scores: str = option(
        "none",
        "Where a row has no `margin`, take it from its columns score_chosen and score_rejected. difference (true): "
        "their difference; log: its natural logarithm, as in ODPO, which needs a difference above 0.",
        one_of("none", "difference", "log"),
    )
    margin_scale: float = option(1.0, "Factor of every margin: alpha in ODPO, eta in rpo_bwd_kl's paper.", at_least(0))
    router_aux_loss_coef: float | None = option(
        None,
        "Weight of the load-balancing loss of a mixture-of-experts model. Unset: the value in the model's config.",
        at_least(0),
    )
    disable_dropout: bool = option(
        True, "Train without dropout, so that policy and reference differ in their weights only."
    )

    def __post_init__(self) -> None:
        named = convert(self.loss_type, tuple[str, ...]) or ("sigmoid",)
        object.__setattr__(self, "loss_type", tuple(OLD_NAMES.get(name, name) for name in named))
        words = {"true": "difference", "false": "none", "null": "none"}
        from_scores = str(self.margin_from_scores).lower()
        object.__setattr__(self, "margin_from_scores", words.get(from_scores, from_scores))
        super().__post_init__()
        self._check_weights()
        self._check_margins()
        self._check_reference()
        self._check_forms()

    def _check_weights(self) -> None:
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            raise ConfigError(
                f"loss_weights={show(self.loss_weights)} must contain one number per loss_type "
                f"({show(self.loss_type)}); set {len(self.loss_type)}, or leave it out for 1 each"
            )

    def _check_margins(self) -> None:
        formed = ", ".join(name for name, kind in LOSS_TYPES.items() if kind.supports_margin)
        for name, unset in (("margin_from_scores", "none"), ("margin_scale", 1.0)):
            value = getattr(self, name)
            if value != unset and not self.takes_margin:
                raise ConfigError(
                    f"{name}={show(value)} has no effect, as loss_type {show(self.loss_type)} has no margin; leave it "
                    f"out, or choose a loss_type of {formed}"
                )
        if self.needs_margin and not self.use_margins and self.margin_from_scores == "none":
            raise ConfigError(
                f"use_margins=false leaves loss_type {show(self.loss_type)} without the margins that it needs; leave "
                "it out, or set margin_from_scores"
            )

    def _check_reference(self) -> None:
        without = {name for name in self.loss_type if not LOSS_TYPES[name].needs_reference}
        against = set(self.loss_type) - without - {"sft"}
        if without and against:
            raise ConfigError(
                f"loss_type={show(self.loss_type)} mixes {min(without)}, which uses no reference, with "
                f"{min(against)}, which uses one; choose losses of one kind (sft can be added to both)"
            )

    def _check_forms(self) -> None:
        preference = [name for name in self.loss_type if name != "sft"]
        for name in preference:
            if self.f_divergence_type != "reverse_kl" and not LOSS_TYPES[name].supports_divergence:
                formed = [other for other, kind in LOSS_TYPES.items() if kind.supports_divergence]
                raise ConfigError(
                    f"f_divergence_type={self.f_divergence_type} is not defined for loss_type {name}; leave it out, or "
                    f"choose a loss_type of {', '.join(formed)}"
                )
            if self.use_weighting and LOSS_TYPES[name].needs_global_batch:
                raise ConfigError(
                    f"use_weighting=true is not defined for loss_type {name}, whose sorted terms belong to no single "
                    "pair; leave one of them out"
                )
        if self.label_smoothing and not any(LOSS_TYPES[name].supports_smoothing for name in preference):
            formed = [other for other, kind in LOSS_TYPES.items() if kind.supports_smoothing]
            raise ConfigError(
                f"label_smoothing={self.label_smoothing:g} is not defined for loss_type {show(self.loss_type)}; "
                f"leave it out, or choose a loss_type of {', '.join(formed)}"
            )
        if "exo_pair" in preference and self.label_smoothing == 0:
            raise ConfigError(
                "label_smoothing=0 must be above 0 for loss_type exo_pair, which takes its logarithm; leave it out for "
                f"{EXO_LABEL_SMOOTHING:g}"
            )
        if self.bco_running_mean and "bco_pair" not in preference:
            raise ConfigError(
                "bco_running_mean=true applies to loss_type bco_pair only; leave it out, or choose that loss_type"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the objective depends on reference log-probs."""
        return not self.reference_free and all(LOSS_TYPES[name].needs_reference for name in self.loss_type)

    @property
    def takes_margin(self) -> bool:
        """Whether one of the losses has a margin."""
        return any(LOSS_TYPES[name].supports_margin for name in self.loss_type)

    @property
    def needs_margin(self) -> bool:
        """Whether one of the losses is undefined for a pair without a margin."""
        return any(LOSS_TYPES[name].needs_margin for name in self.loss_type)

    def smoothing(self, loss_type: str) -> float:
        """Return the label smoothing of a loss: the user's value, or by default that of the loss."""
        default = EXO_LABEL_SMOOTHING if loss_type == "exo_pair" else 0.0
        return default if self.label_smoothing is None else self.label_smoothing

    def notices(self) -> list[str]:
        """Return messages about behaviour that differs from TRL's; each is to be printed once."""
        if self.label_smoothing and "sigmoid" in self.loss_type:
            return [
                f"label_smoothing={self.label_smoothing:g} smooths the labels of loss_type sigmoid (conservative "
                "DPO); TRL 1.x accepts the option and ignores it there"
            ]
        return []
