"""A model and its tokenizer into memory, ready to be trained or to score."""

import logging
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils.tqdm import disable_progress_bars
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from raydpo.errors import ModelError
from raydpo.models.attention.kernels import register_attention
from raydpo.models.source import ModelSource, local_folder

if TYPE_CHECKING:
    from peft import PeftModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

QUANTIZATIONS: dict[str, Callable[[torch.dtype], BitsAndBytesConfig]] = {
    "8bit": lambda dtype: BitsAndBytesConfig(load_in_8bit=True),
    "4bit": lambda dtype: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    ),
}
"""By name, from the type to compute in: LLM.int8 (Dettmers et al. 2022), and QLoRA's NormalFloat (2023)."""

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


def quiet_libraries() -> None:
    """Keep transformers, peft and the hub client from printing progress bars and warnings; errors still appear."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity(logging.ERROR)
    disable_progress_bars()
    # They warn of names that the one of them still calls and the other will drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|huggingface_hub")


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


def load_config(source: ModelSource, *, trust_remote_code: bool) -> Any:
    """The model's config; ModelError where it is of no decoder, or of a quantised one."""
    folder = local_folder(source, trust_remote_code=trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except LOAD_ERRORS as error:
        raise _cannot_load("model", source, error, trust_remote_code) from error
    _check_config(source, config)
    return config


def load_causal_lm(
    source: ModelSource,
    *,
    dtype: str,
    attn_implementation: str | None,
    trust_remote_code: bool,
    quantization: str | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
) -> PreTrainedModel:
    """Load a decoder language model, cache switched off.

    `dtype` is a key of `DTYPES`; `attn_implementation` is a name of transformers, or what `attention.choose` gives;
    None is the model's own choice. It lies where `device_map` says, as transformers has that; None: on the CPU, or
    partitioned where ZeRO-3 has been set up. `quantization` (a key of `QUANTIZATIONS`) makes its layers small as they
    are loaded, and unfit for training. ModelError where the model is no decoder with an output embedding, is quantised
    on disk, does not fit, or where the files lack any of its weights.
    """
    folder = local_folder(source, trust_remote_code=trust_remote_code)
    config = load_config(source, trust_remote_code=trust_remote_code)
    register_attention()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            device_map=device_map,
            quantization_config=None if quantization is None else QUANTIZATIONS[quantization](DTYPES[dtype]),
            ignore_mismatched_sizes=True,  # so that `_check_loaded` can name them
            output_loading_info=True,
        )
    except LOAD_ERRORS as error:
        raise _cannot_load("model", source, error, trust_remote_code) from error
    model, info = loaded
    _check_loaded(source, model, info)
    if device_map == "auto" and {"cpu", "meta"} & {parameter.device.type for parameter in model.parameters()}:
        raise ModelError(
            f"model {source.name!r} does not fit on the GPUs of one scorer; raise reference_gpus_per_worker, or set "
            "reference_quantization"
        )
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


def enable_gradient_checkpointing(model: "PreTrainedModel | PeftModel") -> None:
    """Recompute activations in the backward; ModelError where the model cannot.

    The non-reentrant form also works where nothing before the first adapter needs a gradient.
    """
    try:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} does not support gradient checkpointing; set gradient_checkpointing=false"
        ) from error
