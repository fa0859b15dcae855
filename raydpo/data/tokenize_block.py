"""Tokenize one raw block of a shard: write its good rows to a Parquet file and its bad rows to quarantine."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from raydpo.blocks import schema
from raydpo.data import quarantine
from raydpo.data.block_file import TokenizedRow, write_block
from raydpo.data.dataset_logps import DatasetLogps, align, read_dataset_logps
from raydpo.data.dialects.columns import ColumnMapping
from raydpo.data.dialects.detect import to_pair
from raydpo.data.dialects.pair import Pair, RowError, kind_of
from raydpo.data.extras import Extras, ExtrasCounts, ExtrasOptions, count_extras, read_extras
from raydpo.data.files.rows import ReadRow, RowSlice
from raydpo.data.images.loading import no_images
from raydpo.data.images.processing import ImageProcessing
from raydpo.data.images.rows import ImageCounts, ImageReader, lack_of_images
from raydpo.data.mixtures.shard_rows import parse_rows
from raydpo.data.remarks import DROPPED_WORDS, Remark, Remarks, counted
from raydpo.data.row_errors import attempt, reason_text
from raydpo.data.shards import Shard
from raydpo.data.templates.assistant_spans import with_loss_masks
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.tokenization import EncodedPair, Truncation, tokenize
from raydpo.errors import DataError

UNREADABLE = "cannot be read"


@dataclass(frozen=True)
class RawBlock:
    """Up to `block_pairs` consecutive, unparsed rows of one shard."""

    shard: Shard
    shard_index: int
    """Position of the shard in the dataset, from 0."""
    index: int
    """Position of the raw block in its shard, from 0."""
    dialect: str
    rows: RowSlice


@dataclass(frozen=True)
class BlockRecipe:
    """The settings for tokenizing raw blocks, and where their files are written."""

    truncation: Truncation
    cache_dir: str
    """Folder or URL for tokenized blocks, reachable from every node."""
    quarantine_dir: str
    """Folder or URL for bad rows, reachable from every node."""
    mapping: ColumnMapping = field(default_factory=ColumnMapping)
    """The columns of the rows by the names of the dialects."""
    dataset_logps: bool = False
    """Whether the reference log-probs come from the rows; if so, the tokenized block contains them."""
    per_token: bool = False
    """Whether the objective needs one reference log-prob per token, so that a sum per completion is not enough."""
    assistant_only: bool = False
    """Whether only tokens of assistant turns are targets (`loss_on` assistant), which the block's loss masks tell."""
    text: TextOptions = field(default_factory=TextOptions)
    """What happens where a chat template drops words, and to special tokens of text."""
    extras_options: ExtrasOptions = field(default_factory=ExtrasOptions)
    """Columns that weights and margins come from."""
    images: ImageProcessing | None = None
    """How the model reads images; None: it takes none."""


@dataclass(frozen=True)
class BlockOutcome:
    """The result of tokenizing one raw block."""

    shard_index: int
    index: int
    dialect: str
    block: schema.Block | None
    """The tokenized block; None if all rows were bad."""
    rows: int
    """Number of good and bad rows."""
    bad_reasons: Mapping[str, int]
    """Number of bad rows by kind of fault."""
    first_bad: quarantine.BadRow | None
    """The bad row with the lowest number; None if all rows were good."""
    remarks: Remarks
    """What the user should know of the good rows, counted."""
    quarantine_file: str
    """Name of the file with the bad rows in the quarantine folder; empty if all rows were good."""
    longest: int
    """Length of the longest sequence in tokens, after truncation."""
    extras_counts: ExtrasCounts = field(default_factory=ExtrasCounts)
    """Numbers of good rows with a weight or a margin."""
    images: ImageCounts = field(default_factory=ImageCounts)
    """Counts of the images of its rows."""


def tokenize_block(raw: RawBlock, tokenizer: PreTrainedTokenizerBase, recipe: BlockRecipe) -> BlockOutcome:
    """Tokenize the rows of a raw block and write its files; a retry writes the same files.

    Raises DataError if the tokenizer lacks what the rows need: a chat template for conversations, or an EOS token for
    text.
    """
    reader = image_reader(raw, tokenizer, recipe)
    good, bad, total = tokenized_rows(raw, tokenizer, recipe, reader)
    quarantined = quarantine.write(recipe.quarantine_dir, raw.rows.first_row, raw.shard.url, bad) if bad else ""
    return BlockOutcome(
        shard_index=raw.shard_index,
        index=raw.index,
        dialect=raw.dialect,
        block=write_block(raw.shard.name, raw.index, good, recipe.cache_dir) if good else None,
        rows=total,
        bad_reasons=Counter(kind_of(row.reason) for row in bad),
        first_bad=bad[0] if bad else None,
        remarks=counted(_placed(remark, row, raw.shard) for row in good for remark in row.pair.remarks),
        quarantine_file=quarantined,
        longest=max((row.pair.length for row in good), default=0),
        extras_counts=count_extras([row.extras for row in good]),
        images=reader.counts,
    )


def image_reader(raw: RawBlock, tokenizer: PreTrainedTokenizerBase, recipe: BlockRecipe) -> ImageReader:
    """Return the reader of the images of a raw block's rows."""
    processing = recipe.images or no_images(tokenizer.name_or_path)
    return ImageReader(processing, tokenizer, raw.shard.url, recipe.cache_dir)


def _placed(remark: Remark, row: TokenizedRow, shard: Shard) -> Remark:
    """Return a remark whose example names the row, where words of it were lost."""
    example = (
        f"{remark.example} in row {row.number} of {shard.url}" if remark.topic == DROPPED_WORDS else remark.example
    )
    return replace(remark, example=example)


def tokenized_rows(
    raw: RawBlock, tokenizer: PreTrainedTokenizerBase, recipe: BlockRecipe, images: ImageReader | None = None
) -> tuple[list[TokenizedRow], list[quarantine.BadRow], int]:
    """Return the good rows and the bad rows, both in order, and the total number of rows.

    `images` reads the images of the rows and counts them (None: a new `image_reader`).
    """
    images = images or image_reader(raw, tokenizer, recipe)
    reasons: list[tuple[ReadRow, RowError]] = []
    rows: list[ReadRow] = []
    pairs: list[Pair] = []
    dataset_logps: list[DatasetLogps | None] = []
    lacks: list[RowError] = []
    extras: list[Extras] = []
    for row in parse_rows(raw.rows, raw.shard.columns):
        read = attempt(partial(_read, row, raw.dialect, tokenizer, recipe), UNREADABLE)
        if isinstance(read, RowError):
            reasons.append((row, read))
            continue
        pair, logps, extra = read
        if lack := _lack_of(tokenizer, pair) or lack_of_images(images.processing, pair):
            reasons.append((row, lack))
            lacks.append(lack)
            continue
        pair_or_reason = attempt(partial(images.read, pair), UNREADABLE)
        if isinstance(pair_or_reason, RowError):
            reasons.append((row, pair_or_reason))
            continue
        rows.append(row)
        pairs.append(pair_or_reason)
        dataset_logps.append(logps)
        extras.append(extra)
    if lacks and not pairs and raw.index == 0:  # no other row of the shard has shown that it fits the tokenizer
        raise DataError(f"no pair of {raw.shard.url} can be tokenized: {lacks[0].detail}")
    good: list[TokenizedRow] = []
    encoded = tokenize(tokenizer, pairs, recipe.text)
    for row, pair, logps, extra, tokenized in zip(rows, pairs, dataset_logps, extras, encoded, strict=True):
        if recipe.assistant_only and isinstance(tokenized, EncodedPair):
            tokenized = attempt(partial(with_loss_masks, tokenizer, pair, tokenized, recipe.text), UNREADABLE)
        cut = attempt(partial(_cut, row, logps, extra, tokenized, recipe), UNREADABLE)
        if isinstance(cut, RowError):
            reasons.append((row, cut))
        else:
            good.append(cut)
    reasons.sort(key=lambda item: item[0].number)
    bad = [quarantine.bad_row(raw.shard.name, row, reason_text(reason)) for row, reason in reasons]
    return good, bad, len(good) + len(bad)


def _read(
    row: ReadRow, dialect: str, tokenizer: PreTrainedTokenizerBase, recipe: BlockRecipe
) -> tuple[Pair, DatasetLogps | None, Extras]:
    """Return the pair of a row, its reference log-probs where they come from the rows, and its weight and margin.

    Raises RowError.
    """
    if row.columns is None:
        raise RowError(row.reason)
    pair = to_pair(row.columns, dialect, bool(tokenizer.chat_template), recipe.mapping)
    named = recipe.mapping.apply(row.columns)
    return pair, read_dataset_logps(named) if recipe.dataset_logps else None, read_extras(named, recipe.extras_options)


def _cut(
    row: ReadRow, logps: DatasetLogps | None, extras: Extras, tokenized: EncodedPair | RowError, recipe: BlockRecipe
) -> TokenizedRow:
    """Return the truncated pair of a row with its scores. Raises RowError."""
    if isinstance(tokenized, RowError):
        raise tokenized
    cut = recipe.truncation.apply(tokenized)
    scores = None if logps is None else align(logps, tokenized, cut, per_token=recipe.per_token)
    return TokenizedRow(row.number, cut, scores, extras)


def _lack_of(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> RowError | None:
    """Return what the tokenizer lacks for a pair, as the reason of its row; None if it lacks nothing."""
    if pair.conversational and not tokenizer.chat_template:
        return RowError(
            "no chat template",
            f"the pair is a conversation, and the tokenizer of {tokenizer.name_or_path!r} has no chat template; use a "
            "model that has one (usually named Instruct or Chat), or data whose prompt and completions are text",
        )
    if not pair.conversational and tokenizer.eos_token is None:
        return RowError(
            "no EOS token",
            f"the pair is text, which must end with EOS, and the tokenizer of {tokenizer.name_or_path!r} has no "
            "eos_token; set it in tokenizer_config.json",
        )
    return None
