"""Random rows for the fuzz test: valid pairs of every dialect with places changed, and what such a row says."""

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

WORD = re.compile(r"w[0-9a-f]{6}z")
"""Matches the words of random texts; whatever a text goes through, its words can be found again."""

RAW = {
    "@deep@": "[" * 100_000 + "]" * 100_000,
    "@level900@": '{"a": ' * 900 + "1" + "}" * 900,
    "@level95@": "[" * 95 + "]" * 95,
    "@huge@": "1" + "0" * 5000,
    "@long@": "9" * 300,
    "@float@": "-1e400",
    "@nan@": "NaN",
    "@twice@": '{"role": "user", "role": "assistant", "content": "x"}',
    "@broken@": "{,}",
}
"""What stands in the JSON of a row in place of these texts; Python's `json` cannot write it."""

_KEYS = (
    "prompt chosen rejected conversations messages system tools chat_template_kwargs input preferred_output "
    "non_preferred_output role content from value type text name function arguments tool_calls parameters image x"
).split()
_ROLES = "system user assistant tool developer human gpt observation function_call model alien forbidden".split()
_EXTRAS = ("", "", "\n", "\t", '"', "\\", "é", "\U0001f600", "{{ x }}", "<|end|>", "<eos>", "\u2028", "\0", "\ufeff")

Row = dict[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

_count = itertools.count(1)


def new_word() -> str:
    """Return a word that no text had before, so that a word that is found is the one that was written."""
    return f"w{next(_count):06x}z"


def _text(length: int, extra: str) -> str:
    return " ".join(new_word() for _ in range(length)) + extra


words = st.builds(new_word)
texts = st.builds(_text, st.integers(1, 3), st.sampled_from(_EXTRAS))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    texts,
    st.sampled_from(["", " ", "\ud83d", "a \udc00 b", "[", "{}", "null", "[1, {", '"\\ud83d"', *RAW]),
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=3),
    max_leaves=6,
)


def _message(draw: Draw, role: str) -> Row:
    message: Row = {"role": role, "content": draw(texts)}
    kind = draw(st.integers(0, 9))
    if kind == 0:
        message["content"] = [{"type": "text", "text": message["content"]}]
    elif kind == 1 and role == "assistant":
        message["tool_calls"] = [
            {"type": "function", "function": {"name": draw(words), "arguments": {"x": draw(texts)}}}
        ]
    elif kind == 2:
        message[draw(st.sampled_from(["name", "weight", "x"]))] = None
    return message


def _turns(draw: Draw, count: int) -> list[Row]:
    roles = ["user", "assistant"] * count
    turns = [_message(draw, role) for role in roles[: 2 * count - 1]]
    return [_message(draw, "system"), *turns] if draw(st.booleans()) else turns


def _sharegpt(message: Row) -> Row:
    names = {"user": "human", "assistant": "gpt"}
    content = message["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    return {"from": names.get(message["role"], message["role"]), "value": text}


def _transcript(turns: list[Row]) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[turn['role']]}: {_sharegpt(turn)['value']}" for turn in turns if turn["role"] in names)


def _conversation(layout: int, prompt: list[Row], chosen: list[Row], rejected: list[Row]) -> Row:
    match layout:
        case 2 | 3:
            return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        case 4:
            return {"chosen": [*prompt, *chosen], "rejected": [*prompt, *rejected]}
        case 5:
            return {"prompt": prompt, "chosen": [*prompt, *chosen], "rejected": [*prompt, *rejected]}
        case 6:
            return {"chosen": _transcript([*prompt, *chosen]), "rejected": _transcript([*prompt, *rejected])}
        case 7:
            turns = [_sharegpt(turn) for turn in prompt]
            return {"conversations": turns, "chosen": _sharegpt(chosen[0]), "rejected": _sharegpt(rejected[0])}
        case 8:
            return {"messages": prompt, "chosen": chosen, "rejected": rejected[0]}
        case _:
            return {"input": {"messages": prompt}, "preferred_output": chosen, "non_preferred_output": rejected}


@st.composite
def pairs(draw: Draw) -> Row:
    """Return a strategy of rows that hold a pair, in one of the layouts that the dialects know."""
    layout = draw(st.integers(0, 9))
    if layout < 2:
        text, good, bad = draw(texts), draw(texts), draw(texts)
        explicit = {"prompt": text, "chosen": good, "rejected": bad}
        return explicit if layout else {"chosen": f"{text} {good}", "rejected": f"{text} {bad}"}
    prompt = _turns(draw, draw(st.integers(1, 2)))
    chosen, rejected = [_message(draw, "assistant")], [_message(draw, "assistant")]
    row = _conversation(layout, prompt, chosen, rejected)
    if draw(st.integers(0, 3)) == 0:
        schema = {"type": "object", "properties": {"x": {"type": "string", "description": draw(texts)}}}
        tools = [{"type": "function", "function": {"name": draw(words), "parameters": schema}}]
        row = {**row, "tools": tools if draw(st.booleans()) else json.dumps(tools)}
    if draw(st.integers(0, 7)) == 0:
        row = {**row, "chat_template_kwargs": {"style": draw(words)}}
    return row


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(place for key, part in inner for place in _places(part, (*path, key)))]


MUTATIONS = ("replace", "drop", "rename", "role", "text", "wrap", "null", "append", "blank", "add")
"""Kinds of change at one place of a row."""


def _changed(draw: Draw, row: Row, kinds: tuple[str, ...]) -> Row:
    """Return a copy of a row with one place changed."""
    row = json.loads(json.dumps(row))
    places = _places(row)
    if not places:
        return row
    place = draw(st.sampled_from(places))
    holder: Any = row
    for key in place[:-1]:
        holder = holder[key]
    key, value = place[-1], holder[place[-1]]
    match draw(st.sampled_from(kinds)):
        case "drop":
            del holder[key]
        case "rename" if isinstance(holder, dict):
            holder[draw(st.sampled_from(_KEYS))] = holder.pop(key)
        case "role" if isinstance(value, dict):
            value["from" if "from" in value else "role"] = draw(st.sampled_from(_ROLES))
        case "text":
            holder[key] = json.dumps(value)
        case "wrap":
            holder[key] = [value] if draw(st.booleans()) else {draw(st.sampled_from(_KEYS)): value}
        case "null":
            holder[key] = None
        case "append" if isinstance(value, list):
            value.append(draw(values))
        case "blank":
            holder[key] = draw(st.sampled_from(["", " \n", [], {}]))
        case "add" if isinstance(holder, dict):
            holder[draw(st.sampled_from(_KEYS))] = draw(values)
        case _:
            holder[key] = draw(values)
    return row


@st.composite
def rows(draw: Draw, kinds: tuple[str, ...] = MUTATIONS) -> Row:
    """Return a strategy of rows: pairs with up to three places changed, so that many of them stay good."""
    row = draw(pairs())
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        row = _changed(draw, row, kinds)
    return row


def as_line(row: Row) -> str:
    """Return the row's JSON on one line, with what RAW puts in."""
    line = json.dumps(row)
    for name, raw in RAW.items():
        line = line.replace(f'"{name}"', raw)
    return line


def words_of(value: Any) -> set[str]:
    """Return all words in the texts of a value; those of keys are not among them."""
    if isinstance(value, str):
        return set(WORD.findall(value))
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {word for part in parts for word in words_of(part)}


_SAID = ("content", "value", "tool_calls")
"""Keys of a message whose words a chat template shows."""


def said(value: Any) -> set[str]:
    """Return the words that a prompt or a completion says: those of a text, or of what its messages say."""
    if isinstance(value, dict):
        return {word for name in _SAID for word in words_of(value.get(name))}
    if isinstance(value, list):
        return {word for part in value for word in said(part)}
    return words_of(value)


def sides_of(row: Row, dialect: str) -> tuple[set[str], set[str]]:
    """Return the words of prompt and chosen, and those of prompt and rejected, in a row of this dialect."""
    if dialect == "openai" and "preferred_output" in row:
        source = row["input"]
        row = {
            "messages": source.get("messages"),
            "tools": source.get("tools", row.get("tools")),
            "chosen": row["preferred_output"],
            "rejected": row["non_preferred_output"],
        }
    column = {"openai": "messages", "sharegpt": "conversations"}.get(dialect, "prompt")
    shared = said(row.get(column)) | words_of(row.get("tools"))
    return shared | said(row["chosen"]), shared | said(row["rejected"])
