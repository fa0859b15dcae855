"""Find the tokens of assistant turns in completions, for a loss on these turns alone (`loss_on` assistant).

A chat template says where its assistant turns are with `{% generation %}` blocks. For other templates, a turn is what
the rendered conversation gains by it: from the generation prompt in front of it to the end of its own rendering, marks
of the end of the turn included. That needs a template that renders a turn alike whatever follows, except that it may
write more into the last turn of a conversation, or end that one in another way.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from raydpo.blocks.schema import BoolArray
from raydpo.data.dialects.messages import is_from_model
from raydpo.data.dialects.pair import Messages, Pair, RowError
from raydpo.data.encoding import TokenIds
from raydpo.data.images.expansion import expanded
from raydpo.data.row_errors import ROW_ERRORS
from raydpo.data.templates.chat_template import ChatTemplate
from raydpo.data.templates.rendering import for_template, template_of
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.tokenization import EncodedPair
from raydpo.errors import DataError

_BLOCK_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_OPEN, _CLOSE = "\ue001", "\ue002"
"""Marks that are written where blocks begin and end, to find them; a row whose text has one of them is refused."""
_REMEDY = "give the tokenizer a chat template with {% generation %} blocks, or set loss_on=completion"

Span = tuple[int, int]
"""Start and stop of an assistant turn in a rendered conversation, in characters."""


@dataclass(frozen=True)
class _PlacedText:
    """A rendered conversation, and where its tokens are."""

    text: str
    ids: list[int]
    starts: npt.NDArray[np.int64]
    """[tokens]: first character of each token."""
    stops: npt.NDArray[np.int64]
    """[tokens]: the character after each token."""

    def mask(self, spans: Sequence[Span]) -> BoolArray:
        """Return whether each token, [tokens], has a character of a span.

        A token that merges across the start of a turn belongs to the turn, as it does at the end of a prompt.
        """
        mask = np.zeros(len(self.ids), dtype=np.bool_)
        for start, stop in spans:
            mask |= (self.starts < stop) & (self.stops > start)
        return mask


def with_loss_masks(
    tokenizer: PreTrainedTokenizerBase, pair: Pair, encoded: EncodedPair, options: TextOptions | None = None
) -> EncodedPair:
    """Return a tokenized pair, not yet truncated, with a loss mask for each completion that needs one.

    The pair must have been tokenized with the same options. A completion that is text or a single assistant turn needs
    no mask, as all of its tokens are targets. Raises RowError if the turns of a row cannot be found, and DataError if
    the tokenizer cannot say where in a text its tokens are.
    """
    if not pair.conversational:
        return encoded
    options = options or TextOptions()
    template, pair = template_of(tokenizer, pair, options), for_template(tokenizer, pair, options)
    chosen, rejected = (_Completion(template, pair, side) for side in ("chosen", "rejected"))
    return replace(
        encoded,
        chosen_mask=chosen.loss_mask(encoded.prompt_ids, encoded.chosen_ids),
        rejected_mask=rejected.loss_mask(encoded.prompt_ids, encoded.rejected_ids),
    )


@dataclass(frozen=True)
class _Completion:
    """The chosen or rejected completion of a conversational pair."""

    template: ChatTemplate
    pair: Pair
    side: str
    """Which completion it is: chosen or rejected."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.template.tokenizer

    @property
    def messages(self) -> Messages:
        messages: Messages = getattr(self.pair, self.side)
        return messages

    def loss_mask(self, prompt_ids: TokenIds, completion_ids: TokenIds) -> BoolArray | None:
        """Return whether each token of the completion is a target, [tokens]; None if all of them are."""
        from_model = [is_from_model(message) for message in self.messages]
        if from_model == [True]:
            return None
        if not any(from_model):
            raise RowError("empty completion", f"{self.side} has no assistant turn, which loss_on=assistant requires")
        if not self.tokenizer.is_fast:
            raise DataError(
                "loss_on=assistant needs to know where in a text its tokens are, which "
                f"{type(self.tokenizer).__name__} does not tell; use a model with a fast tokenizer (tokenizer.json), "
                "or set loss_on=completion"
            )
        rendered = _place_tokens(self.tokenizer, self.render(len(self.messages)))
        if rendered.ids != [*prompt_ids.tolist(), *completion_ids.tolist()]:
            raise self._differs()
        spans = self._spans_of_blocks(rendered.text)
        mask = rendered.mask(self._spans_by_rendering(rendered) if spans is None else spans)[len(prompt_ids) :]
        if not mask.any():
            raise RowError("empty completion", f"the assistant turns of {self.side} have no tokens")
        return None if mask.all() else mask

    def conversation(self, count: int) -> Messages:
        """Return the prompt and the first `count` messages of the completion."""
        return [*self.pair.prompt, *self.messages[:count]]

    def render(self, count: int, *, generation_prompt: bool = False) -> str:
        """Return the rendered prompt with the first `count` messages of the completion."""
        return self._rendered_by(self.template, count, generation_prompt=generation_prompt)

    def _rendered_by(self, template: ChatTemplate, count: int, *, generation_prompt: bool = False) -> str:
        try:
            text = template.render([self.conversation(count)], generation_prompt=generation_prompt)[0]
            return expanded(text, self.pair.expansion)
        except ROW_ERRORS as error:
            raise RowError(
                "refused by the chat template",
                f"the first {count} turns of {self.side} raise {type(error).__name__}: {error}; {_REMEDY}",
            ) from error

    def _differs(self) -> RowError:
        return RowError("turns not found", f"the chat template renders {self.side} differently each time; {_REMEDY}")

    def _spans_of_blocks(self, text: str) -> list[Span] | None:
        """Return the spans of the template's `{% generation %}` blocks in the text; None if it has no blocks."""
        source = self.template.text
        if not _BLOCK_TAG.search(source):
            return None
        marked = replace(
            self.template, variables={**self.template.variables, "chat_template": _BLOCK_TAG.sub(_with_mark, source)}
        )
        # Parts of the text at even places are outside of blocks, and each one at an odd place is a block.
        parts = re.split(f"[{_OPEN}{_CLOSE}]", self._rendered_by(marked, len(self.messages)))
        if "".join(parts) != text or len(parts) % 2 == 0:
            raise self._differs()
        edges = [0, *accumulate(map(len, parts))]
        return list(zip(edges[1:-1:2], edges[2::2], strict=True))

    def _spans_by_rendering(self, rendered: _PlacedText) -> list[Span]:
        """Return the spans of the assistant turns, from renderings of the conversation up to each of them."""
        spans = []
        for number, message in enumerate(self.messages):
            if not is_from_model(message):
                continue
            # The completion starts at its first token that differs from the prompt's, as with loss_on=completion.
            start = self._opening(number, rendered) if number else 0
            stop = self._ending(number, rendered)
            if start is None or stop is None:
                raise RowError(
                    "turns not found",
                    f"the chat template renders turn {number + 1} of {self.side}, or what precedes it, differently "
                    f"depending on what follows, so that loss_on=assistant cannot tell where it is; {_REMEDY}",
                )
            spans.append((start, stop))
        return spans

    @cached_property
    def _generation_prompt(self) -> str:
        """What the template writes behind finished turns to ask for the next; empty if it writes nothing."""
        opened, closed = self.render(0, generation_prompt=True), self.render(0)
        if not opened.startswith(closed):  # some templates close a whole conversation with EOS
            closed = closed.removesuffix(self.tokenizer.eos_token or "")
        return opened.removeprefix(closed) if opened.startswith(closed) else ""

    def _opening(self, number: int, rendered: _PlacedText) -> int | None:
        """Return where turn `number` starts: behind the generation prompt, as far as the text has it.

        A generation prompt may end in what the template writes before no finished turn, such as an opened `<think>`.
        The turn then starts at the first token that differs, as a completion does. Return None if the turns before it
        are rendered differently.
        """
        opened = self.render(number, generation_prompt=True)
        if rendered.text.startswith(opened):
            return len(opened)
        finished = opened.removesuffix(self._generation_prompt)
        if not rendered.text.startswith(finished):
            return None
        tokens = zip(_place_tokens(self.tokenizer, opened).ids, rendered.ids, strict=False)
        first = next((index for index, (one, other) in enumerate(tokens) if one != other), None)
        return None if first is None else max(len(finished), int(rendered.starts[first]))

    def _ending(self, number: int, rendered: _PlacedText) -> int | None:
        """Return where turn `number` stops: where the rendering up to it does.

        Some templates end the last turn of a conversation in their own way, unless a generation prompt follows. Return
        None if the text has the turn in another form.
        """
        text = rendered.text
        if number + 1 == len(self.messages):
            return len(text)
        part, asked = self.render(number + 1), self._generation_prompt
        if text.startswith(part):
            return len(part)
        opened = self.render(number + 1, generation_prompt=True)
        if asked and opened.endswith(asked) and text.startswith(opened.removesuffix(asked)):
            return len(opened) - len(asked)
        return self._ending_of_less(number, rendered)

    def _ending_of_less(self, number: int, rendered: _PlacedText) -> int | None:
        """Return where turn `number` stops if the text has less of it than its rendering as the last turn.

        Qwen3's template, for one, writes an empty block of thinking into the last turn only. That rendering then ends
        in the turn as the text has it, with all of its words. Return None otherwise.
        """
        part, text = self.render(number + 1), rendered.text
        opening = self._opening(number, rendered)
        if opening is None:
            return None
        cut = part.find(text[opening], opening)
        while cut >= 0 and not text.startswith(part[cut:], opening):
            cut = part.find(text[opening], cut + 1)
        words = _words(self.messages[number])
        found = cut >= 0 and bool(words) and all(word in part[cut:] for word in words)
        return opening + len(part) - cut if found else None


def _with_mark(tag: re.Match[str]) -> str:
    """Return a tag of a block with a mark inside of it, with the same treatment of the whitespace around it."""
    before, end, after = tag.groups()
    if end:
        return f"{{%{before} if true %}}{{{{ '{_CLOSE}' }}}}{{% endif %}}{{% endgeneration {after}%}}"
    return f"{{%{before} generation %}}{{% if true %}}{{{{ '{_OPEN}' }}}}{{% endif {after}%}}"


def _words(message: Mapping[str, Any]) -> list[str]:
    """Return what a rendered turn must hold: its text behind any reasoning, and the names of the functions it calls."""
    content, calls = message.get("content"), message.get("tool_calls")
    found = [_value(part, "text") for part in (content if isinstance(content, list) else [content])]
    found += [_value(_value(call, "function"), "name") for call in (calls if isinstance(calls, list) else ())]
    return [word for part in found if isinstance(part, str) and (word := part.rpartition("</think>")[2].strip())]


def _value(part: Any, name: str) -> Any:
    """Return a field of a part of a message, or the part itself if it has no such field."""
    return part.get(name, part) if isinstance(part, Mapping) else part


def _place_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> _PlacedText:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    starts, stops = offsets[:, 0], offsets[:, 1]
    # Some tokenizers leave the spaces out of a token's span, so that a token of spaces alone would be nowhere.
    before = np.concatenate([[0], np.maximum.accumulate(stops)])[:-1]
    return _PlacedText(text, encoded["input_ids"], np.where(starts < stops, starts, np.minimum(before, stops)), stops)
