"""The text that --help prints for a section of options."""

import dataclasses
import textwrap
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from raydpo.config.fields import Section, default_of, hints_of, show


def help_section(title: str, section: type[Section], defaults: Mapping[str, Any], width: int = 100) -> str:
    """Return the help text of a section: each option's flag, description, default, unit and rule, indented.

    `defaults` take precedence over the defaults of the section.
    """
    lines = [f"{title}: {(section.__doc__ or '').splitlines()[0]}"]
    for field in dataclasses.fields(section):
        default = defaults.get(field.name, default_of(field))
        rule, unit = field.metadata["rule"], field.metadata["unit"]
        facts = f"default: {show(default)}" + (f"; in {unit}" if unit else "") + (f"; {rule.text}" if rule else "")
        text = f"{field.metadata['help']} [{facts}]"
        lines.append(f"  --{field.name} {placeholder(hints_of(section)[field.name])}")
        lines.append(textwrap.fill(text, width, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(lines)


def placeholder(hint: Any) -> str:
    """Return the placeholder for values of a type in the help text, such as INTEGER."""
    if isinstance(hint, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) is tuple:
        return "TEXT ..."
    if get_origin(hint) is dict:
        return "NAME=VALUE,..."
    return {bool: "[true|false]", int: "INTEGER", float: "NUMBER"}.get(hint, "TEXT")
