"""The options of the reference and of its scoring pool."""

from dataclasses import dataclass

from raydpo.config.fields import Rule, Section, above, at_least, one_of, option

BASE = "base"
"""The value of ref_adapter_name for a reference without an adapter."""


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(Section):
    """The reference model, and the pool of workers that scores each pair once."""

    reference_model: str | None = option(
        None, "Folder or hub id of the reference model. Unset: the weights that the policy starts from."
    )
    ref_adapter_name: str | None = option(
        None,
        "Folder or hub id of the reference's LoRA adapter; base: no adapter. Unset: model_adapter_name with its "
        "initial weights, unless reference_model is set.",
    )
    reference_from_dataset: bool = option(
        False,
        "Score nothing, and read the reference log-probs from the columns ref_chosen_logps and ref_rejected_logps: a "
        "list with one value per token of the completion, EOS included, or a number, their sum.",
    )
    reference_dtype: str = option(
        "auto",
        "Dtype that the reference computes in. auto: the policy's dtype.",
        one_of("auto", "float32", "bfloat16", "float16"),
    )
    reference_quantization: str | None = option(
        None,
        "Quantise the reference's layers to 8bit or 4bit with bitsandbytes while it scores, which changes its "
        "log-probs. Unset: no quantisation.",
        one_of("8bit", "4bit"),
    )
    reference_schedule: str = option(
        "auto",
        "staged: score all pairs before training. pipelined: score during training, ahead of it, one shuffle window "
        "at a time. auto: pipelined if the cluster has room for scoring workers and train workers at the same time, "
        "else staged.",
        one_of("auto", "staged", "pipelined"),
    )
    reference_drift_tolerance: float | None = option(
        None,
        "Largest accepted mean |difference| per token between the log-probs of policy and reference before the first "
        "update; a run whose policy starts from its reference stops if it is exceeded. Unset: 0.001 in float32, 0.1 "
        "in bfloat16, 0.02 in float16; no limit if dropout is left on or the reference is quantised.",
        above(0),
        "nats",
    )
    sync_ref_model: bool = option(
        False,
        "TR-DPO: sync the reference towards the policy every ref_model_sync_steps updates; scoring workers and train "
        "workers then run at the same time, each on a fraction of a GPU unless their shares are set.",
    )
    ref_model_mixup_alpha: float = option(
        0.6,
        "TR-DPO: weight of the policy in the new reference; the old reference has the rest. 1 replaces the reference.",
        Rule("above 0 and at most 1", lambda value: 0 < value <= 1),
    )
    ref_model_sync_steps: int = option(
        512,
        "TR-DPO: length of a sync interval, the number of updates between two syncs of the reference.",
        at_least(1),
        "updates",
    )
    reference_num_workers: int | None = option(
        None,
        "Number of scoring workers. Unset: one per GPU on nodes that match reference_label_selector, or 1 without "
        "GPUs.",
        at_least(1),
        "workers",
    )
    reference_gpus_per_worker: float | None = option(
        None,
        "GPUs per scoring worker; with more than 1, a reference too large for one GPU is spread over several. Unset: "
        "1 if the cluster has GPUs, else 0.",
        at_least(0),
        "GPUs",
    )
    reference_cpus_per_worker: int | None = option(
        None, "CPUs per scoring worker. Unset: 1 if it has a GPU, else an equal share of the CPUs.", at_least(1), "CPUs"
    )
    reference_resources: dict[str, float] = option({}, "Custom Ray resources per scoring worker.")
    reference_label_selector: dict[str, str] = option(
        {}, "Ray node labels that a scoring worker requires, such as raydpo-role=ref."
    )
