"""The parts of a vision-language model: towers, projector and text model; which of them are trained and adapted."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

TOWERS = frozenset(
    """
    audio_tower high_res_vision_model image_encoder image_tower speech_encoder video_tower vision_encoder vision_model
    vision_tower visual vqmodel
    """.split()
)
"""Names of modules of transformers that turn pixels or sound into features."""
PROJECTOR_IN_TOWER = re.compile(r"merger|connector|projector")
"""In the name of a module within a tower: it maps features to embeddings of the language model, as Qwen-VL's merger."""

TOWER, PROJECTOR, TEXT = "tower", "projector", "text"


def part_of_each(causal_lm: Any) -> dict[str, str]:
    """Return for the name of each parameter the part that it belongs to: TOWER, PROJECTOR or TEXT.

    The text model is the decoder with the embeddings and the output head; what is neither a tower nor the text model is
    the projector. All parameters of a model without towers are TEXT.
    """
    names = [name for name, _ in causal_lm.named_parameters()]
    if not any(map(in_tower, names)):
        return dict.fromkeys(names, TEXT)
    text_modules = (causal_lm.get_decoder(), causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings())
    text = {id(parameter) for module in text_modules if module is not None for parameter in module.parameters()}
    return {name: _part(name, id(parameter) in text) for name, parameter in causal_lm.named_parameters()}


def in_tower(name: str) -> bool:
    """Return whether the module or parameter of this full name is within a tower, or is one."""
    return not TOWERS.isdisjoint(name.split("."))


def _part(name: str, in_decoder: bool) -> str:
    """Return the part of a parameter by its name, and by whether it is one of the decoder or of the head."""
    steps = name.split(".")
    tower = next((index for index, step in enumerate(steps) if step in TOWERS), None)
    if tower is None:
        return TEXT if in_decoder else PROJECTOR
    return PROJECTOR if any(map(PROJECTOR_IN_TOWER.search, steps[tower:])) else TOWER


def freeze(causal_lm: Any, *, tower: bool, projector: bool) -> None:
    """Take the named parts of a vision-language model out of training; other models stay as they are."""
    frozen = _frozen(tower, projector)
    for name, part in part_of_each(causal_lm).items():
        if part in frozen:
            causal_lm.get_parameter(name).requires_grad_(False)


def frozen_modules(causal_lm: Any, *, tower: bool, projector: bool) -> list[str]:
    """Return the names of the largest modules all of whose parameters belong to the named parts."""
    frozen = _frozen(tower, projector)
    parts = part_of_each(causal_lm)
    return list(_largest(causal_lm, "", {name for name, part in parts.items() if part in frozen}))


def _frozen(tower: bool, projector: bool) -> set[str]:
    return {part for part, chosen in ((TOWER, tower), (PROJECTOR, projector)) if chosen}


def _largest(module: nn.Module, path: str, names: set[str]) -> Iterator[str]:
    """Yield the paths of the largest modules within `module`, whose path is `path`, with parameters in `names` only."""
    for step, child in module.named_children():
        here = f"{path}.{step}" if path else step
        inside = {f"{here}.{name}" for name, _ in child.named_parameters()}
        if inside and inside <= names:
            yield here
        elif inside & names:
            yield from _largest(child, here, names)
