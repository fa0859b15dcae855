"""Layers whose weight a model's code reads itself, instead of calling the layer: an adapter there has no effect."""

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache

from torch import nn

_DESCRIPTIONS = frozenset({"dtype", "device", "shape", "ndim", "size", "numel", "element_size", "requires_grad"})
"""Attributes of a weight that say what it is, but not its values."""
_QUESTIONS = frozenset({"isinstance", "hasattr", "getattr", "id", "len"})
"""Functions whose result does not depend on a weight's values."""
_REPLAYS = frozenset({"pretraining_tp", "slow_but_exact"})
"""Config keys behind which some models repeat the sums of their tensor-parallel pre-training; no run sets them."""


def layers_read_directly(model: nn.Module) -> set[str]:
    """Return the paths of the layers whose weight the forward of another module reads, in any of its branches.

    Mamba's fused kernels take the weights of `out_proj` and others as arguments, so that an adapter on such a layer
    changes nothing where the kernels are installed, and is bypassed without a word. The modules' source code says so.
    A module whose source cannot be read counts as one that reads none.
    """
    modules = dict(model.named_modules())
    found: set[str] = set()
    for path, module in modules.items():
        for chain in _weights_read_by(type(module)):  # type: ignore[arg-type]  # a class is hashable
            layer = f"{path}.{chain}" if path else chain
            if layer in modules:
                found.add(layer)
    return found


@cache
def _weights_read_by(cls: type[nn.Module]) -> frozenset[str]:
    """Return the dotted names, such as `out_proj`, whose `.weight` the methods of a class read."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in ("torch", "builtins"):
            continue
        for node in _classes_of(base.__module__).get(base.__name__, ()):
            if isinstance(node, ast.FunctionDef) and "init" not in node.name and not node.name.startswith("reset"):
                names.update(_reads(node))
    return frozenset(names)


@cache
def _classes_of(module: str) -> dict[str, list[ast.stmt]]:
    """Return the body of each class of a module, by name; none of a module whose source cannot be read."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def _reads(node: ast.AST) -> Iterator[str]:
    """Yield the dotted name of each layer below a node whose weight is used for its values."""
    if isinstance(node, ast.Attribute) and node.attr in _DESCRIPTIONS:
        return
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _QUESTIONS:
        return
    if isinstance(node, ast.If) and _REPLAYS & _names(node.test):
        for other in node.orelse:
            yield from _reads(other)
        return
    if isinstance(node, ast.Attribute) and node.attr == "weight" and (chain := _chain(node.value)):
        yield chain
        return
    for child in ast.iter_child_nodes(node):
        yield from _reads(child)


def _names(node: ast.AST) -> set[str]:
    return {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def _chain(node: ast.expr) -> str:
    """Return `a.b` for the expression `self.a.b`, and an empty string for any other."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed(parts)) if isinstance(node, ast.Name) and node.id == "self" else ""
