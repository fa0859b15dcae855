"""Mixtures: which files, columns and rows each data set gives, and that others do not change them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.mixture import DatasetEntry
from raydpo.data.files.rows import parse
from raydpo.data.mixtures.mixture import Mixture, draw_rows, find_entries
from raydpo.data.mixtures.row_counts import count_rows
from raydpo.data.mixtures.shard_rows import parse_rows
from raydpo.data.ray_stream import Slicing, raw_blocks
from raydpo.data.shards import Shard
from raydpo.errors import DataError

SIZES = {"one": 850, "two": 341, "three": 99, "four": 500}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data sets of SIZES rows; the first has three files."""
    for name, size in SIZES.items():
        files = 3 if name == "one" else 1
        for index in range(files):
            path = tmp_path / name / f"train-{index}.jsonl"
            path.parent.mkdir(exist_ok=True)
            count = size // files if index else size - (files - 1) * (size // files)
            row = {"prompt": f"{name} {index}", "chosen": "a", "rejected": "b", "source": "x"}
            path.write_text("".join(json.dumps({**row, "n": n}) + "\n" for n in range(1, count + 1)))
    return tmp_path


def count(urls: Sequence[str]) -> list[int]:
    return [count_rows(url) for url in urls]


def rows_of(shards: Sequence[Shard]) -> set[tuple[str, int]]:
    """Return (URL, number) of every row that is read from the shards."""
    found = [
        (shard.url, row.number)
        for index, shard in enumerate(shards)
        for block in raw_blocks(shard, index, Slicing("auto", 64))
        for row in parse(block.rows)
    ]
    assert len(found) == len(set(found))
    return set(found)


def mixture(
    folder: Path, weights: dict[str, float], test_size: float | None = None, seed: int = 0, **options: Any
) -> Mixture:
    entries = [DatasetEntry(str(folder / name), weight=weight, **options) for name, weight in weights.items()]
    return draw_rows(find_entries(entries, "train"), seed, test_size, count)


WEIGHTS = {"one": 0.5, "two": 0.25, "three": 0.1}


def test_each_data_set_gives_its_share_whatever_the_others_are(folder: Path) -> None:
    first = mixture(folder, WEIGHTS)
    assert [entry.taken for entry in first.entries] == [425, 85, 9]
    assert [entry.rows for entry in first.entries] == [850, 341, 99]
    rows = rows_of(first.train)
    assert len(rows) == 425 + 85 + 9
    with_fourth = mixture(folder, {"four": 1.0, **dict(reversed(WEIGHTS.items()))})
    assert rows <= rows_of(with_fourth.train)
    assert (with_fourth.entries[0].rows, with_fourth.entries[0].taken) == (None, None), "needs no count"
    assert len(rows_of(with_fourth.train) - rows) == 500
    assert rows != rows_of(mixture(folder, WEIGHTS, seed=1).train)


def test_renaming_and_moving_a_data_set_keeps_its_rows(folder: Path) -> None:
    before = {number for url, number in rows_of(mixture(folder, {"two": 0.25}).train)}
    (folder / "two").rename(folder / "elsewhere")
    assert {number for url, number in rows_of(mixture(folder, {"elsewhere": 0.25}).train)} == before


def test_without_weights_and_held_out_rows_nothing_is_counted(folder: Path) -> None:
    def no_count(urls: Sequence[str]) -> list[int]:
        raise AssertionError(urls)

    found = draw_rows(find_entries([DatasetEntry(str(folder))], "train"), 0, None, no_count)
    assert [shard.selection for shard in found.train] == [None] * 6
    assert found.held_out == ()


@pytest.mark.parametrize(("size", "held_out"), [(0.1, 52), (30, 30), (1, 1)])
def test_held_out_rows_are_the_rest_of_the_training_rows(folder: Path, size: float, held_out: int) -> None:
    every = rows_of(mixture(folder, WEIGHTS).train)
    split = mixture(folder, WEIGHTS, size)
    train, test = rows_of(split.train), rows_of(split.held_out)
    assert len(test) == held_out
    assert train.isdisjoint(test)
    assert train | test == every
    assert sum(entry.held_out for entry in split.entries) == held_out
    assert [(entry.taken or 0) + entry.held_out for entry in split.entries] == [425, 85, 9]


def test_a_data_set_holds_out_the_same_rows_when_another_is_added(folder: Path) -> None:
    alone, together = mixture(folder, {"two": 1.0}, 0.2), mixture(folder, {"two": 1.0, "four": 1.0}, 0.2)
    held_out = rows_of(alone.held_out)
    assert len(held_out) == 69
    assert len(held_out ^ {row for row in rows_of(together.held_out) if "/two/" in row[0]}) <= 1, "rounding"


def test_columns_are_selected_before_the_rows_are_understood(folder: Path) -> None:
    (shard,) = mixture(folder, {"two": 1.0}, columns=("chosen", "rejected")).train
    block = next(raw_blocks(shard, 0, Slicing("auto", 64)))
    for row in parse_rows(block.rows, shard.columns):
        assert row.columns is not None
        assert row.columns.keys() == {"chosen", "rejected"}
    (wrong,) = mixture(folder, {"two": 1.0}, columns=("chosen", "rejcted")).train
    with pytest.raises(DataError, match=r"names rejcted, which no row at the start of .*chosen, n, prompt, rejected"):
        next(raw_blocks(wrong, 0, Slicing("auto", 64)))


def test_entries_name_folders_files_and_formats(folder: Path) -> None:
    for entry, names in [
        (DatasetEntry(str(folder), data_dir="one"), ["train-0.jsonl", "train-1.jsonl", "train-2.jsonl"]),
        (DatasetEntry(str(folder), data_files=("one/train-[12].jsonl",)), ["train-1.jsonl", "train-2.jsonl"]),
        (DatasetEntry("json", data_files=(str(folder / "two/train-0.jsonl"),)), ["train-0.jsonl"]),
        (DatasetEntry(str(folder / "two"), "default"), ["train-0.jsonl"]),
    ]:
        ((found),) = find_entries([entry], "train")
        assert [shard.name for shard in found.shards] == names
    split = find_entries([DatasetEntry(str(folder / "two"), split="train")], "test")
    assert len(split[0].shards) == 1, "the split of the entry counts"


def test_faults_of_a_mixture_name_the_remedy(folder: Path) -> None:
    for weights, options, message in [
        ({"three": 0.001}, {}, r"weight=0\.001 of the 99 rows of .*three is no row; raise it"),
        ({"three": 1.0}, {"name": "en"}, r"dataset_config='en' .*three is a path; leave it out"),
        ({"three": 1.0}, {"split": "test"}, r"no split 'test', only 'train'"),
    ]:
        with pytest.raises(DataError, match=message):
            mixture(folder, weights, **options)
    with pytest.raises(DataError, match=r"test_split_size=0\.999 holds out 99 rows, and the training data has 99"):
        mixture(folder, {"three": 1.0}, 0.999)
    twice = [DatasetEntry(str(folder / "two")), DatasetEntry(str(folder / "two" / "train-0.jsonl"), weight=0.5)]
    with pytest.raises(DataError, match="is named twice"):
        find_entries(twice, "train")
