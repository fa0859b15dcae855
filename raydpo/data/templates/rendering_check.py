"""Compare a pair with its rendered texts: each of its words must stand in the part that it belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from raydpo.data.dialects.pair import Pair, RowError
from raydpo.data.templates.chat_template import ChatTemplate
from raydpo.data.templates.probe import probe_of
from raydpo.data.templates.rendered import DroppedWords, Rendered
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.templates.words import Piece, missing, pieces, tool_pieces

DROPPED = "dropped by the chat template"
DIFFERS = "the chat template renders the prompt differently when an answer follows"
_WORD_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class _Lost:
    piece: Piece
    where: str
    """What the words are part of: the prompt, chosen or rejected."""
    moved: bool = False
    """Whether the words stand in the text, but behind the prompt."""


def checked(template: ChatTemplate, pair: Pair, texts: Rendered, options: TextOptions) -> Rendered:
    """Return the texts with what they lack of the pair.

    Raises RowError if they lack anything, unless `on_template_loss=keep`; if the prompt is rendered differently when an
    answer follows; or if no word of a completion is left.
    """
    unused = _unused_variables(template, pair)
    if unused and options.on_template_loss != "keep":
        raise RowError(
            DROPPED,
            f"chat_template_kwargs, for example {unused[0]!r}, which the template does not use; use one that does, "
            "remove it from the row, or set on_template_loss=keep",
        )
    check = _Check(template, pair, texts)
    chosen, rejected = check.lost_of_completion("chosen"), check.lost_of_completion("rejected")
    lost = [*check.lost_of_prompt(), *chosen, *rejected]
    if lost and options.on_template_loss != "keep":
        raise RowError(DROPPED, check.detail(lost))
    if check.differs:
        raise RowError(DIFFERS, check.difference())
    for name, dropped in (("chosen", chosen), ("rejected", rejected)):
        if len(dropped) == len(check.wanted[name]):
            raise RowError("empty completion", f"the chat template leaves no words of {name}")
    if not (lost or unused):
        return texts
    examples = {part.piece.kind: part.piece.example for part in reversed(lost)}
    if unused:
        examples["chat_template_kwargs"] = repr(unused[0])
    return replace(texts, dropped=tuple(DroppedWords(kind, example) for kind, example in examples.items()))


def _unused_variables(template: ChatTemplate, pair: Pair) -> list[str]:
    """Return the names of template variables with words, lists or objects that do not occur in the template.

    A single word or a number is a setting, such as how much to think, and no loss where a template has no such setting.
    """
    return [
        name
        for name, value in pair.chat_template_kwargs.items()
        if value and (isinstance(value, list | dict) or (isinstance(value, str) and " " in value.strip()))
        if name != "chat_template" and name not in template.text
    ]


@dataclass(frozen=True)
class _Check:
    """A conversational pair and its texts by the template."""

    template: ChatTemplate
    pair: Pair
    texts: Rendered

    @cached_property
    def bare(self) -> str:
        """The prompt without generation prompt, and without whitespace at its end."""
        prompt: Any = self.pair.prompt
        return self.template.render([prompt], generation_prompt=False)[0].rstrip()

    @cached_property
    def differs(self) -> bool:
        """Whether the prompt is rendered differently when an answer follows.

        A generation prompt that is rendered differently is no fault: templates of thinking models open a thought there
        that is not in the answers of the data.
        """
        begins = self.texts.begins_with_prompt or all(side.startswith(self.bare) for side in self.texts.sides)
        return not begins

    @cached_property
    def wanted(self) -> dict[str, list[Piece]]:
        """The words of each completion."""
        sides: dict[str, Any] = {"chosen": self.pair.chosen, "rejected": self.pair.rejected}
        return {name: pieces(messages, reasoning=True) for name, messages in sides.items()}

    def lost_of_prompt(self) -> list[_Lost]:
        """Return the words of prompt and tools that are not in the prompt's text, or behind it."""
        prompt: Any = self.pair.prompt
        wanted = [*tool_pieces(self.pair.tools), *pieces(prompt, reasoning=False)]
        if self.differs:  # where the prompt ends is unknown
            parts = [part for side in self.texts.sides for part in self._missing(wanted, side)]
            return [_Lost(piece, "the prompt") for piece in parts]
        absent = self._missing(wanted, self.texts.prompt if self.texts.begins_with_prompt else self.bare)
        gone = {piece for side in self.texts.sides for piece in self._missing(absent, side)}
        return [_Lost(piece, "the prompt", moved=piece not in gone) for piece in absent]

    def lost_of_completion(self, name: str) -> list[_Lost]:
        """Return the words of `chosen` or `rejected` that do not stand behind the prompt's text."""
        wanted = self.wanted[name]
        text = self.texts.with_chosen if name == "chosen" else self.texts.with_rejected
        if self.differs:
            absent = self._missing(wanted, text)
        elif self.texts.begins_with_prompt:
            absent = self._missing(wanted, text[len(self.texts.prompt) :])
            if absent:  # the generation prompt may hold the beginning of the completion
                absent = self._missing(wanted, text[len(self.bare) :])
        else:
            absent = self._missing(wanted, text[len(self.bare) :])
        return [_Lost(piece, name) for piece in absent]

    def _missing(self, wanted: Sequence[Piece], text: str) -> list[Piece]:
        """Return the words that are not in the text; a word that may be there by chance is not enough.

        Whether a single word, such as a number among arguments, is there by chance is decided by what the template can
        render at all.
        """
        absent = set(missing(wanted, text))
        return [piece for piece in wanted if piece in absent or (self._is_word(piece) and self._lacks(piece))]

    @staticmethod
    def _is_word(piece: Piece) -> bool:
        return len(piece.text) <= _WORD_CHARACTERS and not any(map(str.isspace, piece.text))

    def _lacks(self, piece: Piece) -> bool:
        return probe_of(self.template).lacks(piece.kind, piece.source)

    def detail(self, lost: Sequence[_Lost]) -> str:
        """Return what was lost of which part, with an example, what the template lacks, and what can be done."""
        name = self.template.tokenizer.name_or_path
        template = f"the chat template of {name!r}" if name else "the chat template"
        parts = dict.fromkeys(f"{part.piece.kind} of {part.where}" for part in lost)
        lacks = dict.fromkeys(map(self._lack, lost))
        return (
            f"{', '.join(parts)}, for example {lost[0].piece.example}; {template} {' and '.join(lacks)}; use a "
            "template that keeps them, remove them from the row, or set on_template_loss=keep"
        )

    def _lack(self, lost: _Lost) -> str:
        if lost.moved:
            return "writes them behind the prompt"
        return (
            probe_of(self.template).lack_text(lost.piece.kind, lost.piece.source) or "does not write them in this row"
        )

    def difference(self) -> str:
        """Return where the prompt alone and the prompt in front of an answer begin to differ, quoted."""
        side = next(side for side in self.texts.sides if not side.startswith(self.bare))
        start = next(
            (i for i, (one, other) in enumerate(zip(self.bare, side, strict=False)) if one != other), len(side)
        )
        alone, followed = (text[max(start - 20, 0) : start + 40] for text in (self.bare, side))
        return f"{alone!r} alone, {followed!r} in front of the answer"
