"""torch.compile for the layers of a model."""

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from raydpo.errors import ModelError

MAX_SHAPES = 32
"""Rows come in few lengths, for training and evaluation each; longer pairs than a forward should hold add some."""


def compile_layers(model: Any, *, bounded: bool) -> None:
    """Compile each decoder layer of a transformers model, in place; ModelError where it does not tell its layers.

    Layers are compiled one by one, as they are alike and then share what was compiled. Attention over shared prompts
    stays outside, since its segments differ from row to row. `bounded`: rows come in few lengths, and each is compiled
    for; else one graph serves all shapes.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layers that torch_compile could take by themselves; set torch_compile=false"
        )
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    for layer in layers:
        layer.compile(dynamic=not bounded)
