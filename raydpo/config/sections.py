"""The options of model, data, reference, adapter, cluster and run."""

from dataclasses import dataclass

from raydpo.config import fields
from raydpo.config.fields import Section, above, at_least, one_of, option, within
from raydpo.errors import ConfigError

DEFAULT_ZERO_STAGE = 2
BASE = "base"
"""The value of ref_adapter_name that asks for none."""


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
        "Type the model computes in, and the reference too, unless reference_dtype names another. auto: as bf16 and "
        "fp16 say (TRL: float32).",
        one_of("auto", "float32", "bfloat16", "float16"),
    )
    attn_implementation: str | None = option(
        None,
        "Attention: sdpa, varlen (torch's flash attention, on GPUs; also flash_attention_2 and _3), flex_attention, "
        "or a name of transformers, such as eager, which cannot share prompts. Unset: varlen on GPUs in half "
        "precision, else sdpa.",
    )
    share_prompts: bool = option(
        True, "Compute a prompt once for all its completions. false: a padded row for each, as models take that cannot."
    )
    logits_chunk_tokens: int | None = option(
        None,
        "Completion tokens whose logits are in memory at a time; more are computed in turns, and again in the "
        "backward. Unset: as many as fit into 256 MiB, or into a 16th of the GPU's memory.",
        at_least(1),
        "tokens",
    )
    torch_compile: bool = option(False, "Compile the layers with torch.compile; rows then come in four lengths.")
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
        "Order of the pairs: random, another one each epoch from the seed; group_by_prompt, random too, but pairs of "
        "one prompt together, so that it is computed once for them; or sequential, as the files have them.",
        one_of("random", "group_by_prompt", "sequential"),
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
    ref_adapter_name: str | None = option(
        None,
        "Folder or hub id of the reference's LoRA adapter, or base for none. Unset: that of model_adapter_name as it "
        "is at the start, where there is no reference_model.",
    )
    reference_from_dataset: bool = option(
        False,
        "Score nothing, and take the columns ref_chosen_logps and ref_rejected_logps: a list with a value for each "
        "token of the completion, EOS included, or a number, their sum.",
    )
    reference_dtype: str = option(
        "auto",
        "Type the reference computes in. auto: that of the policy.",
        one_of("auto", "float32", "bfloat16", "float16"),
    )
    reference_quantization: str | None = option(
        None,
        "Keep the reference's layers in 8bit or 4bit while it scores, by bitsandbytes; its log-probs are then others. "
        "Unset: in their own type.",
        one_of("8bit", "4bit"),
    )
    reference_schedule: str = option(
        "auto",
        "staged: all pairs are scored before training; pipelined: ahead of training while that goes on, a shuffle "
        "window at a time. auto: pipelined where scorers and train workers have room side by side.",
        one_of("auto", "staged", "pipelined"),
    )
    reference_drift_tolerance: float | None = option(
        None,
        "How far the policy may be from its reference before the first update, |difference| of a token's log-prob on "
        "average; a run that starts from its reference and is further off stops. Unset: 0.001 in float32, 0.1 in "
        "bfloat16, 0.02 in float16; no limit where dropout is left on or the reference is quantised.",
        above(0),
        "nats",
    )
    sync_ref_model: bool = option(
        False,
        "TR-DPO: let the reference take after the policy every ref_model_sync_steps updates; scorers and train workers "
        "then work side by side, on fractions of a GPU where their shares are not set.",
    )
    ref_model_mixup_alpha: float = option(
        0.6,
        "TR-DPO: the policy's share of the new reference, the rest is the old one; 1 replaces it.",
        fields.Rule("above 0 and at most 1", lambda value: 0 < value <= 1),
    )
    ref_model_sync_steps: int = option(
        512, "TR-DPO: updates from one new reference to the next.", at_least(1), "updates"
    )
    reference_num_workers: int | None = option(
        None, "Scoring workers. Unset: one for each GPU on nodes that fit the selector, or 1.", at_least(1), "workers"
    )
    reference_gpus_per_worker: float | None = option(
        None,
        "GPUs of a scoring worker; a reference that one has no room for is spread over several. Unset: 1 where the "
        "cluster has GPUs, else 0.",
        at_least(0),
        "GPUs",
    )
    reference_cpus_per_worker: int | None = option(
        None, "CPUs of a scoring worker. Unset: 1 beside a GPU, else an even share of the CPUs.", at_least(1), "CPUs"
    )
    reference_resources: dict[str, float] = option({}, "Custom Ray resources that a scoring worker takes.")
    reference_label_selector: dict[str, str] = option(
        {}, "Ray node labels that a scoring worker needs, such as raydpo-role=ref."
    )


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Section):
    """LoRA: train a small adapter instead of all weights; the reference is then the model as the adapter starts."""

    use_peft: bool = option(False, "Train a LoRA adapter.")
    model_adapter_name: str | None = option(
        None,
        "Folder or hub id of a LoRA adapter of the model to go on with, such as that of supervised fine-tuning; it "
        "implies use_peft. Unset: a new one.",
    )
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
        if self.model_adapter_name is not None:
            object.__setattr__(self, "use_peft", True)
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
    zero_stage: int | None = option(
        None,
        "DeepSpeed ZeRO: 0 spreads nothing, 1 optimizer, 2 and gradients, 3 and weights. Unset: 2, but 0 for a single "
        "worker in float32.",
        one_of(0, 1, 2, 3),
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
        stage = DEFAULT_ZERO_STAGE if self.zero_stage is None else self.zero_stage
        if stage < needed:
            raise ConfigError(f"offload={self.offload} needs zero_stage at least {needed}, not {stage}; raise it")


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
    logging_strategy: str = option(
        "steps", "When to write a line of metrics; the last update always has one.", one_of("no", "steps", "epoch")
    )
    logging_steps: int = option(
        10, "Updates between two lines of metrics with logging_strategy steps.", at_least(1), "updates"
    )
    logging_first_step: bool = option(False, "Write a line of metrics for the first update too.")
    save_strategy: str = option("steps", "When to write a checkpoint.", one_of("no", "steps", "epoch"))
    save_steps: int = option(500, "Updates between checkpoints with save_strategy steps.", at_least(1), "updates")
    save_total_limit: int | None = option(None, "Newest checkpoints to keep. Unset: all.", at_least(1), "checkpoints")
    resume_from_checkpoint: str = option(
        "auto",
        "auto or true: go on from the run's newest checkpoint, if there is one; none or false: start over (Hugging "
        "Face's default); or the path of a checkpoint.",
    )
    device_peak_tflops: float | None = option(
        None,
        "What a device computes at most, in the type that is used, for the metric mfu. Unset: as its maker says of it; "
        "without mfu where that is not known.",
        above(0),
        "TFLOP/s",
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
