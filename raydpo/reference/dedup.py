"""A completion of a prompt is scored once, however many pairs hold it: in one block, or in the first of several.

No scorer waits for another: of a block that others lend to it writes what it scored, and once those are there, what is
lacking is filled in from them.
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
"""Blocks that a block takes scores from; those that lend it most. Each is read to fill it up."""
CHOSEN, REJECTED = 0, 1
Place = tuple[int, int]
"""Of a completion in a block: its pair's row, and CHOSEN or REJECTED."""
Keys = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class ReusedScores:
    """Scores that a block takes from blocks before it."""

    source_blocks: tuple[Block, ...]
    places: IntArray
    """[completions, 5]: row and side here; which lender; row and side there."""


NOTHING_REUSED = ReusedScores((), np.zeros((0, 5), dtype=np.int64))


def completion_keys(block: Block) -> Keys:
    """[pairs, 2] digests of each prompt with its chosen and with its rejected completion; reads the block."""
    tokenized = TokenizedBlock(block)
    keys = np.zeros((len(tokenized), 2), dtype=f"S{KEY_BYTES}")
    for row in range(len(tokenized)):
        pair = tokenized.pair(row)
        prompt = hashlib.blake2b(len(pair.prompt_ids).to_bytes(8, "little"), digest_size=KEY_BYTES)
        prompt.update(pair.prompt_ids.tobytes())
        for side, ids in enumerate((pair.chosen_ids, pair.rejected_ids)):
            whole = prompt.copy()
            whole.update(ids.tobytes())
            keys[row, side] = whole.digest()
    return keys


def find_reused_scores(blocks: Sequence[Block]) -> dict[str, ReusedScores]:
    """What each block can take from those before it, by its content; reads the blocks, which differ in content."""
    with ThreadPoolExecutor(READERS) as threads:
        return find_reused(blocks, list(threads.map(completion_keys, blocks)))


def find_reused(blocks: Sequence[Block], keys: Sequence[Keys]) -> dict[str, ReusedScores]:
    """The same from the blocks' keys (at least one); blocks that take nothing are left out."""
    flat = np.concatenate([part.reshape(-1) for part in keys])
    starts = np.cumsum([0, *(part.size for part in keys)])
    _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    source = first[inverse]
    owner = np.searchsorted(starts, source, side="right") - 1
    reused = {}
    for index, block in enumerate(blocks):
        here = np.arange(starts[index], starts[index + 1])
        source_blocks, counts = np.unique(owner[here[owner[here] < index]], return_counts=True)
        if len(source_blocks) == 0:
            continue
        source_blocks = np.sort(source_blocks[np.argsort(-counts, kind="stable")[:MAX_SOURCE_BLOCKS]])
        taken = here[np.isin(owner[here], source_blocks)]
        own, there = taken - starts[index], source[taken] - starts[owner[taken]]
        which = np.searchsorted(source_blocks, owner[taken])
        places = np.stack([own // 2, own % 2, which, there // 2, there % 2], axis=1)
        reused[block.content] = ReusedScores(tuple(blocks[source_block] for source_block in source_blocks), places)
    return reused


def fill_in(store: ReferenceStore, block: Block, reused: ReusedScores) -> bool:
    """Fill up a block of which a part is scored; False where one that lends to it is not there after all."""
    chosen, rejected = store.read_scores(store.part_url(block))
    sides = [[values[row] for row in range(block.pairs)] for values in (chosen, rejected)]
    for index, source_block in enumerate(reused.source_blocks):
        try:
            reused_scores = store.read_scores(store.url(source_block))
        except (FileNotFoundError, DamagedFile) as error:
            _log.warning(
                "A block of %s is scored anew, as %s has nothing to lend: %s", block.shard, source_block.shard, error
            )
            return False
        for row, side, _, there, other in reused.places[reused.places[:, 2] == index].tolist():
            sides[side][row] = reused_scores[other][there]
    write_scores(store.url(block), *sides)
    storage.remove(store.part_url(block))
    return True


@dataclass(frozen=True)
class UniqueCompletions:
    """The different completions of a block, two of one prompt a pair; one that is left over is both sides of one."""

    pairs: list[TokenizedPair]
    places: list[tuple[list[Place], list[Place]]]
    """Of each pair's two completions, where they stand in the block."""

    @property
    def completions(self) -> int:
        """How many there are."""
        return sum(2 if rejected else 1 for _, rejected in self.places)


def unique_completions(pairs: Sequence[TokenizedPair], reused: ReusedScores) -> UniqueCompletions:
    """The completions of some pairs, each once, without those that others lend."""
    reused_scores = {(row, side) for row, side, *_ in reused.places.tolist()}
    prompts: dict[bytes, IntArray] = {}
    found: dict[bytes, dict[bytes, tuple[IntArray, list[Place]]]] = {}
    for row, pair in enumerate(pairs):
        for side, ids in enumerate((pair.chosen_ids, pair.rejected_ids)):
            if (row, side) not in reused_scores:
                prompt = pair.prompt_ids.tobytes()
                prompts.setdefault(prompt, pair.prompt_ids)
                found.setdefault(prompt, {}).setdefault(ids.tobytes(), (ids, []))[1].append((row, side))
    made: list[TokenizedPair] = []
    places: list[tuple[list[Place], list[Place]]] = []
    for prompt, completions in found.items():
        each = iter(completions.values())
        for chosen, its_places in each:
            rejected, other_places = next(each, (chosen, []))
            made.append(TokenizedPair("", prompts[prompt], chosen, rejected))
            places.append((its_places, other_places))
    return UniqueCompletions(made, places)
