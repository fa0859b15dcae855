"""Write the good rows of a raw block to a Parquet file, which is named by the digest of its content."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raydpo.blocks import schema
from raydpo.blocks.schema import Block, BoolArray, FloatArray
from raydpo.data.encoding import TokenIds
from raydpo.data.extras import Extras, ExtrasColumn, extras_columns
from raydpo.data.index.index_entries import block_url
from raydpo.data.loss_masks import digest_of_masks, loss_masks
from raydpo.data.tokenization import EncodedPair
from raydpo.runtime import storage


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """A row that is trained on."""

    number: int
    pair: EncodedPair
    scores: tuple[FloatArray, FloatArray] | None
    """Reference log-probs of chosen and rejected, one per token, if they come from the rows."""
    extras: Extras


def write_block(shard: str, index: int, good: Sequence[TokenizedRow], cache_dir: str) -> Block:
    """Write the good rows of a raw block, the one at position `index` of its shard, and return the block.

    A file that exists is left as it is, as its name depends on all of its content.
    """
    columns = [
        [row.pair.prompt_ids for row in good],
        [row.pair.chosen_ids for row in good],
        [row.pair.rejected_ids for row in good],
    ]
    pair_ids = [f"{shard}:{row.number}" for row in good]
    content = content_digest(columns)
    scores = [row.scores for row in good if row.scores is not None]
    if scores:
        content = hashlib.sha256("".join([content, *map(_digest, scores)]).encode()).hexdigest()
    images = [row.pair.images for row in good]
    images_digest = digest_of_images(images)
    if images_digest:  # the scores depend on the pictures too
        content = hashlib.sha256(f"{content} images {images_digest}".encode()).hexdigest()
    extras = extras_columns([row.extras for row in good])
    digests = {column.name: column.digest for column in extras}
    # Another shard may have the same tokens with other pair ids, weights, margins or masks. The file name depends on
    # all, so that no file overwrites another; the scores depend on the tokens only.
    masks = loss_masks([row.pair for row in good])
    masks_digest = digest_of_masks(masks)
    marks = [f"{name} {digest}" for name, digest in digests.items()]
    marks += [f"loss masks {masks_digest}"] if masks else []
    name = hashlib.sha256("\n".join([content, *marks, *pair_ids]).encode()).hexdigest()
    url = block_url(cache_dir, f"{name}.parquet")
    if not storage.exists(url):
        table = _table(pair_ids, columns, scores, extras, masks)
        if images_digest:
            table = table.append_column(
                schema.IMAGES_FIELD, pa.array([list(row) for row in images], schema.IMAGES_TYPE)
            )
        storage.write_table(url, table)
    return Block(
        content=content,
        shard=shard,
        index=index,
        pairs=len(good),
        tokens=sum(row.pair.tokens for row in good),
        url=url,
        weights=digests.get(schema.WEIGHT, ""),
        margins=digests.get(schema.MARGIN, ""),
        loss_masks=masks_digest,
        images=images_digest,
    )


def digest_of_images(images: Sequence[Sequence[str]]) -> str:
    """Return the SHA-256 (hex) of the images of each pair's prompt, given by their digests; empty without any."""
    lines = "\n".join(" ".join(row) for row in images)
    return hashlib.sha256(lines.encode()).hexdigest() if any(images) else ""


def _table(
    pair_ids: Sequence[str],
    columns: Sequence[Sequence[TokenIds]],
    scores: Sequence[tuple[FloatArray, FloatArray]],
    extras: Sequence[ExtrasColumn],
    masks: Sequence[Sequence[BoolArray]],
) -> pa.Table:
    """Return the table of a block's file; scores, weights and margins, and masks have columns only if rows have any."""
    arrays = [pa.array(pair_ids, pa.string()), *(_list_array(column) for column in columns)]
    arrays += [_list_array(side) for side in zip(*scores, strict=True)]
    fields = list(schema.DATASET_LOGPS_SCHEMA if scores else schema.TOKENIZED_SCHEMA)
    arrays += [column.values for column in extras]
    fields += [schema.EXTRAS_FIELDS[column.name] for column in extras]
    arrays += [_list_array(side) for side in masks]
    fields += list(schema.LOSS_MASK_FIELDS) if masks else []
    return pa.table(arrays, schema=pa.schema(fields))


def _digest(sides: tuple[FloatArray, FloatArray]) -> str:
    return hashlib.sha256(b"".join(side.astype("<f4").tobytes() for side in sides)).hexdigest()


def content_digest(columns: Sequence[Sequence[TokenIds]]) -> str:
    """Return the SHA-256 (hex) of the token ids in `columns`: prompts, chosen and rejected, one int32 array per pair.

    For each column, the digest covers the number of pairs and the lengths (int64), then the ids (int32), all
    little-endian, so that different contents never give the same bytes.
    """
    digest = hashlib.sha256()
    for column in columns:
        digest.update(np.array([len(column), *map(len, column)], dtype="<i8").tobytes())
        for ids in column:
            digest.update(np.asarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def _list_array(column: Sequence[TokenIds | FloatArray | BoolArray]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in column])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(column)))
