"""Convert the messages of a row (OpenAI's or ShareGPT's format) to `{"role": ..., "content": ...}`.

Roles become those that chat templates know: system, developer, user, assistant and tool. Tool calls become
`{"type": "function", "function": {"name": ..., "arguments": {...}}}`: arguments are an object, also if the row has them
as JSON text.
"""

import ast
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from raydpo.data.dialects import images
from raydpo.data.dialects.pair import Messages, RowError, type_name
from raydpo.data.files.json_text import parse_json_text

ASSISTANT = "assistant"
ROLES = {
    **dict.fromkeys(("system", "system_prompt"), "system"),
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "bot", "chatbot", "chatgpt", "bing", "bard", "model", "ai", "agent"), ASSISTANT
    ),
    **dict.fromkeys(
        ("tool", "tool_response", "tool_result", "observation", "function", "function_response", "ipython"), "tool"
    ),
    **dict.fromkeys(("tool_call", "function_call"), ASSISTANT),
}
"""Roles of the rows, in lower case, and what chat templates call them."""
_CALL_ROLES = ("tool_call", "function_call")
"""Roles whose content is the JSON of tool calls."""
REASONING_KEYS = (
    *("reasoning_content", "thinking", "reasoning", "thinking_content", "reasoning_text", "thought", "thoughts"),
    *("chain_of_thought", "cot"),
)
"""Keys under which a message may have the model's reasoning, apart from its content."""
_PAYLOAD_KEYS = ("tool_calls", "function_call", *REASONING_KEYS)
UNREAD = ("videos", "video", "audios", "audio")
"""Columns, and keys of messages, that no model here can read; a row that has something in one of them is refused."""
_CONTENT_KEYS = ("content", "value", "text")
"""Keys of a message's content: OpenAI's, ShareGPT's and Open Assistant's."""
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
"""Keys of a tool call's arguments: OpenAI's, Llama's, LangChain's and Anthropic's."""
_LOOKS_LIKE_MESSAGES = re.compile(
    r"""(?:array\()?\[\s*\{\s*["'](?:(?:role|from)["']\s*:|(?:content|value)["']\s*:.*["'](?:role|from)["']\s*:)""",
    re.DOTALL,
)
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a content that are text."""


def is_message(value: Any) -> bool:
    """Return whether a value is a message: a mapping with the key `role` or `from`."""
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def is_from_model(message: Mapping[str, Any]) -> bool:
    """Return whether a converted message is a turn of the model, with which a completion can begin."""
    return message.get("role") == ASSISTANT


def unwrap_messages(value: Any) -> Any:
    """Return the messages where a value holds them as JSON text or under the key `messages`; else the value itself.

    Raises RowError for text that begins as messages do and cannot be parsed.
    """
    if isinstance(value, str):
        parsed = _messages_in_text(value)
        return value if parsed is None else parsed
    if isinstance(value, Mapping) and not is_message(value) and _are_messages(value.get("messages")):
        return value["messages"]
    return value


def _messages_in_text(text: str) -> Any:
    """Return the list of messages that text is the JSON of (or Python's notation of); None for any other text.

    Raises RowError for text that begins as messages do and cannot be parsed.
    """
    stripped = text.strip()
    if not (stripped.startswith(("[", "{", '"', "array(")) and stripped.endswith(("]", "}", '"', ")"))):
        return None
    if not ("role" in stripped or "from" in stripped):
        return None
    try:
        value = _parsed(stripped)
        value = _parsed(value) if isinstance(value, str) else value  # JSON that was written as JSON again
    except RowError as error:
        if _LOOKS_LIKE_MESSAGES.match(stripped):
            remedy = (
                "; it begins as messages do: save messages as lists" if str(error).startswith("broken JSON") else ""
            )
            raise RowError(f"{error}{remedy}") from error
        return None
    if isinstance(value, Mapping):
        is_one = str(value.get("role") or value.get("from")).strip().lower() in ROLES
        value = [value] if is_one else value.get("messages")
    return value if _are_messages(value) and all(map(_says_something, value)) else None


def _says_something(message: Mapping[str, Any]) -> bool:
    """Return whether an object is a message and not an answer in JSON that happens to have the key `role` or `from`."""
    return any(key in message for key in (*_CONTENT_KEYS, *_PAYLOAD_KEYS))


def _parsed(text: str) -> Any:
    try:
        return parse_json_text(text)
    except RowError as error:
        try:
            return parse_json_text(json.dumps(ast.literal_eval(text)))  # Python's notation, with the limits of JSON
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            raise error from None


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_message(part) for part in value)


def as_messages(value: Any, column: str, role: str = ASSISTANT) -> Messages:
    """Convert a column to a conversation; text becomes one message of role `role`. Raises RowError for other types."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    parts = value if isinstance(value, list) else [value]
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        raise RowError(
            "wrong type",
            f"column {column!r} is a list of {len(value)} texts, not of messages; --column_mapping {column}=COLUMN.0 "
            "reads the first text",
        )
    return [_message(part, column) for part in parts]


def _message(value: Any, column: str) -> dict[str, Any]:
    if not is_message(value):
        keys = f" with {', '.join(map(repr, list(value)[:8]))}" if isinstance(value, Mapping) and value else ""
        what = f"{type_name(value)}{keys}, not a message with role and content"
        raise RowError("wrong type", f"column {column!r} holds {what}")
    given = _one_of(value, "role", "from", column=column)
    if not isinstance(given, str):
        raise RowError("wrong type", f"a role in column {column!r} is {type_name(given)}, not a string")
    name = given.strip().lower()
    if name not in ROLES:
        raise RowError("unknown role", f"{given!r} in column {column!r}; known roles are {', '.join(ROLES)}")
    content = _one_of(value, *_CONTENT_KEYS, column=column)
    if unread := next((key for key in UNREAD if value.get(key)), None):
        raise RowError("not text", f"a message in column {column!r} has {unread!r}; only text and images are read")
    read = ("role", "from", *_CONTENT_KEYS, *images.IMAGE_COLUMNS)
    message = {key: part for key, part in value.items() if key not in read}
    message = {"role": ROLES[name], "content": _content(content, column), **_with_calls(message, column)}
    if beside := images.parts_of_message(value, column):
        message["content"] = [*beside, *_as_parts(message["content"])]
    if name in _CALL_ROLES:
        message |= {"content": "", "tool_calls": _calls_in_text(content, column)}
    if message["content"] is None:
        if _without_payload(message):
            raise RowError("wrong type", f"a message of role {given!r} in column {column!r} has no content")
        message["content"] = ""
    return message


def _one_of(message: Mapping[str, Any], *names: str, column: str) -> Any:
    """Return the value that stands under one of several keys. Raises RowError if two of them contradict."""
    found = [(name, message[name]) for name in names if message.get(name) is not None]
    for name, value in found[1:]:
        if value != found[0][1]:
            raise RowError(
                "two messages in one", f"a message in column {column!r} has both {found[0][0]!r} and {name!r}"
            )
    return found[0][1] if found else None


def _content(content: Any, column: str) -> Any:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        return [_part(part, column) for part in content]
    raise RowError("wrong type", f"a content in column {column!r} is {type_name(content)}, not a string")


def _as_parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _part(part: Any, column: str) -> dict[str, Any]:
    """Return a part of a content as `{"type": "text", "text": ...}`, or an image as `images.image_part` does.

    Raises RowError where it is neither.
    """
    text = part.get("text") if isinstance(part, Mapping) else part
    kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
    if kind in images.IMAGE_PARTS:
        return images.image_part(part, column)
    if kind not in TEXT_PARTS:
        raise RowError(
            "not text", f"a content in column {column!r} has a part of type {kind!r}; only text and images are read"
        )
    if isinstance(part, Mapping) and images.has_source(part):
        raise RowError("two parts in one", f"a part of type {kind!r} in column {column!r} names an image too")
    if not isinstance(text, str):
        raise RowError("wrong type", f"a part of a content in column {column!r} is {type_name(text)}, not text")
    return {"type": "text", "text": text}


def _with_calls(message: dict[str, Any], column: str) -> dict[str, Any]:
    """Return the further fields of a message, with its tool calls in one form."""
    calls = message.pop("tool_calls", None)
    old = message.pop("function_call", None)  # OpenAI's form before tool calls
    if calls is None and old is not None:
        calls = [old]
    if isinstance(calls, str):
        calls = parse_json_text(calls, f"tool_calls in column {column!r}")
    if not calls:
        return message
    if not isinstance(calls, list):
        raise RowError("wrong type", f"tool_calls in column {column!r} are {type_name(calls)}, not a list")
    return {**message, "tool_calls": [_call(call, column) for call in calls]}


def _calls_in_text(content: Any, column: str) -> list[dict[str, Any]]:
    if not isinstance(content, str):
        raise RowError("wrong type", f"a tool call in column {column!r} is {type_name(content)}, not JSON text")
    calls = parse_json_text(content, f"a tool call in column {column!r}")
    return [_call(call, column) for call in (calls if isinstance(calls, list) else [calls])]


def _call(call: Any, column: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not (isinstance(function, Mapping) and isinstance(function.get("name"), str) and function["name"].strip()):
        raise RowError("wrong type", f"a tool call in column {column!r} has no name")
    given = [key for key in _ARGUMENT_KEYS if function.get(key) is not None]
    arguments = function[given[0]] if given else {}
    if isinstance(arguments, str):
        arguments = parse_json_text(arguments, f"arguments in column {column!r}") if arguments.strip() else {}
    if not isinstance(arguments, Mapping):
        raise RowError(
            "wrong type", f"the arguments of a tool call in column {column!r} are {type_name(arguments)}, not an object"
        )
    outer = call if "function" in call else {"type": "function"}
    named = {key: part for key, part in function.items() if key != "arguments" and key not in given[:1]}
    return {**outer, "function": {**named, "arguments": arguments}}


def _without_payload(message: Mapping[str, Any]) -> bool:
    """Return whether a message has neither tool calls nor reasoning."""
    return not any(message.get(key) for key in _PAYLOAD_KEYS)


def content_text(message: Mapping[str, Any]) -> str:
    """Return the text of a converted message's content: the content itself, or the texts of its parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def is_blank(completion: str | Messages) -> bool:
    """Return whether a completion has nothing to learn from: nothing visible, and no tool call or reasoning."""
    if isinstance(completion, str):
        return _is_invisible(completion)
    return all(_is_invisible(content_text(message)) and _without_payload(message) for message in completion)


def _is_invisible(text: str) -> bool:
    """Return whether text has only whitespace, control characters, and marks such as the zero-width space."""
    return all(sign.isspace() or unicodedata.category(sign) in ("Cc", "Cf") for sign in text)
