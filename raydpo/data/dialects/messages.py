"""Convert the messages of a row (OpenAI or ShareGPT format) to `{"role": ..., "content": ...}`."""

from collections.abc import Mapping
from typing import Any

from raydpo.data.dialects.pair import Messages, RowError, type_name
from raydpo.data.files.json_text import parse_json_text

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
_PROMPT_ROLES = frozenset({"system", "developer", "user", "tool", "function", "ipython"})


def is_message(value: Any) -> bool:
    """Return whether a value is a message: a mapping with the key `role` or `from`."""
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def is_from_model(message: Mapping[str, Any]) -> bool:
    """Return whether a message is a turn of the model, with which a completion can begin.

    Every role that is not known as a prompt role counts, because some templates call the model's role `model`.
    """
    return message.get("role", SHAREGPT_ROLES.get(message.get("from", ""))) not in _PROMPT_ROLES


def as_messages(value: Any, column: str, role: str = "assistant") -> Messages:
    """Convert a column to a conversation; text becomes one message of role `role`. Raises RowError for other types."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list):
        return [_message(part, column) for part in value]
    return [_message(value, column)]


def _message(value: Any, column: str) -> dict[str, Any]:
    if not is_message(value):
        raise RowError("wrong type", f"column {column!r} holds {type_name(value)}, not a message with role and content")
    if "role" not in value:
        return _sharegpt_message(value, column)
    if not isinstance(value["role"], str):
        raise RowError("wrong type", f"a role in column {column!r} is {type_name(value['role'])}, not a string")
    content = value.get("content")
    if content is not None and not isinstance(content, str | list):
        raise RowError("wrong type", f"a content in column {column!r} is {type_name(content)}, not a string")
    if content is None and _without_payload(value):
        raise RowError("wrong type", f"a message of role {value['role']!r} in column {column!r} has no content")
    return dict(value)


def _without_payload(message: Mapping[str, Any]) -> bool:
    """Return whether a message has no fields other than role, content and name, such as tool calls."""
    return not any(part for name, part in message.items() if name not in ("role", "content", "name"))


def _sharegpt_message(value: Mapping[str, Any], column: str) -> dict[str, Any]:
    origin, content = value["from"], value.get("value")
    if not isinstance(origin, str) or origin not in SHAREGPT_ROLES:
        known = ", ".join(SHAREGPT_ROLES)
        raise RowError("unknown role", f"{origin!r} in column {column!r}; known roles are {known}")
    if not isinstance(content, str):
        raise RowError("wrong type", f"a value in column {column!r} is {type_name(content)}, not a string")
    if origin == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _tool_calls(content, column)}
    return {"role": SHAREGPT_ROLES[origin], "content": content}


def _tool_calls(text: str, column: str) -> list[dict[str, Any]]:
    calls = parse_json_text(text, f"a function_call in column {column!r}")
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise RowError("wrong type", f"a function_call in column {column!r} has no name")
    return [{"type": "function", "function": call} for call in calls]


def is_blank(completion: str | Messages) -> bool:
    """Return whether a completion has nothing to learn from: only whitespace, and no tool call."""
    if isinstance(completion, str):
        return not completion.strip()
    return all(_blank_content(message.get("content")) and _without_payload(message) for message in completion)


def _blank_content(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, Mapping) and not (part.get("text", "text") or "").strip() for part in content)
    return not (content or "").strip()
