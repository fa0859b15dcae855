"""The options of model, adapter, cluster and run."""

from dataclasses import dataclass

from raydpo.config.fields import UPDATES, Rule, Section, above, at_least, one_of, option, whole, within
from raydpo.errors import ConfigError

DEFAULT_ZERO_STAGE = 2


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The model that is trained (the policy)."""

    model_name_or_path: str | None = option(
        None,
        "Folder or hub id of the model to train, tokenizer included; `starter` is the small built-in model. Required "
        "with dataset_name; without any options the demonstration runs.",
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a model on the hub. Unset: its main branch.")
    dtype: str = option(
        "auto",
        "Dtype that the policy computes in, and the reference too unless reference_dtype is set. auto: float16 with "
        "fp16, bfloat16 with bf16, else float32. TRL: float32.",
        one_of("auto", "float32", "bfloat16", "float16"),
    )
    attn_implementation: str | None = option(
        None,
        "Attention backend: sdpa, varlen (torch's variable-length flash attention, GPUs only; flash_attention_2 and "
        "flash_attention_3 mean the same), flex_attention, or one of transformers' names, such as eager, which cannot "
        "share prompts. Unset: varlen on GPUs in half precision, else sdpa.",
    )
    share_prompts: bool | str = option(
        True,
        "Compute each prompt once for all its completions. false: one padded row per completion, which works with any "
        "model; families that are not known to share prompts use such rows anyway. try: these share prompts too, where "
        "a comparison with the model's own forward proves it when the model is loaded.",
        Rule("true, false or try", lambda value: value in (True, False, "try")),
    )
    logits_chunk_tokens: int | None = option(
        None,
        "Largest number of completion tokens whose logits are in memory at a time; if there are more, the logits are "
        "computed in chunks, and once more in the backward pass. Unset: as many as fit into 256 MiB on CPUs, or into "
        "1/16 of the GPU's memory.",
        at_least(1),
        "tokens",
    )
    torch_compile: bool = option(
        False, "Compile the model's layers with torch.compile; rows are then padded to one of four lengths."
    )
    chat_template: str | None = option(
        None,
        "Chat template that replaces the tokenizer's, for training and in model/: Jinja text, or the path of a file "
        "with it. Unset: the tokenizer's own.",
    )
    trust_remote_code: bool = option(False, "Run Python code that comes with the model on the hub.")
    freeze_vision_tower: bool = option(
        True,
        "Leave the vision tower of a vision-language model (and its audio tower, if it has one) untrained, and out of "
        "reach of lora_target_modules. No effect on other models. TRL: trained.",
    )
    freeze_multi_modal_projector: bool = option(
        True,
        "Leave the projector, which maps features of the vision tower to embeddings of the language model, untrained, "
        "and out of reach of lora_target_modules. No effect on models without one. TRL: trained.",
    )


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Section):
    """LoRA: train a small adapter instead of all weights; the reference has the adapter's initial weights."""

    use_peft: bool = option(False, "Train a LoRA adapter.")
    model_adapter_name: str | None = option(
        None,
        "Folder or hub id of a LoRA adapter of the model to continue training, such as one from supervised "
        "fine-tuning; implies use_peft. Unset: a new adapter.",
    )
    lora_r: int = option(16, "Rank of the adapter.", at_least(1))
    lora_alpha: int = option(32, "Scale of the adapter: its output is multiplied by lora_alpha / lora_r.", at_least(1))
    lora_dropout: float = option(
        0.05, "Dropout probability on the adapter's input; no effect with disable_dropout.", within(0, 1)
    )
    lora_target_modules: tuple[str, ...] = option(
        (), "Names of the modules that get an adapter. Unset: all linear layers except the head."
    )
    lora_modules_to_save: tuple[str, ...] = option(
        (), "Names of modules that are trained in full, in addition to the adapter. Unset: none."
    )
    use_rslora: bool = option(False, "Rank-stabilised LoRA: the scale is lora_alpha / sqrt(lora_r).")
    use_dora: bool = option(False, "DoRA: adapt the magnitude of the weights separately from their direction.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_adapter_name is not None:
            object.__setattr__(self, "use_peft", True)
        if self.lora_target_modules == ("all-linear",):  # PEFT's name for the default
            object.__setattr__(self, "lora_target_modules", ())


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Section):
    """The train workers: their number, their resources, and how the model is partitioned across them."""

    num_workers: int | None = option(
        None,
        "Number of train workers. Unset: one per GPU on nodes that match worker_label_selector, or 1 without GPUs.",
        at_least(1),
        "workers",
    )
    gpus_per_worker: float | None = option(
        None, "GPUs per train worker. Unset: 1 if the cluster has GPUs, else 0.", at_least(0), "GPUs"
    )
    cpus_per_worker: int | None = option(
        None, "CPUs per train worker. Unset: 1 if it has a GPU, else an equal share of the CPUs.", at_least(1), "CPUs"
    )
    worker_resources: dict[str, float] = option({}, "Custom Ray resources per train worker.")
    worker_label_selector: dict[str, str] = option(
        {}, "Ray node labels that a train worker requires, such as raydpo-role=train."
    )
    zero_stage: int | None = option(
        None,
        "DeepSpeed ZeRO stage. 0 partitions nothing, 1 the optimizer states, 2 also the gradients, 3 also the "
        "weights. Unset: 2, but 0 for a single worker in float32 without offload.",
        one_of(0, 1, 2, 3),
    )
    offload: str = option(
        "none",
        "What to keep in CPU memory: nothing, the optimizer states, or all (the weights too).",
        one_of("none", "optimizer", "all"),
    )
    deepspeed: str | None = option(
        None, "Path of a DeepSpeed JSON config; its settings override those derived from the options. Unset: none."
    )
    max_failures: int = option(
        3,
        "Number of failures (lost workers or nodes) to recover from, each time from the newest checkpoint; -1: no "
        "limit.",
        at_least(-1),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        stage = DEFAULT_ZERO_STAGE if self.zero_stage is None else self.zero_stage
        if stage < needed:
            raise ConfigError(f"offload={self.offload} requires zero_stage of at least {needed}, not {stage}; raise it")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """The run: where its files are written, and what is saved and logged."""

    output_dir: str | None = option(
        None, "Folder of the run: model, checkpoints, metrics, ledger and config. Unset: a new folder in runs/."
    )
    storage_path: str | None = option(
        None, "Folder or URL of the checkpoints; every node must have access to it. Unset: output_dir."
    )
    run_name: str | None = option(
        None, "Name of the run in trackers, and of its folder in storage_path. Unset: the name of output_dir."
    )
    logging_strategy: str = option(
        "steps", "When to log metrics; the last update is always logged.", one_of("no", "steps", "epoch")
    )
    logging_steps: float = option(
        10, "Updates between two lines of metrics, with logging_strategy=steps.", UPDATES, "updates"
    )
    logging_first_step: bool = option(False, "Log the metrics of the first update too.")
    save_strategy: str = option("steps", "When to write a checkpoint.", one_of("no", "steps", "epoch"))
    save_steps: float = option(500, "Updates between two checkpoints, with save_strategy=steps.", UPDATES, "updates")
    save_total_limit: int | None = option(
        None, "Number of checkpoints to keep, the newest ones. Unset: all.", at_least(1), "checkpoints"
    )
    resume_from_checkpoint: str = option(
        "auto",
        "auto or true: resume from the run's newest checkpoint, if there is one; none or false: start over; else the "
        "path of a checkpoint. TRL: none.",
    )
    device_peak_tflops: float | None = option(
        None,
        "Peak throughput of a device in the dtype that is used, from which the metric mfu is computed. Unset: the "
        "manufacturer's figure; if it is not known, mfu is not logged.",
        above(0),
        "TFLOP/s",
    )
    report_to: tuple[str, ...] = option(
        ("none",),
        "Trackers that receive the metrics, in addition to metrics.jsonl.",
        one_of("none", "tensorboard", "wandb", "mlflow"),
    )
    verbose: bool = option(False, "Show the messages of Ray and DeepSpeed.")

    def __post_init__(self) -> None:
        if self.resume_from_checkpoint is None:
            object.__setattr__(self, "resume_from_checkpoint", "none")
        super().__post_init__()
        for name in ("logging_steps", "save_steps"):
            object.__setattr__(self, name, whole(getattr(self, name)))
        word = self.resume_from_checkpoint.lower()
        meaning = {"auto": "auto", "true": "auto", "none": "none", "false": "none", "null": "none"}.get(word)
        if meaning:
            object.__setattr__(self, "resume_from_checkpoint", meaning)
        if not self.report_to:
            object.__setattr__(self, "report_to", ("none",))
        if "none" in self.report_to and len(self.report_to) > 1:
            raise ConfigError(f"report_to={','.join(self.report_to)} combines none with a tracker; leave none out")
