"""Which room may import which, and who may touch Ray, DeepSpeed and torch: read from the source, functions included."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "raydpo"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Imports go down this list only, or stay in the room.
ROOMS = (
    "errors",
    "config",
    "objectives",
    "runtime",
    "blocks",
    "batching",
    "data",
    "models",
    "reference",
    "tr_dpo",
    "feed",
    "reporting",
    "training",
    "stages",
    "pipeline",
    "demo",
    "cli",
)
RAY_ROOMS = {"runtime", "data", "reference", "feed", "training", "stages", "cli"}
# What a room may import beside Python and raydpo.
PURE = {
    "errors": set(),
    "config": {"yaml"},
    "objectives": {"torch"},
    "blocks": {"numpy", "pyarrow"},
    "batching": {"numpy"},
    "tr_dpo": {"torch", "transformers", "peft"},
    "feed": {"numpy", "ray"},
}
OUTSIDE = {
    "datasets",
    "deepspeed",
    "fsspec",
    "numpy",
    "peft",
    "pyarrow",
    "ray",
    "tokenizers",
    "torch",
    "transformers",
    "yaml",
}

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


def room_of(path: Path) -> str:
    """The folder or, at the top, the file that a module lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    """The module's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported below a node; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(tree: ast.AST) -> set[str]:
    """Top-level packages that are imported."""
    return {name.split(".")[0] for name in imports(tree)}


def rooms_imported(tree: ast.AST) -> set[str]:
    """Rooms of this package that are imported."""
    return {name.split(".")[1] for name in imports(tree) if name.startswith("raydpo.")}


@each_module
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert rooms_imported(tree_of(path)) == set()
        return
    assert room in ROOMS, f"{room} has no place in the order of rooms"
    for other in rooms_imported(tree_of(path)) - {room}:
        assert ROOMS.index(other) < ROOMS.index(room), f"{room} must not import {other}"


@each_module
def test_ray_and_deepspeed_stay_in_their_rooms(path: Path) -> None:
    room, tree = room_of(path), tree_of(path)
    assert "ray" not in roots(tree) or room in RAY_ROOMS
    assert "deepspeed" not in roots(tree) or room == "training"
    # The driver imports training/ too, and importing DeepSpeed there needs a GPU where its build has one.
    at_import = {
        root for statement in tree.body if not isinstance(statement, ast.FunctionDef) for root in roots_now(statement)
    }
    assert "deepspeed" not in at_import


def roots_now(statement: ast.stmt) -> set[str]:
    """Packages that a statement imports when the module is imported: not those inside methods."""
    if isinstance(statement, ast.ClassDef):
        return {root for inner in statement.body if not isinstance(inner, ast.FunctionDef) for root in roots_now(inner)}
    return roots(statement)


@each_module
def test_pure_rooms_import_little(path: Path) -> None:
    allowed = PURE.get(room_of(path))
    if allowed is not None:
        assert roots(tree_of(path)) & OUTSIDE <= allowed


def test_no_module_imports_itself_in_a_circle() -> None:
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in MODULES}
    waiting = {}
    for name, path in names.items():
        # `a.b.c.` starts with `a.b.` where c is imported from the module a.b.
        found = [f"{imported}." for imported in imports(tree_of(path))]
        waiting[name] = {other for other in names if any(imported.startswith(f"{other}.") for imported in found)}
    while ready := {name for name, needs in waiting.items() if not needs & set(waiting)}:
        for name in ready:
            del waiting[name]
    assert sorted(waiting) == []


@each_module
def test_public_functions_are_documented(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), "the module has no docstring"
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    while scopes:
        for node in scopes.pop().body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                assert ast.get_docstring(node), f"{node.name} has no docstring"
                if isinstance(node, ast.ClassDef):
                    scopes.append(node)


FRAGMENTS = re.compile(r"Of |As `|The same|-> ")
"""Beginnings of a docstring that is no sentence of its own."""


@each_module
def test_docstrings_are_sentences(path: Path) -> None:
    """Strings that stand alone document what is above them or around them."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            text = node.value.value.strip()
            assert not FRAGMENTS.match(text), f"line {node.lineno}: {text}"
            assert not text.rstrip(".").endswith("for people"), f"line {node.lineno}: {text}"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_module_is_imported(path: Path) -> None:
    """What tests share lies in modules of its own, so that a test can be read and moved by itself."""
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        shared = parts[0] != "tests" or not any(part.startswith("test_") or part == "conftest" for part in parts)
        assert shared, f"{name} belongs to a test module; move what is shared into a module of its own"


@each_module
def test_no_broad_except(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"all"}
            assert not caught & {"all", "Exception", "BaseException"}, f"line {node.lineno}"
