"""Tokenize canonical pairs for encoder-decoders (T5, BART), by the rules of TRL 0.11's DPOTrainer.

The encoder reads the prompt and the decoder writes a completion, so that the two are encoded apart, each with the
special tokens that the tokenizer adds to sources and to targets: EOS at the end (T5), `<s>` and `</s>` (BART), language
codes (mBART, NLLB). The ids of a completion are its labels; the model's input is made from them (`models.seq2seq`).

With `add_special_tokens=auto`, in contrast to TRL, text that holds special tokens of its own gets no second ones, a
completion ends with EOS also where the tokenizer adds none, and the token that the decoder starts from is no label.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from transformers import PreTrainedTokenizerBase

from raydpo.data.dialects.pair import Pair, RowError
from raydpo.data.encoding import REFUSED, TokenIds, check_unicode
from raydpo.data.remarks import DROPPED_WORDS, OWN_TOKENS, Remark
from raydpo.data.row_errors import attempt, attempt_each
from raydpo.data.templates.rendered import Rendered
from raydpo.data.templates.rendering import render_conversations
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.tokenization import EncodedPair, batches, dropped_from_text
from raydpo.errors import DataError

_log = logging.getLogger(__name__)

_SAMPLE = "a"
_EXAMPLE_CHARACTERS = 40


@dataclass(frozen=True)
class Seq2SeqText:
    """What the text of an encoder-decoder depends on, apart from the tokenizer."""

    decoder_start: int | None = None
    """Id of the token that the model's decoder starts from; None if the config names none, as for mBART."""


@dataclass(frozen=True)
class Seq2SeqTruncation:
    """The length limits of prompts and completions, in tokens (None: no limit); special tokens at the ends are kept.

    A completion that is too long loses its end. A prompt loses its end too, as with TRL 0.11 and by the default of
    tokenizers, because its beginning says what to do ("summarize: ..."); with `keep_end`, it loses its beginning.
    """

    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    truncation_mode: str = "keep_start"

    def apply(self, pair: EncodedPair) -> EncodedPair:
        """Return the truncated pair. Raises RowError if both completions are the same afterwards."""
        prompt_ends, completion_ends = pair.special_ends or ((0, 0), (0, 0))
        at_end = self.truncation_mode == "keep_end"
        prompt = _cut(pair.prompt_ids, self.max_prompt_length, prompt_ends, at_end=at_end)
        chosen = _cut(pair.chosen_ids, self.max_completion_length, completion_ends)
        rejected = _cut(pair.rejected_ids, self.max_completion_length, completion_ends)
        if np.array_equal(chosen, rejected):
            is_cut = len(chosen) < len(pair.chosen_ids) or len(rejected) < len(pair.rejected_ids)
            cause = f"after truncation to {self.max_completion_length}" if is_cut else "although the row's texts differ"
            raise RowError("chosen and rejected are the same", f"their tokens are identical {cause}")
        return replace(pair, prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected)


def _cut(ids: TokenIds, limit: int | None, ends: tuple[int, int], *, at_end: bool = False) -> TokenIds:
    """Return at most `limit` ids: those at the ends, which are special, and as many of the others as there is room."""
    if limit is None or len(ids) <= limit:
        return ids
    head, tail = ends if sum(ends) < limit else (0, 0)
    room, stop = limit - head - tail, len(ids) - tail
    middle = ids[stop - room : stop] if at_end else ids[head : head + room]
    return np.concatenate([ids[:head], middle, ids[stop:]])


@dataclass(frozen=True)
class _Ends:
    """The special tokens that a tokenizer puts around texts of one kind, prompts or completions."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    starts: tuple[str, ...]
    """Texts of `before` and of the BOS token, for text that holds them already; empty if nothing is put in front."""
    stops: tuple[str, ...]
    """Texts of `after` and of EOS."""

    def bare(self, text: str) -> str:
        """Return the text without special tokens of its own at its ends, if these would be added a second time."""
        stripped, found = text, True
        while found:
            found = False
            for start in self.starts:
                if stripped.lstrip().startswith(start):
                    stripped, found = stripped.lstrip().removeprefix(start), True
            for stop in self.stops:
                if stripped.rstrip().endswith(stop):
                    stripped, found = stripped.rstrip().removesuffix(stop), True
        return stripped


def check_targets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError if the tokenizer cannot encode completions, and warn where it takes a language for granted."""
    source, target = (getattr(tokenizer, name, None) for name in ("src_lang", "tgt_lang"))
    found = attempt(partial(_ends, tokenizer, target=True), REFUSED)
    if isinstance(found, RowError):
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path!r} cannot encode completions ({found.detail}) with "
            f"src_lang={source}, tgt_lang={target}; set both in its tokenizer_config.json"
        )
    if hasattr(tokenizer, "tgt_lang") and target is None:
        _log.warning(
            "The tokenizer of %s has no tgt_lang, so that completions get the language code of prompts (src_lang=%s). "
            "If they are in another language, set tgt_lang in its tokenizer_config.json",
            tokenizer.name_or_path,
            source,
        )


def tokenize_seq2seq(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], options: TextOptions, form: Seq2SeqText
) -> Iterator[EncodedPair | RowError]:
    """Tokenize pairs without truncation; yield in order the encoded pair, or a RowError if it cannot be tokenized.

    The prompt of a conversation is its text in the chat template, with the generation prompt, and the completion the
    text behind it; the template writes special tokens itself. Raises DataError if the chat template fails on any
    conversation.
    """
    for batch in batches(pairs):
        found: dict[int, EncodedPair | RowError] = {}
        for conversational in {pair.conversational for pair in batch}:
            places = [i for i, pair in enumerate(batch) if pair.conversational == conversational]
            members = [batch[i] for i in places]
            if conversational:
                texts = [_behind_prompt(text) for text in render_conversations(tokenizer, members, options)]
                encoded = _encode(_Encoder(tokenizer, None, None), texts)
            else:
                texts = [attempt(partial(_plain, pair, options), REFUSED) for pair in members]
                encoded = _encode(_encoder(tokenizer, options, form), texts)
            found.update(zip(places, encoded, strict=True))
        yield from (found[i] for i in range(len(batch)))


@dataclass(frozen=True)
class _Texts:
    """The texts that are encoded, and what is to be said of them."""

    prompt: str
    chosen: str
    rejected: str
    remarks: tuple[Remark, ...] = ()


def _plain(pair: Pair, options: TextOptions) -> _Texts:
    """Return the texts of a text pair. Raises RowError if the row has something for a chat template."""
    remarks = [Remark(DROPPED_WORDS, words.kind, words.example) for words in dropped_from_text(pair, options)]
    return _Texts(str(pair.prompt), str(pair.chosen), str(pair.rejected), tuple(remarks))


def _behind_prompt(text: Rendered | RowError) -> _Texts | RowError:
    """Return a rendered conversation as prompt and completions, or the reason why it cannot be divided."""
    if isinstance(text, RowError):
        return text
    if not text.begins_with_prompt:
        return RowError(
            "refused by the chat template",
            "the prompt is rendered differently when an answer follows, and an encoder-decoder reads the two apart",
        )
    start = len(text.prompt)
    remarks = [Remark(DROPPED_WORDS, words.kind, words.example) for words in text.dropped]
    return _Texts(text.prompt, text.with_chosen[start:], text.with_rejected[start:], tuple(remarks))


@dataclass(frozen=True)
class _Encoder:
    """A tokenizer for the prompts (sources) and completions (targets) of an encoder-decoder."""

    tokenizer: PreTrainedTokenizerBase
    source: _Ends | None
    """The special tokens of prompts; None for text that has them already, as of a chat template."""
    target: _Ends | None
    """The special tokens of completions, without those that the tokenizer adds and that are left out."""
    dropped: int = 0
    """Number of tokens in front of completions that the tokenizer adds and that are no labels."""
    added: tuple[int, ...] = ()
    """Tokens behind completions that the tokenizer does not add."""
    keeps_text: bool = False
    """Whether text that holds special tokens of its own stays as it is (`add_special_tokens=always`)."""

    def encode(self, texts: Sequence[_Texts]) -> list[EncodedPair | RowError]:
        """Return the encoded pair of each text, in order, or the reason why it has none."""
        return attempt_each(texts, self._pairs, REFUSED)

    def _pairs(self, texts: Sequence[_Texts]) -> list[EncodedPair]:
        if len(texts) == 1:
            check_unicode([texts[0].prompt, texts[0].chosen, texts[0].rejected])
        bare = [self._bare(text) for text in texts]
        prompts = self._ids([text.prompt for text in bare], target=False)
        sides = self._ids([side for text in bare for side in (text.chosen, text.rejected)], target=True)
        return [
            self._pair(before, text, prompts[i], sides[2 * i : 2 * i + 2])
            for i, (before, text) in enumerate(zip(texts, bare, strict=True))
        ]

    def _bare(self, text: _Texts) -> _Texts:
        if self.source is None or self.target is None or self.keeps_text:
            return text
        chosen, rejected = self.target.bare(text.chosen), self.target.bare(text.rejected)
        return replace(text, prompt=self.source.bare(text.prompt), chosen=chosen, rejected=rejected)

    def _ids(self, texts: list[str], *, target: bool) -> list[TokenIds]:
        encoded = self.tokenizer(
            **{"text_target" if target else "text": texts},
            add_special_tokens=self.source is not None,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        rows: Sequence[Sequence[int]] = encoded["input_ids"]
        if target:
            rows = [[*row[self.dropped :], *self.added] for row in rows]
        return [np.asarray(row, dtype=np.int32) for row in rows]

    def _pair(self, given: _Texts, bare: _Texts, prompt: TokenIds, sides: Sequence[TokenIds]) -> EncodedPair:
        chosen, rejected = sides
        if not len(prompt):
            raise RowError("no prompt", "it has no tokens, so the encoder would read nothing")
        ends = (_lengths(self.source), _lengths(self.target))
        if min(len(chosen), len(rejected)) <= sum(ends[1]):
            raise RowError("empty completion", "it has no tokens but special ones")
        remarks = given.remarks
        own = next((one for one, other in zip(_parts(given), _parts(bare), strict=True) if one != other), None)
        if own is not None:
            remarks = (*remarks, Remark(OWN_TOKENS, "", repr(own[-_EXAMPLE_CHARACTERS:])))
        none = np.zeros(0, dtype=np.int32)
        return EncodedPair(prompt, chosen, rejected, none, remarks, special_ends=ends)


def _parts(text: _Texts) -> tuple[str, str, str]:
    return text.prompt, text.chosen, text.rejected


def _lengths(ends: _Ends | None) -> tuple[int, int]:
    return (len(ends.before), len(ends.after)) if ends else (0, 0)


def _encode(encoder: _Encoder, texts: Sequence[_Texts | RowError]) -> Iterator[EncodedPair | RowError]:
    ids = iter(encoder.encode([text for text in texts if not isinstance(text, RowError)]))
    return (text if isinstance(text, RowError) else next(ids) for text in texts)


@lru_cache(maxsize=4)
def _encoder(tokenizer: PreTrainedTokenizerBase, options: TextOptions, form: Seq2SeqText) -> _Encoder:
    """Return the encoder of text pairs; the tokenizer's languages must be set before the first call."""
    source, target = _ends(tokenizer, target=False), _ends(tokenizer, target=True)
    if options.add_special_tokens == "always":
        return _Encoder(tokenizer, source, target, keeps_text=True)
    eos = tokenizer.eos_token_id
    # A decoder that starts from the very token that the tokenizer puts in front would be trained to repeat it.
    dropped = 1 if form.decoder_start is not None and target.before[:1] == (form.decoder_start,) else 0
    added = () if eos in target.after or eos is None else (int(eos),)
    kept = replace(target, before=target.before[dropped:], after=(*target.after, *added))
    return _Encoder(tokenizer, source, kept, dropped, added)


def _ends(tokenizer: PreTrainedTokenizerBase, *, target: bool) -> _Ends:
    """Find what the tokenizer puts around a text."""
    name = "text_target" if target else "text"
    plain: list[int] = tokenizer(**{name: _SAMPLE}, add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer(**{name: _SAMPLE})["input_ids"]
    first = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), None)
    before, after = ([], []) if first is None else (full[:first], full[first + len(plain) :])
    starts = {str(tokenizer.decode(before)).strip(), str(tokenizer.bos_token or "")} - {""} if before else set()
    stops = {str(tokenizer.decode(after)).strip(), str(tokenizer.eos_token or "")} - {""} if after or target else set()
    return _Ends(tuple(before), tuple(after), tuple(sorted(starts)), tuple(sorted(stops)))
