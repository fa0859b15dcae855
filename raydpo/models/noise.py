"""Modules that draw random numbers in training mode other than by a dropout rate, such as routers of experts."""

import inspect
from functools import cache, partial
from types import CodeType
from typing import Any

from torch import nn

DRAWS = frozenset(
    "rand rand_like randn randn_like randint randint_like normal normal_ uniform_ exponential_ bernoulli bernoulli_ "
    "log_normal_ geometric_ cauchy_ multinomial gumbel_softmax".split()
)
"""Functions of torch that draw random numbers, without dropout."""


def keep_noise_off(model: nn.Module) -> None:
    """Keep each module that draws noise in evaluation mode, whatever mode its model is in.

    A rate is not set to 0 for that: PhiMoE's routers use the same number as a threshold in evaluation mode. The
    children of the module follow the model's mode.
    """
    for module in model.modules():
        kind: Any = type(module)
        # A module with layers of its own keeps its mode, which decides on gradient checkpointing.
        if draws_noise(kind) and not hasattr(module, "gradient_checkpointing"):
            module.train = partial(_train_without_noise, module)  # type: ignore[method-assign]
            module.train(module.training)


def _train_without_noise(module: nn.Module, mode: bool = True) -> nn.Module:
    type(module).train(module, mode)
    module.training = False
    return module


@cache
def draws_noise(kind: type[nn.Module]) -> bool:
    """Return whether the forward of a class, or a function that it calls, draws noise that depends on the mode."""
    if kind.__module__.startswith("torch."):
        return False
    forward: Any = inspect.unwrap(kind.forward)
    code = getattr(forward, "__code__", None)
    if code is None:
        return False
    names = _names(code)
    functions = [forward.__globals__.get(name) for name in names] + [getattr(kind, name, None) for name in names]
    codes = [getattr(inspect.unwrap(called), "__code__", None) for called in functions if callable(called)]
    every = names.union(*(_names(called) for called in codes if called is not None))
    return bool(every & DRAWS) and "training" in names


def _names(code: CodeType) -> set[str]:
    """Return the names of functions and attributes that a function and those inside it use."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*(_names(function) for function in inner))
