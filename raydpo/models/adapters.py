"""LoRA adapters, by peft: new ones and those that are there, which modules get one, and which must not."""

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from raydpo.config import AdapterConfig
from raydpo.errors import ModelError
from raydpo.models.loading import LOAD_ERRORS
from raydpo.models.source import ModelSource, local_adapter

if TYPE_CHECKING:
    from peft import PeftModel


def add_lora(model: PreTrainedModel, adapter: AdapterConfig) -> "PeftModel":
    """Freeze the model and add a LoRA adapter whose initial output is nought, so that policy equals base model.

    The adapter has the model's dtype; the float32 copy that updates go to is DeepSpeed's.
    ModelError where a named module does not exist, cannot have an adapter, or is the output embedding or tied to it,
    since log-probs are computed from that weight directly.
    """
    # Not above: it is a third of a second at the start of each worker, and most runs have no adapter.
    from peft import LoraConfig, TaskType, get_peft_model

    _check_names(model, "lora_target_modules", adapter.lora_target_modules)
    _check_names(model, "lora_modules_to_save", adapter.lora_modules_to_save)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=adapter.lora_r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=list(adapter.lora_target_modules) or "all-linear",
        modules_to_save=list(adapter.lora_modules_to_save) or None,
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
    )
    linear = _linear_modules(model)  # now, as a failure leaves the model half adapted
    try:
        adapted: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        targets = ",".join(adapter.lora_target_modules) or "all linear layers"
        # Adapters of a mixture's experts, which are one tensor and not layers, take no dropout.
        remedy = "set lora_dropout=0, or name lora_target_modules" if "lora_dropout" in str(error) else linear
        reason = " ".join(str(error).split())
        raise ModelError(f"no adapter fits {targets} of {type(model).__name__}: {reason}; {remedy}") from error
    return adapted


def load_adapter(model: PreTrainedModel, source: ModelSource, *, trainable: bool) -> "PeftModel":
    """The model with an adapter that is there already, in the model's dtype; its base is frozen.

    ModelError where the adapter is no LoRA, is of another model, or changes the output embedding.
    """
    from peft import LoraConfig, PeftConfig, PeftModel  # here for the reason given in `add_lora`

    folder = local_adapter(source)
    try:
        config = PeftConfig.from_pretrained(folder)
        adapted: PeftModel = PeftModel.from_pretrained(
            model, folder, config=config, is_trainable=trainable, autocast_adapter_dtype=False
        )
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:500]
        raise ModelError(
            f"adapter {source.name!r} does not go onto {type(model).__name__}: {reason}; give an adapter of this model"
        ) from error
    if not isinstance(config, LoraConfig):
        raise ModelError(f"adapter {source.name!r} is a {config.peft_type}; only LoRA adapters are supported")
    base: Any = adapted.get_base_model()
    if type(base.get_output_embeddings()) is not nn.Linear:
        raise ModelError(
            f"adapter {source.name!r} changes the output embedding, from whose weight log-probs are computed directly; "
            "merge it into its base (peft's merge_and_unload), and give that model"
        )
    return adapted


def _check_names(model: PreTrainedModel, flag: str, names: tuple[str, ...]) -> None:
    head = _head_parameters(model)
    for name in names:
        matched = [module for path, module in model.named_modules() if path == name or path.endswith(f".{name}")]
        if not matched:
            raise ModelError(f"{flag}={name} names no module of {type(model).__name__}; {_linear_modules(model)}")
        if any(id(parameter) in head for module in matched for parameter in module.parameters()):
            raise ModelError(
                f"{flag}={name} is the output embedding or shares its weight, which must stay a plain linear layer; "
                f"leave it out: {_linear_modules(model)}"
            )


def _linear_modules(model: PreTrainedModel) -> str:
    """The remedy of every message here: which names may be given."""
    head = _head_parameters(model)
    names: set[str] = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in head
    }
    return "its linear modules are " + ", ".join(sorted(names))


def _head_parameters(model: PreTrainedModel) -> set[int]:
    head: Any = model.get_output_embeddings()
    return {id(parameter) for parameter in head.parameters()}
