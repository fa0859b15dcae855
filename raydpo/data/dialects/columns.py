"""Read the columns of a row by the names of the dialects: those of `column_mapping`, and common other names.

A mapping is `target=path`. Targets are the columns of the dialect `preference`, or `completions` with what tells the
better one: `best` (its index or column), `strength` (of two, below 0 the first is better, above 0 the second), `scores`
(the highest is best) or `ranks` (the lowest is best). A path is a column, a key in it (`a.b`), an element (`a.0`), or
several columns joined by `+`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydpo.config.column_mapping import MAPPING_TARGETS, check_column_mapping
from raydpo.data.dialects.images import IMAGE_COLUMNS
from raydpo.data.dialects.pair import ColumnError, RowError, type_name

NONE = "none"
"""The path that maps a target to no column."""
TEXT_TARGETS = ("prompt", "system")
"""Targets whose several columns are joined to one text."""
_OTHER_DIALECTS = frozenset({"conversations", "messages", "input", "preferred_output", "non_preferred_output"})
"""Columns of other dialects, which a mapping of the completions or the prompt replaces."""
PROMPT_NAMES = ("question", "query", "problem", "instruction", "input")
"""Names of a prompt column in rows that have no `prompt`: at most one of them, or instruction and input (Alpaca)."""
SYSTEM_NAMES = ("system_prompt", "system_message")
_ANSWER_NAMES = ("chosen_response", "response", "rejected_response")
ALIASES = frozenset({*PROMPT_NAMES, *SYSTEM_NAMES, *_ANSWER_NAMES, "history"})
_BESIDE_QUESTION = ("context", "passage", "document", "documents", "article", "background", "paragraph", "trajectory")
"""Names of what a question may be about, without which a row under another name than `prompt` is not understood."""
_MEANS_TEXT = _OTHER_DIALECTS | ALIASES | {"prompt", "system", "tools", "chat_template_kwargs", "chosen", "rejected"}
"""Columns that dialects read as words; one that a mapping has read under another name is not read again."""


@dataclass(frozen=True)
class ColumnMapping:
    """The paths of `column_mapping` by target."""

    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, option: Mapping[str, str]) -> "ColumnMapping":
        """Return the mapping that the option describes. Raises ConfigError if it cannot be followed."""
        check_column_mapping(option)
        return cls({target: tuple(path.split("+")) for target, path in option.items()})

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns that the paths begin with, whole paths included, as names may contain dots."""
        paths = [path for several in self.paths.values() for path in several]
        return frozenset(name for path in paths for name in (path, path.split(".")[0]))

    def apply(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row with the columns that the mapping names under the names of its targets.

        Raises RowError if a path does not exist in the row, or if no completion is the better one.
        """
        if not self.paths:
            return dict(row)
        replaced = set(self.paths)
        if {"prompt", "chosen", "completions"} & replaced:
            replaced |= _OTHER_DIALECTS
        if "prompt" in self.paths:
            replaced |= set(PROMPT_NAMES)
        if "images" in self.paths:
            replaced |= set(IMAGE_COLUMNS)
        replaced |= _MEANS_TEXT & {path for paths in self.paths.values() for path in paths}
        mapped = {name: value for name, value in row.items() if name not in replaced}
        for target, paths in self.paths.items():
            if paths == (NONE,):
                continue
            values = [_find(row, path) for path in paths]
            mapped[target] = values[0] if len(values) == 1 else _joined(values, target)
        if self.paths.get("prompt") == (NONE,):  # no other column is to be looked at as a prompt either
            mapped = {name: value for name, value in mapped.items() if name in (*MAPPING_TARGETS, *IMAGE_COLUMNS)}
        return self._chosen(mapped) if "completions" in self.paths else mapped

    def _chosen(self, row: dict[str, Any]) -> dict[str, Any]:
        """Replace the completions by the best as `chosen` and the worst as `rejected`."""
        completions = row.pop("completions")
        if not isinstance(completions, list) or len(completions) < 2:
            raise RowError(
                "no completions", f"{self._path('completions')!r} is {_listed(completions)}, not two or more"
            )
        if "best" in self.paths:
            best, worst = self._by_index(row.pop("best"), completions)
        elif "strength" in self.paths:
            best, worst = self._by_strength(row.pop("strength"), completions)
        else:
            target = "scores" if "scores" in self.paths else "ranks"
            values = row.pop(target)
            best, worst = self._by_value(values, completions, target)
            if target == "scores":  # from which a margin may come
                row = {"score_chosen": float(values[best]), "score_rejected": float(values[worst]), **row}
        return {**row, "chosen": completions[best], "rejected": completions[worst]}

    def _by_index(self, choice: Any, completions: Sequence[Any]) -> tuple[int, int]:
        self._check_two(completions, "best")
        names = self.paths["completions"]
        ends = [_end(name) for name in names]
        index: Any = choice
        if isinstance(choice, str):
            fits = [i for i, name in enumerate(names) if choice in (name, name.rsplit("_", 1)[-1])]
            fits = fits or [i for i, end in enumerate(ends) if end and end == _end(choice)]
            index = fits[0] if len(fits) == 1 else None
        if (index is None or index is choice) and _is_number(choice):
            index = float(choice)
            if set(ends) in ({"0", "1"}, {"1", "2"}):  # 1 means response_1, also where its index is 0
                index = {float(end): i for i, end in enumerate(ends)}.get(index)
        # True may mean the first or the second; a row that does not tell is not trained on.
        if isinstance(index, bool | list | dict) or index not in (0, 1):
            raise RowError("no preference", f"{self._path('best')!r} is {choice!r}, which chooses neither completion")
        return int(index), 1 - int(index)

    def _by_strength(self, strength: Any, completions: Sequence[Any]) -> tuple[int, int]:
        self._check_two(completions, "strength")
        if not _is_number(strength) or not float(strength):
            raise RowError("no preference", f"{self._path('strength')!r} is {strength!r}, so that neither is better")
        return (0, 1) if float(strength) < 0 else (1, 0)

    def _check_two(self, completions: Sequence[Any], target: str) -> None:
        if len(completions) != 2:
            raise RowError("no completions", f"{self._path(target)!r} chooses one of two, not of {len(completions)}")

    def _by_value(self, values: Any, completions: Sequence[Any], target: str) -> tuple[int, int]:
        if not isinstance(values, list) or len(values) != len(completions):
            raise RowError("no preference", f"{target} are {_listed(values)} for {len(completions)} completions")
        known = [
            (float(value), index)
            for index, value in enumerate(values)
            if _is_number(value) or isinstance(value, bool)  # one of winner_a and winner_b is true
        ]
        if len(known) < 2 or min(known)[0] == max(known)[0]:
            raise RowError("no preference", f"{target} are {', '.join(map(str, values))}, so that none is better")
        low, high = min(known, key=lambda item: item[0])[1], max(known, key=lambda item: item[0])[1]
        return (high, low) if target == "scores" else (low, high)

    def _path(self, target: str) -> str:
        return "+".join(self.paths[target])


def _end(name: str) -> str:
    """Return the number or single letter with which the name of a column ends, such as 1 of response_1."""
    found = re.search(r"(\d+|(?<![A-Za-z])[A-Za-z])$", name.strip())
    return found[1].lower() if found else ""


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        try:
            return float(value) == float(value)
        except ValueError:
            return False
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _listed(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else type_name(value)


def _joined(values: list[Any], target: str) -> Any:
    """Return several columns as one text for a target of text, else as a list."""
    if target not in TEXT_TARGETS:
        return values
    texts = [value for value in values if value not in (None, "")]
    if not all(isinstance(text, str) for text in texts):
        raise RowError("wrong type", f"columns joined to {target} must all be text")
    return "\n".join(texts)


def _find(row: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path; a key of a list is looked up in each of its elements."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if isinstance(value, list) and not key.isdecimal():
            # A null of one element is left out of it; a key that no element has is a wrong path.
            known = [part for part in value if isinstance(part, Mapping) and key in part]
            value = [
                part.get(key) if known and isinstance(part, Mapping) else _step(part, key, path, row) for part in value
            ]
        else:
            value = _step(value, key, path, row)
    return value


def _step(value: Any, key: str, path: str, row: Mapping[str, Any]) -> Any:
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        return value[int(key)]
    if isinstance(value, Mapping) and key in value:
        return value[key]
    raise RowError("missing column", f"{path!r} of column_mapping; the row has {', '.join(map(repr, row)) or 'none'}")


def without_nans(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with null for the NaN that pandas writes where a column of text has nothing."""
    return {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}


def with_common_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with `prompt`, `system`, `chosen` and `rejected` where it has these under other common names.

    These are Alpaca's (instruction and input), ms-swift's (query, response, rejected_response) and Orca's (question).
    Raises RowError for two different system prompts, and ColumnError where a question has something beside it.
    """
    named = _with_answers(dict(row))
    for name in SYSTEM_NAMES:
        if name not in named:
            continue
        if named.get("system") is None or not str(named["system"]).strip():
            named["system"] = named.pop(name)
        elif named[name] and named[name] != named["system"]:
            raise RowError("two system messages", f"columns 'system' and {name!r} differ; map one with column_mapping")
    others = {"conversations", "messages", "preferred_output"}
    if named.get("prompt") is None and any(named.get(name) for name in (*others, *PROMPT_NAMES)):
        named.pop("prompt", None)  # a null that Arrow has filled in
    if not {"prompt", *others} & {name for name, value in named.items() if value is not None} and "chosen" in named:
        _name_prompt(named)
    return named


def _with_answers(named: dict[str, Any]) -> dict[str, Any]:
    if "rejected_response" not in named or {"rejected", "chosen"} & named.keys():
        return named
    if "chosen_response" in named:  # When2Call
        return {**named, "chosen": named.pop("chosen_response"), "rejected": named.pop("rejected_response")}
    named["rejected"] = named.pop("rejected_response")
    if "response" in named:
        named["chosen"] = named.pop("response")
    elif isinstance(named.get("messages"), list):
        messages = named.pop("messages")
        named["prompt"], named["chosen"] = messages[:-1], messages[-1:]
        if isinstance(named["rejected"], str):
            named["rejected"] = [{"role": "assistant", "content": named["rejected"]}]
    return named


def _name_prompt(named: dict[str, Any]) -> None:
    """Give the column that is the prompt its name, if there is one. Raises ColumnError if more belongs to it."""
    asked = [name for name in PROMPT_NAMES if named.get(name)]
    if not asked or not all(isinstance(named[name], str | list) for name in asked):
        return
    beside = [name for name in _BESIDE_QUESTION if named.get(name) and name not in ("prompt", *asked)]
    if beside:
        both = [beside[0], asked[0]]
        join = f"prompt={'+'.join(both)} joins them, " if all(isinstance(named[name], str) for name in both) else ""
        raise ColumnError(
            "no prompt column",
            f"column {asked[0]!r} is a prompt, and what stands in {beside[0]!r} may belong to it "
            f"(--column_mapping {join}prompt={asked[0]} leaves it out)",
        )
    if asked == ["instruction", "input"]:
        named["prompt"] = _joined([named.pop("instruction"), named.pop("input")], "prompt")
    elif len(asked) == 1:
        named["prompt"] = named.pop(asked[0])
