"""From command-line flags and YAML to a `JobConfig`, and from a `JobConfig` back to text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from raydpo.config.fields import hints_of
from raydpo.config.help import help_section
from raydpo.config.job import HINTS, SECTIONS, JobConfig
from raydpo.config.loss import LossConfig
from raydpo.config.loss_types import LOSS_TYPES
from raydpo.config.mixture import DatasetEntry
from raydpo.config.reading import read_flags, read_yaml, unknown_option
from raydpo.config.recipes import adapt, read_mixture
from raydpo.config.trl_compat import KEYS, RENAMED, kind, notices, translate
from raydpo.errors import ConfigError


@dataclass(frozen=True)
class Program:
    """The differences between one program in jobs/ and the others."""

    title: str
    defaults: Mapping[str, Any]
    """Options with another default than the others have."""
    loss_types: tuple[str, ...] = tuple(LOSS_TYPES)
    """The values of loss_type that it accepts."""
    arguments: str = ""
    """What follows its name on the command line, before the options."""
    sections: tuple[str, ...] = tuple(SECTIONS)
    """The sections of options that `--help` lists; those of the others are accepted without effect."""


JOBS = {
    "dpo": Program("Direct preference optimisation, with any loss_type", {}),
    "orpo": Program("Odds-ratio preference optimisation, like TRL's ORPOTrainer", {"loss_type": ("orpo",)}, ("orpo",)),
    "score_reference": Program("Score the reference log-probs ahead of training, for jobs/dpo.py to reuse", {}),
    "inspect_data": Program(
        "Show what a model will see of preference data: texts, token ids, what is cut, quarantined, and lengths",
        {},
        arguments=" FILES",
        sections=("model", "data"),
    ),
    "cpo": Program(
        "Contrastive preference optimisation and SimPO, like TRL's CPOTrainer",
        {"reference_free": True, "cpo_alpha": 1.0},
        ("sigmoid", "hinge", "ipo", "simpo"),
    ),
}
"""The programs, by the name of their file in jobs/."""

FLAGS: dict[str, Any] = {
    **{key: kind(key) for key in KEYS - RENAMED.keys()},
    **{key: HINTS[name] for key, name in RENAMED.items()},
    **HINTS,
}
"""Type of every name that flags and YAML may use, by name."""


@dataclass(frozen=True)
class ParsedOptions:
    """The options of a run, and what the parser learned about how they were given."""

    job: JobConfig
    explicit: frozenset[str]
    """Names of the options that the user set, in flags or YAML."""
    notices: tuple[str, ...]
    """Messages to print once: keys that have no effect here, and behaviour that a TRL user would not expect."""

    def with_defaults(self, values: Mapping[str, Any]) -> "ParsedOptions":
        """Return the options with `values` (by flat name) as the defaults of those that the user did not set."""
        return self.with_values({name: value for name, value in values.items() if name not in self.explicit})

    def with_values(self, values: Mapping[str, Any]) -> "ParsedOptions":
        """Return the options with `values` (by flat name) set, whether the user set them or not."""
        flat = to_flat(self.job)
        if "eval_steps" not in self.explicit and self.job.optim.eval_steps == self.job.run.logging_steps:
            flat["eval_steps"] = None  # its default is logging_steps, which `values` may change
        return ParsedOptions(from_flat({**flat, **values}), self.explicit, self.notices)


def parse(argv: Sequence[str], program: str = "dpo") -> ParsedOptions:
    """Parse command-line flags over the options of `--config run.yaml`. Raises ConfigError where one is wrong.

    `program` is a key of `JOBS`. `-h` and `--help` print the options and raise SystemExit(0).
    """
    if "-h" in argv or "--help" in argv:
        print(help_text(program))
        raise SystemExit(0)
    flags = read_flags(argv, {"config": str, **FLAGS})
    path = flags.pop("config", None)
    written = read_yaml(path) if path is not None else {}
    return parse_options({**translate(read_mixture(written)), **translate(read_mixture(flags))}, program)


def parse_options(values: Mapping[str, Any], program: str = "dpo") -> ParsedOptions:
    """Parse options given by flat name, in their types or as text. Raises ConfigError where one is wrong.

    Names of TRL that are no options here are accepted too, as `config.trl_compat` defines.
    """
    for name in values:
        if name not in FLAGS:
            raise unknown_option(name, FLAGS)
    values, said = adapt(translate(read_mixture(values)))
    messages = [*said, *notices(values)]
    explicit = {name: value for name, value in values.items() if name in HINTS}
    known = {**JOBS[program].defaults, **explicit}
    sections: dict[str, Any] = {
        title: section(**{name: known[name] for name in hints_of(section) if name in known})
        for title, section in SECTIONS.items()
    }
    _check_program(program, sections["loss"])
    if sections["reference"].reference_model and not sections["loss"].needs_reference:
        messages.append("reference_model has no effect here: the objective takes no reference, so none is scored")
    return ParsedOptions(JobConfig(**sections), frozenset(explicit), (*messages, *sections["loss"].notices()))


def from_flat(values: Mapping[str, Any], program: str = "dpo") -> JobConfig:
    """Return the config with these options set, by flat name. Raises ConfigError where one is wrong."""
    return parse_options(values, program).job


def _check_program(program: str, loss: LossConfig) -> None:
    accepted = JOBS[program].loss_types
    if other := [name for name in loss.loss_type if name not in accepted]:
        raise ConfigError(
            f"loss_type={other[0]} is not for jobs/{program}.py, which takes {', '.join(accepted)}; leave it out, or "
            "use jobs/dpo.py"
        )
    if JOBS[program].defaults.get("reference_free") and not loss.reference_free:
        raise ConfigError(f"reference_free=false is not for jobs/{program}.py; leave it out, or use jobs/dpo.py")


def to_flat(config: JobConfig) -> dict[str, Any]:
    """Return the value of every option by its flat name; entries of data sets as mappings."""
    return {name: _plain(value) for title in SECTIONS for name, value in vars(getattr(config, title)).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and value and isinstance(value[0], DatasetEntry):
        return tuple(entry.plain() for entry in value)
    return value


def to_yaml(config: JobConfig) -> str:
    """Return the config as YAML, with a comment per section; `--config` with this file repeats the run."""
    parts = []
    for title in SECTIONS:
        flat = {
            name: list(_plain(value)) if isinstance(value, tuple) else value
            for name, value in vars(getattr(config, title)).items()
        }
        parts.append(f"# {title}\n" + yaml.safe_dump(flat, sort_keys=False, allow_unicode=True))
    return "\n".join(parts)


def help_text(program: str = "dpo") -> str:
    """Return the text of `--help`: usage, then every option by section with its default, unit and rule."""
    usage = (
        f"usage: python jobs/{program}.py{JOBS[program].arguments} [--config run.yaml] [--name value ...]\n\n"
        f"{JOBS[program].title}.\n\n"
        "Flags override the config file, whose keys are the same names. Dashes may replace underscores; --name alone\n"
        "sets a boolean and --no_name clears it; lists are separated by spaces or commas; mappings are name=value,...\n"
        "or JSON; `none` unsets an option that may be unset. jobs/README.md says which other keys of TRL's commands\n"
        "are accepted."
    )
    sections = (help_section(title, SECTIONS[title], JOBS[program].defaults) for title in JOBS[program].sections)
    return "\n\n".join([usage, *sections])
