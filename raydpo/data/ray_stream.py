"""Tokenize raw blocks on the cluster as a Ray Data stream.

A few reader tasks cut shards into raw blocks, and many tokenizer tasks process one raw block each. Thus one large shard
keeps all CPUs busy, and no process holds more than a few blocks. Only the outcomes return to the driver.
"""

import functools
import itertools
import math
import os
import pickle
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, Datasource, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata
from transformers import PreTrainedTokenizerBase

from raydpo.data.dialects import detect
from raydpo.data.dialects.columns import ColumnMapping
from raydpo.data.files.rows import RowSlice, read_slices
from raydpo.data.mixtures.selection import select_rows
from raydpo.data.mixtures.shard_rows import check_columns, parse_rows
from raydpo.data.shards import Shard
from raydpo.data.tokenize_block import BlockOutcome, BlockRecipe, RawBlock, tokenize_block
from raydpo.errors import RaydpoError

_PAYLOAD = "payload"
_DIALECT_ROWS = 64
"""Number of readable rows at the start of a shard from which its dialect is detected."""
_READER_CPUS, _TOKENIZER_CPUS = 0.1, 0.9
"""CPUs per task. One tokenizer and one reader share a CPU: a reader mostly waits, and must not displace a tokenizer."""
_CPUS_PER_READER = 4
"""Number of CPUs per reader. One reader can feed many more tokenizers; the others hide the latency of remote stores."""


@dataclass(frozen=True)
class Slicing:
    """The settings for cutting shards into raw blocks."""

    dialect: str = "auto"
    """One of `detect.DIALECTS`, or auto: detected from the first rows of each shard."""
    block_pairs: int = 4096
    """Maximum number of rows per raw block."""
    mapping: ColumnMapping = field(default_factory=ColumnMapping)
    """The columns of the rows by the names of the dialects."""


@dataclass(frozen=True)
class ShardEnd:
    """The end of a shard that was read completely, from which it is known when all of its outcomes have arrived."""

    shard_index: int
    """Position of the shard in the dataset, from 0."""
    blocks: int
    """Number of its raw blocks."""


def block_outcomes(
    shards: Sequence[Shard], slicing: Slicing, tokenizer: PreTrainedTokenizerBase, recipe: BlockRecipe
) -> Generator[BlockOutcome | ShardEnd, None, None]:
    """Yield the outcomes of all raw blocks of the shards, and the end of each shard, in the order in which they finish.

    Closing the generator stops the tasks that are still running. Raises the RaydpoError that a task has raised.
    """
    # Through the object store, each worker process unpacks the tokenizer once: a large vocabulary takes a second.
    stored = ray.put(tokenizer)
    readers = min(len(shards), max(2, math.ceil(ray.cluster_resources().get("CPU", 1) / _CPUS_PER_READER)))
    with DataContext.current(_context()):
        dataset = ray.data.read_datasource(
            _ShardSource(shards, slicing),
            num_cpus=_READER_CPUS,
            compute=TaskPoolStrategy(size=readers),
            override_num_blocks=len(shards),
        ).map_batches(
            functools.partial(_tokenize_payload, tokenizer=stored, recipe=recipe),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=_TOKENIZER_CPUS,
        )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for outcome in map(pickle.loads, table[_PAYLOAD].to_pylist()):
            if isinstance(outcome, RaydpoError):
                raise outcome
            yield outcome


def _context() -> DataContext:
    """Return the caller's Ray Data context with the changes that this stage needs."""
    context = DataContext.get_current().copy()
    # Ray Data combines rows into blocks of up to this size, one task per block. Here a row is a whole raw block and
    # needs a task of its own.
    context.target_max_block_size = 1
    context.execution_no_progress_timeout_s = -1  # a slow store must not abort the run
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


class _ShardSource(Datasource):
    """A Ray Data source that reads each shard with one task; each of its rows is a whole raw block."""

    def __init__(self, shards: Sequence[Shard], slicing: Slicing) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shards = tuple(shards)
        self._slicing = slicing

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [
            ReadTask(
                functools.partial(_raw_payloads, shard, index, self._slicing),
                replace(metadata, input_files=(shard.url,)),
                per_task_row_limit=per_task_row_limit,
            )
            for index, shard in enumerate(self._shards)
        ]


def _raw_payloads(shard: Shard, shard_index: int, slicing: Slicing) -> Iterator[pa.Table]:
    # Errors that the user can fix are returned as values: for an exception in a task, Ray Data prints pages of its own
    # stack frames.
    blocks = 0
    try:
        for raw in raw_blocks(shard, shard_index, slicing):
            yield _payload(raw)
            blocks += 1
        yield _payload(ShardEnd(shard_index, blocks))
    except RaydpoError as error:
        yield _payload(error)


def raw_blocks(shard: Shard, shard_index: int, slicing: Slicing) -> Iterator[RawBlock]:
    """Yield the raw blocks of a shard, reading lazily."""
    dialect = None if slicing.dialect == "auto" else slicing.dialect
    wanted = shard.columns or detect.COLUMNS | slicing.mapping.columns
    slices = read_slices(shard.url, slicing.block_pairs, wanted)
    if shard.selection is not None:
        slices = select_rows(slices, shard.selection, slicing.block_pairs)
    for index, rows in enumerate(slices):
        if index == 0:
            check_columns(rows, shard)
        dialect = dialect or _dialect(rows, shard.columns, slicing.mapping)
        yield RawBlock(shard, shard_index, index, dialect or detect.DIALECTS[0], rows)


def _dialect(rows: RowSlice, columns: frozenset[str], mapping: ColumnMapping) -> str | None:
    readable = (row.columns for row in parse_rows(rows, columns) if row.columns is not None)
    return detect.dialect_of(itertools.islice(readable, _DIALECT_ROWS), mapping)


def _payload(content: RawBlock | BlockOutcome | ShardEnd | RaydpoError) -> pa.Table:
    return pa.table({_PAYLOAD: pa.array([pickle.dumps(content, protocol=5)], pa.large_binary())})


def _tokenize_payload(batch: pa.Table, tokenizer: Any, recipe: BlockRecipe) -> pa.Table:
    if not batch.num_rows:
        return batch  # a shard without rows
    raw = pickle.loads(batch[_PAYLOAD][0].as_buffer())
    if not isinstance(raw, RawBlock):
        return batch
    try:
        return _payload(tokenize_block(raw, _fetch(tokenizer), recipe))
    except RaydpoError as error:
        return _payload(error)


@functools.lru_cache(maxsize=1)
def _fetch(tokenizer: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer behind an object reference, unpacked once per process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tasks already use all CPUs; threads on top slow them down
    fetched: PreTrainedTokenizerBase = ray.get(tokenizer)
    return fetched
