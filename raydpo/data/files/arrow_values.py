"""Convert values of Arrow types that JSON does not have: maps, decimals, dates, JSON text, binary data."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import pyarrow as pa
from pyarrow import types

from raydpo.data.dialects.pair import RowError
from raydpo.data.files.json_text import parse_json_text

MAX_TYPE_DEPTH = 50
"""Maximum number of levels of a column's type; Arrow itself cannot pass on columns of more than 64."""

IMAGE_FIELDS = ("bytes", "image", "images")
"""Names of columns and fields whose binary values are images, as `datasets` and chat APIs name them."""

Converter = Callable[[Any], Any]
"""A function from a value of `to_pylist` that is not None to a value as JSON has it. It may raise RowError."""


def type_depth(kind: pa.DataType) -> int:
    """Return the number of levels of a type: 1 for text and numbers, 2 for a list of texts."""
    return 1 + max((type_depth(part) for part in _parts(kind)), default=0)


def is_readable(kind: pa.DataType) -> bool:
    """Return whether a column of this type may hold words of a row: text, numbers, or lists and objects of these.

    Dates are readable inside of objects only, beside words (messages have times); a column of dates has no words.
    """
    return type_depth(kind) <= MAX_TYPE_DEPTH and _has_counterpart(kind) and not types.is_temporal(kind)


def _has_counterpart(kind: pa.DataType) -> bool:
    """Return whether values of this type have a counterpart in JSON."""
    if parts := _parts(kind):
        return all(map(_has_counterpart, parts))
    return _is_json_value(kind) or isinstance(kind, pa.JsonType) or types.is_decimal(kind) or types.is_temporal(kind)


def converter(kind: pa.DataType, name: str = "") -> Converter | None:
    """Return the function that converts values of this type; None if they are values of JSON already.

    Binary values stay bytes where the column or field of this name may hold an image.
    """
    if _is_json_value(kind) or (name in IMAGE_FIELDS and is_binary(kind)):
        return None
    if isinstance(kind, pa.JsonType):
        return parse_json_text
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return converter(kind.value_type, name)
    if types.is_map(kind):
        return _map_converter(_or_none(converter(kind.key_type)), _or_none(converter(kind.item_type)))
    if types.is_struct(kind):
        fields = {field.name: _or_none(convert) for field in kind if (convert := converter(field.type, field.name))}
        return (lambda value: _convert_fields(value, fields)) if fields else None
    if _is_list(kind):
        convert = converter(kind.value_type, name)
        return None if convert is None else _list_converter(_or_none(convert))
    if types.is_decimal(kind):
        return _number
    if types.is_temporal(kind):
        return str
    return _refusal(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Return whether values of this type are bytes."""
    fixed = types.is_fixed_size_binary(kind)
    return bool(fixed or types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_json_value(kind: pa.DataType) -> bool:
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    number = types.is_integer(kind) or types.is_floating(kind)
    return bool(text or number or types.is_boolean(kind) or types.is_null(kind))


def _is_list(kind: pa.DataType) -> bool:
    views = types.is_list_view(kind) or types.is_large_list_view(kind)
    return bool(views or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _parts(kind: pa.DataType) -> list[pa.DataType]:
    """Return the types that a type is made of: those of its items, fields, or keys and values."""
    if types.is_map(kind):
        return [kind.key_type, kind.item_type]
    if types.is_struct(kind):
        return [field.type for field in kind]
    if _is_list(kind) or types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return [kind.value_type]
    return []


def _or_none(convert: Converter | None) -> Converter:
    if convert is None:
        return lambda value: value
    return lambda value: None if value is None else convert(value)


def _convert_fields(value: dict[str, Any], fields: Mapping[str, Converter]) -> dict[str, Any]:
    return {name: fields[name](part) if name in fields else part for name, part in value.items()}


def _list_converter(item: Converter) -> Converter:
    return lambda value: [item(part) for part in value]


def _map_converter(key: Converter, item: Converter) -> Converter:
    """Return a function from the (key, value) tuples of a map to an object; keys that are not text become text."""

    def convert(entries: list[tuple[Any, Any]]) -> dict[str, Any]:
        found = {str(key(name)): item(part) for name, part in entries}
        if len(found) < len(entries):
            raise RowError("duplicate key", "a key stands twice in one map")
        return found

    return convert


def _number(value: Decimal) -> int | float:
    return int(value) if value.as_tuple().exponent == 0 else float(value)


def _refusal(kind: pa.DataType) -> Converter:
    what = "binary data" if is_binary(kind) else f"values of the type {kind}"

    def refuse(value: Any) -> Any:
        raise RowError("wrong type", f"it holds {what}, which are neither text nor JSON")

    return refuse
