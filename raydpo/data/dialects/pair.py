"""The canonical preference pair, and why a row may hold none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, Any]]
"""A conversation: each message has a `role`, and mostly a `content`."""


class RowError(Exception):
    """A row that cannot be trained on. Its text is the reason: the kind of fault, then what it was in this row."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)


def kind_of(reason: str) -> str:
    """The kind of fault alone, by which bad rows are counted."""
    return reason.split(":", 1)[0]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and its two completions: three texts, or three lists of messages."""

    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    tools: list[Any] | None = None
    """JSON schemas of the functions that the chat template tells the model of."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def conversational(self) -> bool:
        """True for messages, False for text."""
        return not isinstance(self.prompt, str)


def type_name(value: Any) -> str:
    """The type of a JSON value, in words for a reader."""
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
