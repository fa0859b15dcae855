"""What becomes of the keys that a TRL command or YAML file holds and that are no options here.

Each field of TRL's DPOConfig (with all of TrainingArguments), ORPOConfig, CPOConfig, ModelConfig, ScriptArguments and
DatasetMixtureConfig is an option (config/) or stands in one of the tables below. So do the launcher's keys, and
names of earlier versions that configs still carry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raydpo.config import fields
from raydpo.errors import ConfigError


@dataclass(frozen=True)
class ForeignKey:
    """A key of others; at a neutral value it asks for nothing, and nothing is said of it."""

    neutral: tuple[object, ...]
    """Values that ask for nothing; the first is TRL's default."""
    text: str
    """What happens instead, or why not and what to do."""

    def asks(self, value: object) -> bool:
        """True where the value, as text or in its type, is none of the neutral ones."""
        return not any(_same(value, neutral) for neutral in self.neutral)


def _same(value: object, neutral: object) -> bool:
    if neutral is None:
        return value in (None, "", (), [], {}) or str(value).lower() in (*fields.UNSET, "[]", "{}")
    try:
        return bool(fields.convert(value, type(neutral)) == neutral)
    except ValueError:
        return False


def _each(text: str, **neutral: object) -> dict[str, ForeignKey]:
    """Keys that the same is to be said of; a tuple gives several neutral values."""
    return {key: ForeignKey(value if isinstance(value, tuple) else (value,), text) for key, value in neutral.items()}


RENAMED = {
    "activation_checkpointing": "gradient_checkpointing",  # its name from transformers 6 on
    "evaluation_strategy": "eval_strategy",
    "num_processes": "num_workers",  # of `accelerate launch`
    "ref_model": "reference_model",
    "ref_model_name_or_path": "reference_model",
    "torch_dtype": "dtype",
}
"""Other names of options, which are taken with any value; null leaves the option out."""

_ON_CPU = {"gpus_per_worker": 0, "reference_gpus_per_worker": 0}
TRANSLATED: dict[str, dict[str, dict[str, Any]]] = {
    "accelerate_config": {  # of TRL's command
        "zero1": {"zero_stage": 1},
        "zero2": {"zero_stage": 2},
        "zero3": {"zero_stage": 3},
        "single_gpu": {"zero_stage": 0, "num_workers": 1},
        "multi_gpu": {"zero_stage": 0},
    },
    "mixed_precision": {"bf16": {"bf16": True}, "fp16": {"fp16": True}, "no": {}},  # of `accelerate launch`
    "no_cuda": {"true": _ON_CPU, "false": {}},
    "overwrite_output_dir": {"true": {"resume_from_checkpoint": "none"}, "false": {}},
    "use_cpu": {"true": _ON_CPU, "false": {}},
    "use_flash_attention_2": {"true": {"attn_implementation": "flash_attention_2"}, "false": {}},
}
"""Keys whose values are said by other options: key -> value -> options."""

# fmt: off
WITHOUT_MEANING = {
    # The reference and the data
    **_each("reference log-probs are always computed once, and kept", precompute_ref_log_probs=False),
    **_each("reference_model is used wherever it is named", force_use_ref_model=False),
    **_each("data is always streamed", dataset_streaming=False, streaming=False),
    **_each("every free CPU of the cluster tokenizes", dataset_num_proc=None, preprocessing_num_workers=None),
    **_each("columns that are not needed are never read", remove_unused_columns=True, label_names=None),
    **_each("lengths are those of the token ids", length_column_name="length"),
    **_each("one actor makes batches ahead of need for all workers",
            dataloader_num_workers=0, dataloader_pin_memory=True, dataloader_persistent_workers=False,
            dataloader_prefetch_factor=None, dataloader_multiprocessing_context=None, dataloader_in_order=True),
    **_each("rows are packed without padding, or it is masked: it changes no result",
            padding_free=False, pad_to_multiple_of="auto", pad_token=None, padding_value=None, label_pad_token_id=-100),
    **_each("only the completions' tokens reach the vocabulary, logits_chunk_tokens at a time",
            use_logits_to_keep=False),
    **_each("the reference scores packed rows of tokens_per_micro_batch tokens", precompute_ref_batch_size=None),
    # Speed and memory
    **_each("log-probs always come from a chunked head, and the model's layers are its own",
            use_liger_kernel=False, liger_kernel_config=None),
    **_each("every layer is checkpointed, without re-entrance",
            activation_checkpointing_kwargs=None, gradient_checkpointing_kwargs=None),
    **_each("training keeps no key-value cache", use_cache=False),
    **_each("torch's setting stays as it is", tf32=None, torch_empty_cache_steps=None),
    **_each("DeepSpeed spreads the model, and fsdp is refused", fsdp_config=None),
    **_each("DeepSpeed sums the gradients, over NCCL with GPUs and gloo without",
            ddp_find_unused_parameters=None, ddp_bucket_cap_mb=None, ddp_broadcast_buffers=None, ddp_static_graph=None,
            ddp_backend=None, ddp_timeout=1800, ignore_bias_buffers=False),
    **_each("Ray Train starts the workers, and Ray knows the nodes",
            local_rank=-1, num_machines=1, machine_rank=0, main_process_ip=None, main_process_port=None,
            multi_gpu=False, gpu_ids="all", use_deepspeed=False),
    **_each("nothing is quantised",
            bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=None, bnb_4bit_quant_storage=None,
            use_bnb_nested_quant=False),
    # Evaluation, metrics, logging
    **_each("a job trains, and eval_strategy says if it evaluates", do_train=False, do_eval=False, do_predict=False),
    **_each("held-out pairs are evaluated before the first update, then as eval_strategy says, and at the end",
            eval_on_start=False, eval_delay=0.0),
    **_each("evaluation computes in the type that training does", bf16_full_eval=False, fp16_full_eval=False),
    **_each("evaluation keeps sums only, and writes every metric",
            prediction_loss_only=False, eval_do_concat_batches=True, eval_use_gather_object=False,
            eval_accumulation_steps=None, include_for_metrics=None, include_inputs_for_metrics=False,
            batch_eval_metrics=False),
    **_each("means are always over all ranks", average_tokens_across_devices=True),
    **_each("num_tokens and tokens_per_second are always logged",
            include_num_input_tokens_seen="no", include_tokens_per_second=False),
    **_each("a loss that is not finite stops the run", logging_nan_inf_filter=True, debug=""),
    **_each("the driver alone tells of the run; verbose shows the libraries' messages",
            disable_tqdm=None, log_level="passive", log_level_replica="warning", log_on_each_node=True,
            skip_memory_metrics=True),
    **_each("TensorBoard's files lie in output_dir/tensorboard", logging_dir=None),
    **_each("report_to names the trackers, and Trackio is none of them",
            project="huggingface", trackio_space_id=None, trackio_bucket_id=None, trackio_static_space_id=None),
    # Checkpoints and the hub
    **_each("a resumed run goes on with the exact next pair, at once", ignore_data_skip=False),
    **_each("there are no callbacks", restore_callback_states_from_checkpoint=False),
    **_each("each worker writes its share of a checkpoint, once", save_on_each_node=False),
    **_each("weights are always saved as safetensors", save_safetensors=True),
    **_each("model/ holds the last weights", metric_for_best_model=None, greater_is_better=None),
    **_each("nothing is pushed to the hub",
            hub_model_id=None, hub_model_revision=None, hub_revision=None, hub_token=None, hub_private_repo=None,
            hub_strategy="every_save", hub_always_push=False),
}
"""Keys that change no result here: what happens instead, said once for a value that asks for something."""

REFUSED = {
    # The model
    **_each("quantised base models are not supported; use use_peft with dtype bfloat16",
            load_in_8bit=False, load_in_4bit=False),
    **_each("use dtype, attn_implementation, model_revision and trust_remote_code",
            model_init_kwargs=None, ref_model_init_kwargs=None),
    **_each("the tokenizer and its chat template come with the model; save them there",
            tokenizer_name_or_path=None, chat_template=None),
    **_each("models are decoders only; leave it out", is_encoder_decoder=(None, False)),
    **_each("an adapter is for causal language modelling; leave it out", lora_task_type="CAUSAL_LM"),
    **_each("adapters go beside modules; use lora_target_modules", lora_target_parameters=None),
    # The data
    **_each("name the data in dataset_name, which takes several, the split in dataset_train_split, and held-out "
            "data in eval_dataset_name; every row is taken",
            datasets=None, dataset_mixer=None, dataset_mixture=None),
    **_each("use dataset_train_split and dataset_test_split", dataset_splits=None),
    **_each("use dataset_config", dataset_configs=None),
    **_each("name held-out files in eval_dataset_name", test_split_size=None),
    **_each("completions have no limit of their own; use max_length", max_completion_length=None),
    **_each("each epoch trains on every pair, its last update on what is left; leave it out",
            dataloader_drop_last=False),
    **_each("rows are packed, so that an order by length saves nothing; leave it out", group_by_length=False),
    **_each("batches are cut by per_device_train_batch_size and gradient_accumulation_steps; set these",
            accelerator_config=None, auto_find_batch_size=False),
    # The objective
    **_each("use label_smoothing", label_smoothing_factor=0.0),
    **_each("AlphaPO is not supported; its alpha=0 is loss_type simpo with cpo_alpha 0", alpha=0.0),
    **_each("no noise is added to embeddings; leave it out", neftune_noise_alpha=None),
    # The optimisation
    **_each("use learning_rate", lr=None),
    **_each("the optimizer is AdamW (adamw_torch); another one goes into the file that `deepspeed` names",
            optim=("adamw_torch_fused", "adamw_torch", "adamw_hf"), optim_target_modules=None),
    **_each("AdamW is set by adam_beta1, adam_beta2 and adam_epsilon", optim_args=None),
    **_each("torch_compile takes torch's own backend and mode; leave it out",
            torch_compile_backend=None, torch_compile_mode=None, torchdynamo=None),
    **_each("activations are recomputed or kept, not moved; use gradient_checkpointing, and offload for the optimizer",
            activation_offloading=False),
    **_each("DeepSpeed spreads the model; zero_stage 3 does so with all of it", fsdp=(None, False)),
    **_each("each worker takes whole sequences and layers; use zero_stage 3 and offload", parallelism_config=None),
    **_each("torch may use kernels that differ from run to run on a GPU; leave it out (on CPU a run repeats bit "
            "for bit)",
            full_determinism=False),
    # The run
    **_each("nothing is pushed; upload output_dir/model after the run", push_to_hub=False),
    **_each("model/ holds the last weights; to have earlier ones, run again with max_steps",
            load_best_model_at_end=False),
    **_each("a checkpoint holds all that a resume needs; save_strategy no writes none", save_only_model=False),
    **_each("checkpoints are written as save_strategy says; lower save_steps", enable_jit_checkpoint=False),
    **_each("evaluation writes no text; leave it out", generate_during_eval=False),
    **_each("use num_workers, zero_stage and deepspeed", config_file=None),
    **_each("set environment variables where the job is started and where Ray's nodes are", env=None),
}
"""Keys that promise what is not done here: why, and what to do. A value that asks for it is an error."""
# fmt: on

KEYS = {*RENAMED, *TRANSLATED, *WITHOUT_MEANING, *REFUSED}
SECRET = "hub_token"  # its value is not for the log


def kind(key: str) -> Any:
    """The type of a foreign key's flag: bool where it is one, else `object`, which takes any words after it."""
    if key in TRANSLATED:
        return bool if "true" in TRANSLATED[key] else object
    return bool if isinstance({**WITHOUT_MEANING, **REFUSED}[key].neutral[0], bool) else object


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one source (flags, or a file) with other names of options replaced by the options.

    ConfigError for a value that no option says, and for two names of one option that contradict each other.
    """
    others = [key for key in values if key in RENAMED or key in TRANSLATED]
    found = {name: value for name, value in values.items() if name not in others}
    for key in others:
        for name, value in _meaning(key, values[key]).items():
            if name in found and fields.show(found[name]).lower() != fields.show(value).lower():
                raise ConfigError(
                    f"{key}={fields.show(values[key])} contradicts {name}={fields.show(found[name])}; leave one of "
                    "them out"
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
    raise ConfigError(
        f"{key}={fields.show(value)} must be one of {', '.join(table)}; change it, or say it with {', '.join(meant)}"
    )


def notices(values: Mapping[str, Any]) -> list[str]:
    """What is to be said of the foreign keys among the values; ConfigError for one that is refused."""
    said = []
    for key, value in values.items():
        shown = f"{key}={'...' if key == SECRET else fields.show(value)}"
        if key in REFUSED and REFUSED[key].asks(value):
            raise ConfigError(f"{shown} is not supported here: {REFUSED[key].text}")
        if key in WITHOUT_MEANING and WITHOUT_MEANING[key].asks(value):
            said.append(f"{shown} has no meaning here: {WITHOUT_MEANING[key].text}")
    return said
