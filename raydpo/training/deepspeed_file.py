"""The DeepSpeed JSON config that `deepspeed` names: read, checked, and its values written into the options.

A key that is left out or "auto" takes the option, as in Hugging Face's integration; a value overrides the option, and a
note says so. Imports neither torch nor DeepSpeed.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raydpo.config import HINTS, SECTIONS, JobConfig
from raydpo.config.fields import convert, hints_of, show, show_whole
from raydpo.errors import ConfigError
from raydpo.training import deepspeed_keys

AUTO = "auto"
FEW = 12
"""Largest number of known names that are all listed beside a wrong one."""

OPTIONS = {
    "gradient_clipping": "max_grad_norm",
    "zero_optimization.stage": "zero_stage",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.eps": "adam_epsilon",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_max_lr": "learning_rate",
    "scheduler.params.cycle_max_lr": "learning_rate",
    "scheduler.params.max_lr": "learning_rate",
    "scheduler.params.lr_range_test_min_lr": "learning_rate",
    "scheduler.params.warmup_num_steps": "warmup_steps",
}
"""The option that has the meaning of a key; keys of nested sections are joined by dots."""


def read_file(path: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON config. Raises ConfigError where it cannot be read or has a name that DeepSpeed lacks."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"deepspeed={path} sets {twice[0]} twice; remove one of them")
        return dict(pairs)

    try:
        content = json.loads(Path(path).expanduser().read_text(), object_pairs_hook=unique)
    except OSError as error:
        raise ConfigError(f"deepspeed={path} cannot be read ({error.strerror}); give a JSON file's path") from error
    except ValueError as error:
        raise ConfigError(f"deepspeed={path} is not JSON ({error}); correct the file") from error
    if not isinstance(content, dict):
        raise ConfigError(f"deepspeed={path} must hold a JSON object, not a {type(content).__name__}; correct the file")
    if "bfloat16" in content:  # DeepSpeed's old name
        if "bf16" in content:
            raise ConfigError(f"deepspeed={path} sets bf16 and its old name bfloat16; remove bfloat16")
        content["bf16"] = content.pop("bfloat16")
    check_names(path, "", content, deepspeed_keys.TOP_LEVEL)
    content = {key: value for key, value in content.items() if value != AUTO}
    for section, names in deepspeed_keys.SECTIONS.items():
        if section not in content:
            continue
        if not isinstance(content[section], dict):
            raise ConfigError(
                f"deepspeed={path} sets {section}={json.dumps(content[section])}, which must be an object; write "
                f'"{section}": {{...}}, or leave it out'
            )
        check_names(path, f"{section}.", content[section], names)
    for section in ("bf16", "fp16"):
        enabled = content.get(section, {}).get("enabled", AUTO)
        if enabled != AUTO and not isinstance(enabled, bool):
            raise ConfigError(
                f'deepspeed={path} sets {section}.enabled={json.dumps(enabled)}, which must be true, false or "auto"; '
                "correct the file"
            )
    return content


def check_names(path: str, prefix: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError, with the nearest known name, where a name is not known.

    `prefix` is what stands before the names in the file: the section and a dot.
    """
    known = sorted(known)
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"the nearest name is {prefix}{near[0]}: correct it" if near else "leave it out"
            others = f" (known are {', '.join(known)})" if len(known) <= FEW else ""
            raise ConfigError(f"deepspeed={path} sets {prefix}{name}, which DeepSpeed does not know; {remedy}{others}")


def value_at(content: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; None where it is left out or "auto"."""
    found: Any = content
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return None if found == AUTO else found


def apply_file(job: JobConfig, content: Mapping[str, Any], *, gpu: bool) -> tuple[JobConfig, tuple[str, ...]]:
    """Return the job with the file's values in place of its options, and a note on each option that changed by it.

    `content` is what `read_file` returned for `job.cluster.deepspeed`. Raises ConfigError where a value is not one that
    the option may have, or contradicts another.
    """
    path = str(job.cluster.deepspeed)
    found = _values(path, content)
    _check_precision(path, content, job)
    found |= _precision(content, job, gpu)
    found |= _offload(content, job)
    flat = {name: value for title in SECTIONS for name, value in vars(getattr(job, title)).items()}
    notes: list[str] = []
    changes: dict[str, Any] = {}
    for key, (option, value) in found.items():
        shown = value_at(content, key) if option == "offload" else value
        if changes.get(option, value) != value:
            raise ConfigError(
                f"deepspeed={path} sets {key}={show_whole(shown)} beside another value of the same thing "
                f"({option}={show_whole(changes[option])}); set one of them to auto"
            )
        changes[option] = value
        before, differs = f"{option}={show_whole(flat[option])}", flat[option] != value
        if option == "warmup_steps" and flat["warmup_ratio"]:
            changes["warmup_ratio"], differs = 0.0, True
            before += f" and warmup_ratio={flat['warmup_ratio']:g}"
        if differs:
            notes.append(f"deepspeed={path} sets {key}={show_whole(shown)}, which overrides {before}")
    try:
        return _replaced(job, changes), tuple(notes)
    except ConfigError as error:
        raise ConfigError(f"deepspeed={path}: {error}") from error


def _replaced(job: JobConfig, changes: Mapping[str, Any]) -> JobConfig:
    sections = {}
    for title, section in SECTIONS.items():
        own = {name: changes[name] for name in hints_of(section) if name in changes}
        if own:
            sections[title] = dataclasses.replace(getattr(job, title), **own)
    return dataclasses.replace(job, **sections)


def _values(path: str, content: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Return {key: (option, value)} of the keys with a value that are options under another name."""
    found = {}
    for key, option in OPTIONS.items():
        value = value_at(content, key)
        if value is not None:
            found[key] = (option, _converted(path, key, value, option))
    betas = value_at(content, "optimizer.params.betas")
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != 2:
            raise ConfigError(
                f"deepspeed={path} sets optimizer.params.betas={json.dumps(betas)}, which must be two numbers; "
                'correct it, or write "auto"'
            )
        for index, option in enumerate(("adam_beta1", "adam_beta2")):
            key = f"optimizer.params.betas[{index}]"
            if betas[index] != AUTO:
                found[key] = (option, _converted(path, key, betas[index], option))
    return found


def _converted(path: str, key: str, value: Any, option: str) -> Any:
    """Return a value of the file in the option's type."""
    try:
        if isinstance(value, list):
            raise ValueError("one number, the same for all parameters")
        return convert(value, HINTS[option])
    except ValueError as error:
        raise ConfigError(
            f'deepspeed={path} sets {key}={json.dumps(value)}, which must be {error}; correct it, or write "auto" for '
            f"the option {option}"
        ) from None


def _enabled(content: Mapping[str, Any], section: str) -> bool | None:
    value: bool | None = value_at(content, f"{section}.enabled")
    return value


def _check_precision(path: str, content: Mapping[str, Any], job: JobConfig) -> None:
    """Raise ConfigError where the file's precision contradicts itself or the options."""
    bf16, fp16 = _enabled(content, "bf16"), _enabled(content, "fp16")
    if bf16 and fp16:
        raise ConfigError(
            f"deepspeed={path} sets bf16.enabled=true and fp16.enabled=true, which exclude each other; set one of them "
            "to false, or both to auto"
        )
    dtype, optim = job.model.dtype, job.optim
    contradictions = [
        ("bf16.enabled", True, bf16, dtype not in (AUTO, "bfloat16"), f"dtype={dtype}"),
        ("bf16.enabled", True, bf16, optim.bf16 is False, "bf16=false"),
        ("bf16.enabled", True, bf16, optim.fp16, "fp16=true"),
        ("bf16.enabled", False, bf16, dtype == "bfloat16", f"dtype={dtype}"),
        ("bf16.enabled", False, bf16, optim.bf16 is True, "bf16=true"),
        ("fp16.enabled", True, fp16, dtype not in (AUTO, "float16"), f"dtype={dtype}"),
        ("fp16.enabled", True, fp16, optim.bf16 is True, "bf16=true"),
        ("fp16.enabled", False, fp16, dtype == "float16", f"dtype={dtype}"),
        ("fp16.enabled", False, fp16, optim.fp16, "fp16=true"),
    ]
    for key, wrong, value, contradicts, option in contradictions:
        if value is wrong and contradicts:
            raise ConfigError(
                f"deepspeed={path} sets {key}={show(value)}, which contradicts {option}; set {key} to auto, or leave "
                "the option out"
            )


def _precision(content: Mapping[str, Any], job: JobConfig, gpu: bool) -> dict[str, tuple[str, Any]]:
    """Return the file's precision as options, where `_check_precision` found no contradiction."""
    if job.model.dtype != AUTO:
        return {}
    found: dict[str, tuple[str, Any]] = {}
    if _enabled(content, "bf16"):
        found["bf16.enabled"] = ("bf16", True)
    if _enabled(content, "fp16"):
        found["fp16.enabled"] = ("fp16", True)
    by_default = gpu and job.optim.bf16 is None and not job.optim.fp16 and not found
    if by_default and _enabled(content, "bf16") is False:
        found["bf16.enabled"] = ("bf16", False)
    return found


def _offload(content: Mapping[str, Any], job: JobConfig) -> dict[str, tuple[str, Any]]:
    """Return the file's devices of optimizer states and weights as the option `offload`."""
    ours = {"none": (False, False), "optimizer": (True, False), "all": (True, True)}[job.cluster.offload]
    keys = ("zero_optimization.offload_optimizer.device", "zero_optimization.offload_param.device")
    devices = [value_at(content, key) for key in keys]
    if devices == [None, None]:
        return {}
    states, weights = (mine if given is None else given != "none" for mine, given in zip(ours, devices, strict=True))
    value = {(False, False): "none", (True, False): "optimizer", (True, True): "all"}.get((states, weights))
    key = keys[0] if devices[0] is not None else keys[1]
    return {key: ("offload", value)} if value else {}  # weights without states are no value of the option
