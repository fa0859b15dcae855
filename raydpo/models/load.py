"""From a folder or hub id to a model and tokenizer in memory, ready to be trained or to score."""

import json
import logging
import os
import pickle
import re
import warnings
from dataclasses import dataclass
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HTTPError as HubClientError  # type: ignore[attr-defined]
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError, StrictDataclassError
from huggingface_hub.utils.tqdm import disable_progress_bars
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from raydpo.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SIDE_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
SAFETENSORS_FILES = ("model.safetensors", "model-*-of-*.safetensors")
BIN_FILES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
WEIGHT_INDEXES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""A model's single weight file and the index of its several ones, in the order that `from_pretrained` looks."""

# What a broken file, a missing package or a config out of bounds raises somewhere below `from_pretrained`.
LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    KeyError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    name: str
    """Folder or hub id as the user gave it."""
    folder: str
    """Absolute path on the node that resolved it; other nodes find theirs by `local_folder`."""
    revision: str | None
    """Commit of a model on the hub; None for a folder."""


def quiet_libraries() -> None:
    """Keep transformers, peft and the hub client from printing progress bars and warnings; errors still appear."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity(logging.ERROR)
    disable_progress_bars()
    # They warn of names that the one of them still calls and the other will drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|huggingface_hub")


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
    if os.path.isdir(source.folder):
        return source.folder
    if source.revision is None:
        raise ModelError(
            f"model {source.name!r} is not on this node (no folder {source.folder}); "
            "put it on storage that every node mounts at the same path, or give a hub id"
        )
    return resolve_model(source.name, source.revision, trust_remote_code=trust_remote_code).folder


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


def _fetch(name: str, revision: str | None, patterns: tuple[str, ...]) -> str:
    # `*` matches `/` too: without the second list, original/ and onnx/ would come along. Templates may be in a folder.
    nested = [f"*/{pattern}" for pattern in patterns if pattern != "*.jinja"]
    try:
        return huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=nested
        )
    except RevisionNotFoundError as error:
        raise ModelError(f"model {name!r} has no revision {revision!r} on the hub; leave model_revision out") from error
    except RepositoryNotFoundError as error:  # gated ones too
        raise ModelError(
            f"model {name!r} is neither a folder here nor a model on the hub that this account may read; "
            "correct the name, or log in with `hf auth login` if it is private or gated"
        ) from error
    except huggingface_hub.errors.HFValidationError as error:
        raise ModelError(
            f"model {name!r} is neither a folder here nor a hub id (`owner/name`); correct the path or the id"
        ) from error
    except (HubClientError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {name!r} is not a folder here and cannot be fetched from the hub: {reason}; "
            "check the name and the network, or give a folder"
        ) from error


def _check_folder(source: ModelSource) -> None:
    has_config = os.path.isfile(os.path.join(source.folder, "config.json"))
    files = weight_files(source.folder)
    if not files and os.path.isfile(os.path.join(source.folder, "adapter_config.json")):
        raise ModelError(
            f"model {source.name!r} is a LoRA adapter, not a whole model; "
            "merge it into its base (peft's merge_and_unload, then save_pretrained) and give that folder"
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


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The model's tokenizer; ModelError where there is none or where it has no end-of-sequence token."""
    folder = local_folder(source, trust_remote_code=trust_remote_code)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except LOAD_ERRORS as error:
        raise _cannot_load("tokenizer", source, error, trust_remote_code) from error
    if len(tokenizer) == 0:  # what transformers makes of a folder without tokenizer files
        raise ModelError(
            f"the tokenizer of {source.name!r} is empty; put the files that tokenizer.save_pretrained writes "
            f"(tokenizer.json, tokenizer_config.json) into {folder}"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {source.name!r} has no eos_token, which ends each completion; "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def load_causal_lm(
    source: ModelSource, *, dtype: str, attn_implementation: str | None, trust_remote_code: bool
) -> PreTrainedModel:
    """Load a decoder language model, on the CPU (or partitioned, where ZeRO-3 has been set up), cache switched off.

    `dtype` is a key of `DTYPES`; `attn_implementation` None is the model's own choice. ModelError where the model is
    no decoder with an output embedding, is quantised, or where the files lack any of its weights.
    """
    folder = local_folder(source, trust_remote_code=trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        _check_config(source, config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # so that `_check_loaded` can name them
            output_loading_info=True,
        )
    except ModelError:
        raise
    except LOAD_ERRORS as error:
        raise _cannot_load("model", source, error, trust_remote_code) from error
    model, info = loaded
    _check_loaded(source, model, info)
    model.config.use_cache = False
    # ZeRO-3 loading keeps every renaming it knows of, also those that met no weight; saving reverts all that are kept.
    model._weight_conversions = [rule for rule in getattr(model, "_weight_conversions", None) or () if rule.was_used()]
    causal_lm: PreTrainedModel = model
    return causal_lm


def _check_config(source: ModelSource, config: Any) -> None:
    if config.is_encoder_decoder:
        raise ModelError(
            f"model {source.name!r} ({config.model_type}) is an encoder-decoder; only decoder models can be trained: "
            "choose one that AutoModelForCausalLM loads"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"model {source.name!r} is quantised, and quantised weights cannot be trained; "
            "choose the version in bfloat16 or float32"
        )


def _check_loaded(source: ModelSource, model: PreTrainedModel, info: dict[str, Any]) -> None:
    absent = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if absent or info["error_msgs"]:
        unexpected = sorted(info["unexpected_keys"])
        extra = f" (they hold {len(unexpected)} others, first {unexpected[0]})" if unexpected else ""
        reason = "; ".join(info["error_msgs"])
        raise ModelError(
            f"the files of {source.name!r} lack {len(absent)} weights of a {type(model).__name__}, which would be "
            f"random: {', '.join(absent[:5])}{reason}{extra}; give a model whose weights fit its config.json"
        )
    if model.get_output_embeddings() is None:
        raise ModelError(
            f"model {source.name!r} ({type(model).__name__}) has no output embedding (lm_head), so it gives no "
            "log-probs; choose a causal language model"
        )


def _cannot_load(what: str, source: ModelSource, error: Exception, trust_remote_code: bool) -> ModelError:
    reason = " ".join(str(error).split())[:500] or type(error).__name__
    remedy = "check that its files are whole and that the installed transformers knows this architecture"
    if not trust_remote_code and "trust_remote_code" in reason:
        reason, remedy = "it comes with Python code of its own", "read that code, then set trust_remote_code=true"
    elif isinstance(error, ImportError):
        remedy = "install the missing package, or choose another attn_implementation"
    return ModelError(f"the {what} of {source.name!r} cannot be loaded: {reason}; {remedy}")


# Random in training mode: dropout, layerdrop, drop_path, and the noise on a mixture's router.
RANDOM_RATE = re.compile(r"drop|jitter")


def disable_dropout(model: nn.Module) -> None:
    """Make the forward in training mode the same function as in evaluation mode.

    Sets to 0 all Dropout modules (an adapter's too, where it is there already) and every rate that modules or their
    configs keep as a float, which attention functions read. `export_model` writes the rates as they were on disk.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(getattr(holder, "__dict__", {}).items()):
                if isinstance(value, float) and RANDOM_RATE.search(name):
                    setattr(holder, name, 0.0)


def enable_gradient_checkpointing(model: PreTrainedModel | PeftModel) -> None:
    """Recompute activations in the backward; ModelError where the model cannot.

    The non-reentrant form also works where nothing before the first adapter needs a gradient.
    """
    try:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} does not support gradient checkpointing; set gradient_checkpointing=false"
        ) from error
