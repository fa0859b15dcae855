"""All options of a run together, and the rules between options of different sections."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from raydpo.config.data import DataConfig
from raydpo.config.fields import Section, default_of, hints_of, show
from raydpo.config.loss import LossConfig
from raydpo.config.optim import OptimConfig
from raydpo.config.reference import BASE, ReferenceConfig
from raydpo.config.sections import (
    DEFAULT_ZERO_STAGE,
    AdapterConfig,
    ClusterConfig,
    ModelConfig,
    RunConfig,
)
from raydpo.errors import ConfigError

GPU_TOKENS, CPU_TOKENS = 16384, 2048
"""Tokens per forward that keep a GPU or a CPU busy; more of them only need more memory."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """All options of a run, in one section per concern."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        self._check_lengths()
        self._check_precision()
        self._check_adapters()
        self._check_unscored()
        self._check_sync()
        if self.model.torch_compile and self.cluster.zero_stage == 3:
            raise ConfigError(
                "torch_compile=true does not work with zero_stage=3, which replaces the weights of compiled layers; "
                "set zero_stage=2, or leave torch_compile out"
            )
        if self.reference.reference_from_dataset and self.reference.reference_model:
            raise ConfigError(
                f"reference_model={self.reference.reference_model} would not be used with reference_from_dataset=true; "
                "leave one of them out"
            )
        if self.optim.eval_strategy == "steps" and self.optim.eval_steps is None:
            resolved = dataclasses.replace(self.optim, eval_steps=self.run.logging_steps)
            object.__setattr__(self, "optim", resolved)

    def _check_lengths(self) -> None:
        longest, prompt = self.data.max_length, self.data.max_prompt_length
        if self.model.is_encoder_decoder:
            return  # both are limits of sequences of their own
        if longest is not None and prompt is not None and prompt >= longest:
            raise ConfigError(
                f"max_prompt_length={prompt} must be below max_length={longest}, which includes the completion; "
                "lower it or raise max_length, or set is_encoder_decoder=true if the model is one"
            )

    def _check_precision(self) -> None:
        dtype, bf16, fp16 = self.model.dtype, self.optim.bf16, self.optim.fp16
        wanted = "bfloat16" if bf16 else "float16" if fp16 else None
        if dtype != "auto" and wanted is not None and dtype != wanted:
            flag = "bf16" if bf16 else "fp16"
            raise ConfigError(f"dtype={dtype} contradicts {flag}=true; leave one of them out")
        if dtype == "bfloat16" and bf16 is False:
            raise ConfigError("dtype=bfloat16 contradicts bf16=false; leave one of them out")

    def _check_adapters(self) -> None:
        adapter = self.adapter.model_adapter_name
        own = {
            field.name: show(value)
            for field in dataclasses.fields(self.adapter)
            if field.name.startswith(("lora_", "use_rslora", "use_dora"))
            and (value := getattr(self.adapter, field.name)) != default_of(field)
        }
        if adapter is not None and own:
            raise ConfigError(
                f"{min(own)}={own[min(own)]} is for a new adapter, and model_adapter_name={adapter} names one; leave "
                "one of them out"
            )
        if adapter == BASE:
            raise ConfigError("model_adapter_name=base names no adapter; leave it out, and set use_peft for a new one")

    def _check_unscored(self) -> None:
        """Raise ConfigError where an option applies to a scored reference, and none is scored."""
        if self.scores_reference:
            return
        if self.reference.reference_from_dataset:
            reason = "reference_from_dataset=true reads its log-probs from the data"
        elif self.loss.reference_free:
            reason = "reference_free=true has none"
        else:
            reason = f"loss_type={show(self.loss.loss_type)} has none"
        for name in ("ref_adapter_name", "reference_quantization", "sync_ref_model"):
            value = getattr(self.reference, name)
            if value:
                raise ConfigError(f"{name}={show(value)} needs a reference to score, and {reason}; leave it out")

    def _check_sync(self) -> None:
        reference = self.reference
        if not reference.sync_ref_model:
            return
        if reference.reference_schedule == "staged":
            raise ConfigError(
                "reference_schedule=staged scores all pairs before training, but with sync_ref_model=true their scores "
                "depend on training; leave one of them out"
            )
        if self.adapter.use_peft and reference.reference_model:
            raise ConfigError(
                f"reference_model={reference.reference_model} cannot be mixed with an adapter of another base, as "
                "sync_ref_model=true requires; leave reference_model out, or train without use_peft"
            )
        if not self.adapter.use_peft and reference.ref_adapter_name not in (None, BASE):
            raise ConfigError(
                f"ref_adapter_name={reference.ref_adapter_name} cannot be mixed with whole weights, as "
                "sync_ref_model=true requires; merge it into its base, and name the result as reference_model"
            )
        if self.adapter.use_dora or self.adapter.lora_modules_to_save:
            raise ConfigError(
                "sync_ref_model=true adds up LoRA products, and use_dora and lora_modules_to_save add other weights; "
                "leave them out, or train without use_peft"
            )

    def precision(self, gpu: bool) -> str:
        """Return the dtype that the policy computes in (float32, bfloat16 or float16), on GPUs or on CPUs."""
        if self.model.dtype != "auto":
            return self.model.dtype
        if self.optim.fp16:
            return "float16"
        bf16 = gpu if self.optim.bf16 is None else self.optim.bf16
        return "bfloat16" if bf16 else "float32"

    @property
    def scores_reference(self) -> bool:
        """Whether the objective needs a reference whose log-probs are scored, and do not come with the rows."""
        return self.loss.needs_reference and not self.reference.reference_from_dataset

    def reference_precision(self, gpu: bool) -> str:
        """Return the dtype that the reference computes in."""
        chosen = self.reference.reference_dtype
        return self.precision(gpu) if chosen == "auto" else chosen

    def gradient_checkpointing(self, gpu: bool) -> bool:
        """Return whether the backward recomputes activations."""
        chosen = self.optim.gradient_checkpointing
        return gpu if chosen is None else chosen

    def tokens_per_micro_batch(self, gpu: bool) -> int:
        """Return the token budget of a forward.

        The default is at most what padded rows of per_device_train_batch_size pairs would take, as that option may have
        been chosen for the memory of the device.
        """
        if self.optim.tokens_per_micro_batch is not None:
            return self.optim.tokens_per_micro_batch
        enough = GPU_TOKENS if gpu else CPU_TOKENS
        if self.data.max_length is None:
            return enough
        return min(enough, 2 * self.data.max_length * self.optim.per_device_train_batch_size)

    def zero_stage(self, num_workers: int, precision: str) -> int:
        """Return ZeRO's stage. The default is 0 for one float32 worker without offload, else DEFAULT_ZERO_STAGE."""
        cluster = self.cluster
        if cluster.zero_stage is not None:
            return cluster.zero_stage
        alone = num_workers == 1 and precision == "float32" and cluster.offload == "none"
        return 0 if alone else DEFAULT_ZERO_STAGE

    def global_batch(self, num_workers: int) -> int:
        """Return the number of pairs per update."""
        return self.optim.per_device_train_batch_size * self.optim.gradient_accumulation_steps * num_workers


SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "reference": ReferenceConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "adapter": AdapterConfig,
    "cluster": ClusterConfig,
    "run": RunConfig,
}
HINTS: dict[str, Any] = {name: hint for section in SECTIONS.values() for name, hint in hints_of(section).items()}
"""Type of each option, by flat name."""
