"""Tokenize canonical pairs by the rules of TRL 1.16's DPOTrainer.

The prompt (for conversations, with the generation prompt), prompt + chosen and prompt + rejected are each encoded as a
whole, because tokens may merge across the boundary and a template may render a turn differently depending on what
follows. The completions begin at the first token where one of the sequences differs from the prompt's own tokens;
prompt tokens after that point (the tail) are dropped. EOS is appended to text that does not end with it, but never to
conversations, whose template ends turns in its own way.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from raydpo.blocks.schema import BoolArray
from raydpo.data.chat_template import ChatTemplate
from raydpo.data.dialects.pair import Messages, Pair, RowError

TokenIds = npt.NDArray[np.int32]

_BATCH_PAIRS = 256
_BATCH_CHARACTERS = 1 << 20
"""Limits per tokenizer call. Its result takes about 100 bytes per token, so a whole block per call is too much."""

TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Exceptions that an arbitrary Jinja template may raise on a row that it does not support."""

_CALL_ARGUMENTS = frozenset(
    "conversation tools add_generation_prompt continue_final_message tokenize padding truncation max_length "
    "return_tensors return_dict return_assistant_tokens_mask sanitize_control_tokens tokenizer_kwargs".split()
)
"""Parameters of `apply_chat_template` itself, which `chat_template_kwargs` of a row must not set."""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A tokenized pair, whose two sequences are `prompt_ids + chosen_ids` and `prompt_ids + rejected_ids`."""

    prompt_ids: TokenIds
    chosen_ids: TokenIds
    rejected_ids: TokenIds
    dropped_tail: TokenIds
    """Last tokens of the prompt that were dropped at the boundary to the completions; usually empty."""
    chosen_mask: BoolArray | None = None
    """Whether each token of `chosen_ids` is a target of the loss; None: every token is (see `assistant_spans`)."""
    rejected_mask: BoolArray | None = None
    """The mask of `rejected_ids`."""

    @property
    def tokens(self) -> int:
        """Number of tokens, with the prompt counted once."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)

    @property
    def length(self) -> int:
        """Number of tokens of the longer sequence."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True)
class Truncation:
    """The length limits of pairs, in tokens (None: no limit), and how longer pairs are truncated.

    First, `max_prompt_length` truncates the prompt at its start (as in TRL 0.x): its end is what the completion
    answers. Then `max_length` limits the longer of the two sequences. `keep_start` truncates the completions at their
    ends, as in TRL 1.16. `keep_end` truncates the prompt at its start by the excess of the longer sequence, so that
    both sides still share one prompt (TRL truncates each side separately).
    """

    max_length: int | None = None
    max_prompt_length: int | None = None
    truncation_mode: str = "keep_start"

    def apply(self, pair: EncodedPair) -> EncodedPair:
        """Return the truncated pair. Raises RowError if nothing to learn from is left."""
        prompt, chosen, rejected = pair.prompt_ids, pair.chosen_ids, pair.rejected_ids
        if self.max_prompt_length is not None:
            prompt = prompt[max(len(prompt) - self.max_prompt_length, 0) :]
        longest = max(len(chosen), len(rejected))
        limit = self.max_length or len(prompt) + longest
        excess = len(prompt) + longest - limit
        if excess > 0 and self.truncation_mode == "keep_start":
            if len(prompt) >= limit:
                raise RowError(
                    "prompt too long", f"its {len(prompt)} tokens leave no room for a completion in max_length={limit}"
                )
            chosen, rejected = chosen[: limit - len(prompt)], rejected[: limit - len(prompt)]
        elif excess > 0:
            if longest >= limit:
                raise RowError(
                    "completion too long", f"its {longest} tokens leave no room for a prompt in max_length={limit}"
                )
            prompt = prompt[excess:]
        if np.array_equal(chosen, rejected):
            cause = f"after truncation to max_length={limit}" if excess > 0 else "although the row's texts differ"
            raise RowError("chosen and rejected are the same", f"their tokens are identical {cause}")
        masks = (_cut_mask(pair.chosen_mask, len(chosen), limit), _cut_mask(pair.rejected_mask, len(rejected), limit))
        return EncodedPair(prompt, chosen, rejected, pair.dropped_tail, *masks)


def _cut_mask(mask: BoolArray | None, length: int, limit: int) -> BoolArray | None:
    """Return the loss mask of a completion's first `length` tokens. Raises RowError if no token is a target."""
    if mask is None or mask[:length].all():
        return None
    if not mask[:length].any():
        raise RowError("empty completion", f"max_length={limit} leaves no token of an assistant turn (loss_on)")
    return mask[:length]


def tokenize(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> Iterator[EncodedPair | RowError]:
    """Tokenize pairs without truncation; yield in order the encoded pair, or a RowError if it cannot be tokenized.

    The tokenizer must have a chat template if any pair is conversational, and an EOS token if any pair is text.
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
                # A chat template writes special tokens itself; for text, the tokenizer adds them.
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
    """Return (prompt, prompt + chosen, prompt + rejected) of each pair as text for the model, or a RowError."""
    texts: list[tuple[str, str, str] | RowError | None] = [None] * len(pairs)
    groups: dict[str, list[int]] = {}  # indices of conversations that one call of the template can render
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
    """Render conversations that have the same tools and template arguments to texts; see `_texts`."""
    if reserved := _CALL_ARGUMENTS & pairs[0].chat_template_kwargs.keys():
        fault = RowError(
            "wrong chat_template_kwargs", f"{sorted(reserved)} are not variables of the chat template; remove them"
        )
        return [fault for _ in pairs]

    template = ChatTemplate(tokenizer, pairs[0].tools, pairs[0].chat_template_kwargs)

    def render(conversations: list[Messages], generation_prompt: bool) -> list[str]:
        return template.render(conversations, generation_prompt=generation_prompt)

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
    except TEMPLATE_ERRORS as error:
        if len(pairs) > 1:  # find the rows at fault by rendering one at a time
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
        return RowError("no prompt", "no prompt token precedes both completions, so nothing predicts their first token")
    if not (len(chosen) and len(rejected)):
        return RowError("empty completion", "it adds no tokens to the prompt")
    return EncodedPair(prompt[:boundary], chosen, rejected, prompt[boundary:])


def _common_length(one: TokenIds, other: TokenIds) -> int:
    length = min(len(one), len(other))
    same = one[:length] == other[:length]
    return length if same.all() else int(same.argmin())
