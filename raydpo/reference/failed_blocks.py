"""Blocks that no scoring worker survives: their pairs go to quarantine, and the run continues without them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from raydpo.blocks.block import TokenizedBlock
from raydpo.blocks.schema import Block, IntArray
from raydpo.data import quarantine
from raydpo.data.prepare import PreparedData, ShardCounts
from raydpo.data.quarantine import BadRow
from raydpo.errors import DataError
from raydpo.runtime import storage

REASON = "kills the scorer"
"""Kind of fault of these rows, in quarantine files and in summary.json."""


def quarantine_blocks(
    data: PreparedData,
    failed_blocks: Sequence[Block],
    quarantine_dir: str,
    decode: Callable[[IntArray], str],
    max_bad_rows: int | None,
) -> PreparedData:
    """Return the data without its failed blocks, whose pairs are written to the folder reference in `quarantine_dir`.

    All pairs of a failed block go there, as it is not known which one is the cause. Raises DataError where there are
    then more than `max_bad_rows` bad rows (None: no limit), or where no pair is left.
    """
    contents = {block.content for block in failed_blocks}
    bad = [block for block in data.blocks if block.content in contents]
    if not bad:
        return data
    folder = storage.join(quarantine_dir, "reference")
    for block in bad:
        rows = _rows(block, decode)
        quarantine.write(folder, rows[0].row, data.files[block.shard], rows)
    pairs = sum(block.pairs for block in bad)
    total = data.rows_quarantined + pairs
    kept = tuple(block for block in data.blocks if block.content not in contents)
    if (max_bad_rows is not None and total > max_bad_rows) or not kept:
        verdict = f"more than max_bad_rows={max_bad_rows}" if kept else "and no good row is left"
        raise DataError(
            f"{total} bad rows, {verdict}: {pairs} of them are in {len(bad)} blocks on which scoring workers died, the "
            f"first in {data.files[bad[0].shard]}. See {folder}; lower block_pairs to find the row, give scoring "
            "workers more memory, or raise max_bad_rows"
        )
    return dataclasses.replace(
        data,
        blocks=kept,
        rows_quarantined=total,
        bad_reasons={**data.bad_reasons, REASON: pairs},
        by_shard=_with_failed(data.by_shard, bad),
    )


def _with_failed(counts: Mapping[str, ShardCounts], bad: Sequence[Block]) -> dict[str, ShardCounts]:
    """Return the counts with the pairs of failed blocks among the bad rows."""
    found = dict(counts)
    for block in bad:
        if block.shard in found:
            shard = found[block.shard]
            found[block.shard] = ShardCounts(shard.read, shard.quarantined + block.pairs)
    return found


def _rows(block: Block, decode: Callable[[IntArray], str]) -> list[BadRow]:
    tokenized = TokenizedBlock(block)
    rows = []
    for index in range(len(tokenized)):
        pair = tokenized.pair(index)
        texts = [decode(ids) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)]
        row = int(pair.pair_id.rpartition(":")[2])
        rows.append(BadRow(block.shard, row, REASON, quarantine.shorten("\n---\n".join(texts))))
    return rows
