"""Loading a model and its tokenizer into memory, with checks that they can be trained or used for scoring."""

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
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from raydpo.errors import ModelError
from raydpo.models.attention.choice import IMPLEMENTATIONS
from raydpo.models.attention.kernels import register_attention
from raydpo.models.checkpoint_keys import (
    ATTRIBUTE,
    Renaming,
    add_note,
    check_layers,
    find_renaming,
    match_keys,
    names_in_files,
)
from raydpo.models.classes import auto_class, by_part
from raydpo.models.noise import keep_noise_off
from raydpo.models.seq2seq import check_seq2seq_config, is_encoder_decoder
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
"""Quantisation config by name, as a function of the compute dtype: LLM.int8 (Dettmers et al. 2022), and the NormalFloat
of QLoRA (Dettmers et al. 2023)."""

# Errors that `from_pretrained` raises for a broken file, a missing package or a config out of bounds.
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
    # These warnings are about names that one of the libraries still uses and another has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|huggingface_hub")


def load_tokenizer(
    source: ModelSource, *, trust_remote_code: bool, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, with `chat_template` (Jinja text; None: its own).

    Raises ModelError if the model has none or if it has no end-of-sequence token.
    """
    folder = local_folder(source, trust_remote_code=trust_remote_code)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except LOAD_ERRORS as error:
        raise _load_error("tokenizer", source, error, trust_remote_code) from error
    if len(tokenizer) == 0:  # transformers returns such a tokenizer for a folder without tokenizer files
        raise ModelError(
            f"the tokenizer of {source.name!r} is empty; put the files that tokenizer.save_pretrained writes "
            f"(tokenizer.json, tokenizer_config.json) into {folder}"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {source.name!r} has no eos_token, which ends each completion; "
            "set eos_token in its tokenizer_config.json"
        )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def load_config(source: ModelSource, *, trust_remote_code: bool) -> Any:
    """Load the model's config.

    Raises ModelError if it belongs to a quantised model, or to an encoder-decoder that cannot be trained.
    """
    folder = local_folder(source, trust_remote_code=trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except LOAD_ERRORS as error:
        raise _load_error("model", source, error, trust_remote_code) from error
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
    """Load a decoder, an encoder-decoder, or a vision-language model with all its parts; its cache is switched off.

    `dtype` is a key of `DTYPES`. `attn_implementation` is a name that transformers knows, or what `attention.choose`
    returned; None leaves the choice to the model. `device_map` has the meaning it has in transformers; None loads onto
    the CPU, or partitions the weights if ZeRO-3 is set up. `quantization`, a key of `QUANTIZATIONS`, quantises the
    layers as they are loaded, which makes the model unfit for training. Raises ModelError if the model has no output
    embedding, is quantised on disk, does not fit into memory, or if its files lack any of its weights.
    """
    folder = local_folder(source, trust_remote_code=trust_remote_code)
    config = load_config(source, trust_remote_code=trust_remote_code)
    register_attention()

    def load(renaming: Renaming | None) -> Any:
        try:
            return auto_class(config).from_pretrained(
                folder,
                config=config,
                dtype=DTYPES[dtype],
                attn_implementation=by_part(config, attn_implementation),
                trust_remote_code=trust_remote_code,
                device_map=device_map,
                quantization_config=None if quantization is None else QUANTIZATIONS[quantization](DTYPES[dtype]),
                ignore_mismatched_sizes=True,  # `_check_loaded` reports them by name
                output_loading_info=True,
                **({} if renaming is None else {"key_mapping": renaming.key_mapping}),
            )
        except LOAD_ERRORS as error:
            raise _load_error("model", source, error, trust_remote_code) from error

    model = _load_all_weights(source, folder, load)
    if device_map == "auto" and {"cpu", "meta"} & {parameter.device.type for parameter in model.parameters()}:
        raise ModelError(
            f"model {source.name!r} does not fit on the GPUs of one scoring worker; raise reference_gpus_per_worker, "
            "or set reference_quantization"
        )
    model.config.use_cache = False
    _freeze_what_is_not_saved(model)
    if getattr(model.config, "rescale_every", 0):
        # RWKV divides weights in place while it is evaluated, for float16, and they would be exported like that.
        model.config.rescale_every = 0
    # Loading under ZeRO-3 keeps every renaming rule, also unused ones, and saving reverts all rules that are kept. A
    # renaming of ours is not reverted: the export has the names that transformers loads without it.
    renaming = getattr(model, ATTRIBUTE).renaming
    rules = getattr(model, "_weight_conversions", None) or ()
    model._weight_conversions = [rule for rule in rules[bool(renaming) :] if rule.was_used()]
    causal_lm: PreTrainedModel = model
    return causal_lm


def _check_config(source: ModelSource, config: Any) -> None:
    if is_encoder_decoder(config):
        check_seq2seq_config(source.name, config)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"model {source.name!r} is quantised, and quantised weights cannot be trained; "
            "choose its version in bfloat16 or float32"
        )


def _load_all_weights(source: ModelSource, folder: str, load: Callable[[Renaming | None], Any]) -> Any:
    """Return the model with all of its weights, under a renaming where files and model only meet with one.

    The model gets its `CheckpointKeys` as an attribute. `load(renaming)` returns the model and transformers' report.
    """
    model, info = load(None)
    names = names_in_files(folder)
    keys = match_keys(model, names)
    missing = set(info["missing_keys"]) - set(model.all_tied_weights_keys)
    if missing and (renaming := find_renaming(missing, keys.unloaded.values(), keys.taken.values())):
        model = None  # before the other takes as much memory
        model, info = load(renaming)
        keys = match_keys(model, names, renaming)
    _check_loaded(source, model, info, sorted(keys.unloaded))
    check_layers(source, model, keys)
    setattr(model, ATTRIBUTE, keys)
    if keys.renaming:
        add_note(model, f"weights of {source.name} are renamed to those of {type(model).__name__}: {keys.renaming}")
    return model


def _check_loaded(source: ModelSource, model: PreTrainedModel, info: dict[str, Any], unexpected: list[str]) -> None:
    absent = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if absent or info["error_msgs"]:
        extra = f" (and have {len(unexpected)} unexpected ones, first {unexpected[0]})" if unexpected else ""
        reason = "; ".join(info["error_msgs"])
        remedy = "give a model whose weights fit its config.json"
        if any(".base_layer." in name or "lora_" in name for name in unexpected):
            remedy = "merge the adapter in these files into its model (peft's merge_and_unload) and give the result"
        raise ModelError(
            f"the files of {source.name!r} lack {len(absent)} weights of {type(model).__name__}, which would be "
            f"random: {', '.join(absent[:5])}{reason}{extra}; {remedy}"
        )
    if model.get_output_embeddings() is None:
        raise ModelError(
            f"model {source.name!r} ({type(model).__name__}) has no output embedding (lm_head), which log-probs "
            "need; choose a causal language model"
        )


def _freeze_what_is_not_saved(model: PreTrainedModel) -> None:
    """Freeze the weights that a model computes and never saves, such as Marian's positions.

    Loading makes all weights trainable, and an export would have these as they were before training.
    """
    ignored = set(model._keys_to_ignore_on_save or ())
    named = list(model.named_parameters(remove_duplicate=False))
    saved = {id(parameter) for name, parameter in named if name not in ignored}
    for _, parameter in named:
        if id(parameter) not in saved:
            parameter.requires_grad_(False)


def _load_error(kind: str, source: ModelSource, error: Exception, trust_remote_code: bool) -> ModelError:
    """Return the error to raise for a failed `from_pretrained`, with the remedy that fits its cause."""
    reason = " ".join(str(error).split())[:500] or type(error).__name__
    remedy = "check that its files are complete and that the installed transformers supports this architecture"
    if not trust_remote_code and "trust_remote_code" in reason:
        reason, remedy = "it comes with its own Python code", "review that code, then set trust_remote_code=true"
    elif any(name in reason for name in IMPLEMENTATIONS.values()):
        reason, remedy = "its code takes no attention function from outside", "set share_prompts=false"
    elif isinstance(error, ImportError):
        remedy = "install the missing package, or choose another attn_implementation"
    return ModelError(f"the {kind} of {source.name!r} cannot be loaded: {reason}; {remedy}")


# Names of rates that make training mode random: dropout, layerdrop, drop_path. Noise on a mixture's router is no rate
# to set to 0: a router may use the same number in evaluation mode.
RANDOM_RATE = re.compile(r"drop")


def disable_dropout(model: nn.Module) -> None:
    """Make the forward in training mode the same function as in evaluation mode.

    Sets to 0 all Dropout modules (including those of an adapter that was added before) and every rate that modules or
    their configs keep as a float, which attention functions read. `export_model` writes the rates as they were on disk.
    Modules that draw noise otherwise, as routers do, stay in evaluation mode.
    """
    keep_noise_off(model)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(getattr(holder, "__dict__", {}).items()):
                if isinstance(value, float) and RANDOM_RATE.search(name):
                    setattr(holder, name, 0.0)


def enable_gradient_checkpointing(model: "PreTrainedModel | PeftModel") -> None:
    """Recompute activations in the backward pass instead of storing them.

    The non-reentrant form is used, as it also works if nothing before the first adapter needs a gradient. Raises
    ModelError if the model does not support gradient checkpointing.
    """
    try:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} does not support gradient checkpointing; set gradient_checkpointing=false"
        ) from error
