"""Convert shards to tokenized blocks on the Ray cluster. The tokenize stage calls this."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from raydpo.blocks.schema import Block
from raydpo.data.quarantine import BadRow
from raydpo.data.ray_stream import Slicing, block_outcomes
from raydpo.data.shards import Shard
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockOutcome, BlockRecipe
from raydpo.errors import DataError
from raydpo.runtime import storage

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizationRequest:
    """The settings for converting shards to tokenized blocks."""

    tokenizer: PreTrainedTokenizerBase
    cache_dir: str
    """Folder or URL for tokenized blocks, reachable from every node."""
    quarantine_dir: str
    """Folder or URL for bad rows, reachable from every node. `prepare` removes its previous contents."""
    dialect: str = "auto"
    """One of `detect.DIALECTS` for all shards, or auto: detected from the first rows of each shard."""
    truncation: Truncation = field(default_factory=Truncation)
    """Length limits of the pairs."""
    block_pairs: int = 4096
    """Maximum number of rows per raw block; the tokenized block contains the good ones."""
    dataset_logps: bool = False
    """Whether the reference log-probs come from the rows."""
    per_token: bool = False
    """Whether these must be one value per token instead of a sum per completion."""
    assistant_only: bool = False
    """Whether only tokens of assistant turns are targets of the loss (`loss_on` assistant)."""


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
    longest: int
    """Length of the longest sequence in tokens, after truncation."""

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
    """Read and tokenize every row of the shards on the running Ray cluster.

    `on_progress` is called with the number of rows done so far whenever a block finishes. Raises DataError if there are
    more than `max_bad_rows` bad rows (checked while running; None: no limit), if no good row is left, if a shard cannot
    be read, or if the tokenizer lacks a chat template or EOS token that the rows need.
    """
    storage.remove_folder(request.quarantine_dir)
    tally = _Tally()
    recipe = BlockRecipe(
        request.truncation,
        request.cache_dir,
        request.quarantine_dir,
        request.dataset_logps,
        request.per_token,
        assistant_only=request.assistant_only,
    )
    slicing = Slicing(request.dialect, request.block_pairs)
    stream = block_outcomes(shards, slicing, request.tokenizer, recipe)
    try:
        for outcome in stream:
            tally.add(outcome)
            on_progress(tally.rows)
            if max_bad_rows is not None and tally.bad > max_bad_rows and tally.first_bad_is_known():
                raise _too_many_bad_rows(tally, shards, request, f"more than max_bad_rows={max_bad_rows}")
    finally:
        stream.close()  # stops the tasks that are still running
    if not any(outcome.block for outcome in tally.outcomes):
        if tally.bad:
            raise _too_many_bad_rows(tally, shards, request, "and no good row is left")
        raise DataError(f"there are no rows in {', '.join(shard.url for shard in shards[:5])}; check dataset_name")
    return _summary(tally, shards)


@dataclass
class _Tally:
    """The outcomes so far, in the order of arrival, and their totals."""

    outcomes: list[BlockOutcome] = field(default_factory=list)
    rows: int = 0
    bad: int = 0

    def add(self, outcome: BlockOutcome) -> None:
        self.outcomes.append(outcome)
        self.rows += outcome.rows
        self.bad += sum(outcome.bad_reasons.values())

    def first_bad(self) -> BlockOutcome:
        """Return the earliest block with a bad row among the outcomes so far."""
        return min((part for part in self.outcomes if part.first_bad), key=lambda part: (part.shard_index, part.index))

    def first_bad_is_known(self) -> bool:
        """Return whether all blocks before `first_bad()` in its shard have arrived, so that its bad row is final."""
        first = self.first_bad()
        before = [part for part in self.outcomes if part.shard_index == first.shard_index and part.index < first.index]
        return len(before) == first.index


def _too_many_bad_rows(tally: _Tally, shards: Sequence[Shard], request: TokenizationRequest, verdict: str) -> DataError:
    outcome = tally.first_bad()
    first: BadRow | None = outcome.first_bad
    assert first is not None
    url = shards[outcome.shard_index].url
    return DataError(
        f"{tally.bad} bad rows in the first {tally.rows} read, {verdict}. The first is row {first.row} of {url}: "
        f"{first.reason}. See {request.quarantine_dir}; fix or drop the rows, set their dialect with dataset_format, "
        "or raise max_bad_rows"
    )


def _summary(tally: _Tally, shards: Sequence[Shard]) -> PreparedData:
    outcomes = sorted(tally.outcomes, key=lambda part: (part.shard_index, part.index))
    reasons: Counter[str] = Counter()
    for outcome in outcomes:
        reasons.update(outcome.bad_reasons)
    tails = sum(outcome.dropped_tails for outcome in outcomes)
    if tails:
        example = next(outcome.tail for outcome in outcomes if outcome.tail)
        _log.warning(
            "The prompts of %d pairs lose their last tokens, for example %r, because prompt + completion is tokenized "
            "differently there: tokens merge across the boundary, or the chat template renders a prompt differently "
            "on its own. End prompts on a token boundary, or use a template that renders both alike.",
            tails,
            example,
        )
    return PreparedData(
        blocks=tuple(outcome.block for outcome in outcomes if outcome.block),
        rows_read=tally.rows,
        rows_quarantined=tally.bad,
        bad_reasons=dict(reasons.most_common()),
        dialects={shards[outcome.shard_index].name: outcome.dialect for outcome in outcomes},
        files={shard.name: shard.url for shard in shards},
        dropped_prompt_tails=tails,
        longest=max(outcome.longest for outcome in outcomes),
    )
