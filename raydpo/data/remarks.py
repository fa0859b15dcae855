"""What tokenization did to good rows that the user should know, counted, and told once per data set."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_log = logging.getLogger(__name__)

DROPPED_WORDS, OWN_TOKENS = "dropped words", "own special tokens"
GENERATION_TAIL, MERGED_TAIL = "generation tail", "merged tail"
"""The topics of remarks."""

_TEXTS = {
    DROPPED_WORDS: (
        "The chat template drops words of %d pairs (%s), for example %s. They are trained on without these words, as "
        "on_template_loss=keep says."
    ),
    GENERATION_TAIL: (
        "The prompts of %d pairs lose the end of the chat template's generation prompt, for example %s, because the "
        "template begins an answer without it. The model will see it before it answers, but not in training."
    ),
    MERGED_TAIL: (
        "The prompts of %d pairs lose their last tokens, for example %s, because these merge with the first tokens of "
        "a completion, of which they become a part. End prompts on a token boundary."
    ),
    OWN_TOKENS: (
        "%d pairs hold their own BOS, EOS or end of turn, for example %s; they get no second one. "
        "add_special_tokens=always adds it, as TRL does."
    ),
}


@dataclass(frozen=True, slots=True)
class Remark:
    """One remark on one row."""

    topic: str
    detail: str
    """For DROPPED_WORDS the kind of words; otherwise empty."""
    example: str


@dataclass(frozen=True, slots=True)
class Count:
    """The number of rows with a remark."""

    rows: int
    example: str
    """Example of the first row."""


Remarks = Mapping[tuple[str, str], Count]
"""Counts by topic and detail."""


def counted(remarks: Iterable[Remark]) -> Remarks:
    """Return the counts of remarks on rows."""
    return merged({(remark.topic, remark.detail): Count(1, remark.example)} for remark in remarks)


def merged(parts: Iterable[Remarks]) -> Remarks:
    """Return the sums of several counts; the example is that of the first."""
    sums: dict[tuple[str, str], Count] = {}
    for part in parts:
        for key, count in part.items():
            held = sums.get(key)
            sums[key] = Count(held.rows + count.rows, held.example) if held else count
    return sums


def rows_of(remarks: Remarks, topic: str) -> dict[str, int]:
    """Return the number of rows with a remark on a topic, by detail."""
    return {detail: count.rows for (found, detail), count in remarks.items() if found == topic}


def log_remarks(remarks: Remarks) -> None:
    """Write one warning to the log per topic and detail."""
    for (topic, detail), count in remarks.items():
        kind = (detail,) if topic == DROPPED_WORDS else ()
        _log.warning(_TEXTS[topic], count.rows, *kind, count.example)
