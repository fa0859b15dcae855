"""One raw block: consecutive rows of a shard in, a tokenized Parquet file and the quarantine of its bad rows out."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from raydpo.blocks import schema
from raydpo.blocks.schema import FloatArray
from raydpo.data import quarantine
from raydpo.data.dataset_logps import DatasetLogps, align, read_dataset_logps
from raydpo.data.dialects.detect import to_pair
from raydpo.data.dialects.pair import Pair, RowError, kind_of
from raydpo.data.files.rows import ReadRow, RowSlice, parse
from raydpo.data.shards import Shard
from raydpo.data.tokenization import EncodedPair, TokenIds, Truncation, tokenize
from raydpo.errors import DataError
from raydpo.runtime import storage


@dataclass(frozen=True)
class RawBlock:
    """Up to `block_pairs` consecutive rows of one shard, not yet parsed."""

    shard: Shard
    shard_index: int
    """Position of the shard in the order of the data."""
    index: int
    """Position among the raw blocks of the shard, from 0."""
    dialect: str
    rows: RowSlice


@dataclass(frozen=True)
class BlockRecipe:
    """How raw blocks become tokenized ones, and where the files go. Both are folders or URLs that all nodes reach."""

    truncation: Truncation
    cache_dir: str
    quarantine_dir: str
    dataset_logps: bool = False
    """True where the reference's log-probs are those that rows carry; they then stand in the tokenized block."""
    per_token: bool = False
    """True where sums of them do not do."""


@dataclass(frozen=True)
class BlockOutcome:
    """What came of one raw block."""

    shard_index: int
    index: int
    dialect: str
    block: schema.Block | None
    """None if all rows were bad."""
    rows: int
    """Good and bad rows."""
    bad_reasons: Mapping[str, int]
    """Bad rows by the kind of fault."""
    first_bad: quarantine.BadRow | None
    dropped_tails: int
    """Good pairs whose prompt lost its last tokens at the boundary."""
    tail: str
    """One such end of a prompt, as text."""
    longest: int
    """Tokens of the longest sequence, after truncation."""


@dataclass(frozen=True, slots=True)
class _GoodRow:
    number: int
    pair: EncodedPair
    given: tuple[FloatArray, FloatArray] | None
    """Reference log-probs of chosen and rejected, where rows carry them."""


def tokenize_block(raw: RawBlock, tokenizer: PreTrainedTokenizerBase, recipe: BlockRecipe) -> BlockOutcome:
    """Tokenize the rows of a raw block and write its files; doing it again writes the same files.

    DataError if the tokenizer lacks what rows of this kind need: a chat template or an EOS token.
    """
    good, bad, total = _tokenized_rows(raw, tokenizer, recipe)
    if bad:
        quarantine.write(recipe.quarantine_dir, raw.rows.first_row, raw.shard.url, bad)
    tails = [row.pair.dropped_tail for row in good if len(row.pair.dropped_tail)]
    return BlockOutcome(
        shard_index=raw.shard_index,
        index=raw.index,
        dialect=raw.dialect,
        block=_write_block(raw, good, recipe.cache_dir) if good else None,
        rows=total,
        bad_reasons=Counter(kind_of(row.reason) for row in bad),
        first_bad=bad[0] if bad else None,
        dropped_tails=len(tails),
        tail=str(tokenizer.decode(tails[0].tolist())) if tails else "",
        longest=max((row.pair.length for row in good), default=0),
    )


def _tokenized_rows(
    raw: RawBlock, tokenizer: PreTrainedTokenizerBase, recipe: BlockRecipe
) -> tuple[list[_GoodRow], list[quarantine.BadRow], int]:
    """Good rows, bad rows (both in order) and the number of all."""
    reasons: list[tuple[ReadRow, str]] = []
    rows: list[ReadRow] = []
    pairs: list[Pair] = []
    given: list[DatasetLogps | None] = []
    for row in parse(raw.rows):
        try:
            if row.columns is None:
                raise RowError(row.reason)
            pair = to_pair(row.columns, raw.dialect, chat=bool(tokenizer.chat_template))
            logps = read_dataset_logps(row.columns) if recipe.dataset_logps else None
        except RowError as reason:
            reasons.append((row, str(reason)))
            continue
        _check_tokenizer(pair, tokenizer, raw.shard)
        rows.append(row)
        pairs.append(pair)
        given.append(logps)
    good: list[_GoodRow] = []
    for row, logps, tokenized in zip(rows, given, tokenize(tokenizer, pairs), strict=True):
        try:
            if isinstance(tokenized, RowError):
                raise tokenized
            cut = recipe.truncation.apply(tokenized)
            scores = None if logps is None else align(logps, tokenized, cut, per_token=recipe.per_token)
            good.append(_GoodRow(row.number, cut, scores))
        except RowError as reason:
            reasons.append((row, str(reason)))
    reasons.sort(key=lambda item: item[0].number)
    bad = [quarantine.bad_row(raw.shard.name, row, reason) for row, reason in reasons]
    return good, bad, len(good) + len(bad)


def _check_tokenizer(pair: Pair, tokenizer: PreTrainedTokenizerBase, shard: Shard) -> None:
    if pair.conversational and not tokenizer.chat_template:
        raise DataError(
            f"{shard.url} has conversations, but the tokenizer of {tokenizer.name_or_path!r} has no chat template; "
            "take a model with one (mostly called Instruct or Chat), or data with prompt, chosen and rejected as text"
        )
    if not pair.conversational and tokenizer.eos_token is None:
        raise DataError(
            f"{shard.url} has pairs of text, which end with EOS, but the tokenizer of {tokenizer.name_or_path!r} has "
            "no eos_token; set one in its tokenizer_config.json"
        )


def _write_block(raw: RawBlock, good: Sequence[_GoodRow], cache_dir: str) -> schema.Block:
    columns = [
        [row.pair.prompt_ids for row in good],
        [row.pair.chosen_ids for row in good],
        [row.pair.rejected_ids for row in good],
    ]
    pair_ids = [f"{raw.shard.name}:{row.number}" for row in good]
    content = content_digest(columns)
    given = [row.given for row in good if row.given is not None]
    if given:
        content = hashlib.sha256("".join([content, *map(_digest, given)]).encode()).hexdigest()
    # The same tokens may come from another shard, whose pairs have other ids: the file's name is of both, so that
    # neither file overwrites the other, while the scores hang on the tokens alone.
    name = hashlib.sha256("\n".join([content, *pair_ids]).encode()).hexdigest()
    url = storage.join(cache_dir, "tokenized", f"{name}.parquet")
    if not storage.exists(url):
        arrays = [pa.array(pair_ids, pa.string()), *(_list_array(column) for column in columns)]
        arrays += [_list_array(side) for side in zip(*given, strict=True)]
        storage.write_table(
            url, pa.table(arrays, schema=schema.DATASET_LOGPS_SCHEMA if given else schema.TOKENIZED_SCHEMA)
        )
    tokens = sum(row.pair.tokens for row in good)
    return schema.Block(content, raw.shard.name, raw.index, len(good), tokens, url)


def _digest(sides: tuple[FloatArray, FloatArray]) -> str:
    return hashlib.sha256(b"".join(side.astype("<f4").tobytes() for side in sides)).hexdigest()


def content_digest(columns: Sequence[Sequence[TokenIds]]) -> str:
    """SHA-256 (hex) of token ids: prompts, chosen, rejected, each a list of int32 arrays, one a pair.

    Each column counts with its lengths (int64) and then its ids (int32), little-endian, so that no two contents run
    into the same bytes.
    """
    digest = hashlib.sha256()
    for column in columns:
        digest.update(np.array([len(column), *map(len, column)], dtype="<i8").tobytes())
        for ids in column:
            digest.update(np.asarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def _list_array(column: Sequence[TokenIds | FloatArray]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in column])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(column)))
