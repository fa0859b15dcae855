"""Choose exactly k of N rows by a seeded rule, without holding N numbers, and keep the chosen rows of a shard.

Rows have an ordinal in their data set, from 0 in the order of files and rows. Its hash is a bijection of 64-bit numbers
(the output function of SplitMix64, Steele et al. 2014) of ordinal + key, so that no two rows have the same hash, and
the rows with the k smallest hashes are a sample. It depends on key, k and N only. With the same key and N, a smaller
sample is part of a larger one.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydpo.data.files.json_rows import RawRow
from raydpo.data.files.rows import MAX_SLICE_BYTES, RowSlice

Hashes = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

_CHUNK = 1 << 20
"""Number of ordinals that are hashed at a time."""
_BUCKETS = 1 << 16
_ALL = 1 << 64
_GAMMA, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_DAMAGED = "damaged"
"""How the reason of a row begins that stands for the rest of a file that cannot be read; see `streams.Damaged`."""


def key_of(seed: int, purpose: str) -> int:
    """Return the key of a draw: one of 64 bits for each seed and purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:8], "little")


def hashes(key: int, first: int, count: int) -> Hashes:
    """Return the hashes of `count` ordinals from `first` on."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64
        value = (np.arange(first, first + count, dtype=np.uint64) + np.uint64(key)) * _GAMMA
        value = (value ^ (value >> np.uint64(30))) * _FIRST
        value = (value ^ (value >> np.uint64(27))) * _SECOND
        return value ^ (value >> np.uint64(31))


@dataclass(frozen=True)
class Draw:
    """A sample of the rows of a data set: those whose hash is below a limit, or the others."""

    key: int
    limit: int
    """Exclusive; between 0 and 2**64."""
    others: bool = False

    def holds(self, first: int, count: int) -> Mask:
        """Return for `count` ordinals from `first` on whether the row is in the sample."""
        below = np.ones(count, np.bool_)
        if self.limit < _ALL:
            below = hashes(self.key, first, count) < np.uint64(self.limit)
        return ~below if self.others else below


@dataclass(frozen=True)
class RowSelection:
    """The rows of one shard that are used: those in all of the draws."""

    first: int
    """Ordinal of the shard's first row in its data set."""
    rows: int
    """Number of rows of the shard."""
    draws: tuple[Draw, ...]
    keeps_faults: bool = True
    """Whether the row that stands for the rest of a damaged file is kept in any case, as it says what is lost."""

    def chosen(self, start: int, count: int) -> Mask:
        """Return for `count` rows of the shard, from the row `start` (from 0) on, whether it is used."""
        mask = np.ones(count, np.bool_)
        for draw in self.draws:
            mask &= draw.holds(self.first + start, count)
        return mask

    def count(self) -> int:
        """Return the number of rows of the shard that are used."""
        return sum(int(self.chosen(start, count).sum()) for start, count in _spans(self.rows))


def sample(key: int, rows: int, size: int, within: Draw | None = None) -> Draw:
    """Return the draw of exactly `size` of the rows 0 to `rows` - 1, or of those of them that are in `within`."""

    def chunks() -> Iterator[Hashes]:
        for start, count in _spans(rows):
            values = hashes(key, start, count)
            yield values if within is None else values[within.holds(start, count)]

    return Draw(key, _limit(chunks, size))


def _spans(rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, _CHUNK):
        yield start, min(_CHUNK, rows - start)


def _limit(chunks: Callable[[], Iterable[Hashes]], size: int) -> int:
    """Return a limit below which exactly `size` of the values lie; all of them if there are no more than `size`.

    A first pass counts values by their highest bits, and a second collects the few in the bucket of the limit.
    """
    counts = np.zeros(_BUCKETS, np.int64)
    for values in chunks():
        counts += np.bincount((values >> np.uint64(48)).astype(np.int64), minlength=_BUCKETS)
    if size >= counts.sum():
        return _ALL
    below = np.cumsum(counts)
    bucket = int(np.searchsorted(below, size, side="right"))
    inside = np.sort(np.concatenate([values[values >> np.uint64(48) == bucket] for values in chunks()]))
    return int(inside[size - int(below[bucket] - counts[bucket])])


def shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to `sizes`, into whole numbers that add up to it (largest remainders first)."""
    every = sum(sizes)
    parts = [total * size // every for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % every), i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def select_rows(slices: Iterable[RowSlice], selection: RowSelection, slice_rows: int) -> Iterator[RowSlice]:
    """Yield the chosen rows of a shard's slices, in slices of up to `slice_rows` rows, with their numbers."""
    held, start = _Held(), 0
    for part in slices:
        batches = [] if part.batch is None else list(pa.ipc.open_stream(part.batch))
        number = part.first_row
        for batch in batches:
            mask = selection.chosen(start, batch.num_rows)
            numbers = np.arange(number, number + batch.num_rows)[mask]
            held.batches.append(batch.filter(pa.array(mask)))
            held.numbers += numbers.tolist()
            start, number = start + batch.num_rows, number + batch.num_rows
        mask = selection.chosen(start, len(part.rows))
        start += len(part.rows)
        for row, is_chosen in zip(part.rows, mask.tolist(), strict=True):
            if is_chosen or (selection.keeps_faults and (row.reason or "").startswith(_DAMAGED)):
                held.rows.append(row)
        yield from held.full(slice_rows)
    yield from held.rest()


class _Held:
    """Chosen rows that were not yielded yet: Arrow batches with their numbers, or rows of text."""

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []
        self.numbers: list[int] = []
        self.rows: list[RawRow] = []

    def full(self, slice_rows: int) -> Iterator[RowSlice]:
        """Yield slices while there are rows for a whole one, or more bytes than a slice may have."""
        while len(self.numbers) + len(self.rows) >= slice_rows or self._size() > MAX_SLICE_BYTES:
            yield self._take(slice_rows)

    def rest(self) -> Iterator[RowSlice]:
        """Yield the rows that are left."""
        if self.numbers or self.rows:
            yield self._take(len(self.numbers) + len(self.rows))

    def _size(self) -> int:
        return sum(int(batch.nbytes) for batch in self.batches) + sum(len(row.content) for row in self.rows)

    def _take(self, count: int) -> RowSlice:
        rows, self.rows = self.rows[: max(0, count - len(self.numbers))], self.rows[max(0, count - len(self.numbers)) :]
        if not self.numbers:
            return RowSlice(rows[0].number, tuple(rows))
        table = pa.Table.from_batches(self.batches)
        numbers, self.numbers = self.numbers[:count], self.numbers[count:]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(0, count))
        self.batches = table.slice(count).to_batches()
        content = bytes(sink.getvalue().to_pybytes())
        return RowSlice(numbers[0], tuple(rows), content, tuple(numbers))
