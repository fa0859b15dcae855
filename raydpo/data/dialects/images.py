"""Read the images of a row: columns `image` and `images`, and parts of messages that are images.

A source is where an image comes from: a path or URL, base64 or a data: URL as text, bytes, or an object with `bytes`,
`path`, `url` or `base64`, as `datasets` and chat APIs have them. Nothing is opened here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raydpo.data.dialects.pair import Messages, RowError, type_name

IMAGE_COLUMNS = ("images", "image")
"""Columns, and keys of messages, that hold a list of images or one."""
IMAGE_PARTS = ("image", "image_url", "input_image")
"""Types of the parts of a content that are images: those of transformers, OpenAI and Anthropic."""
PLACEHOLDER: dict[str, Any] = {"type": "image"}
"""The part of a content that stands for an image, as chat templates know it."""
_SOURCE_KEYS = ("image", "url", "path", "base64", "bytes", "image_url", "source", "data")
_SOURCE = "source_of_image"
"""Key of an image part under which its source stands until `take_images` removes it."""


def image_part(part: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return an image part of a message with its source, or without one if a column has it. Raises RowError."""
    given = [part[key] for key in _SOURCE_KEYS if part.get(key) is not None]
    if len(given) > 1:
        raise RowError("two images in one", f"an image in column {column!r} has more than one source")
    return {**PLACEHOLDER, _SOURCE: _checked(given[0], column)} if given else dict(PLACEHOLDER)


def parts_of_message(message: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """Return the images that a message has beside its content, as parts. Raises RowError."""
    return [
        {**PLACEHOLDER, _SOURCE: source} for name in IMAGE_COLUMNS for source in _sources(message.get(name), column)
    ]


def has_source(part: Mapping[str, Any]) -> bool:
    """Return whether a part of a content names an image, whatever its type says."""
    return any(part.get(key) is not None for key in ("image", "image_url", "url", "path", "base64"))


def is_image(part: Any) -> bool:
    """Return whether a part of a converted content is an image."""
    return isinstance(part, Mapping) and part.get("type") == "image"


def column_images(row: Mapping[str, Any]) -> list[Any]:
    """Return the sources in the columns of a row. Raises RowError if both columns have images."""
    found = {name: _sources(row.get(name), name) for name in IMAGE_COLUMNS}
    filled = [sources for sources in found.values() if sources]
    if len(filled) > 1:
        raise RowError("two columns of images", "columns 'images' and 'image' both hold images; keep one of them")
    return filled[0] if filled else []


def _sources(value: Any, column: str) -> list[Any]:
    if value is None or (isinstance(value, str | bytes | list | Mapping) and not value):
        return []
    values = value if isinstance(value, list) else [value]
    return [_checked(source, column) for source in values if source is not None]


def _checked(source: Any, column: str) -> Any:
    """Return a source without the object around it, if it has one. Raises RowError for what is no source."""
    if isinstance(source, str | bytes | bytearray) and source:
        return source
    if isinstance(source, Mapping):
        # `datasets` keeps a name beside bytes, which need not be a file that exists.
        for key in ("bytes", "image", "url", "path", "base64", "data"):
            if source.get(key):
                return _checked(source[key], column)
    what = f"an object with {', '.join(map(repr, source)) or 'no keys'}" if isinstance(source, Mapping) else None
    raise RowError(
        "wrong type",
        f"an image in column {column!r} is {what or type_name(source)}; an image is a path, a URL, bytes, base64, or "
        "an object with bytes, path or url",
    )


def in_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the image parts of converted messages, in order."""
    contents = [message.get("content") for message in messages]
    return [part for content in contents if isinstance(content, list) for part in content if is_image(part)]


def take_images(prompt: str | Messages, in_columns: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return the prompt with bare placeholders for images, and the sources of its images in order.

    Placeholders without a source take those of the columns in order. A prompt without image parts is returned as it is
    with the images of the columns, whose places are found once the model's image token is known. Raises RowError if
    there are more or fewer placeholders than images.
    """
    parts = [] if isinstance(prompt, str) else in_messages(prompt)
    if isinstance(prompt, str) or not parts:
        return prompt, tuple(in_columns)
    open_places = sum(_SOURCE not in part for part in parts)
    if open_places != len(in_columns):
        raise RowError(
            "images do not match",
            f"the prompt has {open_places} places for images of a column, and the columns hold {len(in_columns)}",
        )
    rest = iter(in_columns)
    sources = tuple(part[_SOURCE] if _SOURCE in part else next(rest) for part in parts)
    return [_bare(message) for message in prompt], sources


def _bare(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    return {**message, "content": [dict(PLACEHOLDER) if is_image(part) else part for part in content]}


def check_none(messages: str | Messages, where: str) -> None:
    """Raise RowError if a completion holds an image, which a model cannot be trained to write."""
    if not isinstance(messages, str) and in_messages(messages):
        raise RowError("image in a completion", f"{where} holds an image; images can stand in prompts only")
