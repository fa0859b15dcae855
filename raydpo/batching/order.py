"""The order of the pairs in an epoch: a pure function of (seed, epoch, block sizes, shuffle window).

Blocks are permuted, then cut into windows of `shuffle_window` blocks, then the pairs of each window are permuted. A
reader therefore holds one window at a time, whatever the size of the data, and a resumed run finds any position without
going through the positions before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raydpo.blocks.schema import IntArray


def permutation(count: int, *key: int) -> IntArray:
    """Return a permutation of 0 .. count-1, [count], that depends only on the key.

    It is built from the raw stream of PCG64, which numpy keeps stable across versions (unlike its shuffles), so that a
    run can be resumed under another version of numpy.
    """
    stream = np.random.PCG64(np.random.SeedSequence(list(key))).random_raw(count)
    return np.argsort(stream, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Window:
    """A shuffle window: consecutive positions of an epoch that are read together."""

    start: int
    """Position of the window's first pair in the epoch."""
    blocks: tuple[int, ...]
    """Blocks whose pairs form the window, as indices into the run's list of blocks."""
    pairs: int
    """Number of pairs in the window."""


class EpochOrder:
    """The order of one epoch: it maps each position to a block and a row in that block."""

    def __init__(self, sizes: Sequence[int], *, seed: int, epoch: int, window: int, shuffle: bool) -> None:
        """Build the order from the number of pairs per block and the shuffle window, in blocks.

        Without `shuffle`, the pairs stay in reading order.
        """
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
        """Number of pairs in the epoch."""
        self._starts = [entry.start for entry in self.windows]

    def window_of(self, position: int) -> int:
        """Return the index of the window that contains a position (0 <= position < pairs)."""
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def window_rows(self, index: int) -> IntArray:
        """Return the (block, row) of each of the window's pairs in training order, [pairs, 2].

        Blocks are indices into the run's list of blocks.
        """
        window = self.windows[index]
        blocks = np.repeat(np.asarray(window.blocks, dtype=np.int64), self._sizes[list(window.blocks)])
        rows = np.concatenate([np.arange(self._sizes[block], dtype=np.int64) for block in window.blocks])
        pairs = np.stack([blocks, rows], axis=1)
        return pairs[permutation(len(pairs), *self._key, index + 1)] if self._shuffle else pairs


def group_equal_keys(keys: Sequence[bytes]) -> IntArray:
    """Return indices, [keys], that move equal keys to the place of the first of them and otherwise keep the order."""
    first: dict[bytes, int] = {}
    return np.argsort([first.setdefault(key, index) for index, key in enumerate(keys)], kind="stable").astype(np.int64)


def steps_per_epoch(pairs: int, global_batch: int) -> int:
    """Return the number of optimizer steps per epoch; the last one takes what remains, so that no pair is dropped."""
    return -(-pairs // global_batch)


def position_of(step: int, pairs: int, global_batch: int) -> int:
    """Return the position after `step` updates: pairs consumed since the start of the run, with `pairs` per epoch."""
    epochs, steps = divmod(step, steps_per_epoch(pairs, global_batch))
    return epochs * pairs + min(steps * global_batch, pairs)


def step_of(position: int, pairs: int, global_batch: int) -> int:
    """Return the number of updates before a position at which a global batch starts."""
    epochs, offset = divmod(position, pairs)
    return epochs * steps_per_epoch(pairs, global_batch) + offset // global_batch


def global_batch_bounds(position: int, pairs: int, global_batch: int) -> tuple[int, int]:
    """Return (start, stop) of the global batch at a position, in pairs since the start of the run.

    A batch never crosses the end of an epoch (of `pairs` pairs), so that each epoch contains each pair exactly once.
    """
    epoch_end = (position // pairs + 1) * pairs
    return position, min(position + global_batch, epoch_end)
