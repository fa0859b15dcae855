"""The order of an epoch's pairs: a pure function of (seed, epoch, block sizes, shuffle window).

Blocks are permuted, then cut into windows of `shuffle_window` blocks, then the pairs of a window are permuted. So a
reader holds one window at a time, whatever the size of the data, and any position can be found without the ones
before it: what a resumed run needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raydpo.blocks.schema import IntArray


def permutation(count: int, *key: int) -> IntArray:
    """A permutation of 0 .. count-1 that depends on the key alone, [count].

    Built from PCG64's raw stream, which numpy keeps the same over versions (it does not promise that of its shuffles),
    so that a run may be resumed under another numpy.
    """
    stream = np.random.PCG64(np.random.SeedSequence(list(key))).random_raw(count)
    return np.argsort(stream, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Window:
    """Consecutive positions of an epoch that are read together."""

    start: int
    """Position of its first pair in the epoch."""
    blocks: tuple[int, ...]
    """The blocks it draws from, as indices into the run's list of blocks."""
    pairs: int


class EpochOrder:
    """The order of one epoch: position -> (block, row)."""

    def __init__(self, sizes: Sequence[int], *, seed: int, epoch: int, window: int, shuffle: bool) -> None:
        """`sizes` are the pairs of each block, `window` is in blocks; without `shuffle` all stays in reading order."""
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._key = (seed, epoch)
        self._shuffle = shuffle
        blocks = permutation(len(sizes), *self._key) if shuffle else np.arange(len(sizes), dtype=np.int64)
        self.windows: list[Window] = []
        start = 0
        for first in range(0, len(blocks), window):
            members = tuple(int(block) for block in blocks[first : first + window])
            pairs = int(self._sizes[list(members)].sum())
            self.windows.append(Window(start, members, pairs))
            start += pairs
        self.pairs = start
        """Pairs in the epoch."""
        self._starts = [entry.start for entry in self.windows]

    def window_of(self, position: int) -> int:
        """Index of the window that holds a position (0 <= position < pairs)."""
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def window_rows(self, index: int) -> IntArray:
        """The window's pairs in training order, [pairs, 2]: block (index into the run's blocks), row in the block."""
        window = self.windows[index]
        blocks = np.repeat(np.asarray(window.blocks, dtype=np.int64), self._sizes[list(window.blocks)])
        rows = np.concatenate([np.arange(self._sizes[block], dtype=np.int64) for block in window.blocks])
        pairs = np.stack([blocks, rows], axis=1)
        return pairs[permutation(len(pairs), *self._key, index + 1)] if self._shuffle else pairs


def grouped(keys: Sequence[bytes]) -> IntArray:
    """Indices that put equal keys one after the other, where the first of them stood; else the order stays, [keys]."""
    first: dict[bytes, int] = {}
    return np.argsort([first.setdefault(key, index) for index, key in enumerate(keys)], kind="stable").astype(np.int64)


def steps_per_epoch(pairs: int, global_batch: int) -> int:
    """Optimizer steps in an epoch; the last one takes what is left, so that no pair is dropped."""
    return -(-pairs // global_batch)


def position_of(step: int, pairs: int, global_batch: int) -> int:
    """Position after `step` updates: pairs consumed since the start of the run, `pairs` an epoch."""
    epochs, steps = divmod(step, steps_per_epoch(pairs, global_batch))
    return epochs * pairs + min(steps * global_batch, pairs)


def step_of(position: int, pairs: int, global_batch: int) -> int:
    """Updates made before a position at which a global batch starts."""
    epochs, offset = divmod(position, pairs)
    return epochs * steps_per_epoch(pairs, global_batch) + offset // global_batch


def batch_bounds(position: int, pairs: int, global_batch: int) -> tuple[int, int]:
    """Where the global batch at a position starts and stops, in pairs since the start of the run.

    A batch never reaches over the end of an epoch (`pairs` long), so that each epoch holds each pair exactly once.
    """
    epoch_end = (position // pairs + 1) * pairs
    return position, min(position + global_batch, epoch_end)
