"""Split the shared prompt off chosen and rejected when a row has no prompt column."""

from collections.abc import Mapping, Sequence
from typing import Any

from raydpo.data.dialects.messages import is_from_model
from raydpo.data.dialects.pair import Messages


def split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts into prompt, chosen and rejected at the first character that differs.

    A space directly before that character goes to the completions, as in TRL. If one text is the beginning of the other
    (apart from whitespace), its last word becomes its completion, or its last character if it has only one word, as in
    scripts without spaces. Any split would be a guess there; this one leaves both completions something to learn from.
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
    """Return the length of the common prefix in characters. Bisection on slices is much faster than a loop."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def split_turns(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Split two conversations into prompt, chosen and rejected; see `common_turns` for the position.

    The prompt is empty if the conversations share no leading turns.
    """
    cut = common_turns(chosen, rejected)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def common_turns(chosen: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of turns in the shared prompt.

    This is the longest common prefix after which both conversations continue with a turn of the model.
    """
    shortest = min(len(chosen), len(rejected))
    cut = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    while cut and not (cut < shortest and is_from_model(chosen[cut]) and is_from_model(rejected[cut])):
        cut -= 1
    return cut


def is_full_conversation(chosen: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether neither conversation begins with a turn of the model, so that each contains its prompt."""
    return bool(chosen and rejected) and not is_from_model(chosen[0]) and not is_from_model(rejected[0])
