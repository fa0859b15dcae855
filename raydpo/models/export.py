"""Write a trained model or adapter as a Hugging Face folder, also where ZeRO-3 keeps each weight in parts.

Weights are made whole a layer at a time, by all ranks together, and go to disk a shard at a time: rank 0 never holds
more than one shard and one layer, in the dtype they were trained in.
"""

import copy
import os
import re
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from raydpo.errors import ModelError, StorageError
from raydpo.models.source import ADAPTER_WEIGHTS, ModelSource, local_folder
from raydpo.runtime import storage

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

Gather = Callable[[Sequence[nn.Parameter]], AbstractContextManager[object]]
"""Makes parameters whole inside its `with` block; all ranks enter it, for the same parameters in the same order."""

MAX_SHARD_BYTES = 5_000_000_000
LAYER = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class ExportTarget:
    """What is to be written beside the weights, and where."""

    folder: str
    """A folder on a local or mounted disk; one that exists is replaced."""
    source: ModelSource
    """The model that training started from: its config and its code are those of the result."""
    tokenizer: PreTrainedTokenizerBase
    is_main: bool
    """True on the one rank that writes."""


def export_model(
    model: PreTrainedModel,
    target: ExportTarget,
    gather: Gather,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    blend: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> None:
    """Write a folder for `AutoModelForCausalLM.from_pretrained`; all ranks call it, rank 0 writes.

    Weights have the names and layout that `save_pretrained` gives them, tied ones are saved once; what is written of
    each is `blend(name, weight)`. A tensor larger than `max_shard_bytes` is a shard of its own. ModelError if a weight
    comes out empty or not at all; StorageError if the folder cannot be written.
    """
    tensors = _tensors_to_save(model)
    if not target.is_main:
        _gather_only(tensors, gather)
        return
    expected = shapes_to_export(model)
    with _whole_folder(target.folder) as aside:
        writer = _ShardWriter(aside, max_shard_bytes)
        for group in _groups(tensors):
            with gather(_parameters(group)):
                for name, tensor in _converted(model, _whole(group)).items():
                    writer.add(name, blend(name, tensor))
        writer.finish(expected)
        _write_side_files(model, target, aside)


def shapes_to_export(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that `export_model` writes."""
    return {name: tuple(tensor.shape) for name, tensor in _converted(model, _planned(_tensors_to_save(model))).items()}


def export_adapter(model: "PeftModel", target: ExportTarget, gather: Gather) -> None:
    """Write a folder for `PeftModel.from_pretrained`: the adapter, and the modules trained in full; all ranks call it.

    Its `base_model_name_or_path` is the name that the user gave. Errors as in `export_model`.
    """
    held = gather_tensors(adapter_tensors(model), target, gather)
    if target.is_main:
        write_adapter(held, copy.copy(model.peft_config[model.active_adapter]), target)


def adapter_tensors(model: "PeftModel") -> dict[str, Tensor]:
    """What an adapter's file holds, by name: a selection, so that parameters may still be in parts."""
    from peft import get_peft_model_state_dict  # not above, for the reason given in `add_lora`

    # "auto" would ask the hub for the base's config.
    tensors: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=model.state_dict(keep_vars=True), save_embedding_layers=False
    )
    return tensors


def gather_tensors(tensors: Mapping[str, Tensor], target: ExportTarget, gather: Gather) -> dict[str, Tensor]:
    """Whole copies on the CPU, of the one rank that writes; all ranks call it."""
    if not target.is_main:
        _gather_only(tensors, gather)
        return {}
    held: dict[str, Tensor] = {}
    for group in _groups(tensors):
        with gather(_parameters(group)):
            held.update((name, _on_cpu(tensor)) for name, tensor in _whole(group).items())
    return held


def write_adapter(tensors: dict[str, Tensor], config: "PeftConfig", target: ExportTarget) -> None:
    """Write an adapter's folder; its base is the target's source, as the config will say."""
    with _whole_folder(target.folder) as aside:
        save_file(tensors, os.path.join(aside, ADAPTER_WEIGHTS), metadata={"format": "pt"})
        config.base_model_name_or_path, config.revision = target.source.name, target.source.revision
        config.inference_mode = True
        config.save_pretrained(aside)
        target.tokenizer.save_pretrained(aside)


def _tensors_to_save(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters (possibly in parts) and persistent buffers by name, each tied one under the name that is loaded."""
    ignored = set(model._keys_to_ignore_on_save or ())
    tensors = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in ignored}
    names_of: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        names_of[id(tensor)].append(name)  # by object: a parameter in parts has no storage to compare
    for names in names_of.values():
        declared = [name for name in names if name in model.all_tied_weights_keys]
        # Sharing that the model does not declare is not restored on loading, so each of those names is saved.
        for name in declared[: len(names) - 1]:
            del tensors[name]
    return tensors


def _groups(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors a layer at a time, others one by one: a layout conversion never reaches beyond a layer."""
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        layer = LAYER.match(name)
        groups[layer[1] if layer else name][name] = tensor
    yield from groups.values()


def _parameters(group: Mapping[str, Tensor]) -> list[nn.Parameter]:
    return list({id(tensor): tensor for tensor in group.values() if isinstance(tensor, nn.Parameter)}.values())


def _gather_only(tensors: Mapping[str, Tensor], gather: Gather) -> None:
    for group in _groups(tensors):
        with gather(_parameters(group)):
            pass


def _whole(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a gathered group; ModelError if one is not whole."""
    for name, tensor in group.items():
        shape = getattr(tensor, "ds_shape", tensor.shape)  # DeepSpeed's record of a partitioned parameter's own shape
        if tensor.numel() == 0 or tensor.shape != shape:
            raise ModelError(
                f"the weight {name} has shape {tuple(tensor.shape)} at export, not {tuple(shape)}; "
                "under ZeRO-3 pass a `gather` that makes it whole"
            )
    return {name: tensor.detach() for name, tensor in group.items()}


def _planned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stand-ins without content, of the shapes that the tensors will have when whole."""
    return {
        name: torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=tensor.dtype, device="meta")
        for name, tensor in tensors.items()
    }


def _converted(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In the layout of published checkpoints: some, mixtures of experts above all, are laid out anew on loading."""
    converted: dict[str, Tensor] = revert_weight_conversion(model, tensors)
    return converted


def _on_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy, since the weight itself is given back and parts of one must not share memory in a file."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor)


class _ShardWriter:
    """Collects tensors into shards of bounded size and writes each as soon as it is full."""

    def __init__(self, folder: str, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._total_bytes = 0
        self._shapes: list[dict[str, tuple[int, ...]]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a copy of the tensor, writing what is held before where both do not fit into a shard."""
        if self._held and self._held_bytes + tensor.nbytes > self._max_bytes:
            self._flush()
        self._held[name] = _on_cpu(tensor)
        self._held_bytes += tensor.nbytes

    def finish(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Write the last shard, give all their names, and compare with the names and shapes that should be there."""
        self._flush()
        written = {name: shape for shard in self._shapes for name, shape in shard.items()}
        if different := sorted(dict(written.items() ^ expected.items())):
            raise ModelError(
                f"{len(different)} weights were not exported as planned, first {different[0]}; "
                "this architecture's layout conversion spans layers: please report it"
            )
        count = len(self._shapes)
        if count == 1:
            os.rename(self._part(0), os.path.join(self._folder, "model.safetensors"))
            return
        files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        for number, file in enumerate(files):
            os.rename(self._part(number), os.path.join(self._folder, file))
        weight_map = {name: file for file, shard in zip(files, self._shapes, strict=True) for name in shard}
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        storage.write_json(os.path.join(self._folder, "model.safetensors.index.json"), index)

    def _part(self, number: int) -> str:
        return os.path.join(self._folder, f"part-{number}")  # the number of shards, part of the name, is known later

    def _flush(self) -> None:
        save_file(self._held, self._part(len(self._shapes)), metadata={"format": "pt"})
        self._shapes.append({name: tuple(tensor.shape) for name, tensor in self._held.items()})
        self._total_bytes += self._held_bytes
        self._held, self._held_bytes = {}, 0


def _write_side_files(model: PreTrainedModel, target: ExportTarget, folder: str) -> None:
    """Everything but the weights: as it was on disk, since training switches off dropout and cache in the config."""
    source = local_folder(target.source)
    config = storage.read_json(os.path.join(source, "config.json"))
    config.pop("torch_dtype", None)
    config |= {"dtype": str(model.dtype).removeprefix("torch."), "architectures": [type(model).__name__]}
    storage.write_json(os.path.join(folder, "config.json"), config)
    for name in sorted(os.listdir(source)):
        if name == "generation_config.json" or ("auto_map" in config and name.endswith(".py")):
            shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))
    target.tokenizer.save_pretrained(folder)


@contextmanager
def _whole_folder(folder: str) -> Iterator[str]:
    """A new folder to write into, which takes the place of `folder` when the block ends without an error."""
    folder = os.path.abspath(folder)
    parent, name = os.path.split(folder)
    mark = uuid.uuid4().hex
    aside, old = (os.path.join(parent, f".{name}.{mark}.{suffix}") for suffix in ("part", "old"))
    try:
        os.makedirs(aside)
        yield aside
        _flush_to_disk(aside)
        if os.path.exists(folder):
            os.rename(folder, old)
        os.rename(aside, folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # the latter where the disk is full
        raise StorageError(
            f"cannot write {folder}: {error}; make room on that disk or choose another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush_to_disk(folder: str) -> None:
    """So that the older export is not removed before the newer one would outlive a power cut."""
    for entry in os.scandir(folder):
        if entry.is_file():
            with open(entry.path, "rb") as stream:
                os.fsync(stream.fileno())
