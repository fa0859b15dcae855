"""Computes a reference's identity from its files: weights, architecture and adapter, and never from a path."""

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from raydpo.errors import ModelError
from raydpo.models.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, weight_files
from raydpo.reference.identity import ReferenceIdentity, canonical, sha256
from raydpo.runtime import storage

CHUNK_BYTES = 8 * 2**20

# Entries of config.json, at any depth, that do not change the log-probs of a sequence. Unknown entries count: one too
# many costs another scoring, one too few would make two references equal.
CONFIG_WITHOUT_EFFECT = frozenset(
    "_name_or_path name_or_path _commit_hash transformers_version architectures dtype torch_dtype use_cache "
    "id2label label2id initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop".split()
)
ADAPTER_WITHOUT_EFFECT = frozenset(
    "base_model_name_or_path revision inference_mode auto_mapping peft_version task_type lora_dropout "
    "init_lora_weights".split()
)

# The names of dtypes in safetensors, so that a .bin file and a safetensors file of the same weights are equal.
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def identify(folder: str, adapter_folder: str | None, numerics: Mapping[str, str]) -> ReferenceIdentity:
    """Read the model in `folder` (and the LoRA adapter in `adapter_folder`) from disk, and return its identity.

    The same weights have the same identity under any path and in any number of files. Reads every byte, about a second
    per gigabyte and core. Raises ModelError where there are no weights or where a file is damaged.
    """
    return ReferenceIdentity(
        weights=_weights_digest(folder, weight_files(folder)),
        architecture=_architecture_digest(folder),
        adapter=None if adapter_folder is None else adapter_digest(adapter_folder),
        numerics=canonical(dict(numerics)),
    )


SAMPLE_BYTES = 4096


def sampled_digest(folder: str) -> str:
    """Return a digest of a model's architecture and of the first bytes of each of its tensors.

    It tells models apart without reading all of them, in any number of files. Raises ModelError as `identify` does.
    """
    lines = []
    for path in weight_files(folder):
        if path.endswith(".bin"):  # pickled, so that only its size is known without reading it
            lines.append(_line("", "", (os.path.getsize(path),), ""))
            continue
        with open(path, "rb") as stream:
            for tensor in _stored_tensors(path):
                stream.seek(tensor.offset)
                sample = hashlib.sha256(stream.read(min(SAMPLE_BYTES, tensor.size))).hexdigest()
                lines.append(_line(tensor.name, tensor.dtype, tensor.shape, sample))
    return sha256("\n".join([_architecture_digest(folder), *sorted(lines)]))[:16]


@dataclass(frozen=True)
class _Stored:
    """Location of a tensor's bytes in a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: str
    offset: int
    size: int


def _weights_digest(folder: str, files: list[str]) -> str:
    if not files:
        raise ModelError(f"no weights in {folder}; it needs model.safetensors or pytorch_model.bin")
    if files[0].endswith(".bin"):
        lines = [line for path in files for line in _bin_lines(path)]
    else:
        stored = [tensor for path in files for tensor in _stored_tensors(path)]
        # Threads, as hashlib and file reads release the GIL; the largest tensor first, so that it does not run alone.
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            lines = list(threads.map(_stored_line, sorted(stored, key=lambda tensor: -tensor.size)))
    return sha256("\n".join(sorted(lines)))


def _line(name: str, dtype: str, shape: tuple[int, ...], content: str) -> str:
    return canonical([name, dtype, list(shape), content])


def _stored_tensors(path: str) -> list[_Stored]:
    """Return the tensors in a safetensors file's header: 8 bytes of length, JSON, then the tensors' bytes."""
    try:
        with open(path, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            end = os.path.getsize(path)
            if length > end - 8:
                raise ValueError(f"its header should be {length} bytes long")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = []
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            tensors.append(_Stored(name, entry["dtype"], tuple(entry["shape"]), path, 8 + length + start, stop - start))
        if end != 8 + length + sum(tensor.size for tensor in tensors):
            raise ValueError(f"it is {end} bytes long, not as its header says")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{path} is not a complete safetensors file: {error}; copy or download it again") from error
    return tensors


def _stored_line(tensor: _Stored) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(CHUNK_BYTES, tensor.size)))
    left = tensor.size
    with open(tensor.path, "rb", buffering=0) as stream:
        stream.seek(tensor.offset)
        while left:
            count = stream.readinto(buffer[: min(left, len(buffer))])
            if not count:
                raise ModelError(
                    f"{tensor.path} became shorter while it was read; do not change a model that is in use"
                )
            digest.update(buffer[:count])
            left -= count
    return _line(tensor.name, tensor.dtype, tensor.shape, digest.hexdigest())


def _bin_lines(path: str) -> list[str]:
    try:
        tensors: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} cannot be read: {error}; save the model again as safetensors") from error
    lines = []
    for name, tensor in tensors.items():
        content = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data
        digest = hashlib.sha256(content).hexdigest()  # a view of the mapped file, read while it is hashed
        lines.append(_line(name, DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), digest))
    return lines


def _architecture_digest(folder: str) -> str:
    config = storage.read_json(os.path.join(folder, "config.json"))
    code: dict[str, str] = {}
    if "auto_map" in config:
        for name in sorted(name for name in os.listdir(folder) if name.endswith(".py")):
            with open(os.path.join(folder, name), "rb") as stream:
                code[name] = hashlib.sha256(stream.read()).hexdigest()
    return sha256(canonical([_without(config, CONFIG_WITHOUT_EFFECT), code]))


def adapter_digest(folder: str) -> str:
    """Return the digest of the weights and settings of the LoRA adapter in a folder."""
    path = os.path.join(folder, ADAPTER_WEIGHTS)
    if not os.path.isfile(path):
        raise ModelError(f"no {ADAPTER_WEIGHTS} in {folder}; give the folder that peft's save_pretrained wrote")
    config = _without(storage.read_json(os.path.join(folder, ADAPTER_CONFIG)), ADAPTER_WITHOUT_EFFECT)
    # peft keeps module names as sets and writes them in any order.
    settings = {name: sorted(value) if isinstance(value, list) else value for name, value in config.items()}
    return sha256(canonical([settings, _weights_digest(folder, [path])]))


def _without(content: Mapping[str, Any], dropped: frozenset[str]) -> dict[str, Any]:
    return {
        name: _without(value, dropped) if isinstance(value, Mapping) else value
        for name, value in content.items()
        if name not in dropped
    }
