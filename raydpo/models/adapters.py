"""Adding new LoRA adapters to a model and loading saved ones, with peft; checks which modules may be adapted."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from raydpo.config import AdapterConfig
from raydpo.errors import ModelError
from raydpo.models.adapter_keys import ADAPTER, load_adapter_weights
from raydpo.models.checkpoint_keys import add_note
from raydpo.models.loading import LOAD_ERRORS
from raydpo.models.lora_targets import (
    default_lora_targets,
    head_parameters,
    is_linear,
    is_router,
    matching,
    usable_lora_targets,
)
from raydpo.models.seq2seq import is_encoder_decoder
from raydpo.models.source import ModelSource, local_adapter

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel

_log = logging.getLogger(__name__)


def add_lora(model: PreTrainedModel, adapter: AdapterConfig, frozen: Sequence[str] | None = None) -> "PeftModel":
    """Freeze the model and add a LoRA adapter whose initial output is 0, so that policy equals base model at the start.

    The default targets are the linear layers of the language model. Names of target modules mean none within the
    modules `frozen`, given by their full names, as a vision tower often has layers of the same names as the language
    model; None: within none outside the language model. The adapter has the model's dtype; DeepSpeed holds the float32
    copy that updates are applied to. Raises ModelError if a named module does not exist, cannot be adapted, or is the
    output embedding or tied to it: log-probs are computed directly from the weight of the output embedding.
    """
    # Imported here: peft takes 0.3 s at the start of each worker, and most runs have no adapter.
    from peft import LoraConfig, TaskType, get_peft_model

    _check_names(model, "lora_target_modules", adapter.lora_target_modules)
    _check_names(model, "lora_modules_to_save", adapter.lora_modules_to_save)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM if is_encoder_decoder(model.config) else TaskType.CAUSAL_LM,
        r=adapter.lora_r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=_named_targets(model, adapter.lora_target_modules, frozen) or "all-linear",
        modules_to_save=list(adapter.lora_modules_to_save) or None,
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
    )
    if not adapter.lora_target_modules:
        _set_default_targets(config, model)
    linear = _linear_modules(model)  # before the call, as a failure leaves the model half adapted
    try:
        adapted: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        targets = ",".join(adapter.lora_target_modules) or "all linear layers"
        # The experts of a mixture are one tensor instead of layers, and peft supports no dropout for such adapters.
        remedy = "set lora_dropout=0, or name lora_target_modules" if "lora_dropout" in str(error) else linear
        reason = " ".join(str(error).split())
        raise ModelError(
            f"a LoRA adapter cannot be added to {targets} of {type(model).__name__}: {reason}; {remedy}"
        ) from error
    return adapted


def load_adapter(model: PreTrainedModel, source: ModelSource, *, trainable: bool) -> "PeftModel":
    """Return the model with a saved LoRA adapter, in the model's dtype and with its base weights frozen.

    Raises ModelError if the adapter is no LoRA adapter, belongs to another model, or changes the output embedding.
    """
    from peft import PeftConfig, PeftModel  # imported here for the reason given in `add_lora`
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    folder = local_adapter(source)
    try:
        config = PeftConfig.from_pretrained(folder)
        _check_type(source, config)
        config.inference_mode = not trainable
        architecture = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.task_type), PeftModel)
        adapted: PeftModel = architecture(model, config, ADAPTER, autocast_adapter_dtype=False)
        note = load_adapter_weights(adapted, source, folder)
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:500]
        raise ModelError(
            f"adapter {source.name!r} cannot be loaded onto {type(model).__name__}: {reason}; "
            "give an adapter of this model"
        ) from error
    base: Any = adapted.get_base_model()
    if type(base.get_output_embeddings()) is not nn.Linear:
        raise ModelError(
            f"adapter {source.name!r} changes the output embedding, whose weight log-probs are computed from directly; "
            "merge it into its base model (peft's merge_and_unload) and give the merged model"
        )
    if note:
        add_note(base, note)
    return adapted if trainable else adapted.eval()


def _check_type(source: ModelSource, config: "PeftConfig") -> None:
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        raise ModelError(
            f"adapter {source.name!r} is of type {config.peft_type}, and only LoRA adapters are supported; give one"
        )


def _set_default_targets(config: "LoraConfig", model: PreTrainedModel) -> None:
    """Make an adapter that is for all linear layers one for those of `default_lora_targets` and for experts.

    PEFT knows in which models the experts' linear layers are stacked into one tensor, and targets that instead, with
    the ranks that the layers would have had together. What it says of routers is dropped.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    from transformers.conversion_mapping import get_model_conversion_mapping

    targets = default_lora_targets(model)
    convert_peft_config_for_transformers(config, model=model, conversions=get_model_conversion_mapping(model))
    if not isinstance(config.target_modules, str):  # converted, to the last parts of the layers' names
        kept = set(config.target_modules or ())
        targets = [path for path in targets if path.rpartition(".")[2] in kept]
        # A router's parameter is named together with its module, as gate.weight, and a tensor of experts by itself.
        routers = {path.rpartition(".")[2] for path, _ in model.named_modules() if path and is_router(model, path)}
        config.target_parameters = sorted(
            name for name in config.target_parameters or () if name.partition(".")[0] not in routers
        )
    config.target_modules = targets


def _named_targets(model: PreTrainedModel, names: tuple[str, ...], frozen: Sequence[str] | None) -> list[str]:
    """Return the names if an adapter works on all modules that they match, and else the paths of those where it does.

    Without names, return none. Raises ModelError where a name matches no module on which an adapter works.
    """
    if not names:
        return []
    usable = usable_lora_targets(model, frozen)
    left_out: dict[str, str] = {}
    for name in names:
        reasons = {path: usable.reason(path) for path in matching(model, name)}
        faults = {path: reason for path, reason in reasons.items() if reason}
        if len(faults) == len(reasons):
            path, reason = next(iter(faults.items()))
            raise ModelError(f"lora_target_modules={name} is {path}, {reason}; {_linear_modules(model)}")
        left_out |= faults
    if not left_out:
        return list(names)
    path, reason = next(iter(left_out.items()))
    _log.warning("%d modules get no adapter, first %s, %s.", len(left_out), path, reason)
    return [path for name in names for path in matching(model, name) if path not in left_out]


def _check_names(model: PreTrainedModel, flag: str, names: tuple[str, ...]) -> None:
    head = head_parameters(model)
    modules = dict(model.named_modules())
    for name in names:
        matched = [modules[path] for path in matching(model, name)]
        if not matched:
            raise ModelError(f"{flag}={name} matches no module of {type(model).__name__}; {_linear_modules(model)}")
        if any(id(parameter) in head for module in matched for parameter in module.parameters()):
            raise ModelError(
                f"{flag}={name} is the output embedding or shares its weight, which must stay a plain linear layer; "
                f"leave it out: {_linear_modules(model)}"
            )


def _linear_modules(model: PreTrainedModel) -> str:
    """Return the clause that lists the modules that may be named, for error messages."""
    usable, head = usable_lora_targets(model), head_parameters(model)
    names: set[str] = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if is_linear(module) and id(module.weight) not in head and usable.reason(path) is None
    }
    return "its linear modules are " + ", ".join(sorted(names))
