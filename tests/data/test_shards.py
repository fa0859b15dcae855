"""From names of data sets to files: their order, the files of a split, and errors that list the alternatives."""

import json
from pathlib import Path

import fsspec
import pytest

from raydpo.data import sources
from raydpo.data.shards import find_shards
from raydpo.data.sources import select_split_files
from raydpo.errors import DataError

ROW = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(ROW)


def found(names: list[str], split: str = "train", **options: bool) -> list[str]:
    return [shard.name for shard in find_shards(names, split, **options)]


def test_paths_and_globs_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, "b.jsonl", "a.jsonl", "c/2.json", "c/10.json")
    monkeypatch.chdir(tmp_path)
    shards = find_shards(["b.jsonl", str(tmp_path / "c/*.json"), f"file://{tmp_path}/a.jsonl"], "train")
    assert [shard.name for shard in shards] == ["b.jsonl", "10.json", "2.json", "a.jsonl"]
    assert shards[0].url == str(tmp_path / "b.jsonl")
    assert shards[1].url == str(tmp_path / "c/10.json")


def test_equal_file_names_get_their_folders_as_a_prefix(tmp_path: Path) -> None:
    write_files(tmp_path, "x/data/a.jsonl", "y/data/a.jsonl", "y/b.jsonl")
    names = [str(tmp_path / path) for path in ("x/data/a.jsonl", "y/data/a.jsonl", "y/b.jsonl")]
    assert found(names) == ["x/data/a.jsonl", "y/data/a.jsonl", "b.jsonl"]


def test_urls_of_other_stores_are_listed() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("test.jsonl", "train-1.jsonl.gz", "train-0.parquet", "notes.txt"):
        memory.pipe_file(f"/shards/{name}", ROW.encode())
    shards = find_shards(["memory://shards"], "train")
    assert [(shard.name, shard.url) for shard in shards] == [
        ("train-0.parquet", "memory:///shards/train-0.parquet"),
        ("train-1.jsonl.gz", "memory:///shards/train-1.jsonl.gz"),
    ]
    assert found(["memory://shards/t*.jsonl"]) == ["test.jsonl"]
    assert found(["memory://shards/test.jsonl"]) == ["test.jsonl"]


def test_a_folder_without_split_names_is_used_completely(tmp_path: Path) -> None:
    write_files(
        tmp_path, "b.jsonl", "sub/a.parquet", "README.md", "dataset_info.json", ".hidden/x.jsonl", "cache-123.arrow"
    )
    assert found([str(tmp_path)]) == ["b.jsonl", "a.parquet"]
    assert found([str(tmp_path)], "test", required=False) == []


def test_a_folder_with_split_names_is_filtered_by_split(tmp_path: Path) -> None:
    write_files(tmp_path, "train-0.jsonl", "train-1.json.gz", "test/part.parquet", "val.jsonl", "trainer.jsonl")
    assert found([str(tmp_path)]) == ["train-0.jsonl", "train-1.json.gz"]
    assert found([str(tmp_path)], "test") == ["part.parquet"]
    assert found([str(tmp_path)], "validation") == ["val.jsonl"]
    with pytest.raises(DataError, match=r"no split 'prefs', only 'test', 'train', 'validation'; choose"):
        find_shards([str(tmp_path)], "prefs")
    assert found([str(tmp_path)], "prefs", required=False) == []


@pytest.mark.parametrize(
    ("files", "split", "wanted"),
    [
        (["data/train_prefs-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet"], "train_prefs", [0]),
        (["data/train_prefs-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet"], "train", []),
        (["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"], "train", []),
        (["train_data/test.jsonl", "train_data/train.jsonl"], "train", [1]),
        (["harmless_train.jsonl.gz", "harmless_test.jsonl.gz"], "test", [1]),
        (["dev-00000-of-00001.parquet", "eval.jsonl"], "validation", [0]),
        (["train.jsonl", "extra.jsonl"], "train", [0]),
        (["harmless/a.jsonl", "helpful/a.jsonl"], "helpful", [1]),
        (["contest.jsonl", "trained.jsonl"], "train", []),
    ],
)
def test_splits_are_recognised_in_file_names(files: list[str], split: str, wanted: list[int]) -> None:
    assert select_split_files(files, split)[0] == [files[i] for i in wanted]


def test_files_without_a_split_in_their_name_belong_to_no_split() -> None:
    assert select_split_files(["contest.jsonl", "trained.jsonl"], "train") == ([], [])


def test_folders_saved_by_datasets_are_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": str(i)} for i in range(4)])
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict(train=rows, test_prefs=rows).save_to_disk(tmp_path / "dict")
    (tmp_path / "one" / "cache-1.arrow").touch()
    assert found([str(tmp_path / "one")], "whatever") == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert found([str(tmp_path / "one")], "test", required=False) == []
    shards = find_shards([str(tmp_path / "dict")], "test_prefs")
    assert [shard.url for shard in shards] == [str(tmp_path / "dict/test_prefs/data-00000-of-00001.arrow")]
    with pytest.raises(DataError, match="no split 'test', only 'train', 'test_prefs'"):
        find_shards([str(tmp_path / "dict")], "test")
    assert found([str(tmp_path / "dict")], "test", required=False) == []


def test_hub_ids_are_resolved_by_configuration_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a local folder in place of the hub: `datasets` resolves both by the same rules."""
    write_files(tmp_path, "en/train-00000-of-00001.jsonl", "en/test-00000-of-00001.jsonl", "de/train.jsonl")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: en\n  data_files:\n"
        "  - {split: train, path: 'en/train*'}\n  - {split: test, path: 'en/test*'}\n"
        "- config_name: de\n  data_files: 'de/*'\n---\n"
    )
    original = sources.hub_files
    monkeypatch.setattr(sources, "hub_files", lambda name, config: original(str(tmp_path), config))
    urls = [shard.url for shard in find_shards(["owner/name"], "test", "en")]
    assert urls == [str(tmp_path / "en/test-00000-of-00001.jsonl")]
    with pytest.raises(DataError, match="owner/name has no split 'test', only 'train'"):
        find_shards(["owner/name"], "test", "de")
    with pytest.raises(DataError, match="Config name is missing"):
        find_shards(["owner/name"], "train")
    with pytest.raises(DataError, match="'fr' not found"):
        find_shards(["owner/name"], "train", "fr")


def test_a_configuration_without_a_hub_id_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jsonl")
    with pytest.raises(DataError, match="dataset_config='en' is the configuration of a hub dataset"):
        find_shards([str(tmp_path / "a.jsonl")], "train", "en")


def test_single_files_have_no_test_split(tmp_path: Path) -> None:
    write_files(tmp_path, "test.jsonl")
    assert found([str(tmp_path / "test.jsonl")], "test", required=False) == []
    assert found([str(tmp_path / "test.jsonl")], "test") == ["test.jsonl"]


def test_missing_files_and_unknown_protocols_are_errors(tmp_path: Path) -> None:
    write_files(tmp_path, "here.jsonl", "empty/notes.txt")
    with pytest.raises(DataError, match=r"no file or folder .*gone.jsonl \(its folder has: empty, here.jsonl\); give"):
        find_shards([str(tmp_path / "gone.jsonl")], "train")
    with pytest.raises(DataError, match="no file or folder"):
        find_shards([str(tmp_path / "*.parquet")], "train")
    with pytest.raises(DataError, match=r"no data files \(it has notes.txt\); data files end in .jsonl"):
        find_shards([str(tmp_path / "empty")], "train")
    with pytest.raises(DataError, match="Protocol not known: nowhere"):
        find_shards(["nowhere://bucket/a.jsonl"], "train")


def test_unknown_file_types_are_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("prompt,chosen,rejected\n")
    with pytest.raises(DataError, match=r"table.csv has an unknown file type; shards are JSONL"):
        find_shards([str(tmp_path / "table.csv")], "train")
    (tmp_path / "rows.txt").write_text(json.dumps([json.loads(ROW)]))
    assert found([str(tmp_path / "rows.txt")]) == ["rows.txt"]


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jsonl")
    with pytest.raises(DataError, match="named twice"):
        find_shards([str(tmp_path / "a.jsonl"), str(tmp_path / "*.jsonl")], "train")
