"""Look at the rows of a shard in this process, without writing anything: what a model will see of them, and what not.

With a tokenizer, rows go through the code that tokenizes them in a run. Without one, they are only converted to
canonical pairs, and lengths are in characters.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from raydpo.data import quarantine
from raydpo.data.dialects.columns import ColumnMapping
from raydpo.data.dialects.detect import to_pair
from raydpo.data.dialects.pair import RowError, kind_of
from raydpo.data.encoding import TokenIds
from raydpo.data.files.rows import ReadRow
from raydpo.data.mixtures.shard_rows import parse_rows
from raydpo.data.quarantine import BadRow
from raydpo.data.ray_stream import Slicing, raw_blocks
from raydpo.data.row_errors import attempt, reason_text
from raydpo.data.shards import Shard
from raydpo.data.tokenization import EncodedPair, Truncation
from raydpo.data.tokenize_block import UNREADABLE, BlockRecipe, RawBlock, tokenized_rows

SLICE_ROWS = 512
"""Number of rows that are read and tokenized at a time."""

SIDES = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class ShownPair:
    """What a model sees of one row."""

    row: int
    texts: tuple[str, str, str]
    """Prompt, chosen and rejected after truncation: decoded token ids, or text without a tokenizer."""
    ids: tuple[TokenIds, TokenIds, TokenIds] | None
    """Their token ids; None without a tokenizer."""
    notes: tuple[str, ...]
    """What is missing of the row in these texts, one sentence each."""


@dataclass(frozen=True)
class GoodRow:
    """A row that is trained on."""

    row: int
    lengths: tuple[int, int, int]
    """Lengths of prompt, chosen and rejected before truncation, in tokens, or in characters without a tokenizer."""
    is_cut: bool
    """Whether truncation shortens it."""
    show: Callable[[], ShownPair]


Examine = Callable[[RawBlock], tuple[Sequence[GoodRow], Sequence[BadRow]]]
"""Function that returns the good and the bad rows of a raw block, in any order."""


@dataclass
class ShardReport:
    """What was found in a shard."""

    shard: Shard
    dialect: str = ""
    """The dialect of its rows; empty if it has none."""
    pairs: int = 0
    bad: list[BadRow] = field(default_factory=list)
    """The first bad row of each kind, in order."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Number of bad rows by kind of fault."""
    cut: int = 0
    """Number of pairs that truncation shortens."""
    shown: list[ShownPair] = field(default_factory=list)
    lengths: list[tuple[int, int, int]] = field(default_factory=list)
    """Lengths of prompt, chosen and rejected of each pair before truncation."""

    @property
    def rows(self) -> int:
        """Number of good and bad rows that were read."""
        return self.pairs + self.reasons.total()

    def add(self, row: GoodRow | BadRow, show: int) -> None:
        """Count a row; the first `show` good ones are kept with their texts."""
        if isinstance(row, BadRow):
            kind = kind_of(row.reason)
            if kind not in self.reasons:
                self.bad.append(row)
            self.reasons[kind] += 1
            return
        self.pairs += 1
        self.cut += row.is_cut
        self.lengths.append(row.lengths)
        if len(self.shown) < show:
            self.shown.append(row.show())


def inspect_shard(
    shard: Shard,
    slicing: Slicing,
    examine: Examine,
    *,
    show: int,
    max_rows: int | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> ShardReport:
    """Read a shard, up to `max_rows` rows of it, and return what is in it, with the texts of the first `show` pairs.

    `on_progress` is called with the number of rows read so far. Raises DataError if the shard cannot be read, or if the
    tokenizer lacks what its rows need.
    """
    report = ShardReport(shard)
    for raw in raw_blocks(shard, 0, replace(slicing, block_pairs=SLICE_ROWS)):
        report.dialect = raw.dialect
        good, bad = examine(raw)
        rows: list[GoodRow | BadRow] = [*good, *bad]
        for row in sorted(rows, key=lambda row: row.row):
            if report.rows == max_rows:
                return report
            report.add(row, show)
        on_progress(report.rows)
    return report


def with_tokenizer(tokenizer: PreTrainedTokenizerBase, recipe: BlockRecipe) -> Examine:
    """Return the function that examines rows as a run with this recipe tokenizes them; it keeps no images."""
    recipe = replace(recipe, cache_dir="")

    def examine(raw: RawBlock) -> tuple[Sequence[GoodRow], Sequence[BadRow]]:
        uncut, refused, _ = tokenized_rows(raw, tokenizer, replace(recipe, truncation=Truncation()))
        whole, bad, good = {row.number: row.pair for row in uncut}, list(refused), []
        if recipe.dataset_logps:  # whether a row's log-probs fit depends on truncation
            kept, refused, _ = tokenized_rows(raw, tokenizer, recipe)
            return [_good_row(row.number, whole[row.number], row.pair, tokenizer) for row in kept], refused
        for number, pair in whole.items():
            try:
                good.append(_good_row(number, pair, recipe.truncation.apply(pair), tokenizer))
            except RowError as reason:
                content = "".join(str(tokenizer.decode(ids.tolist())) for ids in _ids(pair))
                bad.append(BadRow(raw.shard.name, number, str(reason), quarantine.shorten(content)))
        return good, bad

    return examine


def _good_row(number: int, whole: EncodedPair, cut: EncodedPair, tokenizer: PreTrainedTokenizerBase) -> GoodRow:
    def show() -> ShownPair:
        prompt, chosen, rejected = (str(tokenizer.decode(ids.tolist())) for ids in _ids(cut))
        return ShownPair(number, (prompt, chosen, rejected), _ids(cut), tuple(_notes(whole, cut, tokenizer)))

    lengths = _lengths(whole)
    return GoodRow(number, lengths, lengths != _lengths(cut), show)


def _ids(pair: EncodedPair) -> tuple[TokenIds, TokenIds, TokenIds]:
    return pair.prompt_ids, pair.chosen_ids, pair.rejected_ids


def _lengths(pair: EncodedPair) -> tuple[int, int, int]:
    return len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)


def _notes(whole: EncodedPair, cut: EncodedPair, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield what truncation and the boundary between prompt and completions took away."""
    for name, before, after in zip(SIDES, _ids(whole), _ids(cut), strict=True):
        lost = len(before) - len(after)
        if lost:
            # Prompts lose their beginning, and completions their end.
            part, ids = ("first", before[:lost]) if name == "prompt" else ("last", before[-lost:])
            yield f"truncation removes the {part} {lost:,} of {len(before):,} tokens of {name}: {_text(tokenizer, ids)}"
    if len(tail := cut.dropped_tail):
        yield (
            f"the last {len(tail):,} tokens of the prompt are not in prompt + completion, which differ there: "
            f"{_text(tokenizer, tail)}"
        )


def _text(tokenizer: PreTrainedTokenizerBase, ids: TokenIds) -> str:
    return repr(tokenizer.decode(np.asarray(ids).tolist()))


def without_tokenizer(mapping: ColumnMapping) -> Examine:
    """Return the function that examines rows as canonical pairs, without a chat template: message by message."""

    def examine(raw: RawBlock) -> tuple[Sequence[GoodRow], Sequence[BadRow]]:
        good, bad = [], []
        for row in parse_rows(raw.rows, raw.shard.columns):
            found = attempt(partial(_canonical_row, row, raw.dialect, mapping), UNREADABLE)
            if isinstance(found, RowError):
                bad.append(quarantine.bad_row(raw.shard.name, row, reason_text(found)))
            else:
                good.append(found)
        return good, bad

    return examine


def _canonical_row(row: ReadRow, dialect: str, mapping: ColumnMapping) -> GoodRow:
    if row.columns is None:
        raise RowError(row.reason)
    pair = to_pair(row.columns, dialect, chat=True, mapping=mapping)
    prompt, chosen, rejected = (_messages_text(part) for part in (pair.prompt, pair.chosen, pair.rejected))
    variables: dict[str, Any] = {"tools": pair.tools, "chat_template_kwargs": dict(pair.chat_template_kwargs) or None}
    variables["images"] = len(pair.images)
    notes = tuple(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in variables.items() if value)
    shown = ShownPair(row.number, (prompt, chosen, rejected), None, notes)
    return GoodRow(row.number, (len(prompt), len(chosen), len(rejected)), False, lambda: shown)


def _messages_text(part: str | Sequence[Mapping[str, Any]]) -> str:
    """Return text as it is, and messages with their role in brackets, and with all else they have as JSON."""
    if isinstance(part, str):
        return part
    return "\n".join(f"[{message.get('role')}] {_message_text(message)}" for message in part)


def _message_text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    texts = (
        [] if content is None else [content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)]
    )
    rest = {name: value for name, value in message.items() if name not in ("role", "content") and value is not None}
    return " ".join([*texts, *([json.dumps(rest, ensure_ascii=False)] if rest else [])])
