"""The READMEs' tables, made from what the code says; `python -m tests.config.option_table` writes them anew."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raydpo import config
from raydpo.config import fields, trl_compat
from raydpo.config.loss_types import LOSS_TYPES

ROOT = Path(__file__).parents[2]


def table(head: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Markdown lines; the head has its cells between bars."""
    lines = [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def option_tables() -> list[str]:
    """A section a concern, a row an option."""
    lines: list[str] = []
    for section in config.SECTIONS.values():
        rows = []
        for field in dataclasses.fields(section):
            default, unit = fields.show(fields.default_of(field)), field.metadata["unit"]
            shown = f"{default} {unit}" if unit and default != "unset" else default
            rows.append((f"`{field.name}`", shown, field.metadata["help"]))
        lines += ["", f"**{(section.__doc__ or '').splitlines()[0]}**", "", *table("option | default | ", rows)]
    return lines


def loss_table() -> list[str]:
    """A row an objective."""
    rows = [
        (
            f"`{name}`",
            kind.source,
            *("yes" if flag else "" for flag in (kind.divergence, kind.smoothing, kind.needs_global_batch)),
        )
        for name, kind in LOSS_TYPES.items()
    ]
    return ["", *table("`loss_type` | source | `f_divergence_type` | `label_smoothing` | whole global batch", rows)]


def words(values: Mapping[str, Any]) -> str:
    """Options and their values as one would set them."""
    return ", ".join(f"`{name}` {fields.show(value)}" for name, value in values.items()) or "nothing"


def key_tables() -> list[str]:
    """TRL's keys that are no options: other names, without meaning, refused; keys with the same answer share a row."""
    renamed = [(f"`{key}`", f"`{name}`") for key, name in sorted(trl_compat.RENAMED.items())]
    translated = [
        (f"`{key}`", "; ".join(f"{value}: {words(said)}" for value, said in values.items()))
        for key, values in sorted(trl_compat.TRANSLATED.items())
    ]
    lines = ["", "**Taken as options of ours**", "", *table("key | means", renamed + translated)]
    for title, head, entries in (
        ("Without meaning", "key | instead", trl_compat.WITHOUT_MEANING),
        ("Refused", "key | why, and what to do", trl_compat.REFUSED),
    ):
        keys: dict[str, list[str]] = {}
        for key, entry in entries.items():
            keys.setdefault(entry.text, []).append(f"`{key}`")
        lines += ["", f"**{title}**", "", *table(head, [(", ".join(found), text) for text, found in keys.items()])]
    return lines


PARTS = {
    "README.md": {"losses": loss_table, "options": option_tables},
    "jobs/README.md": {"keys of TRL": key_tables},
}
"""File -> name of a part of it -> what makes it."""


def replaced(file: str) -> str:
    """The file's text with its tables made anew."""
    text = (ROOT / file).read_text()
    for name, made in PARTS[file].items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = before + start + "\n".join(made()) + "\n\n" + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    for part in PARTS:
        (ROOT / part).write_text(replaced(part))
