"""Parse JSON into values that later code can handle: whole Unicode, bounded nesting, finite numbers, no lost keys."""

import json
import math
from collections.abc import Mapping
from typing import Any

from raydpo.data.dialects.pair import RowError, type_name

MAX_DEPTH = 100
"""Maximum number of brackets that are open at once. Code that recurses into a value (`==`, `repr`, `json.dumps`, a chat
template's `tojson`) fails at some hundred levels."""

_MAX_DIGITS = 308
"""Maximum number of digits of an integer; those with more do not fit into a float."""

_BOM = "\ufeff"
_SHOWN_CHARACTERS = 40


def parse_json_text(text: str, where: str = "") -> Any:
    """Return the value of JSON text, without the nulls of its objects (see `without_nulls`).

    Raises RowError, with `where` (such as "column 'tools'") at its end, for broken JSON, half a surrogate pair, more
    than MAX_DEPTH levels, a key that stands twice in one object, and a number that no float can hold. NaN and
    Infinity are read, because Python's `json` writes them.
    """
    try:
        return without_nulls(_value(text))
    except RowError as error:
        raise RowError(f"{error} in {where}" if where else str(error)) from error


def parse_json_row(content: bytes) -> dict[str, Any]:
    """Return the columns of a row of JSON; a column may be null, but the objects inside the columns have no nulls.

    Raises RowError as `parse_json_text` does, and if the row is not UTF-8 or not an object.
    """
    try:
        text = content.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        raise RowError("bad UTF-8", f"{error.reason} at byte {error.start} of the row") from error
    row = _value(text)
    if not isinstance(row, dict):
        inside = isinstance(row, list) and any(isinstance(part, dict) for part in row)
        remedy = "; write each of its objects on a line of its own" if inside else ""
        raise RowError("not a JSON object", f"the row is {type_name(row)}{remedy}")
    return {name: without_nulls(part) for name, part in row.items()} if "null" in text else row


def without_nulls(value: Any) -> Any:
    """Return a value without those keys of its objects that are null; nulls in lists stay.

    In Parquet and Arrow all objects of a column have the same keys, so a null may only mean that another row has that
    key. JSON follows this rule too, so that a row gives the same tokens from every type of file.
    """
    if isinstance(value, Mapping):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [without_nulls(part) for part in value]
    return value


def _value(text: str) -> Any:
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise _too_deep() from error
    except json.JSONDecodeError as error:
        raise RowError("broken JSON", _fault(text, error)) from error
    # Most rows need no look at their values: most have few brackets, no escaped surrogate, and no null.
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise _too_deep()
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError("bad Unicode", "half of a surrogate pair, escaped as \\ud..., stands alone") from error
    return value


def _fault(text: str, error: json.JSONDecodeError) -> str:
    """Return what is wrong with text that is not JSON: the decoder's message, and what it does not say."""
    start = text.lstrip()[:_SHOWN_CHARACTERS]
    if "\0" in text:
        return f"there are NUL bytes in it (it begins with {start!r}); the file is damaged, or it is UTF-16"
    if error.msg == "Extra data" and text[error.pos] in "{[":
        return f"another value follows at character {error.pos + 1}; write each object on a line of its own"
    if error.pos == len(text) - len(text.lstrip()):
        return f"{error}; it begins with {start!r}"
    return str(error)


def _too_deep() -> RowError:
    return RowError("too deeply nested", f"more than {MAX_DEPTH} brackets are open at once")


def _is_deep(value: Any) -> bool:
    """Return whether a value has more than MAX_DEPTH levels, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [part for part in level if isinstance(part, dict | list)]
        if not nested:
            return False
        level = [child for part in nested for child in (part.values() if isinstance(part, dict) else part)]
    return True


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise RowError("duplicate key", f"{twice[:_SHOWN_CHARACTERS]!r} stands twice in one object")
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _too_large(text)
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _too_large(text)
    return number


def _too_large(text: str) -> RowError:
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters)"
    return RowError("number out of range", f"{shown} is too large for a float")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float)
