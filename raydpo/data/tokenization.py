"""Tokenize canonical pairs by the rules of TRL 1.16's DPOTrainer.

The prompt (for conversations, with the generation prompt), prompt + chosen and prompt + rejected are each encoded as a
whole, because tokens may merge across the boundary and a template may render a turn differently depending on what
follows. The completions begin at the first token where one of the sequences differs from the prompt's own tokens;
prompt tokens after that point (the tail) are dropped. EOS is appended to text that does not end with it, but never to
conversations, whose template ends turns in its own way.

Where text holds special tokens of its own, and where a chat template drops words, `TextOptions` decides; see
`templates/special_tokens.py` and `templates/rendering_check.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from raydpo.blocks.schema import BoolArray
from raydpo.data.dialects.pair import Pair, RowError
from raydpo.data.encoding import REFUSED, Encoder, PairIds, TokenIds
from raydpo.data.images.expansion import expanded_texts, start_of_images
from raydpo.data.remarks import DROPPED_WORDS, GENERATION_TAIL, MERGED_TAIL, OWN_TOKENS, Remark
from raydpo.data.row_errors import attempt
from raydpo.data.templates.probe import TOOLS
from raydpo.data.templates.rendered import DroppedWords, Rendered
from raydpo.data.templates.rendering import render_conversations
from raydpo.data.templates.rendering_check import DROPPED
from raydpo.data.templates.special_tokens import SpecialTokens, special_tokens
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.templates.words import missing, tool_pieces

_BATCH_PAIRS = 256
_BATCH_CHARACTERS = 1 << 20
"""Limits per tokenizer call. Its result takes about 100 bytes per token, so a whole block per call is too much."""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A tokenized pair, whose two sequences are `prompt_ids + chosen_ids` and `prompt_ids + rejected_ids`."""

    prompt_ids: TokenIds
    chosen_ids: TokenIds
    rejected_ids: TokenIds
    dropped_tail: TokenIds
    """Last tokens of the prompt that were dropped at the boundary to the completions; usually empty."""
    remarks: tuple[Remark, ...] = ()
    """What the user should know of this pair; the rows with each remark are counted."""
    chosen_mask: BoolArray | None = None
    """Whether each token of `chosen_ids` is a target of the loss; None: every token is (see `assistant_spans`)."""
    rejected_mask: BoolArray | None = None
    """The mask of `rejected_ids`."""
    images: tuple[str, ...] = ()
    """Digest of each image of the prompt, in the order of its tokens."""
    image_start: int | None = None
    """Position in `prompt_ids` of the first token of an image; None without images."""

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
            prompt = self._cut_prompt(pair, prompt, max(len(prompt) - self.max_prompt_length, 0))
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
            prompt = self._cut_prompt(pair, prompt, excess)
        if np.array_equal(chosen, rejected):
            cause = f"after truncation to max_length={limit}" if excess > 0 else "although the row's texts differ"
            raise RowError("chosen and rejected are the same", f"their tokens are identical {cause}")
        masks = (_cut_mask(pair.chosen_mask, len(chosen), limit), _cut_mask(pair.rejected_mask, len(rejected), limit))
        cut = replace(pair, prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected)
        return replace(cut, chosen_mask=masks[0], rejected_mask=masks[1])

    def _cut_prompt(self, pair: EncodedPair, prompt: TokenIds, tokens: int) -> TokenIds:
        """Return the prompt without its first tokens. Raises RowError if a token of an image would be among them."""
        before = len(pair.prompt_ids) - len(prompt)
        if pair.image_start is not None and before + tokens > pair.image_start:
            raise RowError(
                "image cut off",
                f"max_prompt_length={self.max_prompt_length} and max_length={self.max_length} "
                f"(truncation_mode={self.truncation_mode}) cut off the first {before + tokens} of "
                f"{len(pair.prompt_ids)} tokens of the prompt, and an image begins at token {pair.image_start}; raise "
                "the limit, or use a smaller picture",
            )
        return prompt[tokens:]


def _cut_mask(mask: BoolArray | None, length: int, limit: int) -> BoolArray | None:
    """Return the loss mask of a completion's first `length` tokens. Raises RowError if no token is a target."""
    if mask is None or mask[:length].all():
        return None
    if not mask[:length].any():
        raise RowError("empty completion", f"max_length={limit} leaves no token of an assistant turn (loss_on)")
    return mask[:length]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], options: TextOptions | None = None
) -> Iterator[EncodedPair | RowError]:
    """Tokenize pairs without truncation; yield in order the encoded pair, or a RowError if it cannot be tokenized.

    The tokenizer must have a chat template if any pair is conversational, and an EOS token if any pair is text. Raises
    DataError if the chat template fails on any conversation.
    """
    options = options or TextOptions()
    for batch in _batches(pairs):
        found: dict[int, EncodedPair | RowError] = {}
        for conversational in {pair.conversational for pair in batch}:
            places = [i for i, pair in enumerate(batch) if pair.conversational == conversational]
            # A chat template writes special tokens itself; for text, the tokenizer adds them.
            special = None if conversational else special_tokens(tokenizer, options)
            members = [batch[i] for i in places]
            texts = _texts(tokenizer, members, special, options)
            found.update(zip(places, _encode(Encoder(tokenizer, special), members, texts), strict=True))
        yield from (found[i] for i in range(len(batch)))


def _texts(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], special: SpecialTokens | None, options: TextOptions
) -> list[Rendered | RowError]:
    """Return the texts of pairs, with the text of each image in its place, or the reason why a pair has none."""
    if special is None:
        texts = render_conversations(tokenizer, pairs, options)
    else:
        texts = [attempt(partial(_plain_texts, pair, special, options), REFUSED) for pair in pairs]
    return [
        text if isinstance(text, RowError) else attempt(partial(expanded_texts, text, pair.expansion), REFUSED)
        for text, pair in zip(texts, pairs, strict=True)
    ]


def _encode(
    encoder: Encoder, pairs: Sequence[Pair], texts: Sequence[Rendered | RowError]
) -> Iterator[EncodedPair | RowError]:
    """Yield the encoded pair of each text, in order, or the reason why it has none."""
    ids = iter(encoder.encode([text for text in texts if not isinstance(text, RowError)]))
    for pair, text in zip(pairs, texts, strict=True):
        if isinstance(text, RowError):
            yield text
            continue
        found = next(ids)
        yield found if isinstance(found, RowError) else attempt(partial(_pair, encoder, pair, text, found), REFUSED)


def _pair(encoder: Encoder, source: Pair, text: Rendered, ids: PairIds) -> EncodedPair:
    pair = _join(*ids)
    if source.expansion is not None:
        parts = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
        start = start_of_images(encoder.tokenizer, source.expansion, parts)
        pair = replace(pair, images=source.expansion.digests, image_start=start)
    remarks = [Remark(DROPPED_WORDS, words.kind, words.example) for words in text.dropped]
    if len(pair.dropped_tail):
        topic = MERGED_TAIL if text.begins_with_prompt else GENERATION_TAIL
        remarks.append(Remark(topic, "", repr(encoder.tokenizer.decode(pair.dropped_tail.tolist()))))
    if encoder.special is not None and (own := encoder.special.own(text)):
        remarks.append(Remark(OWN_TOKENS, "", repr(own)))
    return replace(pair, remarks=tuple(remarks))


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
    images = sum(map(len, pair.expansion.texts)) if pair.expansion else 0
    return images + sum(
        len(part) if isinstance(part, str) else sum(_characters(message.get("content")) for message in part)
        for part in (pair.prompt, pair.chosen, pair.rejected)
    )


def _characters(content: Any) -> int:
    if isinstance(content, list):
        return sum(len(str(part.get("text"))) for part in content if isinstance(part, dict))
    return len(content) if isinstance(content, str) else 0


def _plain_texts(pair: Pair, special: SpecialTokens, options: TextOptions) -> Rendered:
    """Return the texts of a text pair, each completion with an end of its own or EOS.

    Raises RowError if the row has something for a chat template, which text does not go through: template arguments, or
    tools that the prompt does not name.
    """
    prompt, chosen, rejected = (str(part) for part in (pair.prompt, pair.chosen, pair.rejected))
    dropped = [DroppedWords(TOOLS, piece.example) for piece in missing(tool_pieces(pair.tools), prompt)[:1]]
    arguments = [name for name, value in pair.chat_template_kwargs.items() if value is not None]
    dropped += [DroppedWords("chat_template_kwargs", repr(name)) for name in arguments[:1]]
    if dropped and options.on_template_loss != "keep":
        raise RowError(
            DROPPED,
            f"{dropped[0].kind}, for example {dropped[0].example}; the row is text, which goes through no chat "
            "template; use messages, drop the column, or set on_template_loss=keep",
        )
    chosen, rejected = special.ended(chosen), special.ended(rejected)
    return Rendered(prompt, prompt + chosen, prompt + rejected, tuple(dropped))


def _join(prompt: TokenIds, with_chosen: TokenIds, with_rejected: TokenIds) -> EncodedPair:
    boundary = min(_common_length(prompt, with_chosen), _common_length(prompt, with_rejected))
    chosen, rejected = with_chosen[boundary:], with_rejected[boundary:]
    if not boundary:
        raise RowError("no prompt", "no prompt token precedes both completions, so nothing predicts their first token")
    if not (len(chosen) and len(rejected)):
        raise RowError("empty completion", "it adds no tokens to the prompt")
    return EncodedPair(prompt[:boundary], chosen, rejected, prompt[boundary:])


def _common_length(one: TokenIds, other: TokenIds) -> int:
    length = min(len(one), len(other))
    same = one[:length] == other[:length]
    return length if same.all() else int(same.argmin())
