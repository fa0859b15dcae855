"""Tokenized blocks and their scores (reference log-probs), read from and written to Parquet files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydpo.blocks import schema
from raydpo.blocks.schema import Block, BoolArray, FloatArray, IntArray, ScoredPair, TokenizedPair
from raydpo.errors import ReferenceMismatch
from raydpo.runtime import storage


class ListColumn:
    """A list column of an Arrow table with cheap access to single rows."""

    def __init__(self, table: pa.Table, name: str) -> None:
        column = table.column(name).combine_chunks()
        self._values = column.flatten().to_numpy(zero_copy_only=False)
        self._ends = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))])

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = self._values[self._ends[row] : self._ends[row + 1]]
        return values

    def __len__(self) -> int:
        return len(self._ends) - 1


class TokenizedBlock:
    """The pairs of one tokenized block, or of a part of it, read into memory."""

    def __init__(self, block: Block) -> None:
        """Read the block's Parquet file, which has the columns of `schema.TOKENIZED_SCHEMA`."""
        all_rows = storage.read_table(block.url)
        self.table = table = all_rows if block.rows is None else all_rows.take(list(block.rows))
        """The block's rows with all columns of the file, which include scores with `reference_from_dataset`."""
        self.pair_ids: list[str] = table.column(schema.PAIR_ID).to_pylist()
        self._prompts = ListColumn(table, schema.PROMPT_IDS)
        self._chosen = ListColumn(table, schema.CHOSEN_IDS)
        self._rejected = ListColumn(table, schema.REJECTED_IDS)
        names = {field.name for field in schema.LOSS_MASK_FIELDS} & set(table.column_names)
        self._loss_masks = {name: ListColumn(table, name) for name in names}
        has_images = schema.IMAGES in table.column_names
        self._images: list[list[str]] = table.column(schema.IMAGES).to_pylist() if has_images else []

    def __len__(self) -> int:
        return len(self.pair_ids)

    def numbers(self, name: str, default: float) -> list[float]:
        """Return the numbers in a column of `schema.EXTRAS_FIELDS`, one per row; the default if the file lacks it."""
        if name not in self.table.column_names:
            return [default] * len(self)
        values: list[float] = self.table.column(name).to_pylist()
        return values

    def prompt(self, row: int) -> IntArray:
        """Return the token ids of the prompt in a row, [tokens]."""
        return self._prompts[row].astype(np.int64)

    def pair(self, row: int) -> TokenizedPair:
        """Return the pair in a row."""
        return TokenizedPair(
            pair_id=self.pair_ids[row],
            prompt_ids=self.prompt(row),
            chosen_ids=self._chosen[row].astype(np.int64),
            rejected_ids=self._rejected[row].astype(np.int64),
            chosen_loss_mask=self._loss_mask(schema.CHOSEN_LOSS_MASK, row),
            rejected_loss_mask=self._loss_mask(schema.REJECTED_LOSS_MASK, row),
            images=tuple(self._images[row]) if self._images else (),
        )

    def _loss_mask(self, name: str, row: int) -> BoolArray | None:
        """Return a completion's loss mask; None if the block has no masks."""
        return self._loss_masks[name][row] if name in self._loss_masks else None


class ScoredBlock:
    """The pairs of a tokenized block joined row by row with their scores."""

    def __init__(self, tokenized: TokenizedBlock, scores: pa.Table, url: str) -> None:
        """Join the block with the table of scores that was read from `url`; error messages name the URL.

        Raises ReferenceMismatch if the numbers of rows differ.
        """
        self._tokenized = tokenized
        self._url = url
        self._chosen = ListColumn(scores, schema.REF_CHOSEN_LOGPS)
        self._rejected = ListColumn(scores, schema.REF_REJECTED_LOGPS)
        self._weights, self._margins = tokenized.numbers(schema.WEIGHT, 1.0), tokenized.numbers(schema.MARGIN, 0.0)
        if len(self._chosen) != len(tokenized):
            raise self._mismatch(f"{len(self._chosen)} rows for {len(tokenized)} pairs")

    def __len__(self) -> int:
        return len(self._tokenized)

    def prompt(self, row: int) -> IntArray:
        """Return the token ids of the prompt in a row, [tokens]."""
        return self._tokenized.prompt(row)

    def pair(self, row: int) -> ScoredPair:
        """Return the pair in a row, with its scores.

        Raises ReferenceMismatch if the numbers of scores and completion tokens differ.
        """
        pair = self._tokenized.pair(row)
        chosen, rejected = self._chosen[row], self._rejected[row]
        if (len(chosen), len(rejected)) != (len(pair.chosen_ids), len(pair.rejected_ids)):
            raise self._mismatch(f"row {row} has a different number of tokens than pair {pair.pair_id}")
        return ScoredPair(
            pair_id=pair.pair_id,
            prompt_ids=pair.prompt_ids,
            chosen_ids=pair.chosen_ids,
            rejected_ids=pair.rejected_ids,
            ref_chosen_logps=chosen,
            ref_rejected_logps=rejected,
            chosen_loss_mask=pair.chosen_loss_mask,
            rejected_loss_mask=pair.rejected_loss_mask,
            weight=self._weights[row],
            margin=self._margins[row],
            images=pair.images,
        )

    def _mismatch(self, problem: str) -> ReferenceMismatch:
        """Return the error for scores that belong to another block."""
        return ReferenceMismatch(f"the scores in {self._url} do not match their block: {problem}; delete that file")


def scores_table(chosen: Sequence[FloatArray], rejected: Sequence[FloatArray]) -> pa.Table:
    """Return a block's scores as a table: one row per pair, with the log-prob of each token of its completions."""
    columns = [pa.array(list(values), type=pa.list_(pa.float32())) for values in (chosen, rejected)]
    return pa.Table.from_arrays(columns, schema=schema.SCORES_SCHEMA)


def write_scores(url: str, chosen: Sequence[FloatArray], rejected: Sequence[FloatArray]) -> None:
    """Write a block's scores to a Parquet file with the columns of `schema.SCORES_SCHEMA`."""
    storage.write_table(url, scores_table(chosen, rejected))
