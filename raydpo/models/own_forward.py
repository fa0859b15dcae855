"""Running a model's own forward up to its output embedding, so that all that the model computes there is its own code.

The forward runs on a shallow copy of the model in which a recorder stands for the output embedding. All other modules
are the model's own, so that hooks (ZeRO-3, accelerate), adapters and checkpointing work as ever.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.errors import ModelError
from raydpo.models.attention.choice import IMPLEMENTATIONS


class _Recorder(nn.Module):
    """Stands for an output embedding: keeps its input, and returns `logits`, or those of no token if that is None.

    With `logits`, gradients are on from here, so that what the model makes of them tells whether a weight takes part.
    """

    def __init__(self, embedding: Any, logits: Tensor | None) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self._embedding = [embedding]  # in a list, so that it is no child of this module
        self._logits = logits

    @property
    def weight(self) -> Tensor:
        """The weight of the output embedding, whose dtype some models ask for."""
        weight: Tensor = self._embedding[0].weight
        return weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Keep the input and return the logits; those of no token, [R, 0, V], take no memory."""
        self.inputs.append(hidden)
        if self._logits is None:
            return hidden.new_zeros((*hidden.shape[:-2], 0, self._embedding[0].vocabulary))
        torch.set_grad_enabled(True)
        return self._logits


@dataclass(frozen=True)
class OwnForward:
    """A model's own forward, in two forms: up to the input of its output embedding, and whole."""

    causal_lm: Any
    """The transformers model, without an adapter around it."""
    path: str
    """Dotted name of the output embedding in the model."""

    @staticmethod
    def of(causal_lm: Any, embedding: nn.Module) -> "OwnForward":
        """Find the output embedding in the model. Raises ModelError where it is no module of it."""
        paths = [name for name, module in causal_lm.named_modules() if module is embedding]
        if not paths:
            raise ModelError(
                f"{type(causal_lm).__name__} does not separate its body from its output embedding; "
                "choose a decoder model with an `lm_head`"
            )
        return OwnForward(causal_lm, paths[0])

    def hidden(self, arguments: Mapping[str, Any], logits: Tensor | None = None) -> tuple[Tensor, Any]:
        """Return the input [R, T, H] of the output embedding and the model's output.

        The model's logits are what it makes of `logits`, which stand for those of its output embedding. Raises
        ModelError where the model calls its output embedding otherwise than once for each token.
        """
        model = self.causal_lm
        embedding = model.get_submodule(self.path)
        recorder = _Recorder(embedding, logits)
        copied = _with_module(model, self.path.split("."), recorder)
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # the recorder switches it on
            output = type(model).forward(copied, **self._accepted(arguments))
        name = type(model).__name__
        if len(recorder.inputs) != 1:
            raise ModelError(
                f"{name} calls its output embedding {len(recorder.inputs)} times in a forward, and only models that "
                "call it once can be trained; choose another model"
            )
        (hidden,) = recorder.inputs
        tokens = arguments.get("decoder_input_ids", arguments.get("input_ids"))
        if tokens is not None and hidden.shape[:-1] != tokens.shape:
            raise ModelError(
                f"{name} makes output of shape {list(hidden.shape)} of {list(tokens.shape)} tokens, and only models "
                "with one prediction per token can be trained; choose another model"
            )
        return hidden, output

    def logits(self, arguments: Mapping[str, Any]) -> Tensor:
        """Return the logits [R, T, V] of the model's own forward, with the attention that the model has by itself.

        Raises ModelError where the model does not give those of each token.
        """
        with own_attention(self.causal_lm):
            logits = logits_of(type(self.causal_lm).forward(self.causal_lm, **self._accepted(arguments)))
        tokens = arguments.get("labels", arguments["input_ids"])
        if logits.shape[:-1] != tokens.shape:
            raise ModelError(
                f"{type(self.causal_lm).__name__} gives logits of shape {list(logits.shape)} for {list(tokens.shape)} "
                "token ids, and log-probs need those of each token; choose another model"
            )
        return logits

    def _accepted(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments without a cache, and without router logits where the model has a switch for them.

        A model that takes no mask gets none: it is causal, and rows are padded on the right.
        """
        parameters = inspect.signature(type(self.causal_lm).forward).parameters
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        switches = {"use_cache": False} if anything or "use_cache" in parameters else {}
        if "output_router_logits" in parameters:  # the configs of some models turn them on by themselves
            switches["output_router_logits"] = False
        unknown = set() if anything else {"attention_mask"} - parameters.keys()
        return {name: value for name, value in arguments.items() if name not in unknown} | switches


def logits_of(output: Any) -> Tensor:
    """Return the logits in what a model's forward returned: a record, a mapping, a tuple or the logits alone."""
    if isinstance(output, tuple):
        output = output[0]
    elif isinstance(output, Mapping):
        output = output["logits"]
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def _with_module(module: nn.Module, path: list[str], replacement: nn.Module) -> nn.Module:
    """Return a shallow copy of a module whose submodule at `path` is `replacement`; the module itself stays as it is.

    A hook of accelerate, which replaces `forward` on the instance, would run the module itself: the copy has none.
    """
    if not path:
        return replacement
    copied: nn.Module = object.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    copied.__dict__.pop("forward", None)
    children = dict(module._modules)
    child = children[path[0]]
    assert child is not None
    children[path[0]] = _with_module(child, path[1:], replacement)
    copied.__dict__["_modules"] = children
    return copied


def set_own_attention(model: Any) -> list[tuple[Any, str]]:
    """Give a model an attention of transformers in place of one for packed rows; return the configs that had that."""
    ours: dict[int, tuple[Any, str]] = {}
    eager: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        implementation: Any = getattr(config, "_attn_implementation", None)
        if implementation in IMPLEMENTATIONS.values():
            ours[id(config)] = (config, implementation)
        if not getattr(module, "_supports_sdpa", True):
            eager.add(id(config))
    for config, _ in ours.values():
        config._attn_implementation_internal = "eager" if id(config) in eager else "sdpa"
    return list(ours.values())


@contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """Give the model, for a while, an attention of transformers in place of one for packed rows."""
    ours = set_own_attention(model)
    try:
        yield
    finally:
        for config, implementation in ours:
            config._attn_implementation_internal = implementation
