"""Canonical pairs as token ids, by the rules of TRL 1.16's DPOTrainer.

The prompt (with the generation prompt, for conversations), prompt + chosen and prompt + rejected are each encoded
whole, never in pieces: tokens may merge across the boundary, and a template may render a turn differently by what
follows. The completions begin where one of them leaves the prompt's own tokens; what the prompt has beyond that point
(its tail) is dropped. EOS is appended to text that does not end with it, never to conversations, whose template ends
turns its own way.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from raydpo.data.dialects.pair import Messages, Pair, RowError

TokenIds = npt.NDArray[np.int32]

_BATCH_PAIRS = 256
_BATCH_CHARACTERS = 1 << 20
"""Pairs encoded at a time. The tokenizer's own result takes some 100 bytes a token, so a block at once is too much."""

_TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a Jinja template, written by anyone, raises on a row that it was not made for."""

_CALL_ARGUMENTS = frozenset(
    "conversation tools add_generation_prompt continue_final_message tokenize padding truncation max_length "
    "return_tensors return_dict return_assistant_tokens_mask sanitize_control_tokens tokenizer_kwargs".split()
)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """`prompt_ids + chosen_ids` and `prompt_ids + rejected_ids` are the two sequences."""

    prompt_ids: TokenIds
    chosen_ids: TokenIds
    rejected_ids: TokenIds
    dropped_tail: TokenIds
    """The prompt's last tokens that do not stand before the completions, mostly none."""

    @property
    def tokens(self) -> int:
        """Tokens with the prompt counted once."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)

    @property
    def length(self) -> int:
        """Tokens of the longer sequence."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True)
class Truncation:
    """How long pairs are cut. Lengths in tokens; None: no limit.

    First `max_prompt_length` cuts the prompt, which keeps its end (as in TRL 0.x): that is what the completion answers.
    Then `max_length` cuts the joined sequences: `keep_start` takes from the ends of the completions, as TRL 1.16;
    `keep_end` takes from the prompt's beginning what the longer side has too much, so that both sides still share
    one prompt (TRL cuts each side by itself).
    """

    max_length: int | None = None
    max_prompt_length: int | None = None
    truncation_mode: str = "keep_start"

    def apply(self, pair: EncodedPair) -> EncodedPair:
        """The pair, cut; RowError if nothing to learn from is left."""
        prompt, chosen, rejected = pair.prompt_ids, pair.chosen_ids, pair.rejected_ids
        if self.max_prompt_length is not None:
            prompt = prompt[max(len(prompt) - self.max_prompt_length, 0) :]
        longest = max(len(chosen), len(rejected))
        limit = self.max_length or len(prompt) + longest
        excess = len(prompt) + longest - limit
        if excess > 0 and self.truncation_mode == "keep_start":
            if len(prompt) >= limit:
                raise RowError("prompt too long", f"its {len(prompt)} tokens fill max_length {limit}")
            chosen, rejected = chosen[: limit - len(prompt)], rejected[: limit - len(prompt)]
        elif excess > 0:
            if longest >= limit:
                raise RowError("completion too long", f"its {longest} tokens fill max_length {limit}")
            prompt = prompt[excess:]
        if np.array_equal(chosen, rejected):
            cause = f"once cut to max_length {limit}" if excess > 0 else "though the row's texts are not"
            raise RowError("chosen and rejected are the same", f"their tokens are, {cause}")
        return EncodedPair(prompt, chosen, rejected, pair.dropped_tail)


def tokenize(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> Iterator[EncodedPair | RowError]:
    """The pairs' token ids, uncut and in order; a RowError in place of a pair that the tokenizer cannot take.

    The tokenizer must have a chat template if a pair is conversational, and an EOS token if one is text.
    """
    for batch in _batches(pairs):
        texts = _texts(tokenizer, batch)
        encoded: list[EncodedPair | RowError | None] = [part if isinstance(part, RowError) else None for part in texts]
        for conversational in (False, True):
            wanted = {
                i: part
                for i, part in enumerate(texts)
                if not isinstance(part, RowError) and batch[i].conversational == conversational
            }
            if wanted:
                flat = [text for part in wanted.values() for text in part]
                # A template writes special tokens itself; text gets those that the tokenizer adds.
                ids = _encode(tokenizer, flat, add_special_tokens=not conversational)
                for i in wanted:
                    encoded[i] = _join(next(ids), next(ids), next(ids))
        yield from (part for part in encoded if part is not None)


def _batches(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    start, characters = 0, 0
    for i, pair in enumerate(pairs):
        characters += _size(pair)
        if i + 1 - start >= _BATCH_PAIRS or characters >= _BATCH_CHARACTERS:
            yield pairs[start : i + 1]
            start, characters = i + 1, 0
    if start < len(pairs):
        yield pairs[start:]


def _size(pair: Pair) -> int:
    return sum(
        len(part) if isinstance(part, str) else sum(len(message.get("content") or "") for message in part)
        for part in (pair.prompt, pair.chosen, pair.rejected)
    )


def _texts(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[tuple[str, str, str] | RowError]:
    """For each pair the prompt, prompt + chosen, prompt + rejected, as the model reads them."""
    texts: list[tuple[str, str, str] | RowError | None] = [None] * len(pairs)
    groups: dict[str, list[int]] = {}  # conversations that one call of the template can render
    for i, pair in enumerate(pairs):
        if pair.conversational:
            alike = json.dumps([pair.tools, pair.chat_template_kwargs], default=repr) if _has_extras(pair) else ""
            groups.setdefault(alike, []).append(i)
        else:
            texts[i] = _plain_texts(pair, tokenizer.eos_token)
    for places in groups.values():
        for i, rendered in zip(places, _render(tokenizer, [pairs[i] for i in places]), strict=True):
            texts[i] = rendered
    return [part for part in texts if part is not None]


def _has_extras(pair: Pair) -> bool:
    return pair.tools is not None or bool(pair.chat_template_kwargs)


def _plain_texts(pair: Pair, eos: str) -> tuple[str, str, str]:
    prompt, chosen, rejected = (str(part) for part in (pair.prompt, pair.chosen, pair.rejected))
    chosen, rejected = (part if part.endswith(eos) else part + eos for part in (chosen, rejected))
    return prompt, prompt + chosen, prompt + rejected


def _render(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[tuple[str, str, str] | RowError]:
    """The texts of conversations that have the same tools and template arguments."""
    if reserved := _CALL_ARGUMENTS & pairs[0].chat_template_kwargs.keys():
        fault = RowError("wrong chat_template_kwargs", f"{sorted(reserved)} are no variables of a chat template")
        return [fault for _ in pairs]

    def render(conversations: list[Messages], generation_prompt: bool) -> Any:
        return tokenizer.apply_chat_template(
            conversations,
            tools=pairs[0].tools,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            **pairs[0].chat_template_kwargs,
        )

    prompts: list[Any] = [pair.prompt for pair in pairs]
    try:
        return list(
            zip(
                render(prompts, True),
                render([prompt + pair.chosen for prompt, pair in zip(prompts, pairs, strict=True)], False),
                render([prompt + pair.rejected for prompt, pair in zip(prompts, pairs, strict=True)], False),
                strict=True,
            )
        )
    except _TEMPLATE_ERRORS as error:
        if len(pairs) > 1:  # some row among them is at fault: find it
            return [part for pair in pairs for part in _render(tokenizer, [pair])]
        return [RowError("refused by the chat template", f"{type(error).__name__}: {error}")]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], add_special_tokens: bool) -> Iterator[TokenIds]:
    encoded = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids: Iterable[Sequence[int]] = encoded["input_ids"]
    return (np.asarray(part, dtype=np.int32) for part in ids)


def _join(prompt: TokenIds, with_chosen: TokenIds, with_rejected: TokenIds) -> EncodedPair | RowError:
    boundary = min(_common_length(prompt, with_chosen), _common_length(prompt, with_rejected))
    chosen, rejected = with_chosen[boundary:], with_rejected[boundary:]
    if not boundary:
        return RowError(
            "no prompt", "it has no token that both completions keep, so that nothing predicts their first token"
        )
    if not (len(chosen) and len(rejected)):
        return RowError("empty completion", "it has no tokens of its own")
    return EncodedPair(prompt[:boundary], chosen, rejected, prompt[boundary:])


def _common_length(one: TokenIds, other: TokenIds) -> int:
    length = min(len(one), len(other))
    same = one[:length] == other[:length]
    return length if same.all() else int(same.argmin())
