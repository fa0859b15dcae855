"""Writing a trained model or adapter as a Hugging Face folder, also if ZeRO-3 partitions its weights.

All ranks together gather weights one layer at a time, and rank 0 writes them to disk one shard at a time: it never
holds more than one shard and one layer, in the dtype of training.
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
from raydpo.models.carried import NOTHING_CARRIED, CarriedWeights
from raydpo.models.shards import ShardWriter, copy_to_cpu
from raydpo.models.side_files import write_side_files
from raydpo.models.source import ADAPTER_WEIGHTS, ModelSource, local_folder
from raydpo.runtime import storage

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

Gather = Callable[[Sequence[nn.Parameter]], AbstractContextManager[object]]
"""A context manager that gathers partitioned parameters for its `with` block; all ranks must enter it, for the same
parameters in the same order."""

MAX_SHARD_BYTES = 5_000_000_000
LAYER = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class ExportTarget:
    """Where to write an export, and its contents other than the weights."""

    folder: str
    """Folder on a local or mounted disk; an existing folder is replaced."""
    source: ModelSource
    """The model that training started from, whose config and code become those of the export."""
    tokenizer: PreTrainedTokenizerBase
    is_main: bool
    """Whether this rank is the one that writes."""


def export_model(
    model: PreTrainedModel,
    target: ExportTarget,
    gather: Gather,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    blend: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
    *,
    carry: bool = True,
) -> None:
    """Write a folder for `AutoModelForCausalLM.from_pretrained`; all ranks call it, and rank 0 writes.

    Weights have the names and layout that `save_pretrained` gives them, and tied weights are saved once. The tensor
    written for each weight is `blend(name, weight)`. A tensor larger than `max_shard_bytes` gets a shard of its own.
    With `carry`, weights of the source's files that the model does not load are written as they are there. Raises
    ModelError if a weight is empty or missing, and StorageError if the folder cannot be written.
    """
    tensors = _tensors_to_save(model)
    if not target.is_main:
        _gather_only(tensors, gather)
        return
    carried = CarriedWeights(model, target.source) if carry else NOTHING_CARRIED
    expected = shapes_to_export(model, carried)
    with _replacement_folder(target.folder) as aside:
        writer = ShardWriter(aside, max_shard_bytes)
        for group in _groups(tensors):
            with gather(_parameters(group)):
                for name, tensor in _converted(model, _gathered(group)).items():
                    writer.add(carried.layout(name), blend(name, tensor))
        for name, tensor in carried.tensors(expected):
            writer.add(name, tensor)
            expected[name] = tuple(tensor.shape)
        writer.finish(expected)
        _write_other_files(model, target, aside, carried)


def shapes_to_export(model: PreTrainedModel, carried: CarriedWeights = NOTHING_CARRIED) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the model's own weights that `export_model` writes, beside those carried."""
    planned = _converted(model, _planned(_tensors_to_save(model)))
    return {carried.layout(name): tuple(tensor.shape) for name, tensor in planned.items()}


def export_adapter(model: "PeftModel", target: ExportTarget, gather: Gather) -> None:
    """Write a folder for `PeftModel.from_pretrained`: the adapter and the modules that are trained in full.

    All ranks call it, and rank 0 writes. The adapter's `base_model_name_or_path` is the name that the user gave. Raises
    the same errors as `export_model`.
    """
    held = gather_tensors(adapter_tensors(model), target, gather)
    if target.is_main:
        write_adapter(held, copy.copy(model.peft_config[model.active_adapter]), target)


def adapter_tensors(model: "PeftModel") -> dict[str, Tensor]:
    """Return the tensors of an adapter's weight file, by name; parameters may still be partitioned."""
    from peft import get_peft_model_state_dict  # imported here for the reason given in `add_lora`

    # The default, "auto", would query the hub for the config of the base model.
    tensors: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=model.state_dict(keep_vars=True), save_embedding_layers=False
    )
    return tensors


def gather_tensors(tensors: Mapping[str, Tensor], target: ExportTarget, gather: Gather) -> dict[str, Tensor]:
    """Return complete copies of the tensors on the CPU of the rank that writes, and {} on the others.

    All ranks call it.
    """
    if not target.is_main:
        _gather_only(tensors, gather)
        return {}
    held: dict[str, Tensor] = {}
    for group in _groups(tensors):
        with gather(_parameters(group)):
            held.update((name, copy_to_cpu(tensor)) for name, tensor in _gathered(group).items())
    return held


def write_adapter(tensors: dict[str, Tensor], config: "PeftConfig", target: ExportTarget) -> None:
    """Write an adapter's folder, with the target's source as its base model in the config."""
    with _replacement_folder(target.folder) as aside:
        save_file(tensors, os.path.join(aside, ADAPTER_WEIGHTS), metadata={"format": "pt"})
        config.base_model_name_or_path, config.revision = target.source.name, target.source.revision
        config.inference_mode = True
        config.save_pretrained(aside)
        write_side_files(local_folder(target.source), aside, target.tokenizer, adapter=True)


def _tensors_to_save(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return (possibly partitioned) parameters and persistent buffers by name; tied ones by the name that is read."""
    ignored = set(model._keys_to_ignore_on_save or ())
    tensors = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in ignored}
    names_of: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        names_of[id(tensor)].append(name)  # by object, as a partitioned parameter has no storage to compare
    for names in names_of.values():
        declared = [name for name in names if name in model.all_tied_weights_keys]
        # Loading does not restore ties that the model does not declare, so that each of their names is saved.
        for name in declared[: len(names) - 1]:
            del tensors[name]
    return tensors


def _groups(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of one layer at a time, and other tensors one by one.

    A conversion of the checkpoint layout never involves more than one layer.
    """
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        layer = LAYER.match(name)
        groups[layer[1] if layer else name][name] = tensor
    yield from groups.values()


def _parameters(group: Mapping[str, Tensor]) -> list[nn.Parameter]:
    """Return the distinct parameters of a group, without buffers."""
    return list({id(tensor): tensor for tensor in group.values() if isinstance(tensor, nn.Parameter)}.values())


def _gather_only(tensors: Mapping[str, Tensor], gather: Gather) -> None:
    """Take part in the gathers of the rank that writes, in the same order."""
    for group in _groups(tensors):
        with gather(_parameters(group)):
            pass


def _gathered(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a gathered group, detached; raise ModelError if one is still partitioned."""
    for name, tensor in group.items():
        shape = getattr(tensor, "ds_shape", tensor.shape)  # DeepSpeed: the full shape of a partitioned parameter
        if tensor.numel() == 0 or tensor.shape != shape:
            raise ModelError(
                f"the weight {name} has shape {tuple(tensor.shape)} at export, not {tuple(shape)}; "
                "under ZeRO-3, pass a `gather` that gathers it"
            )
    return {name: tensor.detach() for name, tensor in group.items()}


def _planned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return meta tensors with the shapes that the tensors have once gathered."""
    return {
        name: torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=tensor.dtype, device="meta")
        for name, tensor in tensors.items()
    }


def _converted(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in the layout of published checkpoints.

    Transformers changes the layout of some models on loading, of mixtures of experts above all.
    """
    converted: dict[str, Tensor] = revert_weight_conversion(model, tensors)
    return converted


def _write_other_files(model: PreTrainedModel, target: ExportTarget, folder: str, carried: CarriedWeights) -> None:
    """Write all files other than the weights.

    The config is the one on disk, since training switches off dropout and cache in the config in memory.
    """
    source = local_folder(target.source)
    config = storage.read_json(os.path.join(source, "config.json"))
    config.pop("torch_dtype", None)
    config |= {"dtype": str(model.dtype).removeprefix("torch."), "architectures": carried.architectures(model)}
    storage.write_json(os.path.join(folder, "config.json"), config)
    write_side_files(source, folder, target.tokenizer)


@contextmanager
def _replacement_folder(folder: str) -> Iterator[str]:
    """Yield a new folder to write into, which replaces `folder` when the block ends without an error.

    Raises StorageError if writing fails.
    """
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
    except (OSError, SafetensorError) as error:  # safetensors raises the latter if the disk is full
        raise StorageError(
            f"cannot write {folder}: {error}; free space on that disk or choose another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush_to_disk(folder: str) -> None:
    """Flush a folder's files to disk, so that an older export is only removed once this one survives a power cut."""
    for entry in os.scandir(folder):
        if entry.is_file():
            with open(entry.path, "rb") as stream:
                os.fsync(stream.fileno())
