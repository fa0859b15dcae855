"""Split the shared prompt off two texts when a row has no prompt column."""

import re
from collections.abc import Mapping
from typing import Any

from raydpo.data.dialects.pair import ColumnError

_ABOUT_THE_ROW = re.compile(
    r"(.*_)?(id|ids|uuid|hash|index|idx|source|origin|dataset|subset|split|model|models|policy|category|categories|label"
    r"|labels|tag|tags|type|kind|domain|topic|language|lang|url|license|date|time|timestamp|created_at|annotator"
    r"|rating|ratings|score|scores|reward|rewards|rank|logps|rationale|explanation|critique|comment|comments|feedback"
    r"|reason|metadata|meta|info|extra|stats|version|messages)(_.*)?",
    re.IGNORECASE,
)
"""Names of columns that describe a row and that the model does not read."""


def check_no_other_prompt(row: Mapping[str, Any], known: frozenset[str], chosen: str, rejected: str) -> None:
    """Raise ColumnError where a row without a prompt column has another column that may be its prompt.

    That is a column of text or messages whose name is not in `known` and does not describe the row, unless both
    completions contain its text. The common beginning of two answers is not their prompt.
    """
    for name, value in row.items():
        if name in known or _ABOUT_THE_ROW.fullmatch(name) or not isinstance(value, str | list | dict) or not value:
            continue
        if isinstance(value, str) and (not value.strip() or (value.strip() in chosen and value.strip() in rejected)):
            continue
        raise ColumnError(
            "no prompt column",
            f"column {name!r} may be the prompt, and is not read (if chosen and rejected contain the prompt, write "
            "--column_mapping prompt=none)",
        )


def split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts into prompt, chosen and rejected at the first character that differs.

    A space directly before that character goes to the completions, as in TRL. If one text is the beginning of the other
    (apart from whitespace), its last word becomes its completion, or its last character if it has only one word, as in
    scripts without spaces. Any split would be a guess there; this one leaves both completions something to learn from.
    """
    cut = _common_length(chosen, rejected)
    if not (chosen[cut:].strip() and rejected[cut:].strip()):
        cut = _before_last_word(chosen[:cut])
    if cut and chosen[cut - 1] == " ":
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _before_last_word(text: str) -> int:
    stem = text.rstrip()
    words = stem.rsplit(None, 1)
    return len(stem) - len(words[1]) if len(words) > 1 else max(len(stem) - 1, 0)


def _common_length(one: str, other: str) -> int:
    """Return the length of the common prefix in characters. Bisection on slices is much faster than a loop."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
