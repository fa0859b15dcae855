"""The auxiliary loss that keeps the experts of a mixture-of-experts model evenly used."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raydpo.errors import ModelError

PARAMETERS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


@dataclass(frozen=True)
class RouterLoss:
    """A model's own load-balancing loss (Fedus et al. 2021, Switch Transformers, eq. 4 to 6), and its weight."""

    function: Callable[..., Tensor]
    experts: int
    experts_per_token: int
    coefficient: float

    def __call__(self, router_logits: Any, multiplicity: Tensor) -> Tensor:
        """The unweighted loss, a scalar, of what each layer's router gave.

        `multiplicity` [R, T] is how often each token counts, 0 for padding: a prompt that stands once in a row counts
        as often as it does where each sequence has a row of its own, so that the loss is the same.
        """
        return self.function(router_logits, self.experts, self.experts_per_token, multiplicity)


def check_router(config: Any, coefficient: float | None) -> None:
    """`ModelError` where a weight is asked for and the model, by its config, has no router."""
    if coefficient and not hasattr(config.get_text_config(), "output_router_logits"):
        raise ModelError(
            f"router_aux_loss_coef={coefficient:g} is for mixture-of-experts models that return their router's logits, "
            f"and a {config.model_type} model does not; leave it out"
        )


def router_loss(causal_lm: Any, coefficient: float | None) -> RouterLoss | None:
    """The loss with this weight, or with the config's where it is None; None for weight 0 and for dense models.

    `ModelError` where a weight is asked for and the model cannot say how its experts are used.
    """
    check_router(causal_lm.config, coefficient)
    config = causal_lm.config.get_text_config()
    weight = getattr(config, "router_aux_loss_coef", 0.0) if coefficient is None else coefficient
    if not weight or not hasattr(config, "output_router_logits"):
        return None
    function = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
    experts, chosen = (getattr(causal_lm, name, None) for name in ("num_experts", "num_experts_per_tok"))
    known = function is not None and list(inspect.signature(function).parameters) == PARAMETERS
    if not (known and experts and chosen):
        raise ModelError(
            f"{type(causal_lm).__name__} does not say how its experts' use is summed up, which router_aux_loss_coef="
            f"{weight:g} needs; set router_aux_loss_coef=0 to train without that loss"
        )
    assert function is not None
    return RouterLoss(function, int(experts), int(chosen), float(weight))
