"""How the names in a model's weight files meet the parameters of its class: what is loaded, renamed or left over.

Transformers loads what it can and is silent about the rest. Weights that are left over (multi-token-prediction heads,
vision towers of a class for text) belong to the model nonetheless, so that an export carries them; and weights of the
model's own under another prefix (`module.`, `model.language_model.`) are met by renaming them.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.modeling_utils import load_state_dict

from raydpo.errors import ModelError
from raydpo.models.source import ModelSource, weight_files

_log = logging.getLogger(__name__)

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")
"""What wrappers put into the names of weights, anywhere: torch.compile, FSDP, activation checkpointing, DDP."""
LAYER = re.compile(r"(.*?\.)(\d+)\.(.+)")
EXTRA_LAYERS = re.compile(r"nextn|mtp|multi_token|num_predict|draft")
"""Matches options of a config that announce layers after the last one, which predict further tokens."""
ATTRIBUTE, NOTES = "_checkpoint_keys", "_load_notes"


@dataclass(frozen=True)
class Renaming:
    """One renaming of weights in files: the first occurrence of what `pattern` matches becomes `replacement`."""

    pattern: str
    replacement: str
    before: str
    """Text of what `pattern` matches, for messages."""

    def __call__(self, name: str) -> str:
        """Return the new name."""
        return re.sub(self.pattern, lambda _: self.replacement, name, count=1)

    @property
    def key_mapping(self) -> dict[str, str]:
        """The argument of `from_pretrained` that renames while it loads."""
        return {self.pattern: self.replacement}

    def __str__(self) -> str:
        return f"{self.before}* -> {self.replacement}*"


@dataclass(frozen=True)
class CheckpointKeys:
    """What became of the weights in a model's files."""

    taken: Mapping[str, str]
    """Name in the files of each weight that is loaded, with the name of a parameter that it is loaded into."""
    unloaded: Mapping[str, str]
    """Name in the files of each weight that is not loaded, with the name that it would have in the model."""
    renaming: Renaming | None = None
    """How names were changed so that files and model meet; None where they meet by themselves."""

    def exported_name(self, name: str) -> str:
        """Return the name that an export gives a weight of these files, which is its own but for the renaming."""
        return self.renaming(name) if self.renaming else name

    def carried(self, model: PreTrainedModel) -> str:
        """Return the sentence that says which weights an export carries; empty if it carries none."""
        if not self.unloaded:
            return ""
        found = families(self.unloaded)
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        return (
            f"{len(self.unloaded)} weights that {type(model).__name__} does not load are carried into the export: "
            f"{', '.join(found[:5])}{more}"
        )


def checkpoint_keys(model: PreTrainedModel) -> CheckpointKeys | None:
    """Return what `load_causal_lm` found out about the model's files; None for a model that comes from no files."""
    keys: CheckpointKeys | None = getattr(model, ATTRIBUTE, None)
    return keys


def add_note(model: PreTrainedModel, note: str) -> None:
    """Log what a user should know about how the model was loaded, and keep it for `load_notes`."""
    _log.warning("%s", note)
    setattr(model, NOTES, [*getattr(model, NOTES, []), note])


def load_notes(model: PreTrainedModel) -> list[str]:
    """Return what a user should know about how the model was loaded, as sentences."""
    notes: list[str] = getattr(model, NOTES, [])
    return notes


def names_in_files(folder: str) -> dict[str, str]:
    """Return the names of the weights in a model's folder, each with its file. Reads no values."""
    names: dict[str, str] = {}
    for path in weight_files(folder):
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                names.update(dict.fromkeys(file.keys(), path))
        else:
            names.update(dict.fromkeys(load_state_dict(path, map_location="meta"), path))
    return names


def match_keys(model: PreTrainedModel, names: Iterable[str], renaming: Renaming | None = None) -> CheckpointKeys:
    """Return which of the names in files transformers loads into the model, by its own rules of renaming."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    parameters: Any = model.state_dict()
    prefix = model.base_model_prefix
    taken, unloaded = dict[str, str](), dict[str, str]()
    for name in sorted(names, key=dot_natural_key):
        ours = renaming(name) if renaming else name
        target, _ = rename_source_key(ours, renamings, converters, prefix, parameters)
        if target not in parameters and ours in parameters:  # a rule matched a name that was right before
            target = ours
        (taken if target in parameters else unloaded)[name] = target
    return CheckpointKeys(taken, unloaded, renaming)


def find_renaming(missing: Collection[str], unloaded: Iterable[str], taken: Collection[str] = ()) -> Renaming | None:
    """Return the only renaming of names in files by which all missing weights are met; None if there is not just one.

    Tried are the removal of what wrappers add, and the exchange of one prefix for another. No renaming may give a name
    that a weight has already, which are `taken`: a further head with layers of its own is not the model.
    """
    names = list(unloaded)
    for wrapper in WRAPPERS:
        infix = Renaming(rf"(?<![^.]){re.escape(wrapper)}", "", wrapper)
        if set(missing) <= {infix(name) for name in names}:
            return infix
    example = max(sorted(missing), key=lambda name: name.count("."))
    found = dict[tuple[str, str], Renaming]()
    for name in names:
        suffix = _common_suffix(name, example)
        old, new = name[: len(name) - len(suffix)], example[: len(example) - len(suffix)]
        numbered = any(part.isdigit() for part in f"{old}{new}".split("."))  # one layer is not another
        if suffix.count(".") and not numbered:
            found[old, new] = Renaming(f"^{re.escape(old)}", new, old)
    fitting = []
    for prefix in found.values():
        renamed = {prefix(name) for name in names if name.startswith(prefix.before)}
        if set(missing) <= renamed and not renamed & set(taken):
            fitting.append(prefix)
    return fitting[0] if len(fitting) == 1 else None


def check_layers(source: ModelSource, model: PreTrainedModel, keys: CheckpointKeys) -> None:
    """Raise ModelError where the files have further layers like those of the model, which its config leaves out.

    Layers that predict further tokens are like that too in some models; the config or the class announces them.
    """
    config: dict[str, Any] = model.config.to_dict()
    if any(value and EXTRA_LAYERS.search(str(name)) for part in _parts(config) for name, value in part.items()):
        return
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    ours, theirs = _by_layer(keys.taken.values()), _by_layer(keys.unloaded.values())
    for (prefix, number), weights in sorted(theirs.items()):
        if any(re.search(pattern, f"{prefix}{number}.{weight}") for pattern in ignored for weight in weights):
            continue
        like = [found for (place, _), found in ours.items() if place == prefix]
        if weights in like:
            raise ModelError(
                f"the files of {source.name!r} have a layer {prefix}{number} like the {len(like)} that "
                f"{type(model).__name__} has by its config.json, which would be left out of the model; "
                "correct the number of layers in config.json, or remove those weights from the files"
            )


def families(names: Iterable[str]) -> list[str]:
    """Return what names of weights begin with, as patterns: `mtp.*`, `model.visual.*`, `model.layers.61.*`.

    Weights of the same name in several layers are one pattern: `model.layers.*.self_attn.rotary_emb.inv_freq`.
    """
    names = list(names)
    repeated = Counter(re.sub(r"\.\d+\.", ".*.", name, count=1) for name in names)
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        kept = parts[:1]
        if parts[0] in ("model", "language_model", "transformer", "backbone") and len(parts) > 2:
            kept = parts[:2]
            if LAYER.match(name) and parts[1] in ("layers", "h", "blocks"):
                pattern = re.sub(r"\.\d+\.", ".*.", name, count=1)
                if repeated[pattern] > 1:
                    found[pattern] = None
                    continue
                kept = parts[:3]
        found[".".join(kept) + (".*" if len(parts) > len(kept) else "")] = None
    return list(found)


def _common_suffix(first: str, second: str) -> str:
    """Return the longest suffix of whole components that two names share."""
    shared: list[str] = []
    for one, other in zip(reversed(first.split(".")), reversed(second.split(".")), strict=False):
        if one != other:
            break
        shared.append(one)
    return ".".join(reversed(shared))


def _by_layer(names: Iterable[str]) -> dict[tuple[str, int], frozenset[str]]:
    """Return the weights of each numbered layer, by what stands before its number, and the number."""
    layers: dict[tuple[str, int], set[str]] = defaultdict(set)
    for name in names:
        if found := LAYER.match(name):
            layers[found[1], int(found[2])].add(found[3])
    return {layer: frozenset(weights) for layer, weights in layers.items()}


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a config and the configs in it."""
    return [config, *(value for value in config.values() if isinstance(value, Mapping))]
