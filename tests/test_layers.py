"""Which subpackage may import which, and which may import Ray, DeepSpeed or torch, including imports in functions."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "raydpo"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A subpackage imports only from itself and from those before it in this list.
SUBPACKAGES = (
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
MAY_IMPORT_RAY = {"runtime", "data", "reference", "feed", "training", "stages", "cli"}
# Third-party packages that a subpackage may import; the others may import all of them.
ALLOWED = {
    "errors": set(),
    "config": {"yaml"},
    "objectives": {"torch"},
    "blocks": {"numpy", "pyarrow"},
    "batching": {"numpy"},
    "tr_dpo": {"torch", "transformers", "peft"},
    "feed": {"numpy", "ray"},
}
THIRD_PARTY = {
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


def subpackage_of(path: Path) -> str:
    """Return the folder directly below raydpo that a module is in or, for a module there, its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def syntax_tree(path: Path) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of all imports below a node; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_packages(tree: ast.AST) -> set[str]:
    """Return the top-level packages that are imported below a node."""
    return {name.split(".")[0] for name in imports(tree)}


def imported_subpackages(tree: ast.AST) -> set[str]:
    """Return the subpackages of raydpo that are imported below a node."""
    return {name.split(".")[1] for name in imports(tree) if name.startswith("raydpo.")}


@each_module
def test_imports_go_down(path: Path) -> None:
    subpackage = subpackage_of(path)
    if subpackage == "__init__":
        assert imported_subpackages(syntax_tree(path)) == set()
        return
    assert subpackage in SUBPACKAGES, f"{subpackage} has no place in the order of subpackages"
    for other in imported_subpackages(syntax_tree(path)) - {subpackage}:
        assert SUBPACKAGES.index(other) < SUBPACKAGES.index(subpackage), f"{subpackage} must not import {other}"


@each_module
def test_ray_and_deepspeed_are_imported_only_where_allowed(path: Path) -> None:
    subpackage, tree = subpackage_of(path), syntax_tree(path)
    assert "ray" not in imported_packages(tree) or subpackage in MAY_IMPORT_RAY
    assert "deepspeed" not in imported_packages(tree) or subpackage == "training"
    # The driver imports training/ too, and a DeepSpeed built for GPUs can be imported only on a machine with a GPU.
    at_import = {
        package
        for statement in tree.body
        if not isinstance(statement, ast.FunctionDef)
        for package in packages_at_import(statement)
    }
    assert "deepspeed" not in at_import


def packages_at_import(statement: ast.stmt) -> set[str]:
    """Return the packages that a statement imports when its module is imported: all except those inside functions."""
    if isinstance(statement, ast.ClassDef):
        return {
            package
            for inner in statement.body
            if not isinstance(inner, ast.FunctionDef)
            for package in packages_at_import(inner)
        }
    return imported_packages(statement)


@each_module
def test_subpackages_import_only_allowed_packages(path: Path) -> None:
    allowed = ALLOWED.get(subpackage_of(path))
    if allowed is not None:
        assert imported_packages(syntax_tree(path)) & THIRD_PARTY <= allowed


def test_there_are_no_circular_imports() -> None:
    modules = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in MODULES}
    remaining = {}
    for name, path in modules.items():
        # `a.b.c.` starts with `a.b.` where c is imported from the module a.b.
        prefixes = [f"{imported}." for imported in imports(syntax_tree(path))]
        remaining[name] = {other for other in modules if any(imported.startswith(f"{other}.") for imported in prefixes)}
    while ready := {name for name, imported_modules in remaining.items() if not imported_modules & set(remaining)}:
        for name in ready:
            del remaining[name]
    assert sorted(remaining) == []


@each_module
def test_public_functions_are_documented(path: Path) -> None:
    tree = syntax_tree(path)
    assert ast.get_docstring(tree), "the module has no docstring"
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    while scopes:
        for node in scopes.pop().body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                assert ast.get_docstring(node), f"{node.name} has no docstring"
                if isinstance(node, ast.ClassDef):
                    scopes.append(node)


FRAGMENTS = re.compile(r"Of |As `|The same|-> ")
"""Matches the beginning of a docstring that is not a sentence of its own."""


@each_module
def test_docstrings_are_sentences(path: Path) -> None:
    """Check all strings that are statements: docstrings of modules, classes and functions, and those below fields."""
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            text = node.value.value.strip()
            assert not FRAGMENTS.match(text), f"line {node.lineno}: {text}"
            assert not text.rstrip(".").endswith("for people"), f"line {node.lineno}: {text}"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_module_is_imported(path: Path) -> None:
    """Check that shared helpers are in modules of their own, so that a test module can be read and moved by itself."""
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        shared = parts[0] != "tests" or not any(part.startswith("test_") or part == "conftest" for part in parts)
        assert shared, f"{name} belongs to a test module; move what is shared into a module of its own"


@each_module
def test_no_broad_except(path: Path) -> None:
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"all"}
            assert not caught & {"all", "Exception", "BaseException"}, f"line {node.lineno}"
