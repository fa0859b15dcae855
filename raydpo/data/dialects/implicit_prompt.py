"""The prompt that two completions share where a row does not name it."""

from collections.abc import Mapping, Sequence
from typing import Any

from raydpo.data.dialects.messages import is_from_model
from raydpo.data.dialects.pair import Messages


def split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt, chosen, rejected: cut where the texts differ, with a blank before that left to the completions (as TRL).

    Where one text is (but for blanks) the beginning of the other, its last word is its completion, or its last
    character in scripts without blanks: any cut would be a guess, and this one leaves both completions something to
    learn from.
    """
    cut = _common_length(chosen, rejected)
    if not (chosen[cut:].strip() and rejected[cut:].strip()):
        cut = _before_last_word(chosen[:cut])
    if cut and chosen[cut - 1] == " ":
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _before_last_word(text: str) -> int:
    stem = text.rstrip()
    words = stem.rsplit(None, 1)
    return len(stem) - len(words[1]) if len(words) > 1 else max(len(stem) - 1, 0)


def _common_length(one: str, other: str) -> int:
    """Characters that both texts begin with, by bisection: comparing slices is much faster than a loop."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def split_turns(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Prompt, chosen, rejected: cut before the first turn that differs, or the last turn of the model before it.

    The prompt is empty where the conversations do not begin alike.
    """
    cut = common_turns(chosen, rejected)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def common_turns(chosen: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> int:
    """How many turns the prompt has: both sides go on with a turn of the model."""
    shortest = min(len(chosen), len(rejected))
    cut = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    while cut and not (cut < shortest and is_from_model(chosen[cut]) and is_from_model(rejected[cut])):
        cut -= 1
    return cut


def is_whole_conversation(chosen: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> bool:
    """True if both begin with another's turn than the model's, so that each has its prompt in it."""
    return bool(chosen and rejected) and not is_from_model(chosen[0]) and not is_from_model(rejected[0])
