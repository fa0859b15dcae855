"""Which words of a row must stand in the rendered text, and which of them a chat template has dropped."""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raydpo.data.dialects.messages import REASONING_KEYS
from raydpo.data.dialects.pair import Messages
from raydpo.data.templates.probe import REASONING, SYSTEM, THINK_TAGS, TOOL_CALLS, TOOL_RESULTS, TOOLS, TURNS

_KINDS = {"system": SYSTEM, "developer": SYSTEM, "tool": TOOL_RESULTS}
"""Kind of the words of a message by its role; the words of all other messages are TURNS."""
_THINK_START, _THINK_END = "<think>", "</think>"
_SWITCHES = re.compile(r"/(?:no_)?think\b")
"""Words of a system message that switch reasoning on or off; SmolLM3's template obeys and removes them."""
_EXAMPLE_CHARACTERS = 60
_DISTINCT_LETTERS = 8
"""Number of letters in a row that are not found in a text by chance, across the borders of its words."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Words of a row that must stand in the rendered text."""

    kind: str
    """One of the kinds in `probe`."""
    source: str
    """Role of the message, or for reasoning the key that holds it (THINK_TAGS: the content)."""
    text: str
    """The words, without surrounding whitespace; never empty."""

    @property
    def example(self) -> str:
        """The words, shortened for a message."""
        cut = self.text if len(self.text) <= _EXAMPLE_CHARACTERS else f"{self.text[:_EXAMPLE_CHARACTERS]}..."
        return repr(cut)


def tool_pieces(tools: Sequence[Any] | None) -> list[Piece]:
    """Return the names of the functions whose schemas a row gives."""
    schemas = [tool.get("function", tool) for tool in tools or () if isinstance(tool, Mapping)]
    names = [schema.get("name") for schema in schemas if isinstance(schema, Mapping)]
    return list(_pieces(TOOLS, "", names))


def pieces(messages: Messages, *, reasoning: bool) -> list[Piece]:
    """Return what messages say: contents, names and arguments of tool calls and, if asked for, reasoning.

    Templates of thinking models drop the reasoning of earlier turns by design, so it is not asked for in prompts.
    """
    found: list[Piece] = []
    for message in messages:
        role = str(message.get("role"))
        if reasoning:
            for key in REASONING_KEYS:
                found += _pieces(REASONING, key, message.get(key))
        found += _content_pieces(role, message.get("content"), reasoning)
        calls = message.get("tool_calls"), message.get("function_call")
        for call in [*(calls[0] if isinstance(calls[0], list) else []), calls[1]]:
            found += _call_pieces(role, call)
    return found


def _content_pieces(role: str, content: Any, reasoning: bool) -> Iterator[Piece]:
    kind = _KINDS.get(role, TURNS)
    texts = content if isinstance(content, list) else [content]
    for text in (part.get("text") if isinstance(part, Mapping) else part for part in texts):
        if kind == TURNS and role != "user" and isinstance(text, str) and _THINK_END in text:
            thought, _, text = text.rpartition(_THINK_END)
            if reasoning:
                yield from _pieces(REASONING, THINK_TAGS, thought.replace(_THINK_START, "").replace(_THINK_END, ""))
        yield from _pieces(kind, role, _SWITCHES.sub("", text) if kind == SYSTEM and isinstance(text, str) else text)


def _call_pieces(role: str, call: Any) -> Iterator[Piece]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if isinstance(function, Mapping):
        yield from _pieces(TOOL_CALLS, role, function.get("name"))
        yield from _pieces(TOOL_CALLS, role, _parsed(function.get("arguments")))


def _parsed(arguments: Any) -> Any:
    """Return arguments as an object where they are its JSON text."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _pieces(kind: str, source: str, value: Any) -> Iterator[Piece]:
    """Yield a piece per text or number in a JSON value; booleans and nulls are words of JSON and not of the row."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend(reversed(list(value.values())))
        elif isinstance(value, list | tuple):
            pending.extend(reversed(value))
        elif value is not None and not isinstance(value, bool) and (text := str(value).strip()):
            yield Piece(kind, source, text)


def missing(wanted: Sequence[Piece], text: str) -> list[Piece]:
    """Return the pieces whose words are not in the text.

    Templates may trim lines, encode words as JSON or as HTML, or write them as Python does; words in such a form count
    as present.
    """
    absent = [piece for piece in wanted if piece.text not in text]
    forms = _Forms(text)
    return [piece for piece in absent if not forms.hold(piece.text)]


@dataclass(frozen=True)
class _Forms:
    """A text in the forms in which words are looked for that are not in it literally."""

    text: str

    @cached_property
    def spaced(self) -> str:
        """The text with HTML's escapes resolved and each run of whitespace as one space."""
        return " ".join(html.unescape(self.text).split())

    @cached_property
    def letters(self) -> str:
        """The letters and digits of the text, where a backslash and what it escapes do not count."""
        return _letters(self.text)

    def hold(self, words: str) -> bool:
        """Return whether the words are in the text in one of the forms."""
        if any(form in self.text for form in _escaped(words)) or " ".join(words.split()) in self.spaced:
            return True
        letters = _letters(words)
        return len(letters) >= _DISTINCT_LETTERS and letters in self.letters


def _escaped(words: str) -> Iterator[str]:
    for ascii_only in (False, True):
        once = json.dumps(words, ensure_ascii=ascii_only)[1:-1]
        yield once
        yield json.dumps(once, ensure_ascii=ascii_only)[1:-1]
    yield repr(words)[1:-1]


_ESCAPES = re.compile(r"\\+(?:u[0-9a-fA-F]{4}|[nrtbf])?")


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", _ESCAPES.sub("", html.unescape(text)))
