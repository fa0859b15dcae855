"""DeepSpeed ZeRO around the policy. DeepSpeed is imported inside functions, as only train workers can import it."""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from raydpo.config import JobConfig
from raydpo.errors import ConfigError, ResumeError
from raydpo.training.optimizer import fast_forward, own_optimizer, parameter_groups, schedule_factory, updates_of
from raydpo.training.task import TrainTask

MAX_SKIPPED = 3
"""Number of updates that float16 skips at its smallest loss scale before that counts as divergence."""


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


class DeepSpeedEngine:
    """A DeepSpeed engine whose step returns the gradient norm and the learning rate."""

    def __init__(self, model: nn.Module, task: TrainTask) -> None:
        """Wrap the model, with the run's optimizer and learning-rate schedule.

        Raises ConfigError where DeepSpeed refuses the config that the options and the run's file make.
        """
        import deepspeed

        config = task.deepspeed_config
        # Without ZeRO and in fp32 DeepSpeed clips but does not return the norm, so `step` clips in that case.
        self.fault: str | None = None
        """What is wrong with the last update, as a clause; None for one that is well."""
        self._skipped = 0
        self._clips = config["zero_optimization"]["stage"] == 0 and not _enabled(config, "bf16", "fp16")
        self._max_norm = float(config["gradient_clipping"]) or float("inf")
        groups = parameter_groups(model, task.job.optim.weight_decay)
        optimizer = own_optimizer(task, config, groups)
        self._new_schedule = schedule_factory(task, config)
        self.fingerprint = {"trained parameters": _digest(model)}
        """What a checkpoint of this engine and the run that resumes from it must have in common."""
        settings = {key: value for key, value in config.items() if key != "scheduler"}
        if optimizer is not None:
            settings.pop("optimizer", None)
        if self._clips:
            settings["gradient_clipping"] = 0.0
        _check(settings, task.job)
        self.engine, _, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            model_parameters=groups if optimizer is None else None,
            lr_scheduler=self._first_schedule,
            config=settings,
        )

    def _first_schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        """Return the schedule from the first update, and remember the settings of the run, which it changes."""
        self._settings = [{key: group[key] for key in group.keys() - {"params"}} for group in optimizer.param_groups]
        return self._new_schedule(optimizer)

    def load(self, folder: str, tag: str) -> None:
        """Load a checkpoint that `save_checkpoint` wrote; all ranks call it.

        Weights and the optimizer's state come from there. Learning rate, weight decay and schedule are those of this
        run, at the update that the checkpoint has reached. Raises ResumeError where the checkpoint does not fit.
        """
        try:
            loaded, _ = self.engine.load_checkpoint(folder, tag=tag, load_module_strict=False)
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise ResumeError(
                f"{folder} does not fit the model and the optimizer of this run ({type(error).__name__}: {error}); set "
                "the options of the run that wrote it, or choose another with resume_from_checkpoint"
            ) from error
        if loaded is None:
            raise ResumeError(f"DeepSpeed found no checkpoint in {folder}; choose another with resume_from_checkpoint")
        updates = updates_of(self.engine.lr_scheduler)
        optimizer = self.engine.basic_optimizer
        for group, settings in zip(optimizer.param_groups, self._settings, strict=True):
            group.pop("initial_lr", None)  # the schedule takes it from the rate
            group.update(settings)
        self.engine.lr_scheduler = self._new_schedule(optimizer)
        fast_forward(self.engine.lr_scheduler, updates)

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


def _digest(model: nn.Module) -> str:
    """Return the number of trained parameters, and a digest of their names and full shapes."""
    lines = [
        f"{name} {tuple(getattr(parameter, 'ds_shape', parameter.shape))}"
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    return f"{len(lines)} tensors, {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:12]}"


def _check(settings: Mapping[str, Any], job: JobConfig) -> None:
    """Raise ConfigError where DeepSpeed does not read these settings; the user's file made them so."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    try:
        DeepSpeedConfig(dict(settings))
    except (AssertionError, KeyError, TypeError, ValueError, DeepSpeedConfigError) as error:
        if job.cluster.deepspeed is None:
            raise
        raise ConfigError(
            f"deepspeed={job.cluster.deepspeed} is not a config that DeepSpeed takes: {error}; correct the file"
        ) from error


def _enabled(config: Mapping[str, Any], *keys: str) -> bool:
    return any(config.get(key, {}).get("enabled", False) for key in keys)
