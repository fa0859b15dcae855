"""Where a model lies: from a folder or hub id to a folder on this node, whole but not loaded.

Imports neither torch nor transformers: Ray Train's controller, which loads no model, has these records among what it
passes on, and training waits for it to start.
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
"""A model's single weight file and the index of its several ones, in the order that `from_pretrained` looks."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, or an adapter."""

    name: str
    """Folder or hub id as the user gave it."""
    folder: str
    """Absolute path on the node that resolved it; other nodes find theirs by `local_folder`."""
    revision: str | None
    """Commit of a model on the hub; None for a folder."""

    @property
    def display_name(self) -> str:
        """For people: the name, with the commit of a model on the hub."""
        return self.name if self.revision is None else f"{self.name} at {self.revision}"


def resolve_model(name: str, revision: str | None, *, trust_remote_code: bool = False) -> ModelSource:
    """Find a model on this machine, fetching it from the hub where `name` is not a folder.

    `revision` is a branch, tag or commit of a hub model; a folder has none, and it is not looked at. The model's
    Python files are fetched only with `trust_remote_code`. ModelError where there is no such model, where it cannot be
    reached, or where it has no weights of its own.
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


def local_folder(source: ModelSource, *, trust_remote_code: bool = False) -> str:
    """The model's folder on this node; a hub model is fetched, at the same commit, where it is not there yet.

    ModelError where a model given as a folder is not on this node.
    """
    found = _on_node(source, "model")
    return found or resolve_model(source.name, source.revision, trust_remote_code=trust_remote_code).folder


def resolve_adapter(name: str) -> ModelSource:
    """Find a LoRA adapter as `resolve_model` finds a model; ModelError where it is none, or cannot be reached."""
    folder = os.path.abspath(os.path.expanduser(name))
    source = ModelSource(name, folder, None)
    if not os.path.isdir(folder):
        folder = _fetch(name, None, (ADAPTER_CONFIG, ADAPTER_WEIGHTS), "adapter")
        source = ModelSource(name, folder, os.path.basename(folder))
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not os.path.isfile(os.path.join(folder, file)):
            raise ModelError(
                f"adapter {name!r} has no {file} in {folder}; give the folder that peft's save_pretrained wrote"
            )
    return source


def local_adapter(source: ModelSource) -> str:
    """The adapter's folder on this node, as `local_folder` finds a model's."""
    files = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    return _on_node(source, "adapter") or _fetch(source.name, source.revision, files, "adapter")


def _on_node(source: ModelSource, what: str) -> str | None:
    """The folder, where it is on this node; None where it can be fetched from the hub."""
    if os.path.isdir(source.folder):
        return source.folder
    if source.revision is None:
        raise ModelError(
            f"{what} {source.name!r} is not on this node (no folder {source.folder}); "
            "put it on storage that every node mounts at the same path, or give a hub id"
        )
    return None


def weight_files(folder: str) -> list[str]:
    """Absolute paths of the files that `from_pretrained` reads weights from; empty where there are none.

    ModelError where the files' index cannot be read.
    """
    for single, index in WEIGHT_INDEXES:
        if os.path.isfile(path := os.path.join(folder, single)):
            return [path]
        if os.path.isfile(path := os.path.join(folder, index)):
            try:
                with open(path, encoding="utf-8") as stream:
                    names = set(json.load(stream)["weight_map"].values())
            except (ValueError, KeyError) as error:
                raise ModelError(f"{path} is no index of weight files; copy or fetch it again") from error
            return [os.path.join(folder, name) for name in sorted(names)]
    return []


def _fetch(name: str, revision: str | None, patterns: tuple[str, ...], what: str = "model") -> str:
    # `*` matches `/` too: without the second list, original/ and onnx/ would come along. Templates may be in a folder.
    nested = [f"*/{pattern}" for pattern in patterns if pattern != "*.jinja"]
    try:
        return huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=nested
        )
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{what} {name!r} has no revision {revision!r} on the hub; leave model_revision out"
        ) from error
    except RepositoryNotFoundError as error:  # gated ones too
        raise ModelError(
            f"{what} {name!r} is neither a folder here nor on the hub, or this account may not read it; "
            "correct the name, or log in with `hf auth login` if it is private or gated"
        ) from error
    except huggingface_hub.errors.HFValidationError as error:
        raise ModelError(
            f"{what} {name!r} is neither a folder here nor a hub id (`owner/name`); correct the path or the id"
        ) from error
    except (HubClientError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{what} {name!r} is not a folder here and cannot be fetched from the hub: {reason}; "
            "check the name and the network, or give a folder"
        ) from error


def _check_folder(source: ModelSource) -> None:
    has_config = os.path.isfile(os.path.join(source.folder, "config.json"))
    files = weight_files(source.folder)
    if not files and os.path.isfile(os.path.join(source.folder, ADAPTER_CONFIG)):
        raise ModelError(
            f"model {source.name!r} is a LoRA adapter, not a whole model; name its base there, and the adapter with "
            "model_adapter_name to go on with its training"
        )
    if not has_config or not files:
        lacking = "no config.json" if not has_config else "no model.safetensors or pytorch_model.bin"
        raise ModelError(
            f"model {source.name!r} has {lacking} in {source.folder}; "
            "a model needs config.json and its weights, as save_pretrained writes them"
        )
    if missing := [path for path in files if not os.path.isfile(path)]:
        raise ModelError(
            f"model {source.name!r} lacks {len(missing)} of {len(files)} weight files that its index names, "
            f"first {missing[0]}; copy or fetch it again"
        )
