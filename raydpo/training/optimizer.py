"""The optimizer and the learning-rate schedule of a run: AdamW by the options, or what its DeepSpeed file names."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from raydpo.training.deepspeed_keys import ADAM, OPTIMIZERS, SCHEDULERS
from raydpo.training.deepspeed_sections import scheduler_params
from raydpo.training.task import TrainTask

ScheduleFactory = Callable[[Any], Any]
"""Makes a learning-rate schedule, at its first update, from an optimizer."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters in groups: matrices with weight decay; biases and norms without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Vectors are biases and norms, which get no weight decay; under ZeRO-3 ds_shape has the full shape.
    matrices = [parameter for parameter in trained if len(getattr(parameter, "ds_shape", parameter.shape)) > 1]
    vectors = [parameter for parameter in trained if len(getattr(parameter, "ds_shape", parameter.shape)) <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def own_optimizer(
    task: TrainTask, config: Mapping[str, Any], groups: list[dict[str, Any]]
) -> torch.optim.Optimizer | None:
    """Return the optimizer over the groups of parameters; None where DeepSpeed builds it from the config."""
    optim, section = task.job.optim, config.get("optimizer")
    betas = (optim.adam_beta1, optim.adam_beta2)
    arguments: dict[str, Any] = {"lr": optim.learning_rate, "betas": betas, "eps": optim.adam_epsilon}
    decoupled = True
    if section:
        kind, params = section["type"], dict(section["params"])
        if kind in OPTIMIZERS - ADAM:
            return None
        if kind not in ADAM:
            built: torch.optim.Optimizer = getattr(torch.optim, kind)(_with_decay(groups, params), **params)
            return built
        # DeepSpeed's Adam is AdamW unless its file says adam_w_mode=false.
        decoupled = kind == "adamw" or bool(params.get("adam_w_mode", True))
    if task.policy.gpu and config["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        offloaded: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, **arguments, adamw_mode=decoupled)
        return offloaded
    return (torch.optim.AdamW if decoupled else torch.optim.Adam)(groups, **arguments, fused=True)


def _with_decay(groups: list[dict[str, Any]], params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups without weight decay of their own where the optimizer has none."""
    return groups if "weight_decay" in params else [{"params": group["params"]} for group in groups]


def schedule_factory(task: TrainTask, config: Mapping[str, Any]) -> ScheduleFactory:
    """Return what makes the learning-rate schedule: the file's where it names one, else that of the options."""
    job, total_steps = task.job, task.schedule.total_steps

    def from_options(optimizer: torch.optim.Optimizer) -> Any:
        from transformers import get_scheduler

        return get_scheduler(
            job.optim.lr_scheduler_type,
            optimizer,
            num_warmup_steps=job.optim.warmup_updates(total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=job.optim.lr_scheduler_kwargs,
        )

    if "scheduler" not in config:
        return from_options
    kind = config["scheduler"]["type"]
    params = scheduler_params(str(job.cluster.deepspeed), config, job.optim, total_steps)

    def from_file(optimizer: torch.optim.Optimizer) -> Any:
        if kind not in SCHEDULERS:
            return getattr(torch.optim.lr_scheduler, kind)(optimizer, **params)
        from deepspeed.runtime import lr_schedules

        return getattr(lr_schedules, kind)(optimizer, **params)

    return from_file


def updates_of(schedule: Any) -> int:
    """Return how many updates a schedule of torch or DeepSpeed has seen."""
    if hasattr(schedule, "last_epoch"):
        return int(schedule.last_epoch)
    return int(schedule.last_batch_iteration) + 1


def fast_forward(schedule: Any, updates: int) -> None:
    """Bring a new schedule to where it is after this many updates, with the rates of the optimizer's groups."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*optimizer.step.*")
        while updates_of(schedule) < updates:
            schedule.step()
