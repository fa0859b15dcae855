"""What a LoRA adapter makes of its base."""

from typing import Any

from peft import PeftModel
from torch import Tensor


def whole_weights(model: Any) -> dict[str, Tensor]:
    """Copies of a model's weights under the base's names, its adapter added to them where it has one."""
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
