"""jobs/reference_store.py: what it reports about a store, and what it removes from it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from raydpo.blocks.block import write_scores
from raydpo.blocks.schema import Block, FloatArray
from raydpo.cli.reference_store import main
from raydpo.data.index import index_entries
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.maintenance import damaged, prunable, prune, stored_references, stored_tokens
from raydpo.reference.store import ReferenceStore

DAY = 86_400


def logps(*values: float) -> list[FloatArray]:
    import numpy as np

    return [np.array(values, dtype=np.float32)]


def store_of(cache_dir: str, weights: str) -> ReferenceStore:
    return ReferenceStore(cache_dir, ReferenceIdentity(weights, "", None, ""), model=f"models/{weights}")


def fill(cache_dir: str) -> dict[str, ReferenceStore]:
    """Write two references: the first with blocks that are 1, 2 and 3 days old, the second with one of today."""
    stores = {name: store_of(cache_dir, name) for name in ("first", "second")}
    for name, ages in (("first", (1, 2, 3)), ("second", (0,))):
        stores[name].open()
        for age in ages:
            url = stores[name].url(Block(f"block-{age}", "shard", 0, 1, 1, ""))
            write_scores(url, logps(-1.0, -2.0), logps(-3.0))
            if "://" not in url:
                modified = time.time() - age * DAY - 60
                os.utime(url, (modified, modified))
    return stores


def names(found: object) -> list[str]:
    return [Path(file.url).stem for file in found]  # type: ignore[attr-defined]


def test_blocks_are_listed_by_reference_with_the_oldest_first(tmp_path: Path) -> None:
    stores = fill(str(tmp_path))
    found = {stored.model: stored for stored in stored_references(str(tmp_path))}
    assert names(found["models/first"].blocks) == ["block-3", "block-2", "block-1"]
    assert found["models/second"].identity == stores["second"].digest
    assert found["models/first"].bytes == 3 * found["models/second"].bytes > 0
    assert stored_references(str(tmp_path / "nothing")) == []


def test_a_store_at_a_url_is_listed_and_pruned() -> None:
    fill("memory://inventory")
    found = stored_references("memory://inventory")
    assert [len(stored.blocks) for stored in sorted(found, key=lambda stored: stored.model)] == [3, 1]
    assert damaged(found[0].blocks) == []
    prune("memory://inventory", found[0].blocks)
    assert [stored.identity for stored in stored_references("memory://inventory")] == [found[1].identity]
    fsspec.filesystem("memory").rm("/inventory", recursive=True)


def test_blocks_are_pruned_by_age_and_by_size(tmp_path: Path) -> None:
    fill(str(tmp_path))
    found = stored_references(str(tmp_path))
    block_bytes = found[0].blocks[0].bytes
    assert names(prunable(found, older_than_days=1.5)) == ["block-3", "block-2"]
    assert names(prunable(found, max_bytes=3 * block_bytes)) == ["block-3"]
    assert names(prunable(found, max_bytes=0)) == ["block-3", "block-2", "block-1", "block-0"]
    assert prunable(found) == []


def fill_tokens(cache_dir: Path) -> None:
    """Write three tokenized blocks, 5, 2 and 1 days old, and the entries of two shards: of the first two, of the last.

    Both entries were written a day ago: the older blocks are of earlier runs over the same rows.
    """
    names = {"old": 5, "middle": 2, "new": 1}
    for name, age in names.items():
        write_scores(url := index_entries.block_url(str(cache_dir), f"{name}.parquet"), logps(-1.0), logps(-3.0))
        os.utime(url, (time.time() - age * DAY - 60,) * 2)
    for key, blocks in (("first", ("old", "middle")), ("second", ("new",))):
        sizes = {f"{name}.parquet": 1 for name in blocks}
        index_entries.write_entry(
            url := index_entries.entry_url(str(cache_dir), key), index_entries.IndexEntry("a", "/a", (), sizes, {})
        )
        os.utime(url, (time.time() - DAY - 60,) * 2)


def test_tokenized_blocks_are_pruned_with_the_entries_that_name_them(tmp_path: Path) -> None:
    fill(str(tmp_path))
    fill_tokens(tmp_path)
    tokens = stored_tokens(str(tmp_path))
    assert names(tokens.blocks) == ["old", "middle", "new"]
    assert len(tokens.entries) == 2
    everything = [*stored_references(str(tmp_path)), tokens]
    assert names(prunable(everything, older_than_days=2.5)) == ["old", "block-3"]
    assert len(prunable(everything, max_bytes=0)) == 4 + 3 + 2
    prune(str(tmp_path), prunable([tokens], older_than_days=2.5))
    left = stored_tokens(str(tmp_path))
    assert names(left.blocks) == ["middle", "new"]
    assert names(left.entries) == ["second.json"], "the other names a block that is gone"
    assert len(stored_references(str(tmp_path))) == 2


def test_the_commands_cover_tokenized_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = fill(str(tmp_path))
    fill_tokens(tmp_path)
    cache_option = ["--cache_dir", str(tmp_path)]
    assert main(["list", *cache_option]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tokenized ")]
    assert line.split()[1] == "3"
    assert line.endswith("2 shards in the index")

    block = Path(index_entries.block_url(str(tmp_path), "middle.parquet"))
    block.write_bytes(block.read_bytes()[:-9])
    os.utime(block, (time.time() - 2 * DAY,) * 2)
    assert main(["verify", *cache_option]) == 1
    output = capsys.readouterr().out
    assert str(block) in output
    assert "and 3 tokenized blocks read, 1 damaged" in output

    assert main(["prune", *cache_option, "--identity", stores["first"].digest]) == 0
    assert len(stored_tokens(str(tmp_path)).files) == 5
    assert main(["prune", *cache_option, "--older_than_days", "1.5"]) == 0
    assert "2 tokenized files, 0.000 GB, were removed" in capsys.readouterr().out
    assert names(stored_tokens(str(tmp_path)).files) == ["new", "second.json"]


def test_only_old_partial_files_are_removed(tmp_path: Path) -> None:
    stores = fill(str(tmp_path))
    folder = Path(stores["first"].folder)
    for name, age in ((".old.part", 2 * DAY), (".new.part", 60)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age, time.time() - age))
    prune(str(tmp_path), [])
    assert not (folder / ".old.part").exists()
    assert (folder / ".new.part").exists()


def test_the_commands_list_verify_and_prune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = fill(str(tmp_path))
    cache_option = ["--cache_dir", str(tmp_path)]
    assert main(["list", *cache_option]) == 0
    listed = capsys.readouterr().out
    assert stores["first"].digest in listed
    assert "models/second" in listed
    assert "4 blocks" in listed

    assert main(["verify", *cache_option]) == 0
    block = Path(stores["first"].url(Block("block-2", "shard", 0, 1, 1, "")))
    block.write_bytes(block.read_bytes()[:-9])
    assert main(["verify", *cache_option]) == 1
    output = capsys.readouterr().out
    assert str(block) in output
    assert "4 blocks, 0.000 GB read, 1 damaged" in output

    assert main(["prune", *cache_option]) == 2
    assert "prune needs a limit" in capsys.readouterr().err
    assert main(["prune", *cache_option, "--older_than_days", "2.5", "--dry_run"]) == 0
    assert "1 blocks, 0.000 GB, would be removed" in capsys.readouterr().out
    assert main(["prune", *cache_option, "--identity", stores["first"].digest]) == 0
    assert "3 blocks, 0.000 GB, were removed" in capsys.readouterr().out
    assert not Path(stores["first"].folder).exists()
    assert Path(stores["second"].folder).exists()


def test_the_script_runs(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/reference_store.py", "list", "--cache_dir", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "0 blocks" in finished.stdout
