"""Seeded samples of exactly k rows, and the slices that keep the chosen rows with their numbers."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.data.files.rows import MAX_SLICE_BYTES, parse, read_slices
from raydpo.data.mixtures import selection
from raydpo.data.mixtures.row_counts import count_rows
from raydpo.data.mixtures.selection import Draw, RowSelection, hashes, key_of, sample, select_rows, shares

MASK = (1 << 64) - 1


def splitmix64(key: int, ordinal: int) -> int:
    """Return the output of SplitMix64 (Steele et al. 2014) for the state (ordinal + key) x gamma."""
    value = (ordinal + key) * 0x9E3779B97F4A7C15 & MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def chosen(draw: Draw, rows: int) -> set[int]:
    return set(np.flatnonzero(draw.holds(0, rows)).tolist())


def test_hashes_are_those_of_splitmix64() -> None:
    key = key_of(3, "weight")
    assert hashes(key, 10**12, 5).tolist() == [splitmix64(key, 10**12 + i) for i in range(5)]
    assert splitmix64(1, 0) == 0xE220A8397B1DCDAF, "the first output of the published generator with seed 0"


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (10, 3), (1000, 1), (1000, 999), (1000, 1000), (70_000, 34_567)])
def test_a_sample_has_exactly_the_rows_with_the_smallest_hashes(rows: int, size: int) -> None:
    key = key_of(0, "weight")
    by_hash = sorted(range(rows), key=lambda i: splitmix64(key, i))
    assert chosen(sample(key, rows, size), rows) == set(by_hash[:size])


def test_a_sample_is_exact_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample(key_of(0, "weight"), 1000, 250)
    monkeypatch.setattr(selection, "_CHUNK", 7)
    assert sample(key_of(0, "weight"), 1000, 250) == whole
    assert RowSelection(100, 900, (whole,)).count() == len([i for i in chosen(whole, 1000) if i >= 100])


def test_a_smaller_sample_is_part_of_a_larger_one_and_another_seed_gives_another() -> None:
    key = key_of(0, "weight")
    small, large = chosen(sample(key, 500, 50), 500), chosen(sample(key, 500, 125), 500)
    assert small < large
    other = chosen(sample(key_of(1, "weight"), 500, 125), 500)
    assert len(other) == 125
    assert len(large & other) < 60, "two independent quarters share 31 rows on average"


def test_a_sample_within_a_sample_takes_exactly_its_rows() -> None:
    outer = sample(key_of(0, "weight"), 1000, 400)
    inner = sample(key_of(0, "test_split_size"), 1000, 100, within=outer)
    rest = RowSelection(0, 1000, (outer, Draw(inner.key, inner.limit, others=True)))
    out = RowSelection(0, 1000, (outer, inner))
    assert (out.count(), rest.count()) == (100, 300)
    assert not (out.chosen(0, 1000) & rest.chosen(0, 1000)).any()
    assert ((out.chosen(0, 1000) | rest.chosen(0, 1000)) == outer.holds(0, 1000)).all()


def test_shares_add_up_and_are_proportional() -> None:
    assert shares(10, [50, 25, 25]) == [5, 3, 2]
    assert shares(2000, [61_135, 2_000]) == [1937, 63]
    assert sum(shares(7, [1, 1, 1])) == 7


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"p{i}", "chosen": "a" * (i % 5 + 1), "rejected": "b"} for i in range(1, count + 1)]


@pytest.fixture(params=["jsonl", "jsonl.gz", "json", "parquet", "arrow"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A shard of 1,000 rows; row n has the prompt p<n>."""
    path, content = tmp_path / f"rows.{request.param}", rows(1000)
    lines = "".join(json.dumps(row) + "\n" for row in content).encode()
    match request.param:
        case "jsonl":
            path.write_bytes(lines)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines))
        case "json":
            path.write_text(json.dumps(content))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(content), path, row_group_size=300)
        case _:
            table = pa.Table.from_pylist(content)
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=130)
    return str(path)


def test_rows_are_counted(shard: str) -> None:
    assert count_rows(shard) == 1000


def test_chosen_rows_keep_their_numbers_and_fill_slices(shard: str) -> None:
    part = RowSelection(0, 1000, (sample(key_of(0, "weight"), 1000, 300),))
    wanted = (np.flatnonzero(part.chosen(0, 1000)) + 1).tolist()
    slices = list(select_rows(read_slices(shard, 128, frozenset({"prompt"})), part, 128))
    found = [[(row.number, (row.columns or {})["prompt"]) for row in parse(piece)] for piece in slices]
    assert [number for piece in found for number, _ in piece] == wanted
    assert all(prompt == f"p{number}" for piece in found for number, prompt in piece)
    assert [len(piece) for piece in found] == [128, 128, 44]
    assert [piece.first_row for piece in slices] == [piece[0][0] for piece in found]


def test_memory_is_bounded_by_bytes_too(monkeypatch: pytest.MonkeyPatch, shard: str) -> None:
    monkeypatch.setattr(selection, "MAX_SLICE_BYTES", 1000)
    part = RowSelection(0, 1000, (sample(key_of(0, "weight"), 1000, 500),))
    sizes = [len(list(parse(piece))) for piece in select_rows(read_slices(shard, 50, frozenset()), part, 400)]
    assert sum(sizes) == 500
    assert max(sizes) < 100
    assert MAX_SLICE_BYTES > 1000


def numbers(pieces: Iterator[Any]) -> list[int]:
    return [row.number for piece in pieces for row in parse(piece)]


def test_blank_lines_have_numbers_but_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) + "\n" for row in rows(10)))
    assert count_rows(str(path)) == 10
    part = RowSelection(0, 10, (sample(key_of(0, "weight"), 10, 5),))
    found = numbers(select_rows(read_slices(str(path), 3, frozenset()), part, 3))
    assert found == (2 * np.flatnonzero(part.chosen(0, 10)) + 1).tolist()


@pytest.mark.parametrize("ending", ["jsonl.gz", "parquet"])
def test_the_damage_of_a_file_is_told_of_whichever_rows_are_chosen(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows(1000)), path, row_group_size=100, compression="none")
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 2000] = b"\xff" * 2000
    else:
        compressed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows(1000)).encode())
        content = bytearray(compressed[: len(compressed) // 2])
    path.write_bytes(content)
    count = count_rows(str(path))
    draw = sample(key_of(0, "weight"), count, 1)

    def faults(*, keeps_faults: bool) -> list[str]:
        part = RowSelection(0, count, (draw,), keeps_faults)
        pieces = select_rows(read_slices(str(path), 100, frozenset()), part, 100)
        return [row.reason for piece in pieces for row in parse(piece) if row.reason]

    assert [reason.startswith("damaged") for reason in faults(keeps_faults=True)] == [True]
    assert faults(keeps_faults=False) == []
