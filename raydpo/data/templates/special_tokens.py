"""BOS and EOS of text pairs: text that holds its own gets no second one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from raydpo.data.row_errors import attempt
from raydpo.data.templates.chat_template import ChatTemplate
from raydpo.data.templates.probe import probe_of
from raydpo.data.templates.rendered import Rendered
from raydpo.data.templates.text_options import TextOptions

_SAMPLE = "a"
_EXAMPLE_CHARACTERS = 40


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens at the beginning and at the end of text, and whether text may bring its own."""

    eos: str
    always: bool = False
    """Whether text gets special tokens also where it holds its own, by the rules of TRL."""
    starts: tuple[str, ...] = ()
    """Texts of what the tokenizer puts in front of text; empty if it puts nothing there."""
    ends: tuple[str, ...] = ()
    """EOS and, if there is a chat template that ends turns by a special token, what it writes after an answer."""
    suffix: tuple[int, ...] = ()
    """Ids that the tokenizer puts behind text by itself."""

    def adds_to(self, text: str) -> bool:
        """Return whether the tokenizer is to add its special tokens to a text."""
        return self.always or not self._has_start(text)

    def ended(self, completion: str) -> str:
        """Return a completion with EOS, unless it has an end of its own, apart from whitespace."""
        has_end = completion.endswith(self.eos) if self.always else completion.rstrip().endswith(self.ends)
        return completion if has_end else completion + self.eos

    def without_suffix(self, ids: Sequence[int]) -> Sequence[int]:
        """Return token ids without what the tokenizer has put behind them.

        A prompt must not end with EOS, and completions have theirs already.
        """
        end = len(ids) - len(self.suffix)
        return ids[:end] if self.suffix and not self.always and tuple(ids[end:]) == self.suffix else ids

    def own(self, text: Rendered) -> str:
        """Return the beginning or the end of a pair's text that holds special tokens of its own, else "".

        Only what TRL would have doubled counts: EOS at the very end is not doubled there.
        """
        if self.always:
            return ""
        if self._has_start(text.with_chosen):
            return text.with_chosen[:_EXAMPLE_CHARACTERS]
        own = next((side for side in text.sides if not side.endswith(self.eos)), "")
        return own[-_EXAMPLE_CHARACTERS:]

    def _has_start(self, text: str) -> bool:
        return bool(self.starts) and text.lstrip().startswith(self.starts)


def special_tokens(tokenizer: PreTrainedTokenizerBase, options: TextOptions) -> SpecialTokens:
    """Return the special tokens of a tokenizer, which must have an EOS token."""
    if options.add_special_tokens == "always":
        return SpecialTokens(str(tokenizer.eos_token), always=True)
    return _special_tokens(tokenizer, str(tokenizer.chat_template or ""), options.chat_template_date)


@lru_cache(maxsize=4)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, template: str, date: str | None) -> SpecialTokens:
    plain: list[int] = tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer(_SAMPLE)["input_ids"]
    start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), None)
    prefix, suffix = ([], []) if start is None else (full[:start], full[start + len(plain) :])
    starts = {str(tokenizer.decode(prefix)).strip(), tokenizer.bos_token or ""} - {""} if prefix else set()
    ends = [str(tokenizer.eos_token)]
    if template:
        end = attempt(lambda: probe_of(ChatTemplate(tokenizer, date=date)).end_of_turn, "")
        # Words or signs that end turns may end any text; a special token does not.
        is_special = isinstance(end, str) and any(token in end for token in tokenizer.get_added_vocab())
        ends += [str(end)] if is_special else []
    return SpecialTokens(str(tokenizer.eos_token), False, tuple(sorted(starts)), tuple(ends), tuple(suffix))
