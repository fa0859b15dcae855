"""The README's table of options, made from the options; `python -m tests.config.option_table` writes it anew."""

import dataclasses
from pathlib import Path

from raydpo import config, options

README = Path(__file__).parents[2] / "README.md"
START, END = "<!-- options -->\n", "<!-- end of options -->"


def table() -> str:
    """Markdown: a section a concern, a row an option."""
    lines: list[str] = []
    for section in config.SECTIONS.values():
        lines += ["", f"**{(section.__doc__ or '').splitlines()[0]}**", "", "| option | default | |", "|---|---|---|"]
        for field in dataclasses.fields(section):
            default, unit = options.show(options.default_of(field)), field.metadata["unit"]
            shown = f"{default} {unit}" if unit and default != "unset" else default
            lines.append(f"| `{field.name}` | {shown} | {field.metadata['help'].replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n\n"


def replaced(readme: str) -> str:
    """The README with its table made anew."""
    before, rest = readme.split(START)
    return before + START + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(replaced(README.read_text()))
