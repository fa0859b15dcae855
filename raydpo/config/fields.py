"""How an option is declared, read from flags or YAML, checked and shown; config/ says which options there are.

An option is one field of a frozen dataclass: `beta: float = option(0.1, "Strength of ...", above(0))`. Flags and YAML
scalars arrive as text, values from Python as they are; `Section` turns both into the field's type at construction.
"""

import contextlib
import dataclasses
import difflib
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from raydpo.errors import ConfigError

TRUE, FALSE, UNSET = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null")
# A comma separates, unless it stands in braces, brackets or parentheses: `part-{a,b}.jsonl`, `in(h100,h200)`.
COMMA = re.compile(r",(?![^{\[(]*[}\])])")


@dataclass(frozen=True)
class Rule:
    """What a value must hold, as a test and in words ("at least 1")."""

    text: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Rule:
    """low <= value."""
    return Rule(f"at least {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    """low < value."""
    return Rule(f"above {low}", lambda value: value > low)


def within(low: float, high: float) -> Rule:
    """low <= value < high."""
    return Rule(f"at least {low} and below {high}", lambda value: low <= value < high)


def one_of(*choices: Any) -> Rule:
    """The value, or each element of a list, is one of the choices."""

    def holds(value: Any) -> bool:
        return all(item in choices for item in value) if isinstance(value, tuple) else value in choices

    return Rule("one of " + ", ".join(map(str, choices)), holds)


def option(default: Any, text: str, rule: Rule | None = None, unit: str = "") -> Any:
    """A dataclass field with its help text, the rule its values keep (None passes always) and the unit they are in."""
    metadata = {"help": text, "rule": rule, "unit": unit}
    if isinstance(default, dict):  # a dataclass refuses a shared mutable default
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base of the sections: each field is brought to its type and checked; ConfigError says what is wrong with it."""

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        for field in dataclasses.fields(self):
            value = checked(field, hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)


def hints_of(section: type[Section]) -> dict[str, Any]:
    """Type of each option of the section, by name."""
    return get_type_hints(section)


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The field's default value."""
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def checked(field: "dataclasses.Field[Any]", hint: Any, value: object) -> Any:
    """The value in the field's type; ConfigError with value, rule and remedy where it does not fit."""
    rule: Rule | None = field.metadata["rule"]
    shown = show(value) if not isinstance(value, str) else value
    remedy = f"change it, or leave it out for the default ({show(default_of(field))})"
    try:
        converted = convert(value, hint)
    except ValueError as error:
        raise ConfigError(f"{field.name}={shown} must be {error}; {remedy}") from None
    if rule is not None and converted is not None and not rule.holds(converted):
        raise ConfigError(f"{field.name}={shown} must be {rule.text}; {remedy}")
    return converted


def convert(value: object, hint: Any) -> Any:
    """The value as `hint` (str, int, float, bool, a tuple or dict of these, or such a type | None) has it.

    Under Any, text that reads as a number, a truth value or none becomes that. ValueError says in words what was
    expected.
    """
    if isinstance(hint, UnionType):
        if value is None or (isinstance(value, str) and value.lower() in UNSET):
            return None
        return convert(value, next(kind for kind in get_args(hint) if kind is not NoneType))
    if hint is Any:
        return _read_scalar(value) if isinstance(value, str) else value
    if get_origin(hint) is tuple:
        return _convert_list(value, get_args(hint)[0])
    if get_origin(hint) is dict:
        return _convert_mapping(value, get_args(hint)[1])
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return _convert_scalar(value, hint)


def _read_scalar(text: str) -> Any:
    for hint in (int | None, float, bool):
        with contextlib.suppress(ValueError):
            return convert(text, hint)
    return text


def _convert_scalar(value: object, kind: type) -> Any:
    text = value.strip() if isinstance(value, str) else None
    if kind is bool:
        word = text.lower() if text is not None else str(value).lower()
        if word in (*TRUE, *FALSE):
            return word in TRUE
        raise ValueError("true or false")
    if kind is str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int):
            return str(value)
        raise ValueError("text")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a number")
    if kind is int:
        if text is not None and re.fullmatch(r"[+-]?\d+", text):
            return int(text)
        if isinstance(value, int):
            return value
        raise ValueError("a whole number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("a number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _convert_list(value: object, item: Any) -> tuple[Any, ...]:
    if value is None or (isinstance(value, str) and value.lower() in UNSET):
        return ()
    if isinstance(value, str):
        value = [part.strip() for part in COMMA.split(value) if part.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError("a list, separated by spaces or commas")
    return tuple(convert(part, item) for part in value)


def _convert_mapping(value: object, item: Any) -> dict[str, Any]:
    expected = "a mapping such as name=value,name=value or JSON"
    if value is None or (isinstance(value, str) and value.lower() in UNSET):
        return {}
    if isinstance(value, str):
        value = _read_mapping(value, expected)
    if not isinstance(value, Mapping):
        raise ValueError(expected)
    return {str(key): convert(part, item) for key, part in value.items()}


def _read_mapping(text: str, expected: str) -> Any:
    if text.startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise ValueError(expected) from None
    pairs = [part.partition("=") for part in COMMA.split(text) if part.strip()]
    if any(not separator for _, separator, _ in pairs):
        raise ValueError(expected)
    return {key.strip(): value.strip() for key, _, value in pairs}


def show(value: object) -> str:
    """A value as a user would write it after a flag."""
    if value is None or value in ((), {}):
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def unknown(name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is no option, with the nearest known one."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return ConfigError(f"{name} is not an option; the nearest is {close[0]}, and --help lists all")


def read_flags(argv: Sequence[str], hints: Mapping[str, Any]) -> dict[str, str]:
    """Command-line flags as {name: text}, the last of a repeated one; list values are joined by commas.

    Takes --name value, --name=value, --name for a boolean, --no_name for false, and dashes for underscores; the hint
    `object` takes any words, or none for true. ConfigError for an unknown flag, a missing or a surplus value.
    """
    found: dict[str, str] = {}
    words = list(argv)
    while words:
        flag, separator, text = words.pop(0).partition("=")
        if not flag.startswith("--"):
            raise ConfigError(f"unexpected argument {flag}; options are written --name value, and --help lists them")
        values = [text] if separator else []
        while not separator and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        name = flag[2:].replace("-", "_")
        negated = name.removeprefix("no_")
        if name not in hints and negated != name and hints.get(negated) in (bool, bool | None) and not values:
            found[negated] = "false"
            continue
        if name not in hints:
            raise unknown(name, hints)
        found[name] = _flag_text(name, hints[name], values)
    return found


def _flag_text(name: str, hint: Any, values: list[str]) -> str:
    if hint in (bool, bool | None) and not values:
        return "true"
    if hint is object:
        return " ".join(values) or "true"
    if get_origin(hint) in (tuple, dict):
        return ",".join(values)
    if len(values) != 1:
        raise ConfigError(f"--{name} takes one value, not {len(values)} ({' '.join(values)}); write --{name} VALUE")
    return values[0]


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML file as {name: text, or lists and mappings of text}; ConfigError for one that cannot be read.

    Scalars stay text, so that `eval_strategy: no` and `learning_rate: 1e-6` mean what they say (YAML 1.1 reads the
    first as false and the second as a string).
    """
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        content = yaml.load(text, Loader=yaml.BaseLoader)  # builds only str, list and dict
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the config file {path}: {error}") from error
    if content in (None, ""):
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"the config file {path} must hold `name: value` lines, not a {type(content).__name__}")
    keys = [str(key.value) for key, _ in root.value]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"the config file {path} gives {twice[0]} twice; remove one of the lines")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def help_section(title: str, section: type[Section], defaults: Mapping[str, Any], width: int = 100) -> str:
    """The section's options as indented text: flag, what it does, default with unit, rule.

    `defaults` go before those of the section.
    """
    lines = [f"{title}: {(section.__doc__ or '').splitlines()[0]}"]
    for field in dataclasses.fields(section):
        default = defaults.get(field.name, default_of(field))
        rule, unit = field.metadata["rule"], field.metadata["unit"]
        facts = f"default: {show(default)}" + (f"; in {unit}" if unit else "") + (f"; {rule.text}" if rule else "")
        text = f"{field.metadata['help']} [{facts}]"
        lines.append(f"  --{field.name} {kind_of(hints_of(section)[field.name])}")
        lines.append(textwrap.fill(text, width, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(lines)


def kind_of(hint: Any) -> str:
    """A type in one word for the help text."""
    if isinstance(hint, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) is tuple:
        return "TEXT ..."
    if get_origin(hint) is dict:
        return "NAME=VALUE,..."
    return {bool: "[true|false]", int: "INTEGER", float: "NUMBER"}.get(hint, "TEXT")
