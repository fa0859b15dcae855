"""One digest of everything besides a shard's content that decides its tokenized blocks."""

import dataclasses
import hashlib
import inspect
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from raydpo.data.index.record_json import to_json

NOT_DECIDING = frozenset({"cache_dir", "quarantine_dir"})
"""Fields of recipes that do not change a block. Every other field decides, so that a new one is never forgotten."""

_PACKAGES = ("transformers", "tokenizers", "jinja2", "pyarrow")
_ROOMS = ("data", "blocks")
"""Subpackages of raydpo whose code decides the blocks."""
_UNRELATED = frozenset(
    {"name_or_path", "files_loaded", "init_inputs", "init_kwargs", "deprecation_warnings", "verbose"}
)
"""Attributes of a tokenizer that do not change token ids: where it was loaded from, and its messages."""


def settings_digest(tokenizer: PreTrainedTokenizerBase, *recipes: Any) -> str:
    """Return a digest (hex) of the tokenizer, of the recipes (dataclasses), of raydpo's code and of its packages."""
    parts = [*map(recipe_json, recipes), tokenizer_digest(tokenizer), code_digest()]
    parts += [f"{name} {version(name)}" for name in _PACKAGES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def recipe_json(recipe: Any) -> str:
    """Return the deciding fields of a dataclass as JSON, by name. Raises TypeError for a field without a form in it."""
    fields = {
        field.name: to_json(getattr(recipe, field.name))
        for field in dataclasses.fields(recipe)
        if field.name not in NOT_DECIDING
    }
    return json.dumps([type(recipe).__name__, fields], sort_keys=True)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest (hex) of what decides a tokenizer's ids and the text of its chat template; never of its path."""
    digest = hashlib.sha256()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        digest.update(backend.to_str().encode())
    else:
        for name, content in _saved_files(tokenizer):
            digest.update(f"{name} {len(content)}\n".encode() + content)
    digest.update(json.dumps(_attributes(tokenizer), sort_keys=True).encode())
    for path in _own_code(type(tokenizer)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _attributes(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the attributes that JSON can hold, such as special tokens, template and whether BOS is added."""
    found = {}
    for name, value in vars(tokenizer).items():
        if name in _UNRELATED or name.endswith(("_file", "_path", "_dir")):
            continue
        if isinstance(value, str | int | float | bool | list | tuple | dict | None):
            found[name] = json.loads(json.dumps(value, sort_keys=True, default=str, skipkeys=True))
    return found


def _saved_files(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files that describe a tokenizer without a backend in Rust."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                yield path.name, path.read_bytes()


def _own_code(kind: type) -> list[Path]:
    """Return the Python files of a tokenizer that comes with its own code; the others change with their packages."""
    if kind.__module__.split(".")[0] == "transformers":
        return []
    return sorted(Path(inspect.getfile(sys.modules[kind.__module__])).parent.glob("*.py"))


@cache
def code_digest() -> str:
    """Return a digest (hex) of raydpo's source files that read, convert and tokenize rows."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(path for room in _ROOMS for path in (package / room).rglob("*.py")):
        digest.update(f"{path.relative_to(package)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()
