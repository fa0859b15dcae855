"""Resolving the name of a model or adapter to a folder on this node, without loading it.

This file imports neither torch nor transformers: Ray Train's controller, which loads no model, unpickles these records
as part of what it passes on, and training waits for it to start.
"""

import json
import os
from dataclasses import dataclass

import huggingface_hub
from huggingface_hub.errors import HTTPError as HubClientError  # type: ignore[attr-defined]
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from raydpo.errors import ModelError

SIDE_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
SAFETENSORS_FILES = ("model.safetensors", "model-*-of-*.safetensors")
BIN_FILES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHT_INDEXES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""The name of a model's single weight file and of the index of its several files, per format, in the order in which
`from_pretrained` looks for them."""


@dataclass(frozen=True)
class ModelSource:
    """The origin of a model or an adapter: a folder, or a commit on the Hugging Face hub."""

    name: str
    """Folder or hub id as the user gave it."""
    folder: str
    """Absolute path on the node that resolved the name; other nodes find their own path with `local_folder`."""
    revision: str | None
    """Commit of a model on the hub; None for a folder."""

    @property
    def display_name(self) -> str:
        """The name for messages, with the commit if the model is on the hub."""
        return self.name if self.revision is None else f"{self.name} at {self.revision}"


def resolve_model(name: str, revision: str | None, *, trust_remote_code: bool = False) -> ModelSource:
    """Return the source of a model on this node, downloading it from the hub if `name` is not a folder.

    `revision` is a branch, tag or commit of a hub model; it is ignored for a folder. The model's Python files are
    downloaded only with `trust_remote_code`. Raises ModelError if the model does not exist, cannot be reached, or has
    no weights of its own.
    """
    folder = os.path.abspath(os.path.expanduser(name))
    if os.path.isdir(folder):
        source = ModelSource(name, folder, None)
    else:
        folder = _fetch(name, revision, SIDE_FILES + SAFETENSORS_FILES + (("*.py",) if trust_remote_code else ()))
        if not weight_files(folder):
            folder = _fetch(name, revision, BIN_FILES)
        source = ModelSource(name, folder, os.path.basename(folder))
    _check_folder(source)
    return source


def resolve_tokenizer(name: str, revision: str | None, *, trust_remote_code: bool = False) -> ModelSource:
    """Return the source of a model on this node as `resolve_model` does, but without its weights.

    That is enough for `load_tokenizer`. Raises ModelError if the model does not exist or cannot be reached.
    """
    folder = os.path.abspath(os.path.expanduser(name))
    if os.path.isdir(folder):
        return ModelSource(name, folder, None)
    folder = _fetch(name, revision, SIDE_FILES + (("*.py",) if trust_remote_code else ()))
    return ModelSource(name, folder, os.path.basename(folder))


def local_folder(source: ModelSource, *, trust_remote_code: bool = False) -> str:
    """Return the model's folder on this node; a hub model that is not there yet is downloaded at the same commit.

    Raises ModelError if a model that was given as a folder is not on this node.
    """
    found = _on_node(source, "model")
    return found or resolve_model(source.name, source.revision, trust_remote_code=trust_remote_code).folder


def resolve_adapter(name: str) -> ModelSource:
    """Return the source of a LoRA adapter, downloading it from the hub if `name` is not a folder.

    Raises ModelError if the folder or repository is no LoRA adapter or cannot be reached.
    """
    folder = os.path.abspath(os.path.expanduser(name))
    source = ModelSource(name, folder, None)
    if not os.path.isdir(folder):
        folder = _fetch(name, None, (ADAPTER_CONFIG, ADAPTER_WEIGHTS), "adapter")
        source = ModelSource(name, folder, os.path.basename(folder))
    elif named := _named_adapters(folder):
        if len(named) > 1:
            raise ModelError(f"{name!r} holds several adapters, {', '.join(named)}; give the folder of one of them")
        folder = os.path.join(folder, named[0])  # peft writes an adapter with a name of its own into a folder below
        source = ModelSource(name, folder, None)
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not os.path.isfile(os.path.join(folder, file)):
            raise ModelError(
                f"adapter {name!r} has no {file} in {folder}; give the folder that peft's save_pretrained wrote"
            )
    return source


def _named_adapters(folder: str) -> list[str]:
    """Return the names of the adapters in folders below; [] if the folder is an adapter itself."""
    if os.path.isfile(os.path.join(folder, ADAPTER_CONFIG)):
        return []
    return sorted(entry.name for entry in os.scandir(folder) if os.path.isfile(os.path.join(entry, ADAPTER_CONFIG)))


def local_adapter(source: ModelSource) -> str:
    """Return the adapter's folder on this node; a hub adapter that is not there yet is downloaded at the same commit.

    Raises ModelError if an adapter that was given as a folder is not on this node.
    """
    files = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    return _on_node(source, "adapter") or _fetch(source.name, source.revision, files, "adapter")


def _on_node(source: ModelSource, kind: str) -> str | None:
    """Return the source's folder if it is on this node, or None if it must be downloaded from the hub.

    Raises ModelError if it is not on this node and was not resolved on the hub.
    """
    if os.path.isdir(source.folder):
        return source.folder
    if source.revision is None:
        raise ModelError(
            f"{kind} {source.name!r} is not on this node (no folder {source.folder}); "
            "put it on storage that every node mounts at the same path, or give a hub id"
        )
    return None


def weight_files(folder: str) -> list[str]:
    """Return the absolute paths of the files that `from_pretrained` reads weights from, or [] if there are none.

    Raises ModelError if the index of the files cannot be read.
    """
    for single, index in WEIGHT_INDEXES:
        if os.path.isfile(path := os.path.join(folder, single)):
            return [path]
        if os.path.isfile(path := os.path.join(folder, index)):
            try:
                with open(path, encoding="utf-8") as stream:
                    names = set(json.load(stream)["weight_map"].values())
            except (ValueError, KeyError) as error:
                raise ModelError(f"{path} is not an index of weight files; copy or download it again") from error
            return [os.path.join(folder, name) for name in sorted(names)]
    return []


def _fetch(name: str, revision: str | None, patterns: tuple[str, ...], kind: str = "model") -> str:
    """Return the folder of a hub repository, downloading its files that match `patterns` at the top level."""
    # `*` matches `/` too: without `nested`, original/ and onnx/ would be downloaded. Chat templates may be in a folder.
    nested = [f"*/{pattern}" for pattern in patterns if pattern != "*.jinja"]
    try:
        return huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=nested
        )
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{kind} {name!r} has no revision {revision!r} on the hub; leave model_revision out or correct it"
        ) from error
    except RepositoryNotFoundError as error:  # raised for gated repositories too
        raise ModelError(
            f"{kind} {name!r} is neither a folder here nor on the hub, or this account may not read it; "
            "correct the name, or log in with `hf auth login` if it is private or gated"
        ) from error
    except huggingface_hub.errors.HFValidationError as error:
        raise ModelError(
            f"{kind} {name!r} is neither a folder here nor a hub id (`owner/name`); correct the path or the id"
        ) from error
    except (HubClientError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{kind} {name!r} is not a folder here and cannot be downloaded from the hub: {reason}; "
            "check the name and the network, or give a folder"
        ) from error


def _check_folder(source: ModelSource) -> None:
    has_config = os.path.isfile(os.path.join(source.folder, "config.json"))
    files = weight_files(source.folder)
    if not files and os.path.isfile(os.path.join(source.folder, ADAPTER_CONFIG)):
        raise ModelError(
            f"model {source.name!r} is a LoRA adapter, not a complete model; give its base model as the model, and set "
            "model_adapter_name to the adapter to continue its training"
        )
    if not has_config or not files:
        missing_files = "no config.json" if not has_config else "no model.safetensors or pytorch_model.bin"
        raise ModelError(
            f"model {source.name!r} has {missing_files} in {source.folder}; "
            "give a folder with config.json and weights, as save_pretrained writes them"
        )
    if missing := [path for path in files if not os.path.isfile(path)]:
        raise ModelError(
            f"model {source.name!r} lacks {len(missing)} of {len(files)} weight files that its index names, "
            f"first {missing[0]}; copy or download it again"
        )
