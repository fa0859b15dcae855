"""TR-DPO's soft update: the new reference is (1 - alpha) times the previous one plus alpha times the policy.

Gorbatovski et al. 2024 (Learn Your Reference Model for Real Good Alignment, arXiv 2404.09656); alpha = 1 is its hard
update. Full weights are mixed. The weights of a LoRA policy are base + s B A, so its reference is the base plus the
terms of all syncs so far: an adapter of these terms side by side, whose rank grows by the policy's at each sync.
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
"""Prefix of a layer's name in peft's models and files."""


class Term(NamedTuple):
    """The term that LoRA adds to a layer's weight: the product B A."""

    a: Tensor
    """[rank, in]"""
    b: Tensor
    """[out, rank]"""


class StoredWeights:
    """The weights in a model's folder, read one at a time."""

    def __init__(self, folder: str) -> None:
        """Open the folder's weight files. Raises ModelError where they are not safetensors files."""
        self._folder = folder
        self._files: dict[str, Any] = {}
        for path in weight_files(folder):
            try:
                file: Any = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ModelError(
                    f"the reference's weights in {path} are not safetensors ({error}), and sync_ref_model reads them "
                    "by name; save that model again with save_pretrained"
                ) from error
            self._files.update(dict.fromkeys(file.keys(), file))

    def check(self, model: PreTrainedModel) -> None:
        """Raise ModelError unless the folder has each of the model's weights in the same shape."""
        for name, shape in shapes_to_export(model).items():
            found = tuple(self._files[name].get_slice(name).get_shape()) if name in self._files else None
            if found != shape:
                fault = "has no weight" if found is None else f"has the shape {found} and not {shape} in"
                raise ModelError(
                    f"the reference in {self._folder} {fault} {name}, so it cannot be mixed with the policy; give one "
                    "of the same architecture, saved with save_pretrained, or leave sync_ref_model out"
                )

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def write_mixed_model(
    model: PreTrainedModel, target: ExportTarget, gather: Gather, previous: str, alpha: float
) -> None:
    """Mix the policy into the reference in the folder `previous`, and write the result. All ranks call it.

    Each weight is mixed in float32 and stored in the policy's dtype. Raises ModelError where the two do not match.
    """
    stored = StoredWeights(previous)
    stored.check(model)

    def blend(name: str, tensor: Tensor) -> Tensor:
        # Not in place, as changed pages of a mapped file would stay in memory.
        mixed = stored[name].float().mul(1 - alpha).add_(tensor.cpu().float(), alpha=alpha)
        return mixed.to(tensor.dtype)

    export_model(model, target, gather, blend=blend, carry=False)


def write_mixed_adapter(
    model: "PeftModel", target: ExportTarget, gather: Gather, previous: str | None, alpha: float
) -> None:
    """Mix the policy's adapter into the previous reference's, and write the result as an adapter. All ranks call it.

    `previous` is the folder of the previous reference's adapter; None where that reference is the base alone. Raises
    ModelError where an adapter has more than LoRA's two factors.
    """
    from peft import LoraConfig, TaskType  # imported here for the reason given in `adapters.add_lora`

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
        # A scale of alpha / r = 1 in each layer, as the factors include theirs.
        rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks),
    )
    write_adapter(factors, config, target)


def check_mixable(model: "PeftModel") -> dict[str, Tensor]:
    """Return the adapter's tensors by name (see `adapter_tensors`).

    Raises ModelError unless they are LoRA's two factors for each layer, whose products can be added.
    """
    from peft.tuners.lora.layer import Linear

    tensors, layers = adapter_tensors(model), lora_layers(model)
    factors = {
        f"{layer}.{side}.weight" for layer, module in layers.items() if type(module) is Linear for side in (A, B)
    }
    if others := sorted(set(tensors) ^ factors):
        raise ModelError(
            f"sync_ref_model adds LoRA products, and the adapter has other weights, first {others[0]} (DoRA, a bias, a "
            "module trained in full, or an adapter of a non-linear layer); leave those out, or train all weights"
        )
    return tensors


def lora_layers(model: "PeftModel") -> dict[str, Any]:
    """Return the layers of the active adapter, by name."""
    from peft.tuners.lora import LoraLayer

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and model.active_adapter in module.scaling
    }


def read_terms(folder: str) -> dict[str, Term]:
    """Read an adapter's term for each layer. Raises ModelError where it is not a product of two factors."""
    config = storage.read_json(os.path.join(folder, ADAPTER_CONFIG))
    tensors = load_file(os.path.join(folder, ADAPTER_WEIGHTS))
    layers = [name.removesuffix(f".{A}.weight") for name in tensors if name.endswith(f".{A}.weight")]
    if len(tensors) != 2 * len(layers):
        raise ModelError(
            f"the reference's adapter in {folder} has more than the two factors of LoRA (DoRA, or a module trained in "
            "full), so it cannot be mixed with the policy; leave sync_ref_model out"
        )
    terms = {layer: Term(tensors[f"{layer}.{A}.weight"], tensors[f"{layer}.{B}.weight"]) for layer in layers}
    return {layer: Term(a, _scale(config, layer, len(a)) * b.float()) for layer, (a, b) in terms.items()}


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return the factor that peft multiplies a layer's product by."""
    from peft.utils.other import get_pattern_key

    alphas = config.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(list(alphas), layer.removeprefix(PREFIX)), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
