"""Divide conversations into prompt, chosen and rejected, and check that their turns make sense.

Turns are compared by role, text, images and tool calls; surrounding whitespace makes no difference.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from raydpo.data.dialects.images import in_messages
from raydpo.data.dialects.messages import REASONING_KEYS, content_text, is_from_model
from raydpo.data.dialects.pair import Messages, RowError

Conversations = tuple[Messages, Messages, Messages]
"""Prompt, chosen and rejected."""
_SHOWN = 60
_MARKS_OF_TURNS = re.compile(
    r"<[^<>]*>|\[/?[A-Z_]+\]"
    r"|\b(?:system|developer|user|human|assistant|gpt|bot|ai|model|tool|instructions?|inputs?|response|question|answer"
    r"|prompt|context|below|is|a|an|the|that|describes|task|write|appropriately|completes|request|q)\b",
    re.IGNORECASE,
)
"""Special tokens and words with which templates mark turns, those of Alpaca's included."""


def is_whole(conversation: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a conversation contains its prompt, as it does not begin with a turn of the model."""
    return bool(conversation) and not is_from_model(conversation[0])


def are_answers(chosen: Messages, rejected: Messages) -> bool:
    """Return whether both completions begin with a turn of the model, and both with another one."""
    begin = bool(chosen and rejected) and is_from_model(chosen[0]) and is_from_model(rejected[0])
    return begin and not same_turn(chosen[0], rejected[0])


def same_turn(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two messages say the same."""
    return _said(one) == _said(other)


def _said(message: Mapping[str, Any]) -> tuple[Any, ...]:
    reasoning = [str(message.get(key) or "").strip() for key in REASONING_KEYS]
    said = (message["role"], content_text(message).strip(), message.get("tool_calls") or [], reasoning)
    return (*said, in_messages([message]))


def _same(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    return len(one) == len(other) and all(map(same_turn, one, other))


def shown(message: Mapping[str, Any]) -> str:
    """Return a turn for an error message: its role and the beginning of its text."""
    text = " ".join(content_text(message).split())
    return f"{message['role']}: {text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}"


def split_turns(chosen: Messages, rejected: Messages) -> Conversations:
    """Split two whole conversations into prompt, chosen and rejected.

    The prompt is the longest common beginning after which both continue with a turn of the model. It is empty if there
    is none. Raises RowError where the conversations first differ in a turn that is not the model's.
    """
    shortest = min(len(chosen), len(rejected))
    cut = next((i for i in range(shortest) if not same_turn(chosen[i], rejected[i])), shortest)
    if cut < shortest and not (is_from_model(chosen[cut]) and is_from_model(rejected[cut])):
        raise RowError(
            "prompts differ",
            f"turn {cut + 1} of chosen is {shown(chosen[cut])!r}, and that of rejected {shown(rejected[cut])!r}; both "
            "must answer the same prompt",
        )
    while cut and not (cut < shortest and is_from_model(chosen[cut]) and is_from_model(rejected[cut])):
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def join(prompt: str | Messages | None, chosen: Messages, rejected: Messages) -> Conversations:
    """Return prompt, chosen and rejected, where chosen and rejected may be whole conversations that repeat the prompt.

    Raises RowError where the parts contradict each other, or where an answer is not the model's.
    """
    if is_whole(chosen) != is_whole(rejected) and chosen and rejected:
        whole, other = ("chosen", "rejected") if is_whole(chosen) else ("rejected", "chosen")
        raise RowError(
            "prompts differ", f"{whole} is a conversation with its prompt, and {other} begins with the model's answer"
        )
    if is_whole(chosen):
        common, chosen, rejected = split_turns(chosen, rejected)
        prompt = common if prompt is None else _agreed(prompt, common)
    elif prompt is None:
        prompt = []
    elif isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    check(prompt, chosen, rejected)
    return prompt, chosen, rejected


def _agreed(prompt: str | Messages, common: Messages) -> Messages:
    """Return the fuller of the prompt of the row and the prompt that its conversations begin with.

    Raises RowError where neither contains the other.
    """
    if isinstance(prompt, str):
        words, said = _words(prompt), _words(" ".join(map(content_text, common)))
        if words in said or (common and _is_rendering(words, common)):
            return common  # some datasets repeat the first question, or a rendering of all turns, as text
        shown_prompt = shown({"role": "prompt", "content": prompt})
    else:
        if _same(prompt, common):
            return prompt
        if any(_same(prompt, common[first : first + len(prompt)]) for first in range(len(common) - len(prompt) + 1)):
            return common
        if _same(prompt[len(prompt) - len(common) :], common):
            return prompt
        shown_prompt = shown(prompt[-1]) if prompt else "empty"
    raise RowError(
        "prompts differ",
        f"the prompt ends with {shown_prompt!r}, and chosen and rejected are conversations that begin with another one "
        f"({shown(common[-1]) if common else 'nothing in common'!r})",
    )


def _is_rendering(words: str, turns: Messages) -> bool:
    """Return whether text says these turns and nothing else, apart from what marks turns."""
    for text in sorted((_words(content_text(turn)) for turn in turns), key=len, reverse=True):
        if text not in words:
            return False
        words = words.replace(text, " ", 1)
    return not re.search(r"\w", _MARKS_OF_TURNS.sub(" ", words))


def _words(text: str) -> str:
    return " ".join(text.split())


def check(prompt: Messages, chosen: Messages, rejected: Messages) -> None:
    """Raise RowError for a conversation whose turns make no sense as a prompt and two answers to it."""
    if not prompt:
        raise RowError(
            "no prompt", "the prompt has no messages; give a prompt, or conversations that begin with the same messages"
        )
    for first, second in pairwise(prompt):
        if not is_from_model(second) and same_turn(first, second) and content_text(second).strip():
            raise RowError("doubled prompt", f"two turns in a row are {shown(second)!r}")
    for name, completion in (("chosen", chosen), ("rejected", rejected)):
        if completion and not is_from_model(completion[0]):
            raise RowError("not an answer", f"{name} begins with another's turn, {shown(completion[0])!r}")
        if completion and not is_from_model(completion[-1]):
            raise RowError("not an answer", f"{name} ends with another's turn, {shown(completion[-1])!r}")
        if completion and is_from_model(prompt[-1]) and same_turn(prompt[-1], completion[0]):
            raise RowError(
                "answer in the prompt", f"the prompt ends with {shown(prompt[-1])!r}, which is how {name} begins"
            )


def with_system(prompt: Messages, system: str) -> Messages:
    """Return the prompt with this system message at its start. Raises RowError where it begins with another one."""
    if prompt and prompt[0]["role"] in ("system", "developer"):
        if _words(content_text(prompt[0])) != _words(system):
            raise RowError(
                "two system messages", f"column 'system' is not the system message of the prompt, {shown(prompt[0])!r}"
            )
        return prompt
    return [{"role": "system", "content": system}, *prompt]
