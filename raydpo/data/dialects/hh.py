"""Parse Anthropic HH transcripts: one text `\\n\\nHuman: ...\\n\\nAssistant: ...` that ends with an assistant turn."""

import re
from dataclasses import dataclass
from typing import Any

from raydpo.data.dialects.pair import Messages, RowError
from raydpo.data.dialects.turns import split_turns

_MARK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_START = re.compile(r"\s*Human:")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    text: str
    start: int
    """Offset of the text in the transcript, in characters: directly after the colon."""


def is_transcript(value: Any) -> bool:
    """Return whether a value is text that begins with a human turn and contains an assistant turn after a blank line.

    Text with `Human:` and `Assistant:` on consecutive lines is not a transcript of this format.
    """
    return isinstance(value, str) and _START.match(value) is not None and "\n\nAssistant:" in value


def split(chosen: str, rejected: str, chat: bool) -> tuple[Any, Any, Any]:
    """Split two transcripts into prompt, chosen and rejected: conversations if `chat`, otherwise text.

    A text prompt ends with `Assistant:`. In conversations, turns are stripped of surrounding whitespace and consecutive
    turns of one speaker are merged, as chat templates expect. Raises RowError if a text is not a transcript.
    """
    turns = [_turns(text, name) for text, name in ((chosen, "chosen"), (rejected, "rejected"))]
    if chat:
        return split_turns(_conversation(turns[0]), _conversation(turns[1]))
    good, bad = ([{"role": turn.role, "content": turn.text} for turn in side] for side in turns)
    common = len(split_turns(good, bad)[0])
    if not common:
        return "", chosen, rejected
    start = turns[0][common].start
    return chosen[:start], chosen[start:], rejected[turns[1][common].start :]


def _turns(text: str, name: str) -> list[_Turn]:
    marks = list(_MARK.finditer(text))
    if not marks or marks[0].start() != 0:
        raise RowError("no transcript", f"{name} does not begin with 'Human:' or 'Assistant:'")
    if marks[-1][1] != "Assistant":
        raise RowError("no transcript", f"{name} does not end with an Assistant turn")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [_Turn(_ROLES[mark[1]], text[mark.end() : end], mark.end()) for mark, end in zip(marks, ends, strict=True)]


def _conversation(turns: list[_Turn]) -> Messages:
    messages: Messages = []
    for turn in turns:
        content = turn.text.strip()
        if messages and messages[-1]["role"] == turn.role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content}".strip()
        else:
            messages.append({"role": turn.role, "content": content})
    return messages
