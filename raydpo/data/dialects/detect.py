"""Detect the row dialect of a shard and convert its rows to canonical pairs.

- `preference`: columns `prompt`, `chosen` and `rejected`, each text or a list of messages. Without `prompt`, the prompt
  is the common beginning of `chosen` and `rejected`.
- `hh`: Anthropic HH transcripts in `chosen` and `rejected`; see `hh.py`.
- `sharegpt`: the prompt is in `conversations`, and a message is `{"from": ..., "value": ...}`.
- `openai`: the prompt is in `messages`; or the columns are those of OpenAI's preference format: `input`,
  `preferred_output` and `non_preferred_output`.

All dialects also read `tools` (a list, or its JSON) and `chat_template_kwargs`; `sharegpt` and `openai` read `system`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from raydpo.data.dialects import hh
from raydpo.data.dialects.implicit_prompt import is_full_conversation, split_text, split_turns
from raydpo.data.dialects.messages import as_messages, is_blank, is_message
from raydpo.data.dialects.pair import Messages, Pair, RowError, type_name
from raydpo.data.files.json_text import parse_json_text

DIALECTS = ("preference", "hh", "sharegpt", "openai")
_PROMPT_COLUMNS = {"preference": "prompt", "sharegpt": "conversations", "openai": "messages"}

MISSING: Any = object()
"""Marker for a prompt that has no column of its own in the row."""

COLUMNS = frozenset(
    "prompt chosen rejected conversations messages system tools chat_template_kwargs "
    "input preferred_output non_preferred_output ref_chosen_logps ref_rejected_logps".split()
)
"""All columns that any dialect reads."""


def dialect_of(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the dialect of the majority of these rows, or None if there are no rows."""
    found = Counter(_dialect_of_row(row) for row in rows)
    return found.most_common(1)[0][0] if found else None


def _dialect_of_row(row: Mapping[str, Any]) -> str:
    chosen, rejected, prompt = row.get("chosen"), row.get("rejected"), row.get("prompt")
    if isinstance(row.get("conversations"), list) or _has_key(chosen, "from"):
        return "sharegpt"
    if "preferred_output" in row:
        return "openai"
    if isinstance(row.get("messages"), list) and prompt is None and not _are_full_conversations(chosen, rejected):
        return "openai"
    if isinstance(chosen, str) and hh.is_transcript(chosen if prompt is None else prompt):
        return "hh"
    return "preference"


def _has_key(value: Any, key: str) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and key in first


def _are_full_conversations(chosen: Any, rejected: Any) -> bool:
    """Return whether both completions are full conversations, which contain the prompt."""
    lists = isinstance(chosen, list) and isinstance(rejected, list)
    return lists and all(map(is_message, [*chosen, *rejected])) and is_full_conversation(chosen, rejected)


def to_pair(row: Mapping[str, Any], dialect: str, chat: bool) -> Pair:
    """Return the canonical pair of a row. Raises RowError if the row holds no valid pair.

    `chat` is whether the tokenizer has a chat template; if so, `hh` transcripts become conversations, otherwise text.
    """
    if dialect == "openai" and "preferred_output" in row:
        row = _from_openai(row)
    chosen, rejected = _column(row, "chosen"), _column(row, "rejected")
    if dialect == "hh":
        prompt, chosen, rejected = _from_transcripts(row, chosen, rejected, chat)
    else:
        prompt = _prompt(row, dialect, _are_full_conversations(chosen, rejected))
        prompt, chosen, rejected = _assemble(prompt, chosen, rejected)
        prompt = _with_system(prompt, row.get("system")) if dialect in ("sharegpt", "openai") else prompt
    for name, completion in (("chosen", chosen), ("rejected", rejected)):
        if is_blank(completion):
            raise RowError("empty completion", f"{name} holds no text")
    if chosen == rejected:
        raise RowError("chosen and rejected are the same")
    if isinstance(prompt, list) and not prompt:
        raise RowError(
            "no prompt", "the prompt has no messages; give a prompt, or conversations that begin with the same messages"
        )
    return Pair(prompt, chosen, rejected, _tools(row), _template_kwargs(row))


def _from_openai(row: Mapping[str, Any]) -> dict[str, Any]:
    source = _column(row, "input")
    if not isinstance(source, dict):
        raise RowError("wrong type", f"column 'input' is {type_name(source)}, not an object with messages")
    return {
        "chosen": _column(row, "preferred_output"),
        "rejected": _column(row, "non_preferred_output"),
        **{name: source[name] for name in ("messages", "tools") if name in source},
        **{name: row[name] for name in ("tools", "chat_template_kwargs", "system") if name in row},
    }


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise RowError("missing column", f"{name!r}; the row has {', '.join(map(repr, row)) or 'none'}")
    if row[name] is None:
        raise RowError("null column", repr(name))
    return row[name]


def _prompt(row: Mapping[str, Any], dialect: str, contained: bool) -> Any:
    """Return the value of the prompt column, or MISSING if the prompt must be split off `chosen` and `rejected`.

    `contained` is whether `chosen` and `rejected` are full conversations, which contain the prompt.
    """
    name = _PROMPT_COLUMNS[dialect]
    if dialect == "preference":
        if name not in row or (contained and isinstance(row[name], str)):
            return MISSING  # some datasets repeat the first question as text in `prompt`
        return _column(row, name)
    return MISSING if contained and name not in row else _column(row, name)


def _assemble(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("wrong type", f"chosen is {type_name(chosen)} but rejected is {type_name(rejected)}")
    if isinstance(chosen, str) and prompt is MISSING:
        return split_text(chosen, rejected)
    if isinstance(chosen, str) and isinstance(prompt, str):
        return prompt, chosen, rejected
    good, bad = as_messages(chosen, "chosen"), as_messages(rejected, "rejected")
    if prompt is MISSING:
        return split_turns(good, bad)
    start = as_messages(prompt, "prompt", role="user")
    if start and good[: len(start)] == start and bad[: len(start)] == start:
        return start, good[len(start) :], bad[len(start) :]
    return start, good, bad


def _with_system(prompt: Messages, system: Any) -> Messages:
    if not system or (prompt and prompt[0]["role"] == "system"):
        return prompt
    if not isinstance(system, str):
        raise RowError("wrong type", f"column 'system' is {type_name(system)}, not a string")
    return [{"role": "system", "content": system}, *prompt]


def _from_transcripts(row: Mapping[str, Any], chosen: Any, rejected: Any, chat: bool) -> tuple[Any, Any, Any]:
    for name, value in (("chosen", chosen), ("rejected", rejected), ("prompt", row.get("prompt") or "")):
        if not isinstance(value, str):
            raise RowError("wrong type", f"column {name!r} is {type_name(value)}, not a transcript")
    prompt = row.get("prompt") or ""
    if prompt and not (chosen.startswith(prompt) and rejected.startswith(prompt)):
        chosen, rejected = prompt + chosen, prompt + rejected
    return hh.split(chosen, rejected, chat)


def _tools(row: Mapping[str, Any]) -> list[Any] | None:
    tools = _parsed(row, "tools")
    if tools is not None and not isinstance(tools, list):
        raise RowError("wrong type", f"column 'tools' is {type_name(tools)}, not a list of tools")
    return tools


def _template_kwargs(row: Mapping[str, Any]) -> dict[str, Any]:
    arguments = _parsed(row, "chat_template_kwargs")
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise RowError("wrong type", f"column 'chat_template_kwargs' is {type_name(arguments)}, not an object")
    return arguments


def _parsed(row: Mapping[str, Any], name: str) -> Any:
    """Return an optional column's value, parsed if it is JSON text; None if it is missing or blank."""
    value = row.get(name)
    if not isinstance(value, str):
        return value
    return parse_json_text(value, f"column {name!r}") if value.strip() else None
