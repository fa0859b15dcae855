"""Splits of a plain folder, told from the names of its files and sub-folders as `datasets` does."""

import re
from collections.abc import Sequence

_WORDS = {
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
_WORD = re.compile(rf"(?<![a-z])({'|'.join(_WORDS)})(?![a-z])", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:^|/)([\w.-]+?)-\d{5}-of-\d{5}[^/]*$")


def files_of_split(files: Sequence[str], split: str) -> tuple[list[str], list[str]]:
    """The files (paths below the folder) of a split, and the splits that the folder has; none if no name tells any.

    `train-00000-of-00004.parquet` is of the split that stands before the numbers. Else a name is of the split whose
    word it carries, the last one if there are several: `test/part-1.jsonl`, `harmless_train.json.gz`. Files that carry
    no split's name are of none, once others do.
    """
    splits = {file: _split_of(file, split) for file in files}
    found = sorted({name for name in splits.values() if name is not None})
    wanted = {split, _WORDS.get(split.lower(), split)}
    return [file for file, name in splits.items() if name in wanted], found


def _split_of(file: str, asked: str) -> str | None:
    numbered = _NUMBERED.search(file)
    if numbered and (numbered[1] == asked or _WORD.search(numbered[1])):
        return _WORDS.get(numbered[1].lower(), numbered[1])
    if asked.lower() not in _WORDS and re.search(rf"(?<![a-z]){re.escape(asked)}(?![a-z])", file, re.IGNORECASE):
        return asked
    words = _WORD.findall(file)
    return _WORDS[words[-1].lower()] if words else None
