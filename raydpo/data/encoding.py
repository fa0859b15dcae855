"""Encode the texts of pairs to token ids; a text that the tokenizer refuses costs its own row only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from raydpo.data.dialects.pair import RowError
from raydpo.data.row_errors import attempt_each
from raydpo.data.templates.rendered import Rendered
from raydpo.data.templates.special_tokens import SpecialTokens

TokenIds = npt.NDArray[np.int32]
PairIds = tuple[TokenIds, TokenIds, TokenIds]
"""Token ids of the prompt, of prompt + chosen and of prompt + rejected."""

REFUSED = "refused by the tokenizer"


@dataclass(frozen=True)
class Encoder:
    """A tokenizer for the texts of one sort of pairs."""

    tokenizer: PreTrainedTokenizerBase
    special: SpecialTokens | None
    """The special tokens that text gets; None for conversations, whose template writes them itself."""

    def encode(self, texts: Sequence[Rendered]) -> list[PairIds | RowError]:
        """Return the token ids of each pair, in order, or the reason why it has none."""
        return attempt_each(texts, self._pairs, REFUSED)

    def _pairs(self, texts: Sequence[Rendered]) -> list[PairIds]:
        flat = [part for text in texts for part in (text.prompt, *text.sides)]
        if len(texts) == 1:
            check_unicode(flat)
        added = [self.special is not None and self.special.adds_to(part) for part in flat]
        ids: dict[int, TokenIds] = {}
        for add in set(added):
            places = [i for i, wanted in enumerate(added) if wanted == add]
            ids.update(zip(places, self._ids([flat[i] for i in places], add), strict=True))
        return [(ids[i], ids[i + 1], ids[i + 2]) for i in range(0, len(flat), 3)]

    def _ids(self, texts: list[str], add_special_tokens: bool) -> list[TokenIds]:
        encoded = self.tokenizer(
            texts,
            add_special_tokens=add_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: Sequence[Sequence[int]] = encoded["input_ids"]
        if self.special is not None and add_special_tokens:
            ids = [self.special.without_suffix(part) for part in ids]
        return [np.asarray(part, dtype=np.int32) for part in ids]


def check_unicode(texts: Sequence[str]) -> None:
    """Raise RowError if a text holds half of a surrogate pair."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise RowError("bad Unicode", "half of a surrogate pair stands alone") from error
