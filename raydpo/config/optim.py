"""The options of the optimisation: batches, learning rate, AdamW, precision and evaluation."""

import math
from dataclasses import dataclass
from typing import Any

from raydpo.config.fields import UPDATES, Rule, Section, above, at_least, one_of, option, show, whole, within
from raydpo.config.lr_schedule import FOLLOW_A_METRIC, check_values
from raydpo.errors import ConfigError

SCHEDULERS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles", "warmup_lr_rate"),
    "polynomial": ("lr_end", "power"),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
}
"""The learning-rate schedules of transformers that follow no metric, and their arguments in lr_scheduler_kwargs."""
RAMPS = ("linear", "cosine", "1-sqrt")  # values of warmup_type and decay_type
POLYNOMIAL_END = 1e-7  # default of lr_end, the final learning rate of transformers' polynomial schedule


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section):
    """The optimisation: batches, learning rate, AdamW, precision and evaluation."""

    per_device_train_batch_size: int = option(
        8,
        "Pairs per train worker and accumulation step. The global batch is per_device_train_batch_size x "
        "gradient_accumulation_steps x num_workers pairs; tokens_per_micro_batch divides it into micro-batches.",
        at_least(1),
        "pairs",
    )
    per_device_eval_batch_size: int = option(
        8,
        "Pairs per train worker that are fetched together for evaluation; results do not depend on it.",
        at_least(1),
        "pairs",
    )
    gradient_accumulation_steps: int = option(
        1, "Factor of the global batch; see per_device_train_batch_size.", at_least(1)
    )
    tokens_per_micro_batch: int | None = option(
        None,
        "Largest number of tokens per micro-batch (one forward), with each prompt counted once; only a pair that is "
        "longer on its own exceeds it. Unset: 16384 on GPUs and 2048 on CPUs, but at most 2 x max_length x "
        "per_device_train_batch_size.",
        at_least(1),
        "tokens",
    )
    num_train_epochs: float = option(3.0, "Number of passes over the pairs.", above(0), "epochs")
    max_steps: int = option(
        -1,
        "Number of updates to stop after, which overrides num_train_epochs; -1: num_train_epochs decides.",
        Rule("-1 or at least 1", lambda value: value == -1 or value >= 1),
        "updates",
    )
    learning_rate: float = option(1e-6, "Peak learning rate.", at_least(0))
    lr_scheduler_type: str = option("linear", "Learning-rate schedule after the warm-up.", one_of(*SCHEDULERS))
    lr_scheduler_kwargs: dict[str, Any] = option(
        {}, "Arguments of the schedule in addition to the warm-up, such as num_cycles=2 or min_lr_rate=0.1."
    )
    warmup_steps: float = option(
        0,
        "Number of warm-up updates, in which the learning rate rises from 0; a fraction below 1 is a share of all "
        "updates.",
        Rule("a whole number, or a fraction below 1", lambda value: value >= 0 and (value < 1 or value % 1 == 0)),
        "updates",
    )
    warmup_ratio: float = option(
        0.0, "Warm-up as a share of all updates; set either this or warmup_steps.", within(0, 1)
    )
    weight_decay: float = option(0.0, "AdamW's weight decay; not applied to biases and norms.", at_least(0))
    adam_beta1: float = option(0.9, "AdamW's beta1: decay rate of the running mean of the gradient.", within(0, 1))
    adam_beta2: float = option(
        0.999, "AdamW's beta2: decay rate of the running mean of the squared gradient.", within(0, 1)
    )
    adam_epsilon: float = option(1e-8, "AdamW's epsilon.", above(0))
    max_grad_norm: float = option(
        1.0, "Largest gradient norm; larger gradients are clipped to it. 0: no clipping.", at_least(0)
    )
    seed: int = option(42, "Seed of the order of the pairs and of all other random numbers.", at_least(0))
    data_seed: int | None = option(None, "Seed of the order of the pairs. Unset: seed.", at_least(0))
    bf16: bool | None = option(
        None, "Compute in bfloat16. Unset: true on GPUs, false on CPUs. TRL: true unless fp16 is set."
    )
    fp16: bool = option(False, "Compute in float16, with loss scaling.")
    gradient_checkpointing: bool | None = option(
        None,
        "Recompute activations in the backward pass, which takes less memory and more time. Unset: true on GPUs, false "
        "on CPUs. TRL: true.",
    )
    eval_strategy: str = option(
        "no", "When to evaluate on the held-out pairs during training.", one_of("no", "steps", "epoch")
    )
    eval_steps: float | None = option(
        None, "Updates between two evaluations, with eval_strategy=steps. Unset: logging_steps.", UPDATES, "updates"
    )

    def __post_init__(self) -> None:
        if self.lr_scheduler_type in FOLLOW_A_METRIC:
            raise ConfigError(
                f"lr_scheduler_type={self.lr_scheduler_type} follows a metric, and here the learning rate depends on "
                f"the update alone; set one of {', '.join(SCHEDULERS)}"
            )
        super().__post_init__()
        if self.eval_steps is not None:
            object.__setattr__(self, "eval_steps", whole(self.eval_steps))
        if self.bf16 and self.fp16:
            raise ConfigError("bf16=true and fp16=true exclude each other; set one of them")
        if self.warmup_steps and self.warmup_ratio:
            raise ConfigError(
                f"warmup_steps={self.warmup_steps:g} and warmup_ratio={self.warmup_ratio:g} set the same thing twice; "
                "set one of them"
            )
        self._check_schedule()

    def _check_schedule(self) -> None:
        name, given = self.lr_scheduler_type, self.lr_scheduler_kwargs
        taken = SCHEDULERS[name]
        shown = f"lr_scheduler_kwargs={show(given)}"
        if foreign := sorted(given.keys() - set(taken)):
            raise ConfigError(
                f"{shown} contains {foreign[0]}, which lr_scheduler_type {name} does not take; "
                + (f"it takes {', '.join(taken)}" if taken else "leave it out")
            )
        for key, value in given.items():
            worded = key in ("warmup_type", "decay_type")
            if value not in RAMPS if worded else isinstance(value, bool) or not isinstance(value, int | float):
                rule = f"one of {', '.join(RAMPS)}" if worded else "a number"
                raise ConfigError(f"{shown}: {key} must be {rule}, not {value}; change it, or leave it out")
        if "min_lr_rate" in taken and ("min_lr" in given) == ("min_lr_rate" in given):
            raise ConfigError(
                f"{shown} must contain the final learning rate of lr_scheduler_type {name}, as min_lr or as "
                "min_lr_rate (a share of learning_rate); set one of them"
            )
        if "num_decay_steps" in taken and "num_decay_steps" not in given:
            raise ConfigError(
                f"{shown} must contain num_decay_steps, the number of decay updates, for lr_scheduler_type {name}; "
                "set it"
            )
        end = given.get("lr_end", POLYNOMIAL_END)
        if name == "polynomial" and self.learning_rate <= end:
            raise ConfigError(
                f"learning_rate={self.learning_rate:g} must be above {end:g}, where the polynomial schedule ends; "
                "raise it or choose another lr_scheduler_type"
            )
        check_values(self)

    @property
    def order_seed(self) -> int:
        """Seed of the order of the pairs."""
        return self.seed if self.data_seed is None else self.data_seed

    def warmup_updates(self, total: int) -> int:
        """Return the number of warm-up updates in a run of `total` updates."""
        if self.warmup_steps >= 1:
            return int(self.warmup_steps)
        return math.ceil(total * (self.warmup_steps or self.warmup_ratio))
