"""DeepSpeed ZeRO around the policy. DeepSpeed is imported in here alone, and inside a worker only."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raydpo.config import JobConfig
from raydpo.errors import ConfigError
from raydpo.training.task import TrainTask

# What a DeepSpeed file may only repeat: the batch is cut by the feed, which these flags set.
BATCH_KEYS = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "train_batch_size": "per_device_train_batch_size",
}


def deepspeed_config(job: JobConfig, precision: str, *, gpu: bool, num_workers: int) -> dict[str, Any]:
    """The DeepSpeed config of a run: from the flags, then what the file named by `deepspeed` says, which wins.

    Accumulation is driven by hand over a loss that is normalised by the global batch, so to DeepSpeed each update is
    one step of accumulation. `ConfigError` where the file cannot be read or sets a batch size.
    """
    stage = job.zero_stage(num_workers, precision)
    zero: dict[str, Any] = {"stage": stage}
    if job.cluster.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": gpu}
        zero["offload_param"] = {"device": "cpu", "pin_memory": gpu} if job.cluster.offload == "all" else {}
        zero = {key: value for key, value in zero.items() if value != {}}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": job.optim.per_device_train_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": job.optim.max_grad_norm,
        "zero_optimization": zero,
        # The optimizer is torch's own where there is no GPU, offloaded or not: DeepSpeed's would have to be compiled.
        "zero_force_ds_cpu_optimizer": gpu,
        "steps_per_print": None,
    }
    if precision == "bfloat16":
        config["bf16"] = {"enabled": True}
        if stage > 0:  # summing micro-batches in bf16 would lose the later ones, but DeepSpeed has no other way here
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    elif precision == "float16":
        config["fp16"] = {"enabled": True}
    return merge(config, read_file(job.cluster.deepspeed)) if job.cluster.deepspeed else config


def read_file(path: str) -> dict[str, Any]:
    """A DeepSpeed JSON config; `ConfigError` where it cannot be used."""
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"deepspeed={path} cannot be read ({error.strerror}); give a JSON file's path") from error
    except ValueError as error:
        raise ConfigError(f"deepspeed={path} is not JSON ({error}); mend the file") from error
    if not isinstance(content, dict):
        raise ConfigError(f"deepspeed={path} must hold a JSON object, not a {type(content).__name__}")
    for key, flag in BATCH_KEYS.items():
        if content.get(key, "auto") != "auto":
            raise ConfigError(f"deepspeed={path} sets {key}={content[key]}; set it to auto, and use the flag {flag}")
    return content


def merge(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """`theirs` over `ours`, key by key at every depth; "auto" leaves ours, or the default of DeepSpeed."""
    merged = dict(ours)
    for key, value in theirs.items():
        if isinstance(value, Mapping):
            merged[key] = merge(ours[key] if isinstance(ours.get(key), Mapping) else {}, value)
        elif value != "auto":
            merged[key] = value
    return merged


def prepare_process(gpu: bool) -> None:
    """Set up DeepSpeed in this worker, on top of the process group that Ray Train made."""
    if not gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if not gpu:
        # Its shared-memory collectives would be compiled on the first run, for a minute; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", verbose=False)


def keep_weights_partitioned(config: Mapping[str, Any]) -> Any:
    """Under ZeRO-3: make `from_pretrained` load each rank's share only, for as long as the result is kept alive."""
    if config["zero_optimization"]["stage"] < 3:
        return None
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    return HfDeepSpeedConfig(dict(config))


def gather(config: Mapping[str, Any]) -> Callable[[Sequence[nn.Parameter]], AbstractContextManager[Any]]:
    """A context in which the given parameters are whole on every rank; all ranks must enter it alike."""
    if config["zero_optimization"]["stage"] < 3:
        return lambda parameters: nullcontext()
    import deepspeed

    return lambda parameters: deepspeed.zero.GatheredParameters(list(parameters))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Vectors are biases and norms, which have no decay; under ZeRO-3 the true shape is in ds_shape.
    matrices = [parameter for parameter in trained if len(getattr(parameter, "ds_shape", parameter.shape)) > 1]
    vectors = [parameter for parameter in trained if len(getattr(parameter, "ds_shape", parameter.shape)) <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _optimizer(job: JobConfig, config: Mapping[str, Any], model: nn.Module, gpu: bool) -> torch.optim.Optimizer:
    optim = job.optim
    groups = [group for group in _parameter_groups(model, optim.weight_decay) if group["params"]]
    betas = (optim.adam_beta1, optim.adam_beta2)
    arguments: dict[str, Any] = {"lr": optim.learning_rate, "betas": betas, "eps": optim.adam_epsilon}
    if gpu and config["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        offloaded: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, **arguments)
        return offloaded
    return torch.optim.AdamW(groups, **arguments, fused=True)


class Engine:
    """A DeepSpeed engine, with the two things that it leaves open: the gradient's norm and the learning rate."""

    def __init__(self, model: nn.Module, task: TrainTask, config: Mapping[str, Any]) -> None:
        """Wrap the model, with AdamW and the run's learning-rate schedule unless the config names others."""
        import deepspeed
        from transformers import get_scheduler

        job, total_steps = task.job, task.schedule.total_steps
        # Without ZeRO and in fp32 DeepSpeed clips but does not say the norm, so that case is clipped in `step`.
        self._clips = config["zero_optimization"]["stage"] == 0 and not _enabled(config, "bf16", "fp16")
        self._max_norm = float(config["gradient_clipping"]) or float("inf")
        if self._clips:
            config = {**config, "gradient_clipping": 0.0}

        def schedule(optimizer: torch.optim.Optimizer) -> Any:
            return get_scheduler(
                job.optim.lr_scheduler_type,
                optimizer,
                num_warmup_steps=job.optim.warmup_updates(total_steps),
                num_training_steps=total_steps,
                scheduler_specific_kwargs=job.optim.lr_scheduler_kwargs,
            )

        self.engine, _, _, self._scheduler = deepspeed.initialize(
            model=model,
            optimizer=None if "optimizer" in config else _optimizer(job, config, model, task.gpu),
            lr_scheduler=None if "scheduler" in config else schedule,
            config=dict(config),
        )

    def step(self) -> tuple[float, float]:
        """Clip, update, advance the schedule -> the gradient's norm before clipping, the learning rate used."""
        learning_rate = float(self.engine.optimizer.param_groups[0]["lr"])
        norm: Any = None
        if self._clips:
            norm = torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), self._max_norm)
        self.engine.step()
        if norm is None:
            norm = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm), learning_rate


def _enabled(config: Mapping[str, Any], *keys: str) -> bool:
    return any(config.get(key, {}).get("enabled", False) for key in keys)
