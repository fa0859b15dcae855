"""Applying torch.compile to the layers of a model."""

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from raydpo.errors import ModelError
from raydpo.models.vision import in_tower

RECOMPILE_LIMIT = 32
"""Limit on compiled variants per layer. Rows come in few lengths, but training and evaluation each have their own, and
pairs longer than the token budget of a forward add some."""


def compile_layers(model: Any, *, bounded: bool) -> None:
    """Compile each decoder layer of a transformers model in place; the layers of a vision tower stay as they are.

    Layers are compiled one by one: they have the same structure, so that they share the compiled code. Attention over
    packed rows stays outside the graph, since its segments differ from row to row. With `bounded`, rows come in few
    lengths and each length gets its own graph; otherwise one dynamic graph serves all shapes. Raises ModelError if the
    model's layers cannot be identified.
    """
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer) and not in_tower(name)
    ]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layers that torch_compile could compile separately; set torch_compile=false"
        )
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    for layer in layers:
        layer.compile(dynamic=not bounded)
