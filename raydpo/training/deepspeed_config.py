"""The DeepSpeed config of a run: from the options, with the settings of the file that `deepspeed` names."""

from collections.abc import Mapping
from typing import Any

from raydpo.config import JobConfig
from raydpo.config.fields import show
from raydpo.errors import ConfigError
from raydpo.runtime.resources import WorkerGroup
from raydpo.training.deepspeed_file import AUTO, apply_file, read_file, value_at
from raydpo.training.deepspeed_sections import (
    check_optimizer,
    check_scheduler,
    optimizer_notes,
    optimizer_params,
    optimizer_type,
    scheduler_type,
    section_params,
)


def with_deepspeed_file(
    job: JobConfig, *, gpu: bool, num_workers: int
) -> tuple[JobConfig, dict[str, Any], tuple[str, ...]]:
    """Return the job with its DeepSpeed file's values as options, the file's content, and notes on what it changed.

    Without a file the content is empty. Raises ConfigError where the file cannot be right.
    """
    path = job.cluster.deepspeed
    if path is None:
        return job, {}, ()
    content = read_file(path)
    _check_batches(path, content, job, num_workers)
    _check_fixed(path, content)
    job, notes = apply_file(job, content, gpu=gpu)
    stage = job.zero_stage(num_workers, job.precision(gpu))
    _check_stage(path, content, stage)
    check_optimizer(path, content, gpu=gpu, stage=stage, offloaded=job.cluster.offload != "none")
    check_scheduler(path, content)
    return job, content, (*optimizer_notes(path, content), *notes)


def _check_batches(path: str, content: Mapping[str, Any], job: JobConfig, num_workers: int) -> None:
    """Raise ConfigError where the file sets another batch than the options: the feed makes the batches."""
    optim = job.optim
    ours = {
        "train_micro_batch_size_per_gpu": ("per_device_train_batch_size", optim.per_device_train_batch_size),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", optim.gradient_accumulation_steps),
        "train_batch_size": (
            "per_device_train_batch_size x gradient_accumulation_steps x num_workers",
            job.global_batch(num_workers),
        ),
    }
    for key, (option, expected) in ours.items():
        value = value_at(content, key)
        if value is not None and value != expected:
            raise ConfigError(
                f"deepspeed={path} sets {key}={value}, which contradicts {option}={expected}; set it to auto, and use "
                "the flag per_device_train_batch_size"
                + (" or gradient_accumulation_steps" if key != "train_micro_batch_size_per_gpu" else "")
            )


FIXED: dict[str, tuple[Any, str]] = {
    "gradient_allreduce_op": ("mean", "each rank's loss is already its part of the global batch's mean"),
    "managed_gradient_accumulation": (True, "the training loop sets the boundaries of accumulation"),
    "torch_autocast.enabled": (False, "the reference is computed without it; set bf16=true instead"),
    "data_efficiency.enabled": (False, "the feed makes the batches, and all layers see all tokens"),
    "sequence_parallel_size": (1, "sequences are not divided among workers; set zero_stage=3 to save memory"),
    "tensor_parallel.autotp_size": (1, "layers are not divided among workers; set zero_stage=3 to save memory"),
}
"""Keys that may have one value only, with the reason: another would train something else than the options say."""


def _check_fixed(path: str, content: Mapping[str, Any]) -> None:
    """Raise ConfigError where the file asks for a way of training that is not this program's."""
    for key, (expected, reason) in FIXED.items():
        value = value_at(content, key)
        if value is not None and value != expected:
            raise ConfigError(
                f"deepspeed={path} sets {key}={show(value)}, which must be {show(expected)}, as {reason}; correct it, "
                "or leave it out"
            )


def _check_stage(path: str, content: Mapping[str, Any], stage: int) -> None:
    """Raise ConfigError where the file offloads what its ZeRO stage does not partition."""
    for section, needed in (("offload_optimizer", 1), ("offload_param", 3)):
        device = value_at(content, f"zero_optimization.{section}.device")
        if device not in (None, "none") and stage < needed:
            raise ConfigError(
                f"deepspeed={path} sets zero_optimization.{section}.device={device}, which requires ZeRO stage "
                f"{needed}, not {stage}; raise zero_optimization.stage, or set the device to none"
            )


def deepspeed_config(
    job: JobConfig, content: Mapping[str, Any], group: WorkerGroup, width: int | None
) -> dict[str, Any]:
    """Return the DeepSpeed config of the train workers; `job` and `content` are what `with_deepspeed_file` returned.

    The worker accumulates gradients itself, over a loss that is normalised by the global batch, so gradient
    accumulation is 1 for DeepSpeed. `width` is the model's hidden size, from which buffer sizes that are "auto" follow.
    Raises ConfigError where one is, and the model has no width.
    """
    precision = job.precision(group.gpu)
    config = _from_options(job, precision, gpu=group.gpu, num_workers=group.workers)
    if not content:
        return config
    path = str(job.cluster.deepspeed)
    sections = {key: value for key, value in content.items() if key not in _OURS}
    config = merge(config, sections)
    config["zero_optimization"] |= _buffers(path, content, config["zero_optimization"]["stage"], width)
    for section in ("bf16", "fp16"):
        if section in config:
            config[section]["enabled"] = precision == {"bf16": "bfloat16", "fp16": "float16"}[section]
    if "optimizer" in content:
        kind, params = optimizer_type(content), optimizer_params(path, content, job.optim)
        config["optimizer"] = {**content["optimizer"], "type": kind, "params": params}
    if scheduler_type(content):
        params = section_params(path, "scheduler", content)
        config["scheduler"] = {"type": scheduler_type(content), "params": params}
    return config


_OURS = frozenset(
    {
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "train_batch_size",
        "gradient_clipping",
        "optimizer",
        "scheduler",
    }
)
"""Keys of a file that are not merged: they equal the options by now, or have rules of their own."""


def _from_options(job: JobConfig, precision: str, *, gpu: bool, num_workers: int) -> dict[str, Any]:
    stage = job.zero_stage(num_workers, precision)
    zero: dict[str, Any] = {"stage": stage}
    if job.cluster.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": gpu}
    if job.cluster.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": gpu}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": job.optim.per_device_train_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": job.optim.max_grad_norm,
        "zero_optimization": zero,
        # Without a GPU the optimizer is torch's, offloaded or not: DeepSpeed's would have to be compiled.
        "zero_force_ds_cpu_optimizer": gpu,
        "steps_per_print": None,
    }
    if precision == "bfloat16":
        config["bf16"] = {"enabled": True}
        if stage > 0:  # bf16 sums would lose later micro-batches; stage 0 of DeepSpeed has no fp32 sums
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    elif precision == "float16":
        config["fp16"] = {"enabled": True}
    return config


def _buffers(path: str, content: Mapping[str, Any], stage: int, width: int | None) -> dict[str, int]:
    """Return the buffer sizes that the file sets to "auto", by the rules of Hugging Face's integration."""
    zero = content.get("zero_optimization", {})
    rules = {"reduce_bucket_size": lambda width: width * width}
    if stage == 3:
        rules["stage3_prefetch_bucket_size"] = lambda width: int(0.9 * width * width)
        rules["stage3_param_persistence_threshold"] = lambda width: 10 * width
    named = [key for key in rules if zero.get(key) == AUTO]
    if named and width is None:
        raise ConfigError(
            f"deepspeed={path} sets zero_optimization.{named[0]}=auto, which follows the hidden_size of the model's "
            "config, and it has none; set a number in the file"
        )
    return {key: rules[key](width) for key in named if width}


def hidden_size(config: Any) -> int | None:
    """Return the width of a Hugging Face model from its config, the largest of several; None if it names none."""
    for part in (config, getattr(config, "text_config", None)):
        for name in ("hidden_size", "hidden_sizes", "d_model", "n_embd"):
            width = getattr(part, name, None)
            if width:
                return int(max(width) if isinstance(width, list | tuple) else width)
    return None


def merge(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `ours` overridden by `theirs`, key by key at every depth; "auto" keeps ours, or DeepSpeed's default."""
    merged = dict(ours)
    for key, value in theirs.items():
        if isinstance(value, Mapping):
            merged[key] = merge(ours[key] if isinstance(ours.get(key), Mapping) else {}, value)
        elif value != AUTO:
            merged[key] = value
    return merged
