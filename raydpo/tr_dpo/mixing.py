"""TR-DPO's soft update: a new reference of (1 - alpha) parts of the one before and alpha parts of the policy.

Gorbatovski et al. 2024 (Learn Your Reference Model for Real Good Alignment, arXiv 2404.09656); alpha 1 is its hard
update.
Both are mixtures of the whole weights. Those of a LoRA policy are base + s B A, so that its reference is the base with
the terms of all updates so far, one beside the other: an adapter whose rank grows by that of the policy each time.
"""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from raydpo.errors import ModelError
from raydpo.models.export import (
    ExportTarget,
    Gather,
    adapter_tensors,
    export_model,
    gather_tensors,
    shapes_to_export,
    write_adapter,
)
from raydpo.models.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, weight_files
from raydpo.runtime import storage

if TYPE_CHECKING:
    from peft import PeftModel

A, B = "lora_A", "lora_B"
PREFIX = "base_model.model."
"""Of a layer's name in peft's models and files."""


class Term(NamedTuple):
    """What LoRA adds to a layer's weight: the product B A."""

    a: Tensor
    """[rank, in]"""
    b: Tensor
    """[out, rank]"""


class StoredWeights:
    """The weights of a model's folder, read one by one."""

    def __init__(self, folder: str) -> None:
        """ModelError where the folder's weights are no safetensors files."""
        self._folder = folder
        self._files: dict[str, Any] = {}
        for path in weight_files(folder):
            try:
                file: Any = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ModelError(
                    f"the reference's weights in {path} are no safetensors ({error}), and sync_ref_model reads them by "
                    "name; save that model again with save_pretrained"
                ) from error
            self._files.update(dict.fromkeys(file.keys(), file))

    def check(self, model: PreTrainedModel) -> None:
        """ModelError unless each of the model's weights is there in its shape, to be mixed with."""
        for name, shape in shapes_to_export(model).items():
            found = tuple(self._files[name].get_slice(name).get_shape()) if name in self._files else None
            if found != shape:
                lack = "has no weight" if found is None else f"has the shape {found} and not {shape} in"
                raise ModelError(
                    f"the reference in {self._folder} {lack} {name}, so that it cannot be mixed with the policy; give "
                    "one of the same architecture, saved with save_pretrained, or leave sync_ref_model out"
                )

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def write_mixed_model(
    model: PreTrainedModel, target: ExportTarget, gather: Gather, previous: str, alpha: float
) -> None:
    """Write the new reference's folder from the previous one's; all ranks call it, as `export_model`.

    Each weight is mixed in float32 and kept in the policy's type. ModelError where the previous one is no match.
    """
    stored = StoredWeights(previous)
    stored.check(model)

    def blend(name: str, tensor: Tensor) -> Tensor:
        # Not in place: what is changed of a mapped file stays in memory.
        mixed = stored[name].float().mul(1 - alpha).add_(tensor.cpu().float(), alpha=alpha)
        return mixed.to(tensor.dtype)

    export_model(model, target, gather, blend=blend)


def write_mixed_adapter(
    model: "PeftModel", target: ExportTarget, gather: Gather, previous: str | None, alpha: float
) -> None:
    """Write the new reference's adapter, whose base is the policy's; all ranks call it.

    `previous` is the folder of the previous reference's adapter; None where that was the base alone. ModelError where
    an adapter holds more than LoRA's two factors.
    """
    from peft import LoraConfig, TaskType  # not above, as in `adapters.add_lora`

    tensors = gather_tensors(check_mixable(model), target, gather)
    if not target.is_main:
        return
    before = read_terms(previous) if previous and alpha < 1 else {}
    terms = {layer: [Term(a, (1 - alpha) * b)] for layer, (a, b) in before.items()}
    for layer, module in lora_layers(model).items():
        scale = module.scaling[model.active_adapter]
        ours = Term(tensors[f"{layer}.{A}.weight"], alpha * scale * tensors[f"{layer}.{B}.weight"].float())
        terms.setdefault(layer, []).append(ours)
    dtype = next(iter(tensors.values())).dtype
    factors = {}
    for layer, added in terms.items():
        factors[f"{layer}.{A}.weight"] = torch.cat([term.a.to(dtype) for term in added], dim=0)
        factors[f"{layer}.{B}.weight"] = torch.cat([term.b.to(dtype) for term in added], dim=1)
    ranks = {layer.removeprefix(PREFIX): sum(len(term.a) for term in added) for layer, added in terms.items()}
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=max(ranks.values()),
        target_modules=list(ranks),
        # Together a scale of 1 in each layer, as the factors have theirs in them.
        rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks),
    )
    write_adapter(factors, config, target)


def check_mixable(model: "PeftModel") -> dict[str, Tensor]:
    """The adapter's tensors by name, as `adapter_tensors` has them.

    ModelError unless they are LoRA's two factors in each of its layers, whose products can be added up.
    """
    from peft.tuners.lora.layer import Linear

    tensors, layers = adapter_tensors(model), lora_layers(model)
    factors = {
        f"{layer}.{side}.weight" for layer, module in layers.items() if type(module) is Linear for side in (A, B)
    }
    if others := sorted(set(tensors) ^ factors):
        raise ModelError(
            f"sync_ref_model adds up LoRA's terms, and the adapter has other weights, first {others[0]} (DoRA, a bias, "
            "a module trained in full, or an adapter of no linear layer); leave those out, or train all weights"
        )
    return tensors


def lora_layers(model: "PeftModel") -> dict[str, Any]:
    """The layers that the active adapter is in, by name."""
    from peft.tuners.lora import LoraLayer

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and model.active_adapter in module.scaling
    }


def read_terms(folder: str) -> dict[str, Term]:
    """By layer, what an adapter's folder adds to its weight; ModelError where that is not a product of two factors."""
    config = storage.read_json(os.path.join(folder, ADAPTER_CONFIG))
    tensors = load_file(os.path.join(folder, ADAPTER_WEIGHTS))
    layers = [name.removesuffix(f".{A}.weight") for name in tensors if name.endswith(f".{A}.weight")]
    if len(tensors) != 2 * len(layers):
        raise ModelError(
            f"the reference's adapter in {folder} has more than the two factors of LoRA (DoRA, or a module trained in "
            "full), so that it cannot be mixed with the policy; leave sync_ref_model out"
        )
    terms = {layer: Term(tensors[f"{layer}.{A}.weight"], tensors[f"{layer}.{B}.weight"]) for layer in layers}
    return {layer: Term(a, _scale(config, layer, len(a)) * b.float()) for layer, (a, b) in terms.items()}


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """What peft multiplies a layer's product by."""
    from peft.utils.other import get_pattern_key

    alphas = config.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(list(alphas), layer.removeprefix(PREFIX)), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
