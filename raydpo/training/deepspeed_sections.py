"""The sections `optimizer` and `scheduler` of a DeepSpeed file: their parameters, with the options where they say none.

Nothing here imports DeepSpeed: the driver checks a file before any worker starts.
"""

import inspect
import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from raydpo.config import OptimConfig
from raydpo.errors import ConfigError
from raydpo.training import deepspeed_keys
from raydpo.training.deepspeed_file import AUTO, check_names

ADAM_PARAMETERS = frozenset({"lr", "betas", "eps", "weight_decay", "adam_w_mode", "torch_adam", "bias_correction"})
"""Parameters of Adam and AdamW. Here they are torch's fused ones, or DeepSpeedCPUAdam where they are offloaded."""
OWN_OPTIMIZERS = {
    "adagrad": frozenset({"lr", "eps", "weight_decay", "lr_decay"}),
    "lamb": frozenset({"lr", "betas", "eps", "weight_decay", "bias_correction", "max_coeff", "min_coeff"}),
    "lion": frozenset({"lr", "betas", "weight_decay"}),
    "muadam": frozenset({"lr", "betas", "eps", "weight_decay"}),
    "muadamw": frozenset({"lr", "betas", "eps", "weight_decay"}),
    "musgd": frozenset({"lr", "momentum", "weight_decay"}),
    "muon": frozenset("lr betas eps weight_decay momentum ns_method muon_lr adam_lr adam_w_mode torch_adam".split()),
}
"""The parameters of DeepSpeed's other optimizers, by their names in lower case."""
CLOSURE = frozenset({"LBFGS", "SparseAdam", "Optimizer"})
"""Names in torch.optim that cannot make an update here: they need a closure or sparse gradients."""
METRIC = frozenset({"ReduceLROnPlateau", "LRScheduler", "_LRScheduler"})
"""Names in torch.optim.lr_scheduler that follow a metric, or are no schedule."""
TOTALS = ("total_num_steps", "total_steps", "T_max")
"""Parameters of schedules that are the number of updates of the run, where the file does not set them."""


def check_optimizer(path: str, content: Mapping[str, Any], *, gpu: bool, stage: int, offloaded: bool) -> None:
    """Raise ConfigError where the file's optimizer cannot be built on this kind of device with this ZeRO stage."""
    if "optimizer" not in content:
        return
    kind, given = optimizer_type(content), section_params(path, "optimizer", content)
    if kind in deepspeed_keys.ADAM:
        check_names(path, "optimizer.params.", given, ADAM_PARAMETERS)
        if given.get("bias_correction", True) is False:
            raise ConfigError(
                f"deepspeed={path} sets optimizer.params.bias_correction=false, but AdamW corrects its bias; leave it "
                "out"
            )
        return
    shown = f"deepspeed={path} sets optimizer.type={content['optimizer']['type']}"
    if kind in OWN_OPTIMIZERS:
        compiled = kind in deepspeed_keys.COMPILED or (kind == "adagrad" and offloaded)
        if compiled and not gpu:
            raise ConfigError(
                f"{shown}, which DeepSpeed compiles for a GPU, and the train workers have none; set it to AdamW, or to "
                "a name in torch.optim"
            )
        if kind == "adagrad" and stage > 0 and not offloaded:
            raise ConfigError(
                f"{shown}, whose groups of parameters DeepSpeed loses with ZeRO stage {stage}, and the learning rate "
                "with them; set zero_stage=0, or another optimizer.type"
            )
        if kind.startswith("mu") and kind != "muon" and find_spec("mup") is None:
            raise ConfigError(f"{shown}, which needs the package mup; `pip install mup` on every node, or set AdamW")
        check_names(path, "optimizer.params.", given, OWN_OPTIMIZERS[kind])
    else:
        check_names(path, "optimizer.params.", given, parameters_of(torch_class(path, shown, kind)))
        if offloaded and gpu and content.get("zero_force_ds_cpu_optimizer", True):
            raise ConfigError(
                f"{shown}, which computes slowly where its states are offloaded; set AdamW, or "
                '"zero_force_ds_cpu_optimizer": false in the file'
            )
    tested = kind.lower() in deepspeed_keys.ZERO_TESTED
    if stage > 0 and not tested and not content.get("zero_allow_untested_optimizer"):
        raise ConfigError(
            f"{shown}, which DeepSpeed has not tested with ZeRO stage {stage}; set "
            '"zero_allow_untested_optimizer": true in the file, zero_stage=0, or another optimizer.type'
        )


def optimizer_type(content: Mapping[str, Any]) -> str:
    """Return the file's optimizer: DeepSpeed's in lower case, or a name in torch.optim. Left out or auto: adamw."""
    kind = str(content["optimizer"].get("type", AUTO))
    if kind == AUTO:
        return "adamw"
    return kind.lower() if kind.lower() in deepspeed_keys.OPTIMIZERS else kind


def section_params(path: str, section: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a section as the file has them; "auto" ones are left out."""
    params = content[section].get("params", {})
    if params == AUTO:
        return {}
    if not isinstance(params, Mapping):
        raise ConfigError(
            f"deepspeed={path} sets {section}.params={json.dumps(params)}, which must be an object; correct the file"
        )
    return {name: value for name, value in params.items() if value != AUTO}


def torch_class(path: str, shown: str, name: str) -> type[torch.optim.Optimizer]:
    """Return an optimizer of torch by its name. Raises ConfigError, which begins with `shown`, if there is none."""
    found: Any = getattr(torch.optim, name, None)
    if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) and name not in CLOSURE:
        return found
    known = [*deepspeed_keys.OPTIMIZERS, *(name for name in dir(torch.optim) if name[0].isupper())]
    check_names(path, "optimizer.type ", [name], set(known) - CLOSURE)
    raise ConfigError(f"{shown}, which cannot train here; set AdamW")


def parameters_of(found: type[Any]) -> set[str]:
    """Return the names of the arguments of an optimizer or a schedule of torch, apart from what it works on."""
    return set(inspect.signature(found).parameters) - {"self", "params", "optimizer", "last_epoch"}


def optimizer_params(path: str, content: Mapping[str, Any], optim: OptimConfig) -> dict[str, Any]:
    """Return the optimizer's parameters: the file's, and the options where it sets none and the optimizer has one.

    The options already have the file's values (`apply_file`).
    """
    kind, given = optimizer_type(content), section_params(path, "optimizer", content)
    if kind in deepspeed_keys.ADAM:
        known: frozenset[str] | set[str] = ADAM_PARAMETERS
    else:
        known = OWN_OPTIMIZERS.get(kind) or parameters_of(torch_class(path, "", kind))
    ours = {
        "lr": optim.learning_rate,
        "betas": (optim.adam_beta1, optim.adam_beta2),
        "eps": optim.adam_epsilon,
        "weight_decay": optim.weight_decay,
    }
    return {**given, **{name: value for name, value in ours.items() if name in known}}


def optimizer_notes(path: str, content: Mapping[str, Any]) -> list[str]:
    """Return a note where the file's optimizer is not AdamW, which trains without a file."""
    if "optimizer" not in content or optimizer_type(content) == "adamw":
        return []
    kind, decoupled = content["optimizer"]["type"], section_params(path, "optimizer", content).get("adam_w_mode", True)
    if kind.lower() == "adam":  # DeepSpeed's Adam is AdamW unless it is told otherwise
        return [] if decoupled else [f"deepspeed={path} sets optimizer.params.adam_w_mode=false, which replaces AdamW"]
    return [f"deepspeed={path} sets optimizer.type={kind}, which replaces AdamW"]


def scheduler_type(content: Mapping[str, Any]) -> str | None:
    """Return the name of the file's schedule; None where the option lr_scheduler_type decides."""
    kind = content.get("scheduler", {}).get("type", AUTO)
    return None if kind == AUTO else str(kind)


def check_scheduler(path: str, content: Mapping[str, Any]) -> None:
    """Raise ConfigError where the file's schedule does not exist, or lacks or has a parameter that it must not."""
    kind = scheduler_type(content)
    if kind is None:
        if "scheduler" in content and section_params(path, "scheduler", content):
            raise ConfigError(
                f"deepspeed={path} sets scheduler.params without scheduler.type, which the parameters belong to; add "
                f"one of {', '.join(deepspeed_keys.SCHEDULERS)}, or leave the section out"
            )
        return
    given = section_params(path, "scheduler", content)
    if kind in deepspeed_keys.SCHEDULERS:
        check_names(path, "scheduler.params.", given, deepspeed_keys.SCHEDULERS[kind])
        missing = ["cycle_min_lr"] if kind == "OneCycle" and "cycle_min_lr" not in given else []
    else:
        found: Any = getattr(torch.optim.lr_scheduler, kind, None)
        known = {*deepspeed_keys.SCHEDULERS, *(name for name in dir(torch.optim.lr_scheduler) if name.endswith("LR"))}
        if not inspect.isclass(found) or kind in METRIC:
            check_names(path, "scheduler.type ", [kind], known - METRIC)
        check_names(path, "scheduler.params.", given, parameters_of(found))
        needed = {
            name
            for name, parameter in inspect.signature(found).parameters.items()
            if parameter.default is inspect.Parameter.empty and name in parameters_of(found)
        }
        missing = sorted(needed - given.keys() - {*TOTALS, "max_lr"})
    if missing:
        raise ConfigError(
            f"deepspeed={path} sets scheduler.type={kind} without scheduler.params.{missing[0]}, which has neither a "
            "default nor an option; set it in the file"
        )


def scheduler_params(path: str, content: Mapping[str, Any], optim: OptimConfig, total_steps: int) -> dict[str, Any]:
    """Return the schedule's parameters in a run of `total_steps` updates: the file's, else the options.

    A warm-up of 0 updates is given as 1, as in Hugging Face's integration: DeepSpeed takes no 0.
    """
    kind, given = scheduler_type(content), section_params(path, "scheduler", content)
    assert kind, "the caller has a file with a schedule"
    if kind in deepspeed_keys.SCHEDULERS:
        known: frozenset[str] | set[str] = deepspeed_keys.SCHEDULERS[kind]
    else:
        known = parameters_of(getattr(torch.optim.lr_scheduler, kind))
    rate = optim.learning_rate
    defaults = {name: total_steps for name in TOTALS} | {"warmup_min_lr": 0.0}
    fixed = {name: rate for name in ("warmup_max_lr", "cycle_max_lr", "max_lr", "lr_range_test_min_lr")}
    fixed["warmup_num_steps"] = max(1, optim.warmup_updates(total_steps))
    return {name: value for name, value in {**defaults, **given, **fixed}.items() if name in known}


def schedule_notes(path: str, content: Mapping[str, Any], optim: OptimConfig, total_steps: int) -> list[str]:
    """Return notes on what the file's schedule does otherwise than the options in a run of `total_steps` updates."""
    kind = scheduler_type(content)
    if kind is None:
        return []
    arguments = f" and lr_scheduler_kwargs={json.dumps(optim.lr_scheduler_kwargs)}" if optim.lr_scheduler_kwargs else ""
    notes = [
        f"deepspeed={path} sets scheduler.type={kind}, which overrides lr_scheduler_type={optim.lr_scheduler_type}"
        f"{arguments}"
    ]
    params = scheduler_params(path, content, optim, total_steps)
    for name in TOTALS:
        if params.get(name, total_steps) != total_steps:
            notes.append(
                f"deepspeed={path} sets scheduler.params.{name}={params[name]}, and the run has {total_steps} updates"
            )
    if kind.startswith("Warmup") and params["warmup_num_steps"] < 2:
        notes.append(
            f"deepspeed={path} sets scheduler.type={kind}, whose warm-up takes at least 2 updates, which overrides a "
            f"warm-up of {optim.warmup_updates(total_steps)} updates (warmup_steps, warmup_ratio)"
        )
    return notes
