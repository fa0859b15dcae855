"""DeepSpeed ZeRO around the policy. Only this module imports DeepSpeed, and only inside a train worker."""

import json
import math
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

# Keys of a DeepSpeed file that may only be "auto", with the options that set them: the feed makes the batches.
BATCH_KEYS = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "train_batch_size": "per_device_train_batch_size",
}
MAX_SKIPPED = 3
"""Number of updates that float16 skips at its smallest loss scale before that counts as divergence."""


def deepspeed_config(job: JobConfig, precision: str, *, gpu: bool, num_workers: int) -> dict[str, Any]:
    """Return the DeepSpeed config of a run: from the options, overridden by the file that `deepspeed` names.

    The worker accumulates gradients itself, over a loss that is normalised by the global batch, so gradient
    accumulation is 1 for DeepSpeed. Raises ConfigError where the file cannot be read or sets a batch size.
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
    return merge(config, read_file(job.cluster.deepspeed)) if job.cluster.deepspeed else config


def read_file(path: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON config. Raises ConfigError where it cannot be used."""
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"deepspeed={path} cannot be read ({error.strerror}); give a JSON file's path") from error
    except ValueError as error:
        raise ConfigError(f"deepspeed={path} is not JSON ({error}); correct the file") from error
    if not isinstance(content, dict):
        raise ConfigError(f"deepspeed={path} must hold a JSON object, not a {type(content).__name__}")
    for key, flag in BATCH_KEYS.items():
        if content.get(key, "auto") != "auto":
            raise ConfigError(f"deepspeed={path} sets {key}={content[key]}; set it to auto, and use the flag {flag}")
    return content


def merge(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `ours` overridden by `theirs`, key by key at every depth; "auto" keeps ours, or DeepSpeed's default."""
    merged = dict(ours)
    for key, value in theirs.items():
        if isinstance(value, Mapping):
            merged[key] = merge(ours[key] if isinstance(ours.get(key), Mapping) else {}, value)
        elif value != "auto":
            merged[key] = value
    return merged


def prepare_process(gpu: bool) -> None:
    """Set up DeepSpeed in this worker, on top of Ray Train's process group."""
    if not gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if not gpu:
        # DeepSpeed would compile its shared-memory collectives on the first run, for a minute; gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", verbose=False)


def keep_weights_partitioned(config: Mapping[str, Any]) -> Any:
    """Under ZeRO-3, make `from_pretrained` load only each rank's share, for as long as the returned object is kept."""
    if config["zero_optimization"]["stage"] < 3:
        return None
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    return HfDeepSpeedConfig(dict(config))


def gather(config: Mapping[str, Any]) -> Callable[[Sequence[nn.Parameter]], AbstractContextManager[Any]]:
    """Return a function that makes a context in which given parameters are whole on every rank; all ranks enter it."""
    if config["zero_optimization"]["stage"] < 3:
        return lambda parameters: nullcontext()
    import deepspeed

    return lambda parameters: deepspeed.zero.GatheredParameters(list(parameters))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Vectors are biases and norms, which get no weight decay; under ZeRO-3 ds_shape has the full shape.
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


class DeepSpeedEngine:
    """A DeepSpeed engine whose step returns the gradient norm and the learning rate."""

    def __init__(self, model: nn.Module, task: TrainTask) -> None:
        """Wrap the model, with AdamW and the run's learning-rate schedule unless the DeepSpeed config names others."""
        import deepspeed
        from transformers import get_scheduler

        job, total_steps = task.job, task.schedule.total_steps
        config = task.deepspeed_config
        # Without ZeRO and in fp32 DeepSpeed clips but does not return the norm, so `step` clips in that case.
        self.fault: str | None = None
        """What is wrong with the last update, as a clause; None for one that is well."""
        self._skipped = 0
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
            optimizer=None if "optimizer" in config else _optimizer(job, config, model, task.policy.gpu),
            lr_scheduler=None if "scheduler" in config else schedule,
            config=dict(config),
        )

    def step(self) -> tuple[float, float]:
        """Clip, update and advance the schedule; return the gradient norm before clipping and the learning rate.

        Sets `fault`. Without DeepSpeed's ZeRO, an update with a fault is not made.
        """
        learning_rate = float(self.engine.optimizer.param_groups[0]["lr"])
        norm: Any = None
        _keep_smallest_scale(self.engine.optimizer)
        if self._clips:
            norm = float(torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), self._max_norm))
        if norm is None or math.isfinite(norm):
            self.engine.step()
        if norm is None:
            norm = self.engine.get_global_grad_norm()
        self.fault = self._find_fault(norm)
        return float("nan") if norm is None else float(norm), learning_rate

    def _find_fault(self, norm: Any) -> str | None:
        """Return what is wrong with an update of this gradient norm; None also where DeepSpeed computes no norm.

        DeepSpeed skips an update whose float16 gradients overflow, and halves the loss scale. That is no fault, unless
        updates are skipped one after another and the scale cannot become smaller.
        """
        if self.engine.fp16_enabled() and getattr(self.engine.optimizer, "overflow", False):
            self._skipped += _scale_is_smallest(self.engine.optimizer)
            if self._skipped < MAX_SKIPPED:
                return None
            return f"the gradient still overflows float16 at the smallest loss scale, for {self._skipped} updates"
        self._skipped = 0
        if norm is None or (math.isfinite(norm) and norm >= 0):
            return None
        return f"the gradient norm is {float(norm)}"


def _keep_smallest_scale(optimizer: Any) -> None:
    """Stop ZeRO's loss scaler from raising an error of its own at the smallest scale, which would restart the workers.

    Called before each step, as loading a checkpoint replaces the scaler.
    """
    scaler: Any = getattr(optimizer, "loss_scaler", None)
    if hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False


def _scale_is_smallest(optimizer: Any) -> bool:
    """Return whether the loss scale of float16 is fixed, or at its minimum."""
    state = getattr(optimizer, "loss_scale_config", None) or optimizer.loss_scaler
    dynamic = getattr(state, "dynamic_loss_scale", None) or getattr(state, "dynamic", False)
    smallest = getattr(state, "min_loss_scale", None) or getattr(state, "min_scale", None) or 0.0
    return not dynamic or state.cur_scale <= smallest


def _enabled(config: Mapping[str, Any], *keys: str) -> bool:
    return any(config.get(key, {}).get("enabled", False) for key in keys)
