"""How the names in an adapter's file meet the modules of its model, when peft is silent about those that do not.

An adapter that was saved from a wrapped model, from another class of the same model, or as a plain state dict has its
weights under other names. Peft would then train or score with the adapter as it is initialised, which changes nothing.
"""

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import Tensor

from raydpo.errors import ModelError
from raydpo.models.checkpoint_keys import families, find_renaming
from raydpo.models.source import ADAPTER_WEIGHTS, ModelSource

if TYPE_CHECKING:
    from peft import PeftModel

PREFIX = "base_model.model."
"""Prefix of a layer's name in peft's files."""
ADAPTER = "default"
"""The name under which an adapter is loaded here."""
KINDS = "lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
NAMED = re.compile(rf"\.({KINDS})\.(?!(?:weight|bias)$)[^.]+(\.(?:weight|bias))?$")
"""Matches the end of a weight's name that has the adapter's name in it, as in a plain state dict."""
SAVED = re.compile(r"\.modules_to_save\.[^.]+\.")
"""Matches where a plain state dict has the trained copy of a module."""


def load_adapter_weights(adapted: "PeftModel", source: ModelSource, folder: str) -> str | None:
    """Load an adapter's file into the model, which has the adapter's modules; return a note if names were changed.

    Raises ModelError where a weight of the adapter is not in the file, or one of the file meets no module, whatever
    prefix is tried.
    """
    tensors = load_file(os.path.join(folder, ADAPTER_WEIGHTS))
    missing, unexpected = _load(adapted, tensors)
    if not missing and not unexpected:
        return None
    renamed, how = _renamed(adapted, tensors)
    if how:
        missing, unexpected = _load(adapted, renamed)
        if not missing and not unexpected:
            return f"weights of the adapter {source.display_name} are renamed to those of its model: {how}"
    parts = []
    if missing:
        parts.append(f"lacks {len(missing)} weights of its model's layers, first {missing[0]}")
    if unexpected:
        parts.append(f"has {len(unexpected)} that meet no module of it, first {unexpected[0]}")
    kind = type(adapted.get_base_model()).__name__
    raise ModelError(
        f"adapter {source.name!r} does not fit {kind} by the layers that its adapter_config.json names: it "
        f"{' and '.join(parts)} (found: {', '.join(families(tensors)[:5])}); give the complete adapter of this model, "
        "or correct target_modules, layers_to_transform or modules_to_save in its adapter_config.json"
    )


def _load(adapted: "PeftModel", tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Load tensors; return the adapter's weights that are not among them, and those of them that nothing takes."""
    from peft import set_peft_model_state_dict
    from peft.utils import AuxiliaryTrainingWrapper

    # Peft takes modules that are trained in full for granted.
    wrappers: list[tuple[str, Any]] = [
        (name, module) for name, module in adapted.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)
    ]
    needed = [f"{name}.{key}" for name, module in wrappers for key in module.adapter_state_dict_load_map(ADAPTER)]
    absent = [name for name in needed if name not in tensors]
    if absent:
        return sorted(absent), sorted(set(tensors) - set(_expected(adapted)))
    result: Any = set_peft_model_state_dict(adapted, dict(tensors), adapter_name=ADAPTER)
    ours = [name for name in result.missing_keys if _is_adapters(name)]
    return sorted(map(_plain, ours)), sorted(map(_plain, result.unexpected_keys))


def _expected(adapted: "PeftModel") -> dict[str, Tensor]:
    """Return the weights that peft would save, by their name in its file."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(
        adapted, state_dict=adapted.state_dict(keep_vars=True), save_embedding_layers=False
    )
    return tensors


def _renamed(adapted: "PeftModel", tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors under the names that peft would save them by, as far as one change of prefix gives them.

    Also return what was changed, as text; empty if there is no such change.
    """
    plain = {name: _plain(name) for name in tensors if ".original_module." not in name}
    expected = set(_expected(adapted))
    missing, unmet = expected - set(plain.values()), set(plain.values()) - expected
    changes = []
    if missing and unmet:
        renaming = find_renaming(missing, unmet, expected - missing)
        if renaming is None:
            return {}, ""
        plain = {name: renaming(ours) if ours in unmet else ours for name, ours in plain.items()}
        changes.append(str(renaming))
    changed = [name for name, ours in plain.items() if name != ours]
    if len(set(plain.values())) < len(plain) or not changed:
        return {}, ""
    example = changed[0]
    return {ours: tensors[name] for name, ours in plain.items()}, f"{example} -> {plain[example]}"


def _plain(name: str) -> str:
    """Return a weight's name with peft's prefix once and without the adapter's name."""
    while name.startswith(PREFIX):
        name = name.removeprefix(PREFIX)
    name = SAVED.sub(".", name)
    if found := NAMED.search(name):
        # A magnitude of DoRA and the factors of an embedding are saved without `.weight`.
        bare = found[1] not in ("lora_A", "lora_B")
        name = f"{name[: found.start()]}.{found[1]}{'' if bare else found[2] or ''}"
    return PREFIX + name


def _is_adapters(name: str) -> bool:
    """Return whether a name in the model is that of one of the adapter's weights."""
    return f".{ADAPTER}." in f"{name}." and ("lora_" in name or ".modules_to_save." in name or "token_adapter" in name)
