"""Declare options, read them from flags and YAML, and check them; the sections of config/ define them.

An option is one field of a frozen dataclass: `beta: float = option(0.1, "Strength of ...", above(0))`. Flags and YAML
scalars arrive as text, values set in Python in their own type; `Section` converts both to the field's type when it is
constructed.
"""

import contextlib
import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from raydpo.errors import ConfigError

TRUE, FALSE, UNSET = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null")
# A comma separates list items, except inside braces, brackets or parentheses: `part-{a,b}.jsonl`, `in(h100,h200)`.
COMMA = re.compile(r",(?![^{\[(]*[}\])])")


@dataclass(frozen=True)
class Rule:
    """A condition on a value, as a function and as text for messages ("at least 1")."""

    text: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Rule:
    """Return the rule low <= value."""
    return Rule(f"at least {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    """Return the rule low < value."""
    return Rule(f"above {low}", lambda value: value > low)


def within(low: float, high: float) -> Rule:
    """Return the rule low <= value < high."""
    return Rule(f"at least {low} and below {high}", lambda value: low <= value < high)


def date() -> Rule:
    """Return the rule that text is a date, year first."""

    def holds(value: str) -> bool:
        with contextlib.suppress(ValueError):
            return datetime.strptime(value, "%Y-%m-%d").strftime("%Y-%m-%d") == value
        return False

    return Rule("a date as YYYY-MM-DD", holds)


def one_of(*choices: Any) -> Rule:
    """Return the rule that the value, or each element of a list, is one of the choices."""

    def holds(value: Any) -> bool:
        return all(item in choices for item in value) if isinstance(value, tuple) else value in choices

    return Rule("one of " + ", ".join(map(str, choices)), holds)


def option(default: Any, text: str, rule: Rule | None = None, unit: str = "") -> Any:
    """Return a dataclass field for an option: default, help text, rule for its values (None always passes) and unit."""
    metadata = {"help": text, "rule": rule, "unit": unit}
    if isinstance(default, dict):  # a dataclass refuses a shared mutable default
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base class of the groups of options: converts each field to its type and checks it. Raises ConfigError."""

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        for field in dataclasses.fields(self):
            value = checked(field, hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)


def hints_of(section: type[Section]) -> dict[str, Any]:
    """Return the type of each option of a section, by name."""
    return get_type_hints(section)


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """Return the default value of a field."""
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def checked(field: "dataclasses.Field[Any]", hint: Any, value: object) -> Any:
    """Return the value in the field's type. Raises ConfigError, with value, rule and remedy, if it does not fit."""
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
    """Convert a value to the type `hint`: str, int, float, bool, a tuple or dict of these, or one of them | None.

    With the hint Any, text that looks like a number, a boolean or none is converted to that. Raises ValueError, whose
    message is the expected kind of value ("a whole number").
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
    """Return a value as the user would write it after a flag; unset for None and empty collections."""
    if value is None or value in ((), {}):
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def unknown_option(name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for an unknown option name; it suggests the most similar known one."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return ConfigError(f"{name} is not an option; the nearest is {close[0]}; --help lists all of them")


def read_flags(argv: Sequence[str], hints: Mapping[str, Any]) -> dict[str, str]:
    """Return command-line flags as {name: text}; the last of repeated flags wins, list values are joined by commas.

    Accepts --name value, --name=value, --name (true) and --no_name (false) for booleans, and dashes for underscores. A
    flag whose hint is `object` takes any number of words; without words it is true. Raises ConfigError for an unknown
    flag, and for missing or surplus values.
    """
    found: dict[str, str] = {}
    words = list(argv)
    while words:
        flag, separator, text = words.pop(0).partition("=")
        if not flag.startswith("--"):
            raise ConfigError(
                f"unexpected argument {flag}; write options as --name value, and see --help for their names"
            )
        values = [text] if separator else []
        while not separator and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        name = flag[2:].replace("-", "_")
        negated = name.removeprefix("no_")
        if name not in hints and negated != name and hints.get(negated) in (bool, bool | None) and not values:
            found[negated] = "false"
            continue
        if name not in hints:
            raise unknown_option(name, hints)
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
    """Read a YAML file as {name: text, or lists and mappings of text}. Raises ConfigError if that fails.

    Scalars stay text, because YAML 1.1 would read `eval_strategy: no` as false and `learning_rate: 1e-6` as a string.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        content = yaml.load(text, Loader=yaml.BaseLoader)  # BaseLoader builds only str, list and dict
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the config file {path}: {error}") from error
    if content in (None, ""):
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"the config file {path} must contain `name: value` lines, not a {type(content).__name__}; correct it"
        )
    keys = [str(key.value) for key, _ in root.value]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"the config file {path} sets {twice[0]} twice; remove one of the lines")
    return {str(key).replace("-", "_"): value for key, value in content.items()}
