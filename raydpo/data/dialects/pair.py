"""The canonical preference pair, and the error for rows that hold none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, Any]]
"""A conversation: each message has a `role` and usually a `content`."""


class RowError(Exception):
    """A row cannot be trained on. The message is the kind of fault, then the details of this row."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail = kind, detail

    def __reduce__(self) -> tuple[type["RowError"], tuple[str, str]]:
        return type(self), (self.kind, self.detail)


class ColumnError(RowError):
    """The columns of a row are not those of its dialect; `to_pair` adds which they are and how to map them."""


def kind_of(reason: str) -> str:
    """Return the kind of fault from a RowError message; bad rows are counted by it."""
    return reason.split(":", 1)[0]


@dataclass(frozen=True, slots=True)
class ImageExpansion:
    """The texts that take the places of the image tokens of a prompt."""

    token: str
    """The token that a chat template, or text, has in the place of an image."""
    texts: tuple[str, ...]
    """The text that takes the place of each image's token, in order."""
    digests: tuple[str, ...]
    """Digest of each image, in order."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and its two completions: either three texts or three lists of messages."""

    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    tools: list[Any] | None = None
    """JSON schemas of the functions that the chat template presents to the model."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Additional variables for the chat template."""
    images: tuple[Any, ...] = ()
    """Where each image of the prompt comes from, in order; see `dialects.images`."""
    expansion: "ImageExpansion | None" = None
    """What stands for the images in the prompt's text, once they were read; None for a prompt without images."""

    @property
    def conversational(self) -> bool:
        """Whether the pair consists of messages; False for text."""
        return not isinstance(self.prompt, str)


def type_name(value: Any) -> str:
    """Return the type of a JSON value for an error message, such as "a list" or "null"."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
