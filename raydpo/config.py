"""The options of a run: one frozen dataclass a concern, collected in `JobConfig`.

Names and defaults are those of TRL's DPOConfig, ModelConfig and ScriptArguments and of Hugging Face's
TrainingArguments wherever these have them; where a default or a meaning differs, the option's help says so.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from raydpo import options
from raydpo.errors import ConfigError
from raydpo.options import Section, above, at_least, one_of, option, within

# Names that users of TRL or older transformers type, and what to do instead.
NOTES = {
    "precompute_ref_log_probs": "leave it out; reference log-probs are always computed once and kept",
    "remove_unused_columns": "leave it out; columns that are not needed are never read",
    "no_remove_unused_columns": "leave it out; columns that are not needed are never read",
    "dataset_streaming": "leave it out; data is always streamed",
    "dataset_num_proc": "leave it out; every free CPU of the cluster tokenizes",
    "padding_free": "leave it out; how rows are packed does not change results",
    "optim": "leave it out; the optimizer is AdamW",
    "torch_dtype": "use dtype",
    "lr": "use learning_rate",
    "evaluation_strategy": "use eval_strategy",
    "ref_model": "use reference_model",
    "load_in_8bit": "quantised base models are not supported; use use_peft with dtype bfloat16",
    "load_in_4bit": "quantised base models are not supported; use use_peft with dtype bfloat16",
    "local_rank": "leave it out; Ray Train starts the workers, so no launcher is needed",
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The policy: the model that is trained."""

    model_name_or_path: str | None = option(
        None,
        "Folder or hub id of the model to train, tokenizer included. Unset: a small starter model made on the spot.",
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a model on the hub. Unset: its main branch.")
    dtype: str = option(
        "auto",
        "Type the model computes in, for the policy and for the reference. auto: as bf16 and fp16 say (TRL: float32).",
        one_of("auto", "float32", "bfloat16", "float16"),
    )
    attn_implementation: str | None = option(
        None, "Attention implementation, such as sdpa, eager or flash_attention_2. Unset: the model's own choice."
    )
    trust_remote_code: bool = option(False, "Run Python code that comes with the model on the hub.")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The preference pairs: where they lie, how they are read, cut and ordered."""

    dataset_name: tuple[str, ...] = option(
        (),
        "Preference data: paths, globs, folders, URLs or hub ids, any mix of JSONL, JSON, Parquet and Arrow, also .gz "
        "and .zst. Unset: the built-in demonstration pairs.",
    )
    eval_dataset_name: tuple[str, ...] = option(
        (),
        "Held-out pairs where they are files of their own. Unset: dataset_test_split of dataset_name, if it has one.",
    )
    dataset_config: str | None = option(None, "Configuration (subset) of a dataset on the hub.")
    dataset_train_split: str = option("train", "Split to train on, for hub ids and `datasets` folders.")
    dataset_test_split: str = option("test", "Split to evaluate on, for hub ids and `datasets` folders.")
    dataset_format: str = option(
        "auto",
        "Dialect of the rows. auto: found from the rows, and said in the log.",
        one_of("auto", "preference", "hh", "sharegpt", "openai"),
    )
    max_length: int | None = option(
        1024, "Longest prompt + completion; longer ones are cut. none: no limit.", at_least(2), "tokens"
    )
    max_prompt_length: int | None = option(
        None, "Longest prompt; longer ones lose their beginning. Unset: no limit of its own.", at_least(1), "tokens"
    )
    truncation_mode: str = option(
        "keep_start", "Which end of a pair longer than max_length is kept.", one_of("keep_start", "keep_end")
    )
    train_sampling_strategy: str = option(
        "random",
        "Order of the pairs: random, another one each epoch from the seed, or sequential, as the files have them.",
        one_of("random", "sequential"),
    )
    block_pairs: int = option(
        4096, "Pairs in a block, the unit of tokenization, of scoring and of a retry.", at_least(1), "pairs"
    )
    shuffle_window: int = option(
        16, "Blocks whose pairs are shuffled together, after the blocks themselves are.", at_least(1), "blocks"
    )
    max_bad_rows: int | None = option(
        None,
        "Bad rows after which the run stops before training; 0 tolerates none. Unset: no limit.",
        at_least(0),
        "rows",
    )
    cache_dir: str = option(
        "~/.cache/raydpo",
        "Folder or URL that keeps tokenized and scored blocks across runs; every node must reach it.",
    )


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(Section):
    """The reference: the pool that scores each pair once."""

    reference_model: str | None = option(
        None, "Folder or hub id of the reference model. Unset: the weights that the policy starts from."
    )
    reference_num_workers: int | None = option(
        None, "Scoring workers. Unset: one for each GPU on nodes that fit the selector, or 1.", at_least(1), "workers"
    )
    reference_gpus_per_worker: float | None = option(
        None, "GPUs of a scoring worker. Unset: 1 where the cluster has GPUs, else 0.", at_least(0), "GPUs"
    )
    reference_cpus_per_worker: int | None = option(
        None, "CPUs of a scoring worker. Unset: 1 beside a GPU, else an even share of the CPUs.", at_least(1), "CPUs"
    )
    reference_resources: dict[str, float] = option({}, "Custom Ray resources that a scoring worker takes.")
    reference_label_selector: dict[str, str] = option(
        {}, "Ray node labels that a scoring worker needs, such as raydpo-role=ref."
    )
    precompute_ref_batch_size: int = option(
        8, "Pairs a forward of the reference (TRL: as per_device_train_batch_size).", at_least(1), "pairs"
    )


@dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    """The objective."""

    loss_type: str = option("sigmoid", "Objective: sigmoid is DPO's.", one_of("sigmoid"))
    beta: float = option(0.1, "Strength of the pull towards the reference; larger stays nearer to it.", above(0))
    label_smoothing: float = option(
        0.0, "Share of pairs whose preference is taken to be the wrong way round (cDPO).", within(0, 0.5)
    )
    disable_dropout: bool = option(True, "Train without dropout, so that policy and reference differ by weights only.")


SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
POLYNOMIAL_END = 1e-7  # the learning rate that transformers' polynomial schedule ends at


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section):
    """The optimisation: batches, schedule, AdamW, precision, evaluation."""

    per_device_train_batch_size: int = option(
        8, "Pairs a worker takes in one forward and backward.", at_least(1), "pairs"
    )
    per_device_eval_batch_size: int = option(
        8, "Pairs a worker takes in one forward of evaluation.", at_least(1), "pairs"
    )
    gradient_accumulation_steps: int = option(
        1,
        "Forwards a worker makes for one update. Global batch = per_device_train_batch_size x "
        "gradient_accumulation_steps x num_workers.",
        at_least(1),
    )
    num_train_epochs: float = option(3.0, "Times that each pair is trained on.", above(0), "epochs")
    max_steps: int = option(
        -1,
        "Updates to stop after, whatever num_train_epochs says; -1: no such limit.",
        options.Rule("-1 or at least 1", lambda value: value == -1 or value >= 1),
        "updates",
    )
    learning_rate: float = option(1e-6, "Peak learning rate.", at_least(0))
    lr_scheduler_type: str = option("linear", "Learning-rate schedule after the warm-up.", one_of(*SCHEDULERS))
    warmup_steps: float = option(
        0,
        "Updates over which the learning rate rises from 0; a fraction below 1 is a share of all updates.",
        options.Rule(
            "a whole number, or a fraction below 1", lambda value: value >= 0 and (value < 1 or value % 1 == 0)
        ),
        "updates",
    )
    warmup_ratio: float = option(0.0, "Share of all updates over which the learning rate rises from 0.", within(0, 1))
    weight_decay: float = option(0.0, "AdamW's weight decay; biases and norms have none.", at_least(0))
    adam_beta1: float = option(0.9, "AdamW's decay of the gradient's running mean.", within(0, 1))
    adam_beta2: float = option(0.999, "AdamW's decay of the squared gradient's running mean.", within(0, 1))
    adam_epsilon: float = option(1e-8, "AdamW's epsilon.", above(0))
    max_grad_norm: float = option(1.0, "Norm that the gradient is clipped to; 0: not clipped.", at_least(0))
    seed: int = option(42, "Seed of the order of pairs and of all that is drawn at random.", at_least(0))
    bf16: bool | None = option(None, "Compute in bfloat16. Unset: where there is a GPU (TRL: everywhere).")
    fp16: bool = option(False, "Compute in float16, with loss scaling.")
    gradient_checkpointing: bool = option(True, "Recompute activations in the backward: less memory, more time.")
    eval_strategy: str = option("no", "When to evaluate on the held-out pairs.", one_of("no", "steps", "epoch"))
    eval_steps: int | None = option(
        None, "Updates between evaluations with eval_strategy steps. Unset: logging_steps.", at_least(1), "updates"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bf16 and self.fp16:
            raise ConfigError("bf16=true and fp16=true exclude each other; set one of them")
        if self.warmup_steps and self.warmup_ratio:
            raise ConfigError(
                f"warmup_steps={self.warmup_steps:g} and warmup_ratio={self.warmup_ratio:g} say the same thing twice; "
                "set one of them"
            )
        if self.lr_scheduler_type == "polynomial" and self.learning_rate <= POLYNOMIAL_END:
            raise ConfigError(
                f"learning_rate={self.learning_rate:g} must be above {POLYNOMIAL_END:g}, where the polynomial schedule "
                "ends; raise it or choose another lr_scheduler_type"
            )

    def warmup_updates(self, total: int) -> int:
        """Updates of warm-up in a run of `total` updates."""
        if self.warmup_steps >= 1:
            return int(self.warmup_steps)
        return math.ceil(total * (self.warmup_steps or self.warmup_ratio))


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Section):
    """LoRA: train a small adapter instead of all weights; the reference is then the base model."""

    use_peft: bool = option(False, "Train a LoRA adapter.")
    lora_r: int = option(16, "Rank of the adapter.", at_least(1))
    lora_alpha: int = option(32, "Scale of the adapter: its output is multiplied by lora_alpha / lora_r.", at_least(1))
    lora_dropout: float = option(0.05, "Dropout before the adapter; disable_dropout turns it off.", within(0, 1))
    lora_target_modules: tuple[str, ...] = option(
        (), "Modules that get an adapter. Unset: all linear layers but the head."
    )
    lora_modules_to_save: tuple[str, ...] = option((), "Modules trained in full beside the adapter.")
    use_rslora: bool = option(False, "Rank-stabilised LoRA: the scale is lora_alpha / sqrt(lora_r).")
    use_dora: bool = option(False, "DoRA: adapt the magnitude of the weights apart from their direction.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_target_modules == ("all-linear",):  # peft's name for what is the default here
            object.__setattr__(self, "lora_target_modules", ())


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Section):
    """The train group: how many workers, on what, and how the model is spread over them."""

    num_workers: int | None = option(
        None,
        "Train workers. Unset: one for each GPU on nodes that fit the selector, or 1.",
        at_least(1),
        "workers",
    )
    gpus_per_worker: float | None = option(
        None, "GPUs of a train worker. Unset: 1 where the cluster has GPUs, else 0.", at_least(0), "GPUs"
    )
    cpus_per_worker: int | None = option(
        None, "CPUs of a train worker. Unset: 1 beside a GPU, else an even share of the CPUs.", at_least(1), "CPUs"
    )
    worker_resources: dict[str, float] = option({}, "Custom Ray resources that a train worker takes.")
    worker_label_selector: dict[str, str] = option(
        {}, "Ray node labels that a train worker needs, such as raydpo-role=train."
    )
    zero_stage: int = option(
        2, "DeepSpeed ZeRO: 0 spreads nothing, 1 optimizer, 2 and gradients, 3 and weights.", one_of(0, 1, 2, 3)
    )
    offload: str = option(
        "none", "What is kept in CPU memory: the optimizer, or all (weights too).", one_of("none", "optimizer", "all")
    )
    deepspeed: str | None = option(None, "Path of a DeepSpeed JSON config; what it says wins over the options here.")
    max_failures: int = option(
        3, "Lost workers or nodes to recover from, each time from the newest checkpoint; -1: any number.", at_least(-1)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < needed:
            raise ConfigError(
                f"offload={self.offload} needs zero_stage at least {needed}, not {self.zero_stage}; raise it"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """The run: where its files go, what is saved and logged."""

    output_dir: str | None = option(
        None, "Folder of the run: model, report, metrics, config. Unset: a new one in runs/."
    )
    storage_path: str | None = option(
        None, "Folder or URL of the checkpoints, which every node must reach. Unset: output_dir."
    )
    run_name: str | None = option(
        None, "Name of the run, for trackers and for its folder in storage_path. Unset: output_dir's name."
    )
    logging_steps: int = option(10, "Updates between two lines of metrics.", at_least(1), "updates")
    save_strategy: str = option("steps", "When to write a checkpoint.", one_of("no", "steps", "epoch"))
    save_steps: int = option(500, "Updates between checkpoints with save_strategy steps.", at_least(1), "updates")
    save_total_limit: int | None = option(None, "Newest checkpoints to keep. Unset: all.", at_least(1), "checkpoints")
    resume_from_checkpoint: str = option(
        "auto",
        "auto or true: go on from the run's newest checkpoint, if there is one; none or false: start over (Hugging "
        "Face's default); or the path of a checkpoint.",
    )
    report_to: tuple[str, ...] = option(
        ("none",), "Trackers that get the metrics too.", one_of("none", "tensorboard", "wandb", "mlflow")
    )
    verbose: bool = option(False, "Show the messages of Ray and DeepSpeed.")

    def __post_init__(self) -> None:
        if self.resume_from_checkpoint is None:
            object.__setattr__(self, "resume_from_checkpoint", "none")
        super().__post_init__()
        word = self.resume_from_checkpoint.lower()
        meaning = {"auto": "auto", "true": "auto", "none": "none", "false": "none", "null": "none"}.get(word)
        if meaning:
            object.__setattr__(self, "resume_from_checkpoint", meaning)
        if not self.report_to:
            object.__setattr__(self, "report_to", ("none",))
        if "none" in self.report_to and len(self.report_to) > 1:
            raise ConfigError(f"report_to={','.join(self.report_to)} names none beside a tracker; leave none out")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """All options of a run, by concern."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    run: RunConfig = field(default_factory=RunConfig)
    explicit: frozenset[str] = field(default=frozenset(), compare=False)
    """Names of the options that the user set, in flags or YAML."""

    def __post_init__(self) -> None:
        self._check_lengths()
        self._check_precision()
        if self.optim.eval_strategy == "steps" and self.optim.eval_steps is None:
            resolved = dataclasses.replace(self.optim, eval_steps=self.run.logging_steps)
            object.__setattr__(self, "optim", resolved)

    def _check_lengths(self) -> None:
        longest, prompt = self.data.max_length, self.data.max_prompt_length
        if longest is not None and prompt is not None and prompt >= longest:
            raise ConfigError(
                f"max_prompt_length={prompt} must be below max_length={longest}, which counts the completion too; "
                "lower it or raise max_length"
            )

    def _check_precision(self) -> None:
        dtype, bf16, fp16 = self.model.dtype, self.optim.bf16, self.optim.fp16
        wanted = "bfloat16" if bf16 else "float16" if fp16 else None
        if dtype != "auto" and wanted is not None and dtype != wanted:
            flag = "bf16" if bf16 else "fp16"
            raise ConfigError(f"dtype={dtype} contradicts {flag}=true; leave one of them out")
        if dtype == "bfloat16" and bf16 is False:
            raise ConfigError("dtype=bfloat16 contradicts bf16=false; leave one of them out")

    def precision(self, gpu: bool) -> str:
        """Type that policy and reference compute in: float32, bfloat16 or float16; `gpu` says if they have one."""
        if self.model.dtype != "auto":
            return self.model.dtype
        if self.optim.fp16:
            return "float16"
        bf16 = gpu if self.optim.bf16 is None else self.optim.bf16
        return "bfloat16" if bf16 else "float32"

    def global_batch(self, num_workers: int) -> int:
        """Pairs in one update."""
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
HINTS: dict[str, Any] = {
    name: hint for section in SECTIONS.values() for name, hint in options.hints_of(section).items()
}
"""Type of each option by its flat name."""


def parse(argv: Sequence[str]) -> JobConfig:
    """The config that command-line flags say, over those of `--config run.yaml`; ConfigError where they are wrong.

    `-h` and `--help` print the options and raise SystemExit(0).
    """
    if "-h" in argv or "--help" in argv:
        print(help_text())
        raise SystemExit(0)
    flags = options.read_flags(argv, {"config": str, **HINTS}, NOTES)
    path = flags.pop("config", None)
    return from_flat({**(options.read_yaml(path, HINTS, NOTES) if path is not None else {}), **flags})


def from_flat(values: Mapping[str, Any]) -> JobConfig:
    """The config with these options set, by flat name, in their types or as text; ConfigError where one is wrong."""
    for name in values:
        if name not in HINTS:
            raise options.unknown(name, HINTS, NOTES)
    sections: dict[str, Any] = {
        title: section(**{name: values[name] for name in options.hints_of(section) if name in values})
        for title, section in SECTIONS.items()
    }
    return JobConfig(**sections, explicit=frozenset(values))


def to_flat(config: JobConfig) -> dict[str, Any]:
    """Every option by its flat name."""
    return {name: value for title in SECTIONS for name, value in vars(getattr(config, title)).items()}


def with_defaults(config: JobConfig, values: Mapping[str, Any]) -> JobConfig:
    """The config with other defaults: `values` (by flat name) for the options that the user did not set."""
    flat = to_flat(config)
    if "eval_steps" not in config.explicit and config.optim.eval_steps == config.run.logging_steps:
        flat["eval_steps"] = None  # it followed logging_steps, and shall follow a new one
    new = {name: value for name, value in values.items() if name not in config.explicit}
    return dataclasses.replace(from_flat({**flat, **new}), explicit=config.explicit)


def to_yaml(config: JobConfig) -> str:
    """The config as YAML, a comment a section; `--config` with it repeats the run."""
    parts = []
    for title in SECTIONS:
        flat = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(getattr(config, title)).items()
        }
        parts.append(f"# {title}\n" + yaml.safe_dump(flat, sort_keys=False, allow_unicode=True))
    return "\n".join(parts)


def help_text() -> str:
    """What `--help` prints: usage, then every option by section with default, unit and rule."""
    usage = (
        "usage: python jobs/dpo.py [--config run.yaml] [--name value ...]\n\n"
        "Flags win over the config file, whose keys are the same names. Dashes may stand for underscores; --name\n"
        "alone turns a boolean on and --no_name off; lists are separated by spaces or commas; mappings are\n"
        "name=value,... or JSON; `none` unsets what may be unset."
    )
    return "\n\n".join([usage, *(options.help_section(title, section) for title, section in SECTIONS.items())])
