"""Weights and margins of rows: what is read, what is refused, and what stands in the block's file."""

import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from raydpo.blocks import schema
from raydpo.blocks.schema import Block, ScoredPair
from raydpo.data.dialects.columns import ColumnMapping
from raydpo.data.dialects.pair import RowError
from raydpo.data.extras import Extras, ExtrasCounts, ExtrasOptions, read_extras
from raydpo.data.files.rows import read_slices
from raydpo.data.shards import Shard
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockOutcome, BlockRecipe, RawBlock, tokenize_block
from raydpo.reference.readers import DatasetReference, ZeroReference
from raydpo.runtime import storage
from tests.data.shard_files import COLUMNS, as_parquet

BOTH = ExtrasOptions(weight=True, margin=True)
LOG, DIFFERENCE = (replace(BOTH, margin_from_scores=how) for how in ("log", "difference"))


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({}, BOTH, Extras()),
        ({"weight": None, "margin": None}, BOTH, Extras()),
        ({"weight": 2, "margin": -0.5}, BOTH, Extras(2.0, -0.5)),
        ({"weight": 0, "margin": Decimal("1.25")}, BOTH, Extras(0.0, 1.25)),
        ({"weight": "heavy", "margin": [1]}, ExtrasOptions(), Extras(unread_margin=True)),
        ({"weight": "heavy", "margin": 1.5}, ExtrasOptions(margin=True), Extras(margin=1.5)),
        ({"score_chosen": 8.5, "score_rejected": 6}, BOTH, Extras()),
        ({"score_chosen": 8.5, "score_rejected": 6}, DIFFERENCE, Extras(margin=2.5)),
        ({"score_chosen": 6, "score_rejected": 8.5}, DIFFERENCE, Extras(margin=-2.5)),
        ({"score_chosen": 8.5, "score_rejected": 6}, LOG, Extras(margin=log(2.5))),
        ({"score_chosen": 6.5, "score_rejected": 6}, LOG, Extras(margin=log(0.5))),
        ({"margin": 7, "score_chosen": 1, "score_rejected": 2}, LOG, Extras(margin=7.0)),
    ],
)
def test_numbers_that_are_read(row: dict[str, Any], columns: ExtrasOptions, expected: Extras) -> None:
    assert read_extras(row, columns) == expected


@pytest.mark.parametrize(
    ("row", "columns", "reason"),
    [
        ({"weight": -0.5}, BOTH, "wrong weight: column 'weight' is -0.5, but a weight is at least 0"),
        ({"weight": float("nan")}, BOTH, "wrong weight: column 'weight' is nan, .* finite .* sample_weights=ignore"),
        ({"weight": 10**400}, BOTH, "wrong weight: column 'weight' is inf"),
        (
            {"weight": 1e31},
            BOTH,
            "wrong weight: column 'weight' is 1e.31, but must be a finite number of at most 1e.30",
        ),
        ({"weight": "2.0"}, BOTH, "wrong type: column 'weight' is a string, not a number; .* sample_weights=ignore"),
        ({"weight": True}, BOTH, "wrong type: column 'weight' is a boolean"),
        ({"margin": float("inf")}, BOTH, "wrong margin: column 'margin' is inf, .* use_margins=false"),
        ({"margin": Decimal("sNaN")}, BOTH, "wrong margin: column 'margin' is inf"),
        ({"margin": [0.5]}, BOTH, "wrong type: column 'margin' is a list"),
        ({"score_chosen": 1.0}, DIFFERENCE, "no margin: the row has neither 'margin' nor 'score_rejected'"),
        ({"score_rejected": 1.0}, DIFFERENCE, "no margin: the row has neither 'margin' nor 'score_chosen'"),
        ({"score_chosen": "good", "score_rejected": 1}, DIFFERENCE, "wrong type: column 'score_chosen' is a string"),
        ({"score_chosen": 6, "score_rejected": 6}, LOG, "wrong margin: score_chosen 6 is not above .* use difference"),
        ({}, replace(BOTH, margin_required=True), "no margin: the row has no 'margin', which the loss needs"),
    ],
)
def test_numbers_that_are_refused(row: dict[str, Any], columns: ExtrasOptions, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        read_extras(row, columns)


ROWS = [{"prompt": f"question {i}:", "chosen": f" yes {i}", "rejected": f" no {i} {i}"} for i in range(4)]
WEIGHTS, MARGINS = [2.0, None, 0.25, 0.0], [None, -1.5, 0.75, None]


def with_columns(**columns: list[Any]) -> list[dict[str, Any]]:
    return [{**row, **{name: values[i] for name, values in columns.items()}} for i, row in enumerate(ROWS)]


class Folder:
    """A cache, and files of rows that are tokenized into it."""

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.path = path
        self.tokenizer = tokenizer

    def tokenize(self, rows: list[dict[str, Any]], columns: ExtrasOptions = BOTH, **options: Any) -> BlockOutcome:
        """Tokenize the rows as one block, from a Parquet file of a fixed name."""
        file = self.path / "rows.parquet"
        file.write_bytes(as_parquet(rows))
        mapping = options.get("mapping", ColumnMapping())
        (raw,) = read_slices(str(file), 100, COLUMNS | mapping.columns)
        recipe = BlockRecipe(
            Truncation(), str(self.path / "cache"), str(self.path / "bad"), extras_options=columns, **options
        )
        return tokenize_block(RawBlock(Shard("rows", str(file)), 0, 0, "preference", raw), self.tokenizer, recipe)

    def block(self, rows: list[dict[str, Any]], columns: ExtrasOptions = BOTH, **options: Any) -> Block:
        block = self.tokenize(rows, columns, **options).block
        assert block is not None
        return block


@pytest.fixture
def folder(tmp_path: Path, text_tokenizer: PreTrainedTokenizerFast) -> Folder:
    return Folder(tmp_path, text_tokenizer)


def pairs_of(block: Block) -> Iterator[ScoredPair]:
    scored = ZeroReference().read(block)
    return (scored.pair(row) for row in range(len(scored)))


def test_numbers_reach_the_pairs_of_a_block_and_of_its_parts(folder: Folder) -> None:
    outcome = folder.tokenize(with_columns(weight=WEIGHTS, margin=MARGINS))
    assert outcome.extras_counts == ExtrasCounts(weights=3, margins=2)
    block = outcome.block
    assert block is not None
    assert [(pair.weight, pair.margin) for pair in pairs_of(block)] == [(2, 0), (1, -1.5), (0.25, 0.75), (0, 0)]
    assert [(pair.weight, pair.margin) for pair in pairs_of(block.part([0, 2]))] == [(2, 0), (0.25, 0.75)]


def test_rows_without_numbers_give_the_block_of_before(folder: Folder) -> None:
    plain = folder.block(ROWS, ExtrasOptions())
    written = storage.read_bytes(plain.url)
    assert storage.read_table(plain.url).schema.equals(schema.TOKENIZED_SCHEMA)
    for rows, columns in (
        (ROWS, BOTH),
        (with_columns(weight=[1.0, 1, None, 1], margin=[0, None, 0.0, 0]), BOTH),
        (with_columns(weight=WEIGHTS, margin=MARGINS), ExtrasOptions()),
    ):
        assert folder.block(rows, columns) == plain
        assert storage.read_bytes(plain.url) == written


def test_weights_name_another_file_with_the_same_scores(folder: Folder) -> None:
    blocks = [
        folder.block(ROWS),
        folder.block(with_columns(weight=WEIGHTS)),
        folder.block(with_columns(weight=[3.0, 1, 1, 1])),
        folder.block(with_columns(margin=WEIGHTS)),
        folder.block(with_columns(margin=MARGINS, weight=WEIGHTS)),
    ]
    assert len({block.content for block in blocks}) == 1, "a reference scores the tokens, whatever they weigh"
    assert len({block.url for block in blocks}) == len(blocks)
    assert len({(block.weights, block.margins) for block in blocks}) == len(blocks)
    assert [pair.weight for pair in pairs_of(blocks[2])] == [3, 1, 1, 1]
    assert [pair.weight for pair in pairs_of(blocks[1])] == [2, 1, 0.25, 0]


def test_numbers_stand_beside_reference_log_probs_of_the_rows(folder: Folder) -> None:
    logps = {"ref_chosen_logps": [-1.5] * 4, "ref_rejected_logps": [-2.5] * 4}
    block = folder.block(with_columns(weight=WEIGHTS, **logps), dataset_logps=True)
    scored = DatasetReference().read(block)
    pairs = [scored.pair(row) for row in range(len(scored))]
    assert [(pair.weight, pair.ref_chosen_logps.sum()) for pair in pairs] == [
        (2, -1.5),
        (1, -1.5),
        (0.25, -1.5),
        (0, -1.5),
    ]


def test_a_wrong_number_sends_its_row_to_quarantine_and_no_other(folder: Folder) -> None:
    outcome = folder.tokenize(with_columns(weight=[1.0, -2.0, 3.0, float("nan")]))
    assert dict(outcome.bad_reasons) == {"wrong weight": 2}
    (file,) = (folder.path / "bad").iterdir()
    bad = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["row"], "-2" in row["content"]) for row in bad] == [(2, True), (4, False)]
    block = outcome.block
    assert block is not None
    assert np.allclose([pair.weight for pair in pairs_of(block)], [1.0, 3.0])


def test_margins_that_are_not_read_are_counted(folder: Folder) -> None:
    outcome = folder.tokenize(with_columns(margin=["wide", None, "narrow", None]), ExtrasOptions(weight=True))
    assert (outcome.rows, outcome.bad_reasons, outcome.extras_counts) == (4, {}, ExtrasCounts(unread_margins=2))


def test_mapped_columns_are_weights_and_scores(folder: Folder) -> None:
    rows = [{**row, "w": 1 + i, "reward": [3.0 + i, 1.0]} for i, row in enumerate(ROWS)]
    paths = {"weight": "w", "score_chosen": "reward.0", "score_rejected": "reward.1"}
    block = folder.block(rows, DIFFERENCE, mapping=ColumnMapping.parse(paths))
    assert [(pair.weight, pair.margin) for pair in pairs_of(block)] == [(1, 2), (2, 3), (3, 4), (4, 5)]
    ignored = folder.block(with_columns(weight=WEIGHTS), mapping=ColumnMapping.parse({"weight": "none"}))
    assert ignored.weights == ""


def test_the_scores_of_completions_give_the_margin_of_best_and_worst(folder: Folder) -> None:
    rows = [{"prompt": f"{i}:", "answers": [" a", " b", " c"], "ratings": ["2", "4.5", "3"]} for i in range(2)]
    mapping = ColumnMapping.parse({"completions": "answers", "scores": "ratings"})
    block = folder.block(rows, LOG, mapping=mapping)
    assert [pair.margin for pair in pairs_of(block)] == pytest.approx([log(2.5)] * 2)
