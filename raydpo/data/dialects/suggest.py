"""Suggest a `column_mapping` for rows whose columns are not those of any dialect, for error messages."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PROMPTS = (
    "prompt question instruction query input problem context trajectory history dialogue conversation conversations "
    "messages context_messages prompt_messages post request task user user_input prompt_text"
).split()
"""Names under which data sets have their prompt, the most likely first."""
_COMPLETION = re.compile(
    r"(.*?)(response|answer|completion|output|reply|summary|conversation|ref|text|candidate|generation|solution)(.*)",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"(.*?)_?([0-9]|[ab])(_.*)?", re.IGNORECASE)
# A column `label` is left out: in some data sets it is 1 where the first completion is the better one.
_BEST = ("better", "best", "winner", "preferred", "preference", "choice", "chosen", "safer")
_SIGNED = re.compile(r"(.*_)?preference(_strength|_score)?|(.*_)?strength", re.IGNORECASE)
"""Names of columns with the strength of a preference, which is negative where the first of two is better."""
_GOOD = ("chosen", "accepted", "preferred", "winning", "winner", "good", "positive", "selected")
_BAD = ("rejected", "dispreferred", "losing", "loser", "bad", "negative", "non_preferred")
_SCORES = ("score", "rating", "reward")
_LISTS = ("completions", "responses", "generations", "answers", "outputs", "output", "candidates", "replies")
"""Names of columns that list completions as texts."""
_TEXT_KEYS = ("text", "full_text", "content", "value", "post", "body")
"""Keys under which an object has its text."""
_UNKNOWN = "COLUMN"
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
    flat = {**row, **_parts(row)}
    found = _mapping(row)
    inside = _mapping(flat)
    return inside if inside.count(_UNKNOWN) < found.count(_UNKNOWN) else found


def _parts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values inside of the objects of a row by their paths."""
    objects = [
        (name, value)
        for name, value in row.items()
        if isinstance(value, Mapping) and not {"role", "from"} & value.keys() and not name.isdecimal()
    ]
    return {f"{name}.{key}": part for name, value in objects for key, part in value.items() if "." not in key}


def _mapping(row: Mapping[str, Any]) -> str:
    prompt = _prompt(row)
    if prompt == _UNKNOWN and any(name.lower().startswith("conversation") or _is_whole(row[name]) for name in row):
        prompt = "prompt"  # the completions are conversations, which contain it
    completions = _of_lists(row) or _of_texts(row) or _of_numbered(row) or _of_sides(row, prompt)
    pairs = [pair.split("=") for pair in (f"prompt={prompt} {completions}").split()]
    return " ".join(f"{name}={column}" for name, column in pairs if name != column)


def _is_whole(value: Any) -> bool:
    """Return whether a value is a conversation that contains its prompt, as it begins with another's turn."""
    first = value[0] if isinstance(value, list) and value else None
    role = (first.get("role") or first.get("from")) if isinstance(first, Mapping) else None
    return str(role).lower() in ("system", "user", "human")


def _prompt(row: Mapping[str, Any]) -> str:
    if all(isinstance(row.get(name), str) for name in ("instruction", "input")) and "prompt" not in row:
        return "instruction+input"
    texts = {name.rsplit(".", 1)[-1]: name for name in reversed(list(row)) if isinstance(row[name], str | list)}
    lower = {name.lower(): name for name in row}
    whole = [lower[name] for name in _PROMPTS if isinstance(row.get(lower.get(name, "")), str | list)]
    nested = [texts[name] for name in _PROMPTS if name in texts]
    objects = [
        f"{name}.{key}"
        for name in _PROMPTS
        for key in _TEXT_KEYS
        if isinstance(value := row.get(name), Mapping) and isinstance(value.get(key), str)
    ]
    return next(iter([*whole, *objects, *nested]), _UNKNOWN)


def _of_sides(row: Mapping[str, Any], prompt: str) -> str:
    """Return the mapping of one column for the chosen and one for the rejected completion."""

    def named(words: Sequence[str], taken: str = "") -> str:
        texts = [
            name for name, value in row.items() if isinstance(value, str | list | dict) and name not in (prompt, taken)
        ]
        return next((name for word in words for name in texts if word in name.lower()), _UNKNOWN)

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
    completions = f"completions={'+'.join(texts[0])}"
    scores = _family(families, texts[0], _SCORES)
    winners = _family(families, texts[0], _BEST)
    if winners:  # one column for each, which is true where it wins
        return f"{completions} scores={'+'.join(winners)}"
    best = next((name for word in _BEST for name in row if word in name.lower() and name not in texts[0]), None)
    if best is not None and _SIGNED.fullmatch(best) and isinstance(row[best], int | float):
        return f"{completions} strength={best}"
    if best is None and scores:
        return f"{completions} scores={'+'.join(scores)}"
    return f"{completions} best={best or _UNKNOWN}"


def _family(
    families: Mapping[tuple[str, str], list[str]], texts: Sequence[str], words: Sequence[str]
) -> list[str] | None:
    """Return the numbered columns with one of these words that tell something of each of the numbered texts."""
    alike = [
        names
        for (stem, rest), names in families.items()
        if len(names) == len(texts) and any(word in f"{stem}{rest}" for word in words) and names != texts
    ]
    return alike[0] if alike else None


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
        texts = [key for key, part in first.items() if isinstance(part, str)]
        text = next((key for key in texts if _COMPLETION.fullmatch(key)), None)
        rank = next((key for key in first if "rank" in key.lower()), None)
        score = next((key for key in first if any(word in key.lower() for word in _SCORES)), None)
        best = next((key for key in row if key.lower() in _BEST), None)
        if text and (rank or score):
            return f"completions={name}.{text} " + (f"ranks={name}.{rank}" if rank else f"scores={name}.{score}")
        if text and best and len(value) == 2:
            return f"completions={name}.{text} best={best}"
    return None


def _of_texts(row: Mapping[str, Any]) -> str | None:
    """Return the mapping of a column that lists completions as texts, with a column that lists their scores."""
    for name in _LISTS:
        texts = row.get(name)
        if not (isinstance(texts, list) and len(texts) > 1 and all(isinstance(text, str) for text in texts)):
            continue
        alike = [other for other, value in row.items() if isinstance(value, list) and len(value) == len(texts)]
        for target, words in (("scores", _SCORES), ("ranks", ("rank",))):
            if column := next((other for other in alike if any(word in other.lower() for word in words)), None):
                return f"completions={name} {target}={column}"
        if len(texts) == 2:
            return f"chosen={name}.0 rejected={name}.1"
    return None
