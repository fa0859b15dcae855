"""Which options a resumed run may change, and what each of the others fixes: the one rule for folders and checkpoints.

`output_dir/config.yaml` and the `state.json` of each checkpoint record the options; `changes` compares them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raydpo.config.fields import show_whole
from raydpo.config.job import JobConfig
from raydpo.config.parsing import to_flat
from raydpo.errors import ResumeError

ORDER, BATCH = "the order of the pairs", "the global batch"
TOKENS, ROWS = "the token ids of the pairs", "the rows that are trained on"
OBJECTIVE, REFERENCE = "the objective", "the reference log-probs"
PARAMETERS, NUMERICS = "the parameters that are trained", "how log-probs are rounded"
OPTIMIZER, SCHEDULE, PRECISION, PARTITION = (
    "the state of the optimizer",
    "the learning rate of each update",
    "the dtype that is computed in",
    "how the optimizer's state is divided",
)
EVERY_UPDATE = "what an update computes"
"""What an option fixes that no table names."""


def _each(what: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), what)


FIXES: dict[str, str] = {
    **_each(ORDER, "seed data_seed block_pairs shuffle_window train_sampling_strategy"),
    **_each(BATCH, "per_device_train_batch_size gradient_accumulation_steps num_workers"),
    **_each(TOKENS, "max_length max_prompt_length max_completion_length truncation_mode add_special_tokens"),
    **_each(TOKENS, "chat_template_date loss_on"),
    **_each(ROWS, "dataset_config dataset_train_split dataset_format column_mapping dataset_seed test_split_size"),
    **_each(ROWS, "on_template_loss"),
    **_each(
        OBJECTIVE, "loss_type loss_weights beta label_smoothing f_divergence_type f_alpha_divergence_coef ld_alpha"
    ),
    **_each(OBJECTIVE, "use_weighting rpo_alpha cpo_alpha simpo_gamma discopop_tau bco_running_mean reference_free"),
    **_each(OBJECTIVE, "sample_weights use_margins margin_from_scores margin_scale router_aux_loss_coef"),
    **_each(OBJECTIVE, "disable_dropout"),
    **_each(REFERENCE, "reference_from_dataset reference_dtype reference_quantization reference_schedule"),
    **_each(REFERENCE, "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps"),
    **_each(PARAMETERS, "use_peft lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save use_rslora"),
    **_each(PARAMETERS, "use_dora freeze_vision_tower freeze_multi_modal_projector"),
    **_each("the model's kind", "is_encoder_decoder"),
    **_each(NUMERICS, "attn_implementation share_prompts"),
    **_each(OPTIMIZER, "adam_beta1 adam_beta2 adam_epsilon"),
    **_each("the size of an update", "max_grad_norm"),
    **_each(SCHEDULE, "lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio"),
    **_each(PRECISION, "dtype bf16 fp16"),
    **_each(PARTITION, "zero_stage offload"),
}
"""Options that a resumed run must not change, with what each fixes."""

BY_CONTENT = frozenset(
    """
    model_name_or_path model_revision model_adapter_name chat_template dataset_name datasets reference_model
    ref_adapter_name deepspeed
    """.split()
)
"""Options that name files. In the run's own folder they must stay the same; a checkpoint that is named by its path may
be resumed with other names if their content is the same, which the fingerprint of the checkpoint shows."""

MAY_CHANGE = frozenset(
    """
    cache_dir cpus_per_worker dataset_test_split device_peak_tflops eval_dataset_name eval_steps eval_strategy
    gpus_per_worker gradient_checkpointing learning_rate logging_first_step logging_steps logging_strategy
    logits_chunk_tokens max_bad_rows max_failures max_steps num_train_epochs output_dir per_device_eval_batch_size
    reference_cpus_per_worker reference_drift_tolerance reference_gpus_per_worker reference_label_selector
    reference_num_workers reference_resources report_to resume_from_checkpoint run_name save_steps save_strategy
    save_total_limit storage_path tokens_per_micro_batch torch_compile trust_remote_code verbose weight_decay
    worker_label_selector worker_resources
    """.split()
)
"""Options that a resumed run may change. The change is applied, and a note says so."""
UNTOLD = frozenset({"output_dir", "resume_from_checkpoint"})
"""Options whose change is the resume itself."""


RESOLVED = frozenset({"num_workers", "zero_stage", "bf16"})
"""Options that are chosen for the machine where they are unset; the fingerprint of a checkpoint has what was chosen."""


@dataclass(frozen=True)
class Change:
    """An option that has another value than in the run that is resumed."""

    name: str
    before: Any
    now: Any

    def allowed(self, *, own_folder: bool) -> bool:
        """Return whether a resume may change the option, in the run's own folder or from a checkpoint elsewhere."""
        return self.name in MAY_CHANGE or (self.name in BY_CONTENT and not own_folder)


def recorded(job: JobConfig) -> dict[str, Any]:
    """Return the options as a checkpoint records them: by flat name, in JSON's types."""
    found: dict[str, Any] = json.loads(json.dumps(to_flat(job)))
    return found


def changes(before: Mapping[str, Any], job: JobConfig) -> list[Change]:
    """Return what a job changes against recorded options; an option that was not recorded had its default."""
    now, defaults = recorded(job), recorded(JobConfig())
    found = [Change(name, before.get(name, defaults[name]), value) for name, value in now.items()]
    return [change for change in found if change.before != change.now and not _compared_elsewhere(change)]


def _compared_elsewhere(change: Change) -> bool:
    if change.name == "chat_template_date":  # a run of an earlier version has none; its blocks show its tokens
        return change.before is None
    return change.name in RESOLVED and None in (change.before, change.now)


def check_changes(found: list[Change], where: str, *, own_folder: bool) -> None:
    """Raise ResumeError for the first change that a resume must not make. `where` is the folder that is resumed."""
    for change in found:
        if not change.allowed(own_folder=own_folder):
            fixed = FIXES.get(change.name, "the files of the run" if change.name in BY_CONTENT else EVERY_UPDATE)
            remedy = "leave resume_from_checkpoint out to start a new run"
            if own_folder:
                remedy = (
                    "choose another output_dir, or start over with resume_from_checkpoint=none (this removes the old "
                    "checkpoints)"
                )
            raise ResumeError(
                f"{where} holds a run with {change.name}={show_whole(change.before)}, but this run has "
                f"{change.name}={show_whole(change.now)}; it fixes {fixed}: set it back, or {remedy}"
            )


def note_on(found: list[Change], where: str) -> str:
    """Return one line on the options that a resume changes, with both values; empty if there are none to tell."""
    told = [change for change in found if change.name not in UNTOLD]
    parts = [f"{change.name}={show_whole(change.now)} (it was {show_whole(change.before)})" for change in told]
    return f"{where} is resumed with {', '.join(parts)}" if parts else ""
