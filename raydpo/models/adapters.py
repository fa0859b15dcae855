"""Adding new LoRA adapters to a model and loading saved ones, with peft; checks which modules may be adapted."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from raydpo.config import AdapterConfig
from raydpo.errors import ModelError
from raydpo.models.loading import LOAD_ERRORS
from raydpo.models.source import ModelSource, local_adapter
from raydpo.models.vision import frozen_modules

if TYPE_CHECKING:
    from peft import PeftModel


def add_lora(model: PreTrainedModel, adapter: AdapterConfig, frozen: Sequence[str] = ()) -> "PeftModel":
    """Freeze the model and add a LoRA adapter whose initial output is 0, so that policy equals base model at the start.

    The default targets are the linear layers of the language model. Names of target modules mean none within the
    modules `frozen`, given by their full names: a vision tower often has layers of the same names as the language
    model. The adapter has the model's dtype; DeepSpeed holds the float32 copy that updates are applied to. Raises
    ModelError if a named module does not exist, cannot be adapted, or is the output embedding or tied to it: log-probs
    are computed directly from the weight of the output embedding.
    """
    # Imported here: peft takes 0.3 s at the start of each worker, and most runs have no adapter.
    from peft import LoraConfig, TaskType, get_peft_model

    frozen = frozen if adapter.lora_target_modules else frozen_modules(model, tower=True, projector=True)
    _check_names(model, "lora_target_modules", adapter.lora_target_modules)
    _check_reach(model, adapter.lora_target_modules, frozen)
    _check_names(model, "lora_modules_to_save", adapter.lora_modules_to_save)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=adapter.lora_r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=list(adapter.lora_target_modules) or "all-linear",
        exclude_modules=_within(frozen),
        modules_to_save=list(adapter.lora_modules_to_save) or None,
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
    )
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
    from peft import LoraConfig, PeftConfig, PeftModel  # imported here for the reason given in `add_lora`

    folder = local_adapter(source)
    try:
        config = PeftConfig.from_pretrained(folder)
        adapted: PeftModel = PeftModel.from_pretrained(
            model, folder, config=config, is_trainable=trainable, autocast_adapter_dtype=False
        )
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:500]
        raise ModelError(
            f"adapter {source.name!r} cannot be loaded onto {type(model).__name__}: {reason}; "
            "give an adapter of this model"
        ) from error
    if not isinstance(config, LoraConfig):
        raise ModelError(
            f"adapter {source.name!r} is of type {config.peft_type}, and only LoRA adapters are supported; give one"
        )
    base: Any = adapted.get_base_model()
    if type(base.get_output_embeddings()) is not nn.Linear:
        raise ModelError(
            f"adapter {source.name!r} changes the output embedding, whose weight log-probs are computed from directly; "
            "merge it into its base model (peft's merge_and_unload) and give the merged model"
        )
    return adapted


def _check_names(model: PreTrainedModel, flag: str, names: tuple[str, ...]) -> None:
    head = _head_parameters(model)
    for name in names:
        matched = [module for path, module in model.named_modules() if path == name or path.endswith(f".{name}")]
        if not matched:
            raise ModelError(f"{flag}={name} matches no module of {type(model).__name__}; {_linear_modules(model)}")
        if any(id(parameter) in head for module in matched for parameter in module.parameters()):
            raise ModelError(
                f"{flag}={name} is the output embedding or shares its weight, which must stay a plain linear layer; "
                f"leave it out: {_linear_modules(model)}"
            )


def _within(modules: Sequence[str]) -> str | None:
    """Return a regular expression of the names of these modules and of all modules within them; None for no modules."""
    return rf"(?:{'|'.join(map(re.escape, modules))})(?:\..*)?" if modules else None


def _check_reach(model: PreTrainedModel, targets: Sequence[str], frozen: Sequence[str]) -> None:
    """Raise ModelError if a target names modules within frozen ones only."""
    pattern = re.compile(_within(frozen) or "(?!)")
    for name in targets:
        matched = [path for path, _ in model.named_modules() if path == name or path.endswith(f".{name}")]
        if all(map(pattern.fullmatch, matched)):
            raise ModelError(
                f"lora_target_modules={name} matches modules of the vision tower or projector only, first "
                f"{matched[0]}, which are frozen; leave it out, or set freeze_vision_tower=false or "
                "freeze_multi_modal_projector=false"
            )


def _linear_modules(model: PreTrainedModel) -> str:
    """Return the clause that lists the modules that may be named, for error messages."""
    head = _head_parameters(model)
    names: set[str] = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in head
    }
    return "its linear modules are " + ", ".join(sorted(names))


def _head_parameters(model: PreTrainedModel) -> set[int]:
    """Return the `id` of each parameter of the output embedding."""
    head: Any = model.get_output_embeddings()
    return {id(parameter) for parameter in head.parameters()}
