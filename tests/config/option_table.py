"""Generates the tables of the Markdown pages from the code; `python -m tests.config.option_table` updates the pages."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raydpo import config
from raydpo.config import fields, trl_compat
from raydpo.config.loss_types import LOSS_TYPES

ROOT = Path(__file__).parents[2]


def table(head: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the Markdown lines of a table; `head` has the titles of the columns, separated by bars."""
    lines = [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def option_tables() -> list[str]:
    """Return one table per section of options, with one row per option."""
    lines: list[str] = []
    for section in config.SECTIONS.values():
        rows = []
        for field in dataclasses.fields(section):
            default, unit = fields.show(fields.default_of(field)), field.metadata["unit"]
            shown = f"{default} {unit}" if unit and default != "unset" else default
            rule = field.metadata["rule"].text if field.metadata["rule"] else ""
            rows.append((f"`{field.name}`", shown, rule, field.metadata["help"]))
        title = (section.__doc__ or "").splitlines()[0]
        lines += ["", f"**{title}**", "", *table("option | default | values | meaning", rows)]
    return lines


def loss_table() -> list[str]:
    """Return the table of objectives, with one row per value of loss_type."""
    rows = [
        (
            f"`{name}`",
            kind.source,
            *(
                "yes" if flag else ""
                for flag in (
                    kind.supports_divergence,
                    kind.supports_smoothing,
                    kind.supports_margin,
                    kind.needs_global_batch,
                )
            ),
        )
        for name, kind in LOSS_TYPES.items()
    ]
    head = "`loss_type` | source | `f_divergence_type` | `label_smoothing` | margin | whole global batch"
    return ["", *table(head, rows)]


def options_text(values: Mapping[str, Any]) -> str:
    """Return options and their values as text."""
    return ", ".join(f"`{name}` {fields.show(value)}" for name, value in values.items()) or "nothing"


def key_tables() -> list[str]:
    """Return the tables of TRL's keys that are not options; keys with the same explanation share a row."""
    renamed = [(f"`{key}`", f"`{name}`") for key, name in sorted(trl_compat.RENAMED.items())]
    translated = [
        (f"`{key}`", "; ".join(f"{value}: {options_text(options)}" for value, options in values.items()))
        for key, values in sorted(trl_compat.TRANSLATED.items())
    ]
    recipes = [(f"`{key}`", text) for key, text in sorted(trl_compat.RECIPES.items())]
    lines = ["", "**Accepted as options**", "", *table("key | means", renamed + translated + recipes)]
    for title, head, entries in (
        ("No effect", "key | instead", trl_compat.NO_EFFECT),
        ("Refused", "key | why, and what to do", trl_compat.REFUSED),
    ):
        keys: dict[str, list[str]] = {}
        for key, entry in entries.items():
            keys.setdefault(entry.text, []).append(f"`{key}`")
        lines += ["", f"**{title}**", "", *table(head, [(", ".join(found), text) for text, found in keys.items()])]
    return lines


PARTS = {
    "README.md": {"losses": loss_table},
    "jobs/OPTIONS.md": {"options": option_tables},
    "jobs/README.md": {"keys of TRL": key_tables},
}
"""The generated parts of each file: name of the part, and the function that makes its lines."""


def updated_text(file: str) -> str:
    """Return the text of a file with its generated parts updated from the code."""
    text = (ROOT / file).read_text()
    for name, make_lines in PARTS[file].items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = before + start + "\n".join(make_lines()) + "\n\n" + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    for part in PARTS:
        (ROOT / part).write_text(updated_text(part))
