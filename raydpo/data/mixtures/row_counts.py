"""Count the rows of shards without parsing them, in parallel on the cluster."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from raydpo.data.files.rows import read_slices
from raydpo.data.files.streams import ShardStream, content_kind
from raydpo.errors import RaydpoError

_SLICE_ROWS = 4096
_CPUS = 0.5
"""CPUs per counting task, which mostly waits for its store."""


def count_rows(url: str) -> int:
    """Return the number of rows that `read_slices` yields: good ones, and bad ones, which have numbers too.

    Parquet is counted from its footer, other files by reading them. Raises DataError if the file cannot be read.
    """
    with ShardStream(url) as stream:
        kind = content_kind(stream.read(8))
        stream.seek(0)
        try:
            if kind == "parquet":
                return int(pq.ParquetFile(stream, pre_buffer=False).metadata.num_rows)
        except (pa.ArrowException, OSError):
            pass  # damaged: it has the rows that can be read
    total = 0
    for part in read_slices(url, _SLICE_ROWS, frozenset()):
        batches = () if part.batch is None else pa.ipc.open_stream(part.batch)
        total += len(part.rows) + sum(batch.num_rows for batch in batches)
    return total


def count_all(urls: Sequence[str], on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[int]:
    """Return the number of rows of each shard, counted by tasks of the Ray cluster.

    `on_progress` receives the number of shards that are counted, and of all.
    """
    remote: Any = ray.remote
    task = remote(num_cpus=_CPUS)(_count)
    pending = {task.remote(url): index for index, url in enumerate(urls)}
    counts = [0] * len(urls)
    while pending:
        done, _ = ray.wait(list(pending), num_returns=1)
        found = ray.get(done[0])
        if isinstance(found, RaydpoError):
            raise found
        counts[pending.pop(done[0])] = found
        on_progress(len(urls) - len(pending), len(urls))
    return counts


def _count(url: str) -> int | RaydpoError:
    # Returned as a value: an exception would reach the driver inside one of Ray's, with its stack frames.
    try:
        return count_rows(url)
    except RaydpoError as error:
        return error
