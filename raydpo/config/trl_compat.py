"""How the keys of TRL commands and YAML files are handled that are not options of raydpo.

Each field of TRL's DPOConfig (with all of TrainingArguments), ORPOConfig, CPOConfig, ModelConfig, ScriptArguments and
DatasetMixtureConfig is either an option (config/) or a key of one of the tables below: renamed, translated, without
effect, or refused. The tables also have the launcher's keys, and names of earlier versions that configs still contain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raydpo.config.fields import UNSET, convert, show
from raydpo.errors import ConfigError


@dataclass(frozen=True)
class ForeignKey:
    """A key of TRL that is not an option of raydpo. With a neutral value it is accepted without a message."""

    neutral: tuple[object, ...]
    """Values that request nothing; the first is TRL's default."""
    text: str
    """What raydpo does instead, or why the key is not supported and what to do; the end of a message."""

    def is_requested(self, value: object) -> bool:
        """Return whether the value, as text or in its own type, differs from all neutral values."""
        return not any(_same(value, neutral) for neutral in self.neutral)


def _same(value: object, neutral: object) -> bool:
    if neutral is None:
        return value in (None, "", (), [], {}) or str(value).lower() in (*UNSET, "[]", "{}")
    try:
        return bool(convert(value, type(neutral)) == neutral)
    except ValueError:
        return False


def _each(text: str, **neutral: object) -> dict[str, ForeignKey]:
    """Return entries that share a text, from each key's neutral value, or tuple of neutral values."""
    return {key: ForeignKey(value if isinstance(value, tuple) else (value,), text) for key, value in neutral.items()}


RENAMED = {
    "activation_checkpointing": "gradient_checkpointing",  # the name from transformers 6 on
    "evaluation_strategy": "eval_strategy",
    "max_target_length": "max_completion_length",  # its name before TRL 0.11
    "model": "model_name_or_path",
    "num_processes": "num_workers",  # a flag of `accelerate launch`
    "ref_model": "reference_model",
    "ref_model_name_or_path": "reference_model",
    "torch_dtype": "dtype",
}
"""Alternative names of options: key -> option. Any value is passed on; null leaves the option unset."""

_ON_CPU = {"gpus_per_worker": 0, "reference_gpus_per_worker": 0}
TRANSLATED: dict[str, dict[str, dict[str, Any]]] = {
    "accelerate_config": {  # a flag of TRL's command line
        "zero1": {"zero_stage": 1},
        "zero2": {"zero_stage": 2},
        "zero3": {"zero_stage": 3},
        "single_gpu": {"zero_stage": 0, "num_workers": 1},
        "multi_gpu": {"zero_stage": 0},
    },
    "mixed_precision": {"bf16": {"bf16": True}, "fp16": {"fp16": True}, "no": {}},  # a flag of `accelerate launch`
    "no_cuda": {"true": _ON_CPU, "false": {}},
    "overwrite_output_dir": {"true": {"resume_from_checkpoint": "none"}, "false": {}},
    "use_cpu": {"true": _ON_CPU, "false": {}},
    "use_flash_attention_2": {"true": {"attn_implementation": "flash_attention_2"}, "false": {}},
}
"""Keys whose values correspond to values of options: key -> value -> options."""

RECIPES = {
    "dataset_mixture": "`datasets`, `dataset_seed` (its `seed`) and `test_split_size`",
    "dataset_mixer": "`datasets`, one for each data set and split of training pairs",
    "dataset_splits": "the split of each of `datasets`, and `dataset_test_split`",
    "dataset_configs": "the name (configuration) of each of `datasets`",
}
"""Keys of the alignment handbook's recipes that `config.recipes` reads, and the options that they stand for."""

# fmt: off
NO_EFFECT = {
    # The reference and the data
    **_each("reference log-probs are always computed once and cached", precompute_ref_log_probs=False),
    **_each("reference_model is always used if it is set", force_use_ref_model=False),
    **_each("datasets are always streamed", dataset_streaming=False, streaming=False),
    **_each("every free CPU of the cluster is used for tokenization",
            dataset_num_proc=None, preprocessing_num_workers=None),
    **_each("columns that are not needed are never read", remove_unused_columns=True, label_names=None),
    **_each("lengths are always counted in token ids", length_column_name="length"),
    **_each("one actor prefetches the batches of all workers",
            dataloader_num_workers=0, dataloader_pin_memory=True, dataloader_persistent_workers=False,
            dataloader_prefetch_factor=None, dataloader_multiprocessing_context=None, dataloader_in_order=True),
    **_each("rows are packed without padding, or padding is masked, so that it changes no result",
            padding_free=False, pad_to_multiple_of="auto", pad_token=None, padding_value=None, label_pad_token_id=-100),
    **_each("logits are only computed for completion tokens, logits_chunk_tokens at a time",
            use_logits_to_keep=False),
    **_each("the reference scores packed rows of up to tokens_per_micro_batch tokens", precompute_ref_batch_size=None),
    # Speed and memory
    **_each("log-probs are always computed with a chunked head, and the model's layers are not replaced",
            use_liger_kernel=False, liger_kernel_config=None),
    **_each("every layer is checkpointed with use_reentrant=False",
            activation_checkpointing_kwargs=None, gradient_checkpointing_kwargs=None),
    **_each("training never uses a key-value cache", use_cache=False),
    **_each("torch's own setting is not changed", tf32=None, torch_empty_cache_steps=None),
    **_each("DeepSpeed partitions the model, and fsdp is not supported", fsdp_config=None),
    **_each("DeepSpeed reduces the gradients, over NCCL on GPUs and gloo on CPUs",
            ddp_find_unused_parameters=None, ddp_bucket_cap_mb=None, ddp_broadcast_buffers=None, ddp_static_graph=None,
            ddp_backend=None, ddp_timeout=1800, ignore_bias_buffers=False),
    **_each("Ray Train starts the workers on the nodes of the Ray cluster",
            local_rank=-1, num_machines=1, machine_rank=0, main_process_ip=None, main_process_port=None,
            multi_gpu=False, gpu_ids="all", use_deepspeed=False),
    **_each("the base model is never quantised",
            bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=None, bnb_4bit_quant_storage=None,
            use_bnb_nested_quant=False),
    # Evaluation, metrics, logging
    **_each("a job always trains, and eval_strategy decides whether it evaluates",
            do_train=False, do_eval=False, do_predict=False),
    **_each("held-out pairs are evaluated before the first update, as eval_strategy sets, and at the end",
            eval_on_start=False, eval_delay=0.0),
    **_each("evaluation always computes in the dtype of training", bf16_full_eval=False, fp16_full_eval=False),
    **_each("evaluation keeps only sums, and always logs every metric",
            prediction_loss_only=False, eval_do_concat_batches=True, eval_use_gather_object=False,
            eval_accumulation_steps=None, include_for_metrics=None, include_inputs_for_metrics=False,
            batch_eval_metrics=False),
    **_each("metrics are always averaged over all ranks", average_tokens_across_devices=True),
    **_each("num_tokens and tokens_per_second are always logged",
            include_num_input_tokens_seen="no", include_tokens_per_second=False),
    **_each("a loss that is not finite stops the run", logging_nan_inf_filter=True, debug=""),
    **_each("only the driver logs; verbose shows the messages of Ray and DeepSpeed",
            disable_tqdm=None, log_level="passive", log_level_replica="warning", log_on_each_node=True,
            skip_memory_metrics=True),
    **_each("TensorBoard files are written to output_dir/tensorboard", logging_dir=None),
    **_each("report_to sets the trackers, and Trackio is not supported",
            project="huggingface", trackio_space_id=None, trackio_bucket_id=None, trackio_static_space_id=None),
    # Checkpoints and the hub
    **_each("a resumed run always continues with the exact next pair, without replaying those before it",
            ignore_data_skip=False),
    **_each("there are no trainer callbacks", restore_callback_states_from_checkpoint=False),
    **_each("each worker writes its own part of a checkpoint, once", save_on_each_node=False),
    **_each("weights are always saved as safetensors", save_safetensors=True),
    **_each("model/ always contains the final weights", metric_for_best_model=None, greater_is_better=None),
    **_each("nothing is pushed to the hub; upload output_dir/model after the run", push_to_hub=False),
    **_each("nothing is pushed to the hub",
            hub_model_id=None, hub_model_revision=None, hub_revision=None, hub_token=None, hub_private_repo=None,
            hub_strategy="every_save", hub_always_push=False),
}
"""Keys that have no effect, as they change no result; the notice for a value that is not neutral has its text."""

REFUSED = {
    # The model
    **_each("quantised weights cannot be trained in full; set use_peft=true, which trains an adapter on the base model "
            "as it is, not quantised",
            load_in_8bit=False, load_in_4bit=False),
    **_each("arbitrary arguments are not passed on; use dtype, attn_implementation, model_revision and "
            "trust_remote_code",
            model_init_kwargs=None, ref_model_init_kwargs=None),
    **_each("the tokenizer is read from the model's folder; save it there", tokenizer_name_or_path=None),
    **_each("adapters have the task type of their model; leave it out", lora_task_type=("CAUSAL_LM", "SEQ_2_SEQ_LM")),
    **_each("adapters are added to modules, not to parameters; use lora_target_modules", lora_target_parameters=None),
    # The data
    **_each("each epoch trains on every pair, with a smaller last batch if need be; leave it out",
            dataloader_drop_last=False),
    **_each("rows are packed, so that grouping by length saves nothing; leave it out", group_by_length=False),
    **_each("the global batch is set by per_device_train_batch_size and gradient_accumulation_steps; use these",
            accelerator_config=None, auto_find_batch_size=False),
    # The objective
    **_each("it smooths token labels, and label_smoothing smooths preference labels; use that",
            label_smoothing_factor=0.0),
    **_each("AlphaPO is not supported; with alpha=0 it is loss_type=simpo with cpo_alpha=0", alpha=0.0),
    **_each("noise on embeddings is not supported; leave it out", neftune_noise_alpha=None),
    # The optimisation
    **_each("set learning_rate", lr=None),
    **_each("the optimizer is AdamW (adamw_torch); set another one in the config file of `deepspeed`",
            optim=("adamw_torch_fused", "adamw_torch", "adamw_hf"), optim_target_modules=None),
    **_each("the arguments of AdamW are set by adam_beta1, adam_beta2 and adam_epsilon", optim_args=None),
    **_each("torch_compile uses torch's default backend and mode; leave it out",
            torch_compile_backend=None, torch_compile_mode=None, torchdynamo=None),
    **_each("activations cannot be offloaded; use gradient_checkpointing, and offload for the optimizer",
            activation_offloading=False),
    **_each("DeepSpeed partitions the model; zero_stage=3 partitions everything, like full_shard", fsdp=(None, False)),
    **_each("tensor, context and sequence parallelism are not supported; use zero_stage=3 and offload",
            parallelism_config=None),
    **_each("on GPUs torch may choose kernels that differ from run to run; leave it out (on CPUs a run repeats bit "
            "for bit)",
            full_determinism=False),
    # The run
    **_each("model/ contains the final weights; to get earlier ones, run again with a smaller max_steps",
            load_best_model_at_end=False),
    **_each("checkpoints always contain all that is needed to resume; set save_strategy=no to write none",
            save_only_model=False),
    **_each("checkpoints are only written as save_strategy sets; lower save_steps", enable_jit_checkpoint=False),
    **_each("evaluation generates no text; leave it out", generate_during_eval=False),
    **_each("Accelerate is not used; set num_workers, zero_stage and deepspeed", config_file=None),
    **_each("set environment variables where the job and the Ray nodes are started", env=None),
}
"""Keys of features that raydpo does not have; the error for a value that is not neutral has the entry's text."""
# fmt: on

KEYS = {*RENAMED, *TRANSLATED, *RECIPES, *NO_EFFECT, *REFUSED}
SECRET = "hub_token"  # a key whose value must not be logged


def kind(key: str) -> Any:
    """Return the type of a foreign key's flag: bool, or `object`, which accepts any number of words."""
    if key in RECIPES:
        return object
    if key in TRANSLATED:
        return bool if "true" in TRANSLATED[key] else object
    return bool if isinstance({**NO_EFFECT, **REFUSED}[key].neutral[0], bool) else object


def translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of one source (flags or a file) with alternative names and translated keys as options.

    Raises ConfigError if no option corresponds to a value, or if two names of one option have different values.
    """
    others = [key for key in values if key in RENAMED or key in TRANSLATED]
    found = {name: value for name, value in values.items() if name not in others}
    for key in others:
        for name, value in _meaning(key, values[key]).items():
            if name in found and show(found[name]).lower() != show(value).lower():
                raise ConfigError(
                    f"{key}={show(values[key])} contradicts {name}={show(found[name])}; leave one of them out"
                )
            found[name] = value
    return found


def _meaning(key: str, value: Any) -> dict[str, Any]:
    if _same(value, None):
        return {}
    if key in RENAMED:
        return {RENAMED[key]: value}
    table = TRANSLATED[key]
    for word, said in table.items():
        if _same(value, word == "true" if "true" in table else word):
            return said
    meant = sorted({name for said in table.values() for name in said})
    raise ConfigError(f"{key}={show(value)} must be one of {', '.join(table)}; change it, or use {', '.join(meant)}")


def notices(values: Mapping[str, Any]) -> list[str]:
    """Return a message for each foreign key that has no effect. Raises ConfigError for a key that is refused."""
    said = []
    for key, value in values.items():
        shown = f"{key}={'...' if key == SECRET else show(value)}"
        if key in REFUSED and REFUSED[key].is_requested(value):
            raise ConfigError(f"{shown} is not supported here: {REFUSED[key].text}")
        if key in NO_EFFECT and NO_EFFECT[key].is_requested(value):
            said.append(f"{shown} has no effect here: {NO_EFFECT[key].text}")
    return said
