"""Weights of a model with its LoRA adapter merged, for comparisons."""

from typing import Any

from peft import PeftModel
from torch import Tensor


def merged_weights(model: Any) -> dict[str, Tensor]:
    """Return copies of a model's weights under the names of its base, with its adapter merged if it has one."""
    if not isinstance(model, PeftModel):
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.merge_adapter()
    found = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }
    model.unmerge_adapter()
    return found
