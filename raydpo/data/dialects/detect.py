"""Detect the row dialect of a shard and convert its rows to canonical pairs.

- `preference`: columns `prompt`, `chosen` and `rejected`, each text or a list of messages. Without `prompt`, the prompt
  is the common beginning of `chosen` and `rejected`.
- `hh`: Anthropic HH transcripts in `chosen` and `rejected`; see `hh.py`.
- `sharegpt`: the prompt is in `conversations`, and a message is `{"from": ..., "value": ...}`.
- `openai`: the prompt is in `messages`; or the columns are those of OpenAI's preference format: `input`,
  `preferred_output` and `non_preferred_output`.

Other columns are read by `column_mapping` and under a few common names (`columns.py`). All dialects also read
`system`, `history`, `tools` (a list, or its JSON), `chat_template_kwargs`, and `image` or `images`. Text that is the
JSON of messages stands for these messages.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from raydpo.data.dialects import columns, hh, images, turns
from raydpo.data.dialects.columns import ColumnMapping
from raydpo.data.dialects.implicit_prompt import check_no_other_prompt, split_text
from raydpo.data.dialects.messages import UNREAD, as_messages, is_blank, unwrap_messages
from raydpo.data.dialects.pair import ColumnError, Messages, Pair, RowError, type_name
from raydpo.data.dialects.suggest import columns_and_mapping
from raydpo.data.files.json_text import parse_json_text
from raydpo.data.row_errors import ROW_ERRORS

DIALECTS = ("preference", "hh", "sharegpt", "openai")
_PROMPT_COLUMNS = {"preference": "prompt", "sharegpt": "conversations", "openai": "messages"}

COLUMNS = frozenset(
    (
        "prompt chosen rejected conversations messages system tools chat_template_kwargs "
        "input preferred_output non_preferred_output ref_chosen_logps ref_rejected_logps "
        "weight margin score_chosen score_rejected"
    ).split()
) | frozenset({*columns.ALIASES, *UNREAD, *images.IMAGE_COLUMNS})
"""All columns that any dialect reads."""
_CONTEXT = ("system", "history", "tools")
"""Columns of what stands before the prompt."""
_NO_PROMPT = COLUMNS - columns.ALIASES
"""Columns of which none can be the prompt of a row without a prompt column."""


def dialect_of(rows: Iterable[Mapping[str, Any]], mapping: ColumnMapping | None = None) -> str | None:
    """Return the dialect of the majority of these rows, or None if there are no rows."""
    found = Counter(_dialect_of_row(row, mapping or ColumnMapping()) for row in rows)
    return found.most_common(1)[0][0] if found else None


def _dialect_of_row(row: Mapping[str, Any], mapping: ColumnMapping) -> str:
    try:
        row = _named(row, mapping)
    except (RowError, *ROW_ERRORS):
        return DIALECTS[0]  # the row is refused with its reason when it is converted
    chosen, rejected, prompt = row.get("chosen"), row.get("rejected"), row.get("prompt")
    if isinstance(row.get("conversations"), list) or (_has_key(chosen, "from") and prompt is None):
        return "sharegpt"
    if "preferred_output" in row:
        return "openai"
    if isinstance(row.get("messages"), list) and prompt is None and not _are_whole(chosen, rejected):
        return "openai"
    if hh.is_transcript(chosen) or (isinstance(chosen, str) and hh.is_transcript(prompt)):
        return "hh"
    return "preference"


def _has_key(value: Any, key: str) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and key in first


def _are_whole(chosen: Any, rejected: Any) -> bool:
    """Return whether both completions are whole conversations, which contain the prompt."""
    try:
        return all(isinstance(part, list) and turns.is_whole(as_messages(part, "")) for part in (chosen, rejected))
    except RowError:
        return False


def to_pair(row: Mapping[str, Any], dialect: str, chat: bool, mapping: ColumnMapping | None = None) -> Pair:
    """Return the canonical pair of a row. Raises RowError if the row holds no valid pair.

    `chat` is whether the tokenizer has a chat template. If so, `hh` transcripts become conversations, and so does a
    text row that has a column `system`, `history` or `tools`; otherwise they stay text. Images are not opened, and
    whether the model takes any is for the caller to check.
    """
    try:
        return _to_pair(_named(row, mapping or ColumnMapping()), dialect, chat)
    except ColumnError as error:
        raise RowError(error.kind, f"{error.detail}; {columns_and_mapping(row)}") from error


def _named(row: Mapping[str, Any], mapping: ColumnMapping) -> dict[str, Any]:
    """Return the row with the columns of the dialects, by the mapping or by common names."""
    named = columns.with_common_names(columns.without_nans(mapping.apply(row)))
    for name in ("prompt", "messages", "conversations"):
        if name in named:
            named[name] = unwrap_messages(named[name])
    sides: dict[str, Any] = {name: unwrap_messages(named[name]) for name in ("chosen", "rejected") if name in named}
    if sum(isinstance(side, str) for side in sides.values()) != 1:  # one answer may be JSON that looks like messages
        named |= sides
    return named


def _to_pair(row: dict[str, Any], dialect: str, chat: bool) -> Pair:
    for name in UNREAD:
        if row.get(name):
            raise RowError("not text", f"column {name!r} is not empty; only text and images are read")
    in_columns = images.column_images(row)
    if dialect == "openai" and "preferred_output" in row:
        row = _from_openai(row)
    chosen, rejected = _column(row, "chosen"), _column(row, "rejected")
    tools = _tools(row)
    if dialect == "hh":
        prompt, chosen, rejected = _from_transcripts(row, chosen, rejected, chat)
    else:
        prompt, chosen, rejected = _assemble(row, _prompt(row, dialect, chosen, rejected), chosen, rejected)
    prompt, chosen, rejected = _with_context(row, (prompt, chosen, rejected), tools, chat)
    prompt, sources = images.take_images(prompt, in_columns)
    for name, completion in (("chosen", chosen), ("rejected", rejected)):
        images.check_none(completion, name)
        if is_blank(completion):
            raise RowError("empty completion", f"{name} holds no text")
    if chosen == rejected:
        raise RowError("chosen and rejected are the same")
    if isinstance(prompt, str):
        _check_text(prompt, chosen, rejected)
        tools = None
    return Pair(prompt, chosen, rejected, tools, _template_kwargs(row), sources)


def _from_openai(row: Mapping[str, Any]) -> dict[str, Any]:
    source = _column(row, "input")
    if not isinstance(source, dict):
        raise RowError("wrong type", f"column 'input' is {type_name(source)}, not an object with messages")
    return {
        "chosen": _column(row, "preferred_output"),
        "rejected": _column(row, "non_preferred_output"),
        **{name: source[name] for name in ("messages", "tools") if name in source},
        **{
            name: row[name]
            for name in ("tools", "chat_template_kwargs", "system", *images.IMAGE_COLUMNS)
            if name in row
        },
    }


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise ColumnError("missing column", repr(name))
    if row[name] is None:
        raise RowError("null column", repr(name))
    return row[name]


def _prompt(row: Mapping[str, Any], dialect: str, chosen: Any, rejected: Any) -> Any:
    """Return the value of the prompt column, or None if the prompt must be split off `chosen` and `rejected`."""
    own = _PROMPT_COLUMNS[dialect]
    if row.get(own) is not None:
        return row[own]
    if _are_whole(chosen, rejected):
        return None
    # A row of another dialect than most of its file has its prompt in another column.
    others = [name for name in _PROMPT_COLUMNS.values() if row.get(name) and isinstance(row[name], list | str)]
    if others:
        return row[others[0]]
    return None if dialect == "preference" and own not in row else _column(row, own)


def _assemble(row: Mapping[str, Any], prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("wrong type", f"chosen is {type_name(chosen)} but rejected is {type_name(rejected)}")
    if isinstance(chosen, str) and prompt is None:
        check_no_other_prompt(row, _NO_PROMPT, chosen, rejected)
        if context := next((name for name in _CONTEXT if row.get(name)), None):
            raise ColumnError("no prompt column", f"column {context!r} needs a prompt that it stands before")
        return split_text(chosen, rejected)
    if isinstance(chosen, str) and isinstance(prompt, str):
        return prompt, chosen, rejected
    good, bad = as_messages(chosen, "chosen"), as_messages(rejected, "rejected")
    if prompt is None and not row.get("history") and turns.are_answers(good, bad):
        raise ColumnError("no prompt column", "chosen and rejected are answers without what they answer")
    return turns.join(prompt if prompt is None or isinstance(prompt, str) else as_messages(prompt, "prompt"), good, bad)


def _from_transcripts(row: Mapping[str, Any], chosen: Any, rejected: Any, chat: bool) -> tuple[Any, Any, Any]:
    prompt = row.get("prompt") or ""
    for name, value in (("chosen", chosen), ("rejected", rejected), ("prompt", prompt)):
        if not isinstance(value, str):
            raise RowError("wrong type", f"column {name!r} is {type_name(value)}, not a transcript")
    if prompt and not (chosen.startswith(prompt) and rejected.startswith(prompt)):
        if not hh.is_transcript(chosen):
            chosen, rejected = prompt + chosen, prompt + rejected
        elif prompt.strip() not in chosen or prompt.strip() not in rejected:
            raise RowError("prompts differ", "the prompt does not stand in the transcripts of chosen and rejected")
    prompt, chosen, rejected = hh.split(chosen, rejected, chat)
    if not prompt:
        raise RowError("no prompt", "the transcripts do not begin with the same turns")
    return prompt, chosen, rejected


def _with_context(
    row: Mapping[str, Any], pair: tuple[Any, Any, Any], tools: list[Any] | None, chat: bool
) -> tuple[Any, Any, Any]:
    """Return prompt, chosen and rejected with the columns `system` and `history` before the prompt."""
    system, history = row.get("system"), row.get("history")
    if system is not None and not isinstance(system, str):
        raise RowError("wrong type", f"column 'system' is {type_name(system)}, not a string")
    earlier = _history(history)
    prompt, chosen, rejected = pair
    if isinstance(prompt, str):
        if (earlier or tools) and not chat:
            raise RowError("no chat template", "columns 'history' and 'tools' need a tokenizer with a chat template")
        if not chat:
            return (f"{system}\n\n{prompt}" if system and system.strip() else prompt), chosen, rejected
        if "prompt" not in row or not (earlier or tools or "system" in row):
            return pair
        prompt, chosen, rejected = turns.join(prompt, as_messages(chosen, "chosen"), as_messages(rejected, "rejected"))
    prompt = [*earlier, *prompt]
    return (turns.with_system(prompt, system) if system and system.strip() else prompt), chosen, rejected


def _history(history: Any) -> Messages:
    """Return earlier turns, given as messages or as [question, answer] pairs (Alpaca, ms-swift)."""
    if not history:
        return []
    if not isinstance(history, list):
        raise RowError("wrong type", f"column 'history' is {type_name(history)}, not a list of turns")
    if not all(isinstance(turn, list) for turn in history):
        return as_messages(history, "history")
    found: Messages = []
    for turn in history:
        if len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise RowError("wrong type", "column 'history' has a turn that is not [question, answer]")
        found += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return found


_FEW_WORDS = 3
"""Prompts of fewer words than this may begin an answer, or end with one, by chance."""


def _check_text(prompt: str, chosen: Any, rejected: Any) -> None:
    """Raise RowError where the texts of a pair repeat each other, so that they are not a prompt and two answers."""
    words = prompt.split()
    if len(words) < _FEW_WORDS:
        return
    if all(" ".join(side.split()).startswith(" ".join(words)) for side in (chosen, rejected)):
        raise RowError(
            "doubled prompt",
            "chosen and rejected begin with the whole prompt; leave the prompt column out, or map it with "
            "--column_mapping prompt=none",
        )
    half = len(words) // 2
    if half >= _FEW_WORDS and len(words) % 2 == 0 and words[:half] == words[half:]:
        raise RowError("doubled prompt", f"it says twice {' '.join(words[:half])[:60]!r}")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if len(side.split()) >= _FEW_WORDS and prompt.rstrip().endswith(side.strip()):
            raise RowError("answer in the prompt", f"the prompt ends with the text of {name}")


def _tools(row: Mapping[str, Any]) -> list[Any] | None:
    tools = _parsed(row, "tools")
    if isinstance(tools, list):  # When2Call has each tool as text
        tools = [parse_json_text(tool, "column 'tools'") if isinstance(tool, str) else tool for tool in tools]
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowError("wrong type", f"column 'tools' is {type_name(tools)}, not a list of objects, one for each tool")
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
