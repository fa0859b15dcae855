"""The auxiliary loss that keeps the experts of a mixture-of-experts model evenly used."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from raydpo.errors import ModelError

PARAMETERS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


@dataclass(frozen=True)
class RouterLoss:
    """The load-balancing loss that a model's own code defines, and its weight.

    The loss is that of Fedus et al. 2021 (Switch Transformers), equations 4 to 6.
    """

    function: Callable[..., Tensor]
    experts: int
    experts_per_token: int
    coefficient: float

    def __call__(self, router_logits: Any, multiplicity: Tensor) -> Tensor:
        """Compute the unweighted loss, a scalar, from the router logits of each layer.

        `multiplicity` [R, T] is the weight of each token, 0 for padding. A prompt that occurs once in a packed row
        counts as often as it would with one row per sequence, so that both layouts have the same loss.
        """
        return self.function(router_logits, self.experts, self.experts_per_token, multiplicity)


class RouterLogits:
    """Context manager that asks a model's body for its router logits and keeps them, for one forward.

    The model itself is not asked, as it would compute its own auxiliary loss with them.
    """

    def __init__(self, body: Any) -> None:
        """Watch `body`, a module of transformers; None: watch nothing."""
        self.logits: Any = None
        """Router logits of each layer, once the body has run."""
        self._body = body
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "RouterLogits":
        if self._body is not None:
            self._hooks = [
                self._body.register_forward_pre_hook(self._request, with_kwargs=True),
                self._body.register_forward_hook(self._keep),
            ]
        return self

    def __exit__(self, *_error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _request(self, _body: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**named, "output_router_logits": True}

    def _keep(self, _body: Any, _arguments: Any, output: Any) -> None:
        self.logits = output.router_logits


def check_router(config: Any, coefficient: float | None) -> None:
    """Raise ModelError if the router loss has a non-zero weight and the model, by its config, has no router."""
    if coefficient and not hasattr(config.get_text_config(), "output_router_logits"):
        raise ModelError(
            f"router_aux_loss_coef={coefficient:g} requires a mixture-of-experts model that returns router logits, "
            f"and a {config.model_type} model does not; leave it out"
        )


def has_router(causal_lm: Any) -> bool:
    """Return whether any layer of a model chooses among experts; the class of a mixture may have dense layers alone."""
    recorded = (getattr(causal_lm, "_can_record_outputs", None) or {}).get("router_logits")
    recorders = recorded if isinstance(recorded, list) else [recorded]
    classes = tuple(
        found for one in recorders if isinstance(found := getattr(one, "target_class", one), type)
    )  # transformers reads the router logits from the outputs of modules of these classes
    if classes:
        return any(isinstance(module, classes) for module in causal_lm.modules())
    return any("expert" in path for path, _ in causal_lm.named_modules())


def router_loss(causal_lm: Any, coefficient: float | None) -> RouterLoss | None:
    """Return the router loss with the given weight, or with the weight in the config if `coefficient` is None.

    Returns None for weight 0 and for dense models. Raises ModelError if a weight is set and the model does not define a
    load-balancing loss.
    """
    check_router(causal_lm.config, coefficient)
    config = causal_lm.config.get_text_config()
    weight = getattr(config, "router_aux_loss_coef", 0.0) if coefficient is None else coefficient
    if not weight or not hasattr(config, "output_router_logits"):
        return None
    if not has_router(causal_lm):
        if coefficient:
            raise ModelError(
                f"router_aux_loss_coef={coefficient:g} requires a layer with a mixture of experts, and none of the "
                f"layers of this {config.model_type} model has one; leave it out"
            )
        return None
    function = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
    experts, chosen = (getattr(causal_lm, name, None) for name in ("num_experts", "num_experts_per_tok"))
    known = function is not None and list(inspect.signature(function).parameters) == PARAMETERS
    if not (known and experts and chosen):
        raise ModelError(
            f"{type(causal_lm).__name__} does not define a load-balancing loss, which router_aux_loss_coef={weight:g} "
            "needs; set router_aux_loss_coef=0 to train without that loss"
        )
    assert function is not None
    return RouterLoss(function, int(experts), int(chosen), float(weight))
