"""The data sets of a run as entries, written as in TRL's `datasets` and in the recipes of the alignment handbook."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEYS = {
    "path": "path",
    "id": "path",
    "name": "name",
    "config": "name",
    "split": "split",
    "columns": "columns",
    "weight": "weight",
    "fraction": "weight",
    "data_dir": "data_dir",
    "data_files": "data_files",
}
"""The keys of an entry, TRL's and the handbook's, and the field of `DatasetEntry` that each stands for."""
LOADERS = ("json", "parquet", "arrow")
"""Paths that stand for a file format, as in `load_dataset("json", data_files=...)`; the files are in data_files."""
_WHAT = "a list of data sets, each with a path and optionally name, split, columns and weight, in YAML or as JSON"


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of a run: which of its files, columns and rows are used."""

    path: str
    """Path, glob, folder, URL or hub id; or one of LOADERS, and then data_files names the files."""
    name: str | None = None
    """Configuration of a hub id."""
    split: str | None = None
    """Split of a hub id or folder; None: dataset_train_split."""
    columns: tuple[str, ...] = ()
    """Columns that are read; empty: all that a dialect needs."""
    weight: float = 1.0
    """Share of the rows that is used, above 0 and at most 1."""
    data_dir: str | None = None
    """Folder below the path."""
    data_files: tuple[str, ...] = ()
    """Files or globs below the path."""

    @classmethod
    def read(cls, value: object) -> "DatasetEntry":
        """Return an entry from a mapping whose values may be text. Raises ValueError, which names what is expected."""
        if isinstance(value, DatasetEntry):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(_WHAT)
        found: dict[str, Any] = {}
        for key, part in value.items():
            if key not in KEYS:
                raise ValueError(f"{_WHAT}; {key} is none of an entry's keys, which are {', '.join(KEYS)}")
            if _is_unset(part):
                continue
            field = KEYS[key]
            if field in found:
                raise ValueError(f"{_WHAT}; {key} says the same as another key of its entry, so keep one of them")
            found[field] = part
        if not isinstance(found.get("path"), str):
            raise ValueError(f"{_WHAT}; an entry has no path")
        return cls(**_converted(found))

    def plain(self) -> dict[str, Any]:
        """Return the entry as a mapping of plain values, without what has its default."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    def __str__(self) -> str:
        return json.dumps(self.plain())


def _is_unset(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.lower() in ("", "none", "null", "~"))


def _converted(found: dict[str, Any]) -> dict[str, Any]:
    split = found.get("split")
    if split is not None and any(sign in str(split) for sign in "[+"):
        raise ValueError(
            f"{_WHAT}; split={split} must be the name of one split: set weight for a part of it, and an entry for each"
        )
    if isinstance(found.get("data_files"), Mapping):
        files, wanted = found["data_files"], split or "train"
        if wanted not in files:
            raise ValueError(f"{_WHAT}; data_files has no split {wanted}, only {', '.join(map(str, files))}")
        found = {**found, "data_files": files[wanted]}
    if found["path"] in LOADERS and "data_files" not in found:
        raise ValueError(f"{_WHAT}; path={found['path']} is a file format, so name the files in data_files")
    names: dict[str, Any] = {key: _names(key, found[key]) for key in ("columns", "data_files") if key in found}
    return {**found, **names, "weight": _weight(found.get("weight", 1.0))}


def _names(key: str, value: object) -> tuple[str, ...]:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{_WHAT}; {key} must be a list of names")
    return tuple(parts)


def _weight(value: object) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise ValueError(
            f"{_WHAT}; weight={value} must be above 0 and at most 1, as it is the share of the rows that is used, and "
            "each pair is trained on once per epoch: repeat epochs with num_train_epochs"
        )
    return number
