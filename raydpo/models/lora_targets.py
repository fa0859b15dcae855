"""Which layers of a model a LoRA adapter is for: the plain linear layers of the language model, on its forward's path.

Everything here reads the structure of a model and no weights, so that a model on the meta device will do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from raydpo.models.lora_faults import layers_lost_on_loading, layers_sharing_weights, layers_without_gradient
from raydpo.models.weight_reads import layers_read_directly

ROUTER_WORDS = ("router", "gating")
"""Words in the name of a router, or of its class."""
GATE = "gate"
"""Name of a layer that chooses or weighs experts, where it stands beside experts; elsewhere it is one like others."""
TOWER_WORDS = ("vision", "visual", "image", "audio", "speech", "projector", "connector", "perceiver", "resampler")
"""Words in the names of modules that turn images or sound into the inputs of a language model."""
TOWER_CONFIGS = ("vision", "audio", "image", "speech", "vq")
"""Words in the names of the parts of a config that describe such modules."""


def default_lora_targets(model: PreTrainedModel) -> list[str]:
    """Return the full paths of the plain linear layers of the language model, in the model's order.

    Left out are the output embedding and layers that share its weight; layers outside the language model, which are
    vision and audio towers and what connects them to it; routers and gates of experts; and layers on which an adapter
    would be bypassed, lost, merged wrongly or never trained, as `usable_lora_targets` tells.
    """
    usable, head = usable_lora_targets(model), head_parameters(model)
    return [
        path
        for path, module in model.named_modules()
        if is_linear(module)
        and id(module.weight) not in head
        and usable.reason(path) is None
        and not is_router(model, path)
    ]


BYPASSED = "whose weight the model's code passes to a kernel without calling the layer, bypassing an adapter"
SHARED = "whose weight other layers have too, so that the adapter of one, merged into it, would change them all"
LOST = "whose adapter peft loses on loading, as its name is changed by a rule of transformers for published checkpoints"
UNTRAINED = "which no gradient reaches, so that an adapter is not trained"
OUTSIDE = (
    "which is a frozen part outside the language model, where an adapter is not trained; with "
    "freeze_vision_tower=false or freeze_multi_modal_projector=false it is, if lora_target_modules names it"
)


@dataclass(frozen=True)
class UsableTargets:
    """The modules of a model on which an adapter has no effect or a wrong one, whoever names them."""

    faults: tuple[tuple[str, set[str]], ...]
    """Pairs of a reason, as a clause, and the paths of the modules that it holds for."""

    def reason(self, path: str) -> str | None:
        """Return why an adapter on this module is of no use, as a clause; None if it is."""
        return next((reason for reason, paths in self.faults if path in paths), None)


def usable_lora_targets(model: PreTrainedModel, frozen: Sequence[str] | None = None) -> UsableTargets:
    """Return the modules on which an adapter has no effect, is lost when it is loaded, or is merged wrongly.

    `frozen` are the full names of the modules that are not trained; None: those outside the language model.
    """
    if frozen is None:
        outside = outside_language_model(model)
    else:
        outside = {
            path
            for path, _ in model.named_modules()
            if any(path == part or path.startswith(f"{part}.") for part in frozen)
        }
    linear = [path for path, module in model.named_modules() if is_linear(module)]
    return UsableTargets(
        (
            (BYPASSED, layers_read_directly(model)),
            (OUTSIDE, outside),
            (UNTRAINED, layers_without_gradient(model)),
            (SHARED, layers_sharing_weights(model)),
            (LOST, layers_lost_on_loading(model, linear)),
        )
    )


def matching(model: nn.Module, name: str) -> list[str]:
    """Return the paths of the modules that a name in lora_target_modules means: those that are, or end with, it."""
    return [path for path, _ in model.named_modules() if path == name or path.endswith(f".{name}")]


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, of torch or as GPT-2 has it."""
    return isinstance(module, nn.Linear | Conv1D)


def is_router(model: nn.Module, path: str) -> bool:
    """Return whether a layer chooses or weighs the experts of a mixture: by its names, and by experts beside it."""
    module = model.get_submodule(path)
    parent_path, _, name = path.rpartition(".")
    named = f"{parent_path.rpartition('.')[2]}.{name}.{type(module).__name__}".lower()
    if any(word in named for word in ROUTER_WORDS):
        return True
    experts = _experts_beside(model.get_submodule(parent_path))
    if experts is None:
        return False
    is_gate = name == GATE or name.endswith(f"_{GATE}")
    return is_gate or getattr(module, "out_features", None) == experts


def _experts_beside(parent: nn.Module) -> int | None:
    """Return the number of experts among a module's children, 0 if it cannot be told, and None without any."""
    for name, child in parent.named_children():
        if "experts" not in name or "shared" in name:
            continue
        if isinstance(child, nn.ModuleList):
            return len(child)
        stacked = [parameter.shape[0] for parameter in child.parameters(recurse=False) if parameter.dim() == 3]
        return stacked[0] if stacked else 0
    return None


def outside_language_model(model: PreTrainedModel) -> set[str]:
    """Return the paths of the modules of towers for images or sound, and of what connects them to the language model.

    Empty for a model that takes text alone.
    """
    towers = {id(config) for config in _tower_configs(model.config)}
    composed = model.config.get_text_config(decoder=True) is not model.config and not model.config.is_encoder_decoder
    if not towers and not composed:
        return set()
    language, outside = _language_parts(model), set[str]()
    for path, module in model.named_modules():
        within = any(path == part or path.startswith(f"{part}.") for part in language)
        is_tower = isinstance(module, PreTrainedModel) and id(module.config) in towers and path != ""
        named = any(word in part for part in path.split(".") for word in TOWER_WORDS)
        around = any(part.startswith(f"{path}.") for part in language) or path == ""
        if is_tower or path.rpartition(".")[0] in outside or (not around and (named or not within)):
            outside.add(path)
    return outside


def _tower_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield the parts of a config that describe inputs other than text."""
    text = {id(config.get_text_config(decoder=True)), id(config.get_text_config(encoder=True))}
    for name in getattr(config, "sub_configs", None) or ():
        part = getattr(config, name, None)
        if not isinstance(part, PreTrainedConfig) or id(part) in text:
            continue
        if any(word in name for word in TOWER_CONFIGS):
            yield part
        yield from _tower_configs(part)


def _language_parts(model: PreTrainedModel) -> list[str]:
    """Return the paths of the language model, and of the head, within a model that takes more than text.

    The language model is the innermost model around the input embedding or, where there is an encoder, both halves.
    Layers beside the body belong to the head.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    if model.config.is_encoder_decoder:
        halves: tuple[nn.Module, ...] = (model.get_encoder(), model.get_decoder())
        parts = [paths[id(half)] for half in halves if id(half) in paths]
    else:
        embedding = model.get_input_embeddings()
        around = [
            path
            for path, module in model.named_modules()
            if isinstance(module, PreTrainedModel) and any(part is embedding for part in module.modules())
        ]
        parts = [max(around, key=len, default="")]
    body = paths.get(id(model.base_model), "")
    beside_body = [name for name, _ in model.named_children() if name != body] if body else []
    return [part for part in [*parts, *beside_body] if part] or [name for name, _ in model.named_children()]


def head_parameters(model: PreTrainedModel) -> set[int]:
    """Return the `id` of each parameter of the output embedding; none without one."""
    head: Any = model.get_output_embeddings()
    return {id(parameter) for parameter in head.parameters()} if head is not None else set()
