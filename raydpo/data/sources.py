"""Resolve a dataset name (a file, glob, folder, saved `datasets` folder or hub id) to the URLs of its data files."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec

from raydpo.data.files import streams
from raydpo.errors import DataError
from raydpo.runtime import storage

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")


def is_hub_id(name: str) -> bool:
    """Return whether a name is `owner/name` and neither a local path nor the name of a data file."""
    is_file = streams.uncompressed_name(name).endswith(streams.DATA_NAMES)
    return _HUB_ID.fullmatch(name) is not None and not is_file and not storage.exists(storage.absolute(name))


def exists(name: str) -> bool:
    """Return whether a name is a path or URL of something that exists, or a glob that matches something."""
    url = storage.absolute(name)
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        return bool(filesystem.exists(path)) or (_is_glob(path) and bool(filesystem.glob(path)))
    except (OSError, ValueError, ImportError):
        return False


def find_files(
    name: str,
    split: str,
    config: str | None,
    required: bool,
    below: tuple[str | None, tuple[str, ...]] = (None, ()),
) -> list[str]:
    """Return the URLs of the data files that a name stands for; see `shards.find_shards` for the rules.

    `below` is the data_dir and the data_files of a hub id, which limit its files as in `load_dataset`.

    Raises DataError if the name cannot be read or has no such files; with `required=False`, a missing split is allowed.
    """
    if is_hub_id(name):
        found = hub_files(name, config, *below) if any(below) else hub_files(name, config)
        files = _of_splits(found, split, name, required)
        for file in files:
            streams.check_type(file)
        return files
    url = storage.absolute(name)
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        is_file = filesystem.isfile(path)
        is_folder = not is_file and filesystem.isdir(path)  # over HTTP, any page with links counts as a folder
        matches = [] if is_file or is_folder else sorted(filesystem.glob(path)) if _is_glob(path) else []
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"cannot read {name}: {error}; check the name and that its fsspec client is installed"
        ) from error
    if is_folder:
        return _folder_files(filesystem, path, url, split, required)
    if not is_file and not matches:
        raise DataError(
            f"there is no file or folder {name}{_folder_listing(filesystem, path)}; give a path, a glob, an fsspec "
            "URL, or owner/name of a hub dataset"
        )
    if not required:
        return []  # files that are named one by one have no splits
    files = []
    for match in matches or [path]:
        if filesystem.isdir(match):
            files += _folder_files(filesystem, match, url, split, required)
        else:
            files.append(url if is_file else _as_url(filesystem, match, url))
    for file in files:
        streams.check_type(file)
    return files


def _is_glob(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _as_url(filesystem: fsspec.AbstractFileSystem, path: str, source: str) -> str:
    """Return the URL of a path in the file system of the URL `source`, which may be chained (`zip://*::s3://...`)."""
    if "::" in source:
        return f"{source.split('://', 1)[0]}://{path}::{source.split('::', 1)[1]}"
    return path if "://" not in source else str(filesystem.unstrip_protocol(path))


def _folder_listing(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """Return a note on what the folder of a missing path contains, for an error message."""
    parent = path.rstrip("/").rpartition("/")[0]
    if not parent or not filesystem.isdir(parent):
        return ""
    names = sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(parent, detail=False))
    return f" (its folder has: {_first_names(names)})" if names else " (its folder is empty)"


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _folder_files(
    filesystem: fsspec.AbstractFileSystem, path: str, source: str, split: str, required: bool
) -> list[str]:
    path = path.rstrip("/")
    if filesystem.isfile(f"{path}/dataset_dict.json"):
        saved: list[str] = json.loads(filesystem.cat_file(f"{path}/dataset_dict.json"))["splits"]
        if split in saved:
            return _saved_files(filesystem, f"{path}/{split}", source)
        if required:
            raise _no_split(split, path, saved)
        return []
    if filesystem.isfile(f"{path}/state.json"):
        return _saved_files(filesystem, path, source) if required else []
    below = sorted(str(file) for file in filesystem.find(path))
    inside = {file[len(path) :].lstrip("/"): file for file in below}
    data = {name: file for name, file in inside.items() if _is_data(name)}
    if not data and required:
        raise DataError(
            f"the folder {path} has no data files (it has {_first_names(list(inside)) or 'no files'}); data files "
            f"end in {', '.join(streams.DATA_NAMES)}, and text formats also in .gz or .zst"
        )
    wanted, found = select_split_files(list(data), split)
    if found and not wanted and required:
        raise _no_split(split, path, found)
    if not found:
        wanted = list(data) if required else []
    return [_as_url(filesystem, data[name], source) for name in wanted]


def _is_data(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith((".", "_")) for part in parts)
    cached = parts[-1].startswith("cache-") and parts[-1].endswith(
        ".arrow"
    )  # cache files that `datasets` leaves behind
    is_data = streams.uncompressed_name(name).endswith(streams.DATA_NAMES)
    return is_data and not hidden and not cached and parts[-1] not in _NOT_ROWS


def _saved_files(filesystem: fsspec.AbstractFileSystem, path: str, source: str) -> list[str]:
    try:
        state: dict[str, Any] = json.loads(filesystem.cat_file(f"{path}/state.json"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is an incomplete `datasets` folder: it has no state.json; save it again") from error
    return [_as_url(filesystem, f"{path}/{file['filename']}", source) for file in state["_data_files"]]


def _no_split(split: str, source: str, found: Sequence[str]) -> DataError:
    return DataError(
        f"{source} has no split {split!r}, only {', '.join(map(repr, found)) or 'none'}; choose one of them with "
        "dataset_train_split or dataset_test_split"
    )


def _of_splits(files: Mapping[str, Sequence[str]], split: str, source: str, required: bool) -> list[str]:
    if split not in files:
        if required:
            raise _no_split(split, source, list(files))
        return []
    return list(files[split])


def hub_files(
    name: str, config: str | None, data_dir: str | None = None, data_files: tuple[str, ...] = ()
) -> dict[str, list[str]]:
    """Return the URLs of a hub dataset's files by split; only the dataset's metadata is downloaded.

    A local folder is accepted in place of a hub id. Raises DataError if the dataset cannot be loaded or has no data
    files.
    """
    from datasets import load_dataset_builder  # takes a second to import, and only hub ids need it

    try:
        builder = load_dataset_builder(name, config, data_dir=data_dir, data_files=list(data_files) or None)
        files = builder.config.data_files
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name} is not a local file or folder, and loading it as a hub dataset failed: {error}; check the name, "
            "dataset_config, the network and, if it is private, HF_TOKEN"
        ) from error
    if not files:
        raise DataError(f"the hub dataset {name} has no data files; convert it to Parquet or JSONL")
    return {str(split): [str(file) for file in urls] for split, urls in files.items()}


_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(_SPLIT_WORDS)})(?![a-z])", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:^|/)([\w.-]+?)-\d{5}-of-\d{5}[^/]*$")


def select_split_files(files: Sequence[str], split: str) -> tuple[list[str], list[str]]:
    """Return the files of a split, and the names of all splits found (an empty list if no file name has a split).

    `files` are paths relative to the folder. The split of `train-00000-of-00004.parquet` is the part before the
    numbers. Any other path belongs to the split whose word it contains (the last one if there are several), such as
    `test/part-1.jsonl` or `harmless_train.json.gz`. Paths without such a word belong to no split.
    """
    splits = {file: _split_of(file, split) for file in files}
    found = sorted({name for name in splits.values() if name is not None})
    wanted = {split, _SPLIT_WORDS.get(split.lower(), split)}
    return [file for file, name in splits.items() if name in wanted], found


def _split_of(file: str, split: str) -> str | None:
    numbered = _NUMBERED.search(file)
    if numbered and (numbered[1] == split or _SPLIT_WORD.search(numbered[1])):
        return _SPLIT_WORDS.get(numbered[1].lower(), numbered[1])
    if split.lower() not in _SPLIT_WORDS and re.search(rf"(?<![a-z]){re.escape(split)}(?![a-z])", file, re.IGNORECASE):
        return split
    words = _SPLIT_WORD.findall(file)
    return _SPLIT_WORDS[words[-1].lower()] if words else None
