"""From flags and YAML to a `JobConfig`, and back to text."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from raydpo.config import fields, trl_compat
from raydpo.config.job import HINTS, SECTIONS, JobConfig
from raydpo.config.loss import LossConfig
from raydpo.config.loss_types import LOSS_TYPES
from raydpo.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """What sets one of jobs/ apart from the others."""

    title: str
    defaults: Mapping[str, Any]
    """Options whose defaults it changes."""
    loss_types: tuple[str, ...] = tuple(LOSS_TYPES)
    """Objectives that it takes."""


JOBS = {
    "dpo": Job("Direct preference optimisation, with any loss_type", {}),
    "orpo": Job("Odds-ratio preference optimisation, as TRL's ORPOConfig has it", {"loss_type": ("orpo",)}, ("orpo",)),
    "score_reference": Job("The reference's log-probs ahead of training, for jobs/dpo.py to find", {}),
    "cpo": Job(
        "Contrastive preference optimisation and SimPO, as TRL's CPOConfig has them",
        {"reference_free": True, "cpo_alpha": 1.0},
        ("sigmoid", "hinge", "ipo", "simpo"),
    ),
}
"""By the name of the file in jobs/."""

FLAGS: dict[str, Any] = {
    **{key: trl_compat.kind(key) for key in trl_compat.KEYS - trl_compat.RENAMED.keys()},
    **{key: HINTS[name] for key, name in trl_compat.RENAMED.items()},
    **HINTS,
}
"""Type of all that flags and YAML may name."""


def parse(argv: Sequence[str], job: str = "dpo") -> JobConfig:
    """The config that command-line flags say, over those of `--config run.yaml`; ConfigError where they are wrong.

    `job` is a name of `JOBS`. `-h` and `--help` print the options and raise SystemExit(0).
    """
    if "-h" in argv or "--help" in argv:
        print(help_text(job))
        raise SystemExit(0)
    flags = fields.read_flags(argv, {"config": str, **FLAGS})
    path = flags.pop("config", None)
    written = fields.read_yaml(path) if path is not None else {}
    return from_flat({**trl_compat.translated(written), **trl_compat.translated(flags)}, job)


def from_flat(values: Mapping[str, Any], job: str = "dpo") -> JobConfig:
    """The config with these options set, by flat name, in their types or as text; ConfigError where one is wrong.

    Names of TRL's that are no options here are taken too, as `trl_keys` has it.
    """
    for name in values:
        if name not in FLAGS:
            raise fields.unknown(name, FLAGS)
    said = trl_compat.notices(values)
    given = {name: value for name, value in trl_compat.translated(values).items() if name in HINTS}
    known = {**JOBS[job].defaults, **given}
    sections: dict[str, Any] = {
        title: section(**{name: known[name] for name in fields.hints_of(section) if name in known})
        for title, section in SECTIONS.items()
    }
    _check_job(job, sections["loss"])
    if sections["reference"].reference_model and not sections["loss"].needs_reference:
        said.append("reference_model has no meaning here: the objective takes no reference, and none is scored")
    return JobConfig(**sections, explicit=frozenset(given), notices=(*said, *sections["loss"].notices()))


def _check_job(job: str, loss: LossConfig) -> None:
    taken = JOBS[job].loss_types
    if other := [name for name in loss.loss_type if name not in taken]:
        raise ConfigError(
            f"loss_type={other[0]} is not for jobs/{job}.py, which takes {', '.join(taken)}; leave it out, or use "
            "jobs/dpo.py"
        )
    if JOBS[job].defaults.get("reference_free") and not loss.reference_free:
        raise ConfigError(f"reference_free=false is not for jobs/{job}.py; leave it out, or use jobs/dpo.py")


def to_flat(config: JobConfig) -> dict[str, Any]:
    """Every option by its flat name."""
    return {name: value for title in SECTIONS for name, value in vars(getattr(config, title)).items()}


def with_defaults(config: JobConfig, values: Mapping[str, Any]) -> JobConfig:
    """The config with other defaults: `values` (by flat name) for the options that the user did not set."""
    flat = to_flat(config)
    if "eval_steps" not in config.explicit and config.optim.eval_steps == config.run.logging_steps:
        flat["eval_steps"] = None  # it followed logging_steps, and shall follow a new one
    new = {name: value for name, value in values.items() if name not in config.explicit}
    return dataclasses.replace(from_flat({**flat, **new}), explicit=config.explicit, notices=config.notices)


def to_yaml(config: JobConfig) -> str:
    """The config as YAML, a comment a section; `--config` with it repeats the run."""
    parts = []
    for title in SECTIONS:
        flat = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(getattr(config, title)).items()
        }
        parts.append(f"# {title}\n" + yaml.safe_dump(flat, sort_keys=False, allow_unicode=True))
    return "\n".join(parts)


def help_text(job: str = "dpo") -> str:
    """What `--help` of a job prints: usage, then every option by section with default, unit and rule."""
    usage = (
        f"usage: python jobs/{job}.py [--config run.yaml] [--name value ...]\n\n{JOBS[job].title}.\n\n"
        "Flags win over the config file, whose keys are the same names. Dashes may stand for underscores; --name\n"
        "alone turns a boolean on and --no_name off; lists are separated by spaces or commas; mappings are\n"
        "name=value,... or JSON; `none` unsets what may be unset. Other keys of TRL's commands are taken as\n"
        "jobs/README.md says."
    )
    sections = (fields.help_section(title, section, JOBS[job].defaults) for title, section in SECTIONS.items())
    return "\n\n".join([usage, *sections])
