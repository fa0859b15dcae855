"""Weights of a model's files that its class does not load, which its export carries as they are."""

import os
from collections.abc import Collection, Iterator
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict

from raydpo.models.checkpoint_keys import CheckpointKeys, checkpoint_keys, match_keys, names_in_files
from raydpo.models.source import ModelSource, local_folder
from raydpo.runtime import storage


class CarriedWeights:
    """What an export takes over from the files that the model was loaded from."""

    def __init__(self, model: PreTrainedModel | None, source: ModelSource | None) -> None:
        """Find the weights; none are carried without a model, or for one that comes from no files."""
        found = checkpoint_keys(model) if model is not None else None
        self._keys = found or CheckpointKeys({}, {})
        self._folder = local_folder(source) if source and self._keys.unloaded else ""
        self._prefix = f"{model.base_model_prefix}." if model is not None and model.base_model_prefix else ""
        self._names = {self._keys.exported_name(name) for name in self._keys.taken}

    def layout(self, name: str) -> str:
        """Return the name of a trained weight in the layout of the source, so that carried ones fit to it.

        Transformers adds or removes the prefix of the model's body where the files have or lack it; an export without
        carried weights has the names of the class.
        """
        if not self._keys.unloaded or name in self._names:
            return name
        for other in (f"{self._prefix}{name}", name.removeprefix(self._prefix)):
            if other in self._names:
                return other
        return name

    def tensors(self, trained: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the carried weights by their name in the export, but for those that are trained; one at a time."""
        wanted = {name: self._keys.exported_name(name) for name in self._keys.unloaded}
        wanted = {name: exported for name, exported in wanted.items() if exported not in set(trained)}
        if not wanted:
            return
        files: dict[str, list[str]] = {}
        for name, path in names_in_files(self._folder).items():
            if name in wanted:
                files.setdefault(path, []).append(name)
        for path, names in files.items():
            if path.endswith(".safetensors"):
                with safe_open(path, framework="pt") as file:
                    yield from ((wanted[name], file.get_tensor(name)) for name in names)
            else:
                content = load_state_dict(path)
                yield from ((wanted[name], content[name]) for name in names)

    def architectures(self, model: PreTrainedModel) -> list[str]:
        """Return what config.json names: the class trained, or that of the source where it takes carried weights.

        A class for text that was loaded out of a vision-language model leaves a whole vision-language model behind.
        """
        ours = [type(model).__name__]
        if not self._keys.unloaded:
            return ours
        named = storage.read_json(os.path.join(self._folder, "config.json")).get("architectures") or ours
        architecture: Any = getattr(transformers, named[0], None)
        if named == ours or architecture is None:
            return ours
        config = AutoConfig.from_pretrained(self._folder)
        if not isinstance(config, architecture.config_class):
            return ours
        with torch.device("meta"):
            whole = architecture(config)
        carried = [self._keys.exported_name(name) for name in self._keys.unloaded]
        return list(named) if match_keys(whole, carried).taken else ours


NOTHING_CARRIED = CarriedWeights(None, None)
