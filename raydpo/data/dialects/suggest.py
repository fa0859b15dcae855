"""Suggest a `column_mapping` for rows whose columns are not those of any dialect, for error messages."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PROMPTS = (
    "prompt question instruction query input problem context trajectory history dialogue conversation conversations "
    "messages post request task user user_input prompt_text"
).split()
"""Names under which data sets have their prompt, the most likely first."""
_COMPLETION = re.compile(
    r"(.*?)(response|answer|completion|output|reply|summary|conversation|ref|text|candidate|generation|solution)(.*)",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"(.*?)_?([0-9]|[ab])(_.*)?", re.IGNORECASE)
# A column `label` is left out: in some data sets it is 1 where the first completion is the better one.
_BEST = ("better", "best", "winner", "preferred", "preference", "choice", "chosen", "safer")
_GOOD = ("chosen", "accepted", "preferred", "winning", "good", "positive", "selected")
_BAD = ("rejected", "dispreferred", "losing", "bad", "negative", "non_preferred")
_SCORES = ("score", "rating", "reward")
_SHOWN_COLUMNS = 30


def columns_and_mapping(row: Mapping[str, Any]) -> str:
    """Return the columns of a row, and the option that maps them, for an error message."""
    names = [repr(name) for name in row]
    more = f" and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else ""
    columns = f"{', '.join(names[:_SHOWN_COLUMNS]) or 'none'}{more}"
    return f"the row has {columns}; map them with --column_mapping {suggest_mapping(row)}"


def suggest_mapping(row: Mapping[str, Any]) -> str:
    """Return the value of `column_mapping` that fits the names and types of a row's columns best.

    What cannot be told is written in capitals, to be replaced.
    """
    prompt = next((name for name in _PROMPTS if isinstance(row.get(name), str | list)), "COLUMN")
    if prompt == "COLUMN" and any(name.lower().startswith("conversation") for name in row):
        prompt = "prompt"  # the completions are conversations, which contain it
    completions = _of_lists(row) or _of_numbered(row) or _of_sides(row, prompt)
    pairs = [pair.split("=") for pair in (f"prompt={prompt} {completions}").split()]
    return " ".join(f"{name}={column}" for name, column in pairs if name != column)


def _of_sides(row: Mapping[str, Any], prompt: str) -> str:
    """Return the mapping of one column for the chosen and one for the rejected completion."""

    def named(words: Sequence[str], taken: str = "") -> str:
        texts = [
            name for name, value in row.items() if isinstance(value, str | list | dict) and name not in (prompt, taken)
        ]
        return next((name for word in words for name in texts if word in name.lower()), "COLUMN")

    rejected = named(_BAD)
    return f"chosen={named(_GOOD, rejected)} rejected={rejected}"


def _of_numbered(row: Mapping[str, Any]) -> str | None:
    """Return the mapping of columns such as response_0 and response_1, with the column that tells which is better."""
    families: dict[tuple[str, str], list[str]] = {}
    for name in row:
        if numbered := _NUMBERED.fullmatch(name):
            families.setdefault((numbered[1].lower(), (numbered[3] or "").lower()), []).append(name)
    texts = [names for names in families.values() if _are_completions(row, names)]
    if not texts:
        return None
    scores = [
        names
        for (stem, rest), names in families.items()
        if len(names) == len(texts[0]) and any(word in f"{stem}{rest}" for word in _SCORES)
    ]
    completions = f"completions={'+'.join(texts[0])}"
    best = next((name for word in _BEST for name in row if word in name.lower() and name not in texts[0]), None)
    if best is None and scores:
        return f"{completions} scores={'+'.join(scores[0])}"
    return f"{completions} best={best or 'COLUMN'}"


def _are_completions(row: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Return whether columns have the names and values of several completions of one prompt."""
    called = len(names) > 1 and _COMPLETION.fullmatch(names[0]) is not None
    return called and all(isinstance(row[name], str | list) for name in names)


def _of_lists(row: Mapping[str, Any]) -> str | None:
    """Return the mapping of a column that lists completions with their scores or ranks."""
    for name, value in row.items():
        first = value[0] if isinstance(value, list) and value else None
        if not isinstance(first, Mapping) or "role" in first or "from" in first:
            continue
        text = next((key for key, part in first.items() if isinstance(part, str) and _COMPLETION.fullmatch(key)), None)
        rank = next((key for key in first if "rank" in key.lower()), None)
        score = next((key for key in first if any(word in key.lower() for word in _SCORES)), None)
        if text and (rank or score):
            return f"completions={name}.{text} " + (f"ranks={name}.{rank}" if rank else f"scores={name}.{score}")
    return None
