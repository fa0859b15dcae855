"""Read the columns of a row by the names of the dialects: those of `column_mapping`, and common other names.

A mapping is `target=path`. Targets are the columns of the dialect `preference`, or `completions` with what tells the
better one: `best` (its index or column), `scores` (the highest is best) or `ranks` (the lowest is best). A path is a
column, a key in it (`a.b`), an element (`a.0`), or several columns joined by `+`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydpo.config.column_mapping import MAPPING_TARGETS, check_column_mapping
from raydpo.data.dialects.pair import RowError, type_name

NONE = "none"
"""The path that maps a target to no column."""
TEXT_TARGETS = ("prompt", "system")
"""Targets whose several columns are joined to one text."""
_OTHER_DIALECTS = frozenset({"conversations", "messages", "input", "preferred_output", "non_preferred_output"})
"""Columns of other dialects, which a mapping of the completions or the prompt replaces."""
PROMPT_NAMES = ("question", "query", "problem", "instruction", "input")
"""Names of a prompt column in rows that have no `prompt`: at most one of them, or instruction and input (Alpaca)."""
SYSTEM_NAMES = ("system_prompt", "system_message")
ALIASES = frozenset({*PROMPT_NAMES, *SYSTEM_NAMES, "response", "rejected_response", "history"})


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
        mapped = {name: value for name, value in row.items() if name not in replaced}
        for target, paths in self.paths.items():
            if paths == (NONE,):
                continue
            values = [_find(row, path) for path in paths]
            mapped[target] = values[0] if len(values) == 1 else _joined(values, target)
        if self.paths.get("prompt") == (NONE,):  # no other column is to be looked at as a prompt either
            mapped = {name: value for name, value in mapped.items() if name in MAPPING_TARGETS}
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
        else:
            target = "scores" if "scores" in self.paths else "ranks"
            values = row.pop(target)
            best, worst = self._by_value(values, completions, target)
            if target == "scores":  # from which a margin may come
                row = {"score_chosen": float(values[best]), "score_rejected": float(values[worst]), **row}
        return {**row, "chosen": completions[best], "rejected": completions[worst]}

    def _by_index(self, choice: Any, completions: Sequence[Any]) -> tuple[int, int]:
        if len(completions) != 2:
            raise RowError("no completions", f"{self._path('best')!r} chooses one of two, not of {len(completions)}")
        names = self.paths["completions"]
        index: Any = choice
        if isinstance(choice, str):
            fits = [i for i, name in enumerate(names) if choice in (name, name.rsplit("_", 1)[-1])]
            fits = fits or [i for i, name in enumerate(names) if choice.rsplit("_", 1)[-1] == name.rsplit("_", 1)[-1]]
            index = fits[0] if len(fits) == 1 else int(choice) if choice.strip().isdecimal() else choice
        if index not in (0, 1):
            raise RowError("no preference", f"{self._path('best')!r} is {choice!r}, which chooses neither completion")
        return int(index), 1 - int(index)

    def _by_value(self, values: Any, completions: Sequence[Any], target: str) -> tuple[int, int]:
        if not isinstance(values, list) or len(values) != len(completions):
            raise RowError("no preference", f"{target} are {_listed(values)} for {len(completions)} completions")
        known = [(float(value), index) for index, value in enumerate(values) if _is_number(value)]
        if len(known) < 2 or min(known)[0] == max(known)[0]:
            raise RowError("no preference", f"{target} are {', '.join(map(str, values))}, so that none is better")
        low, high = min(known, key=lambda item: item[0])[1], max(known, key=lambda item: item[0])[1]
        return (high, low) if target == "scores" else (low, high)

    def _path(self, target: str) -> str:
        return "+".join(self.paths[target])


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
            value = [_step(part, key, path, row) for part in value]
        else:
            value = _step(value, key, path, row)
    return value


def _step(value: Any, key: str, path: str, row: Mapping[str, Any]) -> Any:
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        return value[int(key)]
    if isinstance(value, Mapping) and key in value:
        return value[key]
    raise RowError("missing column", f"{path!r} of column_mapping; the row has {', '.join(map(repr, row)) or 'none'}")


def with_common_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with `prompt`, `system`, `chosen` and `rejected` where it has these under other common names.

    These are Alpaca's (instruction and input), ms-swift's (query, response, rejected_response) and Orca's (question).
    """
    named = dict(row)
    if "rejected_response" in named and not {"rejected", "chosen"} & named.keys():
        named["rejected"] = named.pop("rejected_response")
        if "response" in named:
            named["chosen"] = named.pop("response")
        elif isinstance(named.get("messages"), list):
            messages = named.pop("messages")
            named["prompt"], named["chosen"] = messages[:-1], messages[-1:]
            if isinstance(named["rejected"], str):
                named["rejected"] = [{"role": "assistant", "content": named["rejected"]}]
    for name in SYSTEM_NAMES:
        if name in named and "system" not in named:
            named["system"] = named.pop(name)
    if not {"prompt", "conversations", "messages", "preferred_output"} & named.keys() and "chosen" in named:
        asked = [name for name in PROMPT_NAMES if named.get(name) and isinstance(named[name], str | list)]
        if asked == ["instruction", "input"]:
            named["prompt"] = _joined([named.pop("instruction"), named.pop("input")], "prompt")
        elif len(asked) == 1:
            named["prompt"] = named.pop(asked[0])
    return named
