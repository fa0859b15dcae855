"""Layers on which an adapter would be lost, wrong or of no use, although they are linear layers of the language model.

Everything here reads the structure of a model and no weights, so that a model on the meta device will do.
"""

from collections import Counter

import torch
from torch import nn
from transformers import PreTrainedModel

CROSS_ATTENTION = ("encoder_attn", "crossattention")
"""Names of a decoder's attention to the states of an encoder, which is not called without one."""
NO_GRADIENT = ("indexer", "patcher", "pooler")
"""Names of what chooses the tokens that sparse attention sees, of what cuts BLT's bytes into patches, and of BERT's
summary of a text, which a language model does not use."""


def layers_sharing_weights(model: nn.Module) -> set[str]:
    """Return the paths of the linear layers whose weight other modules have too, as in Zamba's shared block.

    Each layer would have an adapter of its own, and peft's merge would add all of them to the one weight.
    """
    owners = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    found = set()
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and owners[id(weight)] > 1:
            found.add(path)
    return found


def layers_lost_on_loading(model: PreTrainedModel, paths: list[str]) -> set[str]:
    """Return those of the paths of layers whose adapter's weights peft does not find again when it loads an adapter.

    Peft renames an adapter's weights as transformers renames those of a published checkpoint, and some of these rules
    also change names that are those of the model already: Laguna's `shared_expert.` has a dot that matches an `s`.
    """
    # Imported here: peft takes 0.3 s at the start of each worker, and most runs have no adapter.
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    names = {f"base_model.model.{path}.lora_A.weight": path for path in paths}
    tensors = {name: torch.empty(1, 1, device="meta") for name in names}
    found = convert_peft_adapter_state_dict_for_transformers(model, LoraConfig(), tensors)
    return {path for name, path in names.items() if name not in found}


def layers_without_gradient(model: PreTrainedModel) -> set[str]:
    """Return the paths of the modules that no gradient reaches, by their names."""
    words = {*NO_GRADIENT, *(() if model.config.is_encoder_decoder else CROSS_ATTENTION)}
    return {path for path, _ in model.named_modules() if not words.isdisjoint(path.split("."))}
