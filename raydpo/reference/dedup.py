"""A completion of a prompt is scored once, however many pairs contain it: within a block, and across blocks of a run.

Across blocks, the first block that contains a completion scores it, and later blocks reuse that score. No scoring
worker waits for another: for a block that reuses scores it writes a file of the part that it computed, and the pool
fills in the reused scores once their source blocks are scored.
"""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raydpo.blocks.block import TokenizedBlock, write_scores
from raydpo.blocks.schema import Block, IntArray, TokenizedPair
from raydpo.errors import DamagedFile
from raydpo.reference.store import READERS, ReferenceStore
from raydpo.runtime import storage

_log = logging.getLogger(__name__)

KEY_BYTES = 16
MAX_SOURCE_BLOCKS = 16
"""Largest number of blocks that a block reuses scores from: the ones with the most of them, as each has to be read."""
CHOSEN, REJECTED = 0, 1
Place = tuple[int, int]
"""Where a completion stands in a block: the row of its pair, and CHOSEN or REJECTED."""
Keys = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class ReusedScores:
    """The scores that a block takes from earlier blocks."""

    source_blocks: tuple[Block, ...]
    places: IntArray
    """[completions, 5]: row and side in this block, index of the source block, row and side in the source block."""


NOTHING_REUSED = ReusedScores((), np.zeros((0, 5), dtype=np.int64))


def completion_keys(block: Block) -> Keys:
    """Read a block; return [pairs, 2] digests of each prompt (and images) with its chosen and rejected completion."""
    tokenized = TokenizedBlock(block)
    keys = np.zeros((len(tokenized), 2), dtype=f"S{KEY_BYTES}")
    for row in range(len(tokenized)):
        pair = tokenized.pair(row)
        prompt = hashlib.blake2b(len(pair.prompt_ids).to_bytes(8, "little"), digest_size=KEY_BYTES)
        prompt.update(pair.prompt_ids.tobytes())
        prompt.update("".join(pair.images).encode())
        for side, ids in enumerate((pair.chosen_ids, pair.rejected_ids)):
            sequence = prompt.copy()
            sequence.update(ids.tobytes())
            keys[row, side] = sequence.digest()
    return keys


def find_reused_scores(blocks: Sequence[Block]) -> dict[str, ReusedScores]:
    """Read blocks of different content; return what each can reuse from those before it, by the block's content."""
    with ThreadPoolExecutor(READERS) as threads:
        return find_reused(blocks, list(threads.map(completion_keys, blocks)))


def find_reused(blocks: Sequence[Block], keys: Sequence[Keys]) -> dict[str, ReusedScores]:
    """Return what each block can reuse from those before it, by content; blocks that reuse nothing are left out.

    `keys` are the blocks' `completion_keys`; there must be at least one block.
    """
    flat = np.concatenate([part.reshape(-1) for part in keys])
    starts = np.cumsum([0, *(part.size for part in keys)])
    _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    source = first[inverse]
    owner = np.searchsorted(starts, source, side="right") - 1
    reused = {}
    for index, block in enumerate(blocks):
        here = np.arange(starts[index], starts[index + 1])
        sources, counts = np.unique(owner[here[owner[here] < index]], return_counts=True)
        if len(sources) == 0:
            continue
        sources = np.sort(sources[np.argsort(-counts, kind="stable")[:MAX_SOURCE_BLOCKS]])
        taken = here[np.isin(owner[here], sources)]
        own, there = taken - starts[index], source[taken] - starts[owner[taken]]
        which = np.searchsorted(sources, owner[taken])
        places = np.stack([own // 2, own % 2, which, there // 2, there % 2], axis=1)
        reused[block.content] = ReusedScores(tuple(blocks[number] for number in sources), places)
    return reused


def fill_in(store: ReferenceStore, block: Block, reused: ReusedScores) -> bool:
    """Complete a block whose own part is scored; return False where a source block's scores are missing after all."""
    chosen, rejected = store.read_scores(store.part_url(block))
    sides = [[values[row] for row in range(block.pairs)] for values in (chosen, rejected)]
    for index, source_block in enumerate(reused.source_blocks):
        try:
            source_scores = store.read_scores(store.url(source_block))
        except (FileNotFoundError, DamagedFile) as error:
            _log.warning(
                "A block of %s is scored as a whole, as the scores to reuse from %s are missing: %s",
                block.shard,
                source_block.shard,
                error,
            )
            return False
        for row, side, _, there, other in reused.places[reused.places[:, 2] == index].tolist():
            sides[side][row] = source_scores[other][there]
    write_scores(store.url(block), *sides)
    storage.remove(store.part_url(block))
    return True


@dataclass(frozen=True)
class PromptCompletions:
    """A prompt of a block with its different completions."""

    prompt: IntArray
    """[tokens]"""
    completions: list[IntArray]
    """Each [tokens]."""
    places: list[list[Place]]
    """For each completion, the places in the block that it stands at."""
    images: tuple[str, ...] = ()
    """Digest of each image of the prompt, in the order of its tokens."""


def unique_completions(pairs: Sequence[TokenizedPair], reused: ReusedScores) -> list[PromptCompletions]:
    """Return the different completions of a block's pairs by prompt, without those whose scores are reused."""
    skipped = {(row, side) for row, side, *_ in reused.places.tolist()}
    found: dict[tuple[bytes, tuple[str, ...]], tuple[IntArray, dict[bytes, tuple[IntArray, list[Place]]]]] = {}
    for row, pair in enumerate(pairs):
        for side, ids in enumerate((pair.chosen_ids, pair.rejected_ids)):
            if (row, side) not in skipped:
                key = (pair.prompt_ids.tobytes(), pair.images)
                _, completions = found.setdefault(key, (pair.prompt_ids, {}))
                completions.setdefault(ids.tobytes(), (ids, []))[1].append((row, side))
    return [
        PromptCompletions(prompt, [ids for ids, _ in unique.values()], [where for _, where in unique.values()], images)
        for (_, images), (prompt, unique) in found.items()
    ]
