"""The pages agree with the code: generated tables, commands and error messages."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from raydpo.config import parse
from tests.config.option_table import PARTS, ROOT, updated_text

PAGES = [ROOT / name for name in ("README.md", "jobs/README.md", "cluster/README.md")]
JOB = re.compile(r"^\s*(?:ray job submit .* -- +)?python jobs/(dpo|orpo|cpo|score_reference)\.py (.*)", re.MULTILINE)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Return (program, flags) of each command in the code blocks of a page; shell variables become 1."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\w+", "1", "\n".join(blocks).replace("\\\n", " "))
    return [(job[1], shlex.split(job[2])) for job in JOB.finditer(text)]


def string_parts() -> str:
    """Return all string literals of the package, with the values in f-strings left out."""
    trees = (ast.parse(path.read_text()) for path in sorted((ROOT / "raydpo").rglob("*.py")))
    return "\n".join(
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@pytest.mark.parametrize("file", sorted(PARTS))
def test_the_tables_are_up_to_date(file: str) -> None:
    assert (ROOT / file).read_text() == updated_text(file), "run: python -m tests.config.option_table"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_command_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = commands(page)
    assert found
    for program, flags in found:
        parse(flags, program)


def test_each_message_in_troubleshooting_exists() -> None:
    section = (ROOT / "README.md").read_text().split("## Troubleshooting\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 8
    known = string_parts()
    for message in re.findall(r"`([^`]+)`", "".join(rows)):
        for part in message.split("..."):
            assert part.strip() in known, message
