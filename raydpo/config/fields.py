"""Declare options, convert their values and check them; the sections of config/ define them.

An option is one field of a frozen dataclass: `beta: float = option(0.1, "Strength of ...", above(0))`. Flags and YAML
scalars arrive as text, values set in Python in their own type; `Section` converts both to the field's type when it is
constructed.
"""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from raydpo.errors import ConfigError

TRUE, FALSE, UNSET = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null")
SWITCH = bool | str
"""Type of an option that is true, false or a word."""
BOOLEANS = (bool, bool | None, SWITCH)
"""Types of options that a flag without value sets to true."""
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


UPDATES = Rule(
    "a whole number from 1, or a share of all updates below 1",
    lambda value: 0 < value < 1 or (value >= 1 and value == int(value)),
)
"""Rule for a number of updates that transformers also accepts as a share of all updates."""


def whole(value: float) -> float:
    """Return a number as an int where it is whole, so that it is shown and written as one."""
    return int(value) if value == int(value) else value


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

    The items of a tuple may also be records: dataclasses with a class method `read`.
    With the hint Any, text that looks like a number, a boolean or none is converted to that. Raises ValueError, whose
    message is the expected kind of value ("a whole number").
    """
    if hint == SWITCH:
        word = value.strip().lower() if isinstance(value, str) else value
        return word if isinstance(word, str) and word not in (*TRUE, *FALSE) else convert(value, bool)
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
    if dataclasses.is_dataclass(hint):  # a record, whose class reads it
        return hint.read(value)  # type: ignore[union-attr]
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
    if isinstance(value, str) and dataclasses.is_dataclass(item):
        value = _read_records(value)
    if isinstance(value, str):
        value = [part.strip() for part in COMMA.split(value) if part.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError("a list, separated by spaces or commas")
    return tuple(convert(part, item) for part in value)


def _read_records(text: str) -> object:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        raise ValueError("a list of mappings, in YAML or as JSON") from None
    return [found] if isinstance(found, dict) else found


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
