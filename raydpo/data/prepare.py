"""Convert shards to tokenized blocks on the Ray cluster. The tokenize stage calls this."""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from raydpo.blocks.schema import Block
from raydpo.data.extras import ExtrasCounts, total_extras
from raydpo.data.images.rows import ImageCounts, total_images
from raydpo.data.index.settings_digest import settings_digest
from raydpo.data.index.token_index import TokenIndex
from raydpo.data.quarantine import BadRow
from raydpo.data.ray_stream import Slicing, block_outcomes
from raydpo.data.remarks import DROPPED_WORDS, GENERATION_TAIL, MERGED_TAIL, log_remarks, merged, rows_of
from raydpo.data.shards import Shard
from raydpo.data.tokenize_block import BlockOutcome, BlockRecipe
from raydpo.errors import DataError
from raydpo.runtime import storage

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizationRequest:
    """The settings for converting shards to tokenized blocks."""

    tokenizer: PreTrainedTokenizerBase
    slicing: Slicing
    """How shards are cut into raw blocks."""
    recipe: BlockRecipe
    """How raw blocks are tokenized. `prepare` removes the previous contents of its quarantine folder."""


@dataclass(frozen=True)
class ShardCounts:
    """Counts of the rows of one shard."""

    read: int
    """Number of good and bad rows."""
    quarantined: int
    """Number of bad rows."""


@dataclass(frozen=True)
class PreparedData:
    """The tokenized blocks of a dataset, and statistics of its rows."""

    blocks: tuple[Block, ...]
    """The blocks in the order of shards and rows, without those whose rows were all bad (their indices are missing)."""
    rows_read: int
    """Number of good and bad rows."""
    rows_quarantined: int
    """Number of bad rows."""
    bad_reasons: Mapping[str, int]
    """Number of bad rows by kind of fault, the most frequent first."""
    dialects: Mapping[str, str]
    """Dialect by shard name; shards without rows are missing."""
    files: Mapping[str, str]
    """Path or URL by shard name."""
    dropped_prompt_tails: int
    """Number of pairs whose prompt lost its last tokens because prompt + completion is tokenized differently there."""
    template_losses: Mapping[str, int]
    """Number of pairs that are trained on although the chat template drops words of them, by kind of words."""
    longest: int
    """Length of the longest sequence in tokens, after truncation."""
    rows_reused: int = field(default=0, compare=False)
    """Number of good and bad rows that an earlier run has tokenized."""
    extras_counts: ExtrasCounts = field(default_factory=ExtrasCounts)
    """Numbers of good rows with a weight or a margin."""
    by_shard: Mapping[str, ShardCounts] = field(default_factory=dict)
    """Counts by shard name; shards without rows are missing."""
    images: ImageCounts = field(default_factory=ImageCounts, compare=False)
    """Counts of the images of all rows; those of reused rows count as read and not as processed."""

    @property
    def pairs(self) -> int:
        """Number of good pairs in all blocks."""
        return sum(block.pairs for block in self.blocks)


def prepare(
    shards: Sequence[Shard],
    request: TokenizationRequest,
    max_bad_rows: int | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> PreparedData:
    """Read and tokenize every row of the shards on the running Ray cluster, but for shards that are in the index.

    `on_progress` is called with the number of rows done so far whenever a block was tokenized. Raises DataError if
    there are more than `max_bad_rows` bad rows (checked while running; None: no limit), if no good row is left, if a
    shard cannot be read, or if the tokenizer lacks a chat template or EOS token that the rows need.
    """
    slicing, recipe = request.slicing, request.recipe
    storage.remove_folder(recipe.quarantine_dir)
    tally = _Tally()
    settings = settings_digest(request.tokenizer, recipe, slicing)
    index = TokenIndex(shards, settings, recipe.cache_dir, recipe.quarantine_dir)
    stream = index.outcomes(lambda missing: block_outcomes(missing, slicing, request.tokenizer, recipe))
    with contextlib.closing(stream):  # stops the tasks that are still running
        for outcome, reused in stream:
            tally.add(outcome, reused)
            if not reused:
                on_progress(tally.rows)
            if max_bad_rows is not None and tally.bad > max_bad_rows and tally.first_bad_is_known():
                raise _too_many_bad_rows(tally, shards, recipe, f"more than max_bad_rows={max_bad_rows}")
    if not any(outcome.block for outcome in tally.outcomes):
        if tally.bad:
            raise _no_good_rows(tally, shards, recipe)
        raise DataError(f"there are no rows in {', '.join(shard.url for shard in shards[:5])}; check dataset_name")
    _warn_of_bad_shards(tally, shards)
    return _summary(tally, shards)


@dataclass
class _Tally:
    """The outcomes so far, in the order of arrival, and their totals."""

    outcomes: list[BlockOutcome] = field(default_factory=list)
    rows: int = 0
    bad: int = 0
    reused: int = 0

    def add(self, outcome: BlockOutcome, reused: bool) -> None:
        # Images of reused rows were processed by an earlier run; names of files are of no further use.
        images = replace(outcome.images, files={}, processed=0 if reused else outcome.images.processed)
        outcome = replace(outcome, images=images)
        self.outcomes.append(outcome)
        self.rows += outcome.rows
        self.reused += outcome.rows if reused else 0
        self.bad += sum(outcome.bad_reasons.values())

    def first_bad(self) -> BlockOutcome:
        """Return the earliest block with a bad row among the outcomes so far."""
        return min((part for part in self.outcomes if part.first_bad), key=lambda part: (part.shard_index, part.index))

    def first_bad_is_known(self) -> bool:
        """Return whether all blocks before `first_bad()` in its shard have arrived, so that its bad row is final."""
        first = self.first_bad()
        before = [part for part in self.outcomes if part.shard_index == first.shard_index and part.index < first.index]
        return len(before) == first.index


def _too_many_bad_rows(tally: _Tally, shards: Sequence[Shard], recipe: BlockRecipe, verdict: str) -> DataError:
    outcome = tally.first_bad()
    first: BadRow | None = outcome.first_bad
    assert first is not None
    url = shards[outcome.shard_index].url
    return DataError(
        f"{tally.bad} bad rows in the first {tally.rows} read, {verdict}. The first is row {first.row} of {url}: "
        f"{first.reason}. See {recipe.quarantine_dir}; fix or drop the rows, set their dialect with dataset_format, "
        "or raise max_bad_rows"
    )


def _no_good_rows(tally: _Tally, shards: Sequence[Shard], recipe: BlockRecipe) -> DataError:
    """Return the error for data without any good row. Its first reason names the columns, if these are at fault."""
    outcome = tally.first_bad()
    assert outcome.first_bad is not None
    return DataError(
        f"no row of {tally.rows} is a preference pair. Row {outcome.first_bad.row} of "
        f"{shards[outcome.shard_index].url}: {outcome.first_bad.reason}. See {recipe.quarantine_dir}"
    )


def _warn_of_bad_shards(tally: _Tally, shards: Sequence[Shard]) -> None:
    """Log a warning for each shard without any good row, as its columns are probably not those that are read."""
    for index, shard in enumerate(shards):
        outcomes = [outcome for outcome in tally.outcomes if outcome.shard_index == index]
        first = min((part for part in outcomes if part.first_bad), key=lambda part: part.index, default=None)
        if first and first.first_bad and not any(outcome.block for outcome in outcomes):
            _log.warning("No row of %s is a preference pair; the first: %s", shard.url, first.first_bad.reason)


def _summary(tally: _Tally, shards: Sequence[Shard]) -> PreparedData:
    outcomes = sorted(tally.outcomes, key=lambda part: (part.shard_index, part.index))
    reasons: Counter[str] = Counter()
    for outcome in outcomes:
        reasons.update(outcome.bad_reasons)
    remarks = merged(outcome.remarks for outcome in outcomes)
    log_remarks(remarks)
    return PreparedData(
        blocks=tuple(outcome.block for outcome in outcomes if outcome.block),
        rows_read=tally.rows,
        rows_quarantined=tally.bad,
        bad_reasons=dict(reasons.most_common()),
        dialects={shards[outcome.shard_index].name: outcome.dialect for outcome in outcomes},
        files={shard.name: shard.url for shard in shards},
        dropped_prompt_tails=sum(rows_of(remarks, topic).get("", 0) for topic in (GENERATION_TAIL, MERGED_TAIL)),
        template_losses=rows_of(remarks, DROPPED_WORDS),
        longest=max(outcome.longest for outcome in outcomes),
        rows_reused=tally.reused,
        extras_counts=total_extras(outcome.extras_counts for outcome in outcomes),
        by_shard=_counts(outcomes, shards),
        images=total_images(outcome.images for outcome in outcomes),
    )


def _counts(outcomes: Sequence[BlockOutcome], shards: Sequence[Shard]) -> dict[str, ShardCounts]:
    read: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for outcome in outcomes:
        name = shards[outcome.shard_index].name
        read[name] += outcome.rows
        bad[name] += sum(outcome.bad_reasons.values())
    return {name: ShardCounts(read[name], bad[name]) for name in read}
