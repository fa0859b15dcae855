"""Frozen dataclasses to JSON values and back, by their annotated types, so that a new field needs no further code."""

import dataclasses
import types
from collections.abc import Mapping, Sequence, Set
from typing import Any, Union, get_args, get_origin, get_type_hints

_SCALARS = (str, int, float, bool, type(None))


class Identified:
    """An object with a form in JSON that says what it is, though not all that it holds: that of its `identity`."""

    identity: Any
    """A dataclass whose fields decide what the object does."""


def to_json(value: Any) -> Any:
    """Return a value as JSON: a dataclass as an object, a mapping as a list of pairs, a sequence or set as a list.

    An object that is `Identified` is given as its identity.

    Sets are sorted, so that equal values give equal JSON. Raises TypeError for any other type.
    """
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, Identified):
        return to_json(value.identity)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return [[to_json(key), to_json(part)] for key, part in value.items()]
    if isinstance(value, Set):
        return sorted((to_json(part) for part in value), key=repr)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [to_json(part) for part in value]
    raise TypeError(f"{type(value).__name__} has no form in JSON; give the field a type that `to_json` supports")


def from_json(hint: Any, value: Any) -> Any:
    """Return the value of the type `hint` that `to_json` has written.

    Raises TypeError, KeyError or ValueError if the JSON does not have that type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return from_json(next(kind for kind in arguments if kind is not type(None)), value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        names = [field.name for field in dataclasses.fields(hint)]
        return hint(**{name: from_json(hints[name], value[name]) for name in names})
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key_hint, part_hint = arguments
        return {from_json(key_hint, key): from_json(part_hint, part) for key, part in value}
    if origin is tuple and arguments[-1] is not Ellipsis:
        return tuple(from_json(kind, part) for kind, part in zip(arguments, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Sequence | Set):
        parts = [from_json(arguments[0], part) for part in value]
        return tuple(parts) if origin is tuple else frozenset(parts) if issubclass(origin, Set) else parts
    if hint in _SCALARS and isinstance(value, (int, float) if hint is float else hint):
        return value
    raise TypeError(f"{value!r} is not of type {hint}")
