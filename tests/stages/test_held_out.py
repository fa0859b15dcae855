"""The sets of held-out pairs: names, paths that look like names, splits of the training data."""

from pathlib import Path
from typing import Any

import pytest

from raydpo.config import JobConfig
from raydpo.errors import ConfigError, DataError
from raydpo.stages.held_out import find_held_out, named_sets
from raydpo.stages.tokenize import find_data
from tests.stages.plan_helpers import job_of

ROW = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(ROW)


def job(folder: Path, **options: Any) -> JobConfig:
    return job_of(folder, folder, **{"dataset_name": str(folder / "data"), "eval_strategy": "epoch", **options})


def test_sets_are_told_from_paths_and_urls_with_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, "year=2024/x.jsonl", "a/year=2024/x.jsonl", "b.jsonl")
    items = ["year=2024/x.jsonl", "year=2024/*.jsonl", "a/year=2024/x.jsonl", "https://host/x.jsonl?key=1"]
    assert named_sets(items) == {"": items}
    named = ["helpful=b.jsonl", "b.jsonl", "harm-less_2=https://host/x.jsonl?key=1", "helpful=a/year=2024/x.jsonl"]
    sets = named_sets(named)
    assert sets == {
        "": ["b.jsonl"],
        "helpful": ["b.jsonl", "a/year=2024/x.jsonl"],
        "harm-less_2": ["https://host/x.jsonl?key=1"],
    }
    assert next(iter(sets)) == ""


@pytest.mark.parametrize(("item", "word"), [("nll=b.jsonl", "eval_nll_loss"), ("helpful=", "no data after helpful=")])
def test_names_that_cannot_be_used_are_refused(item: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        named_sets([item])


def test_each_named_set_has_its_own_files(tmp_path: Path) -> None:
    write_files(tmp_path, "data/train.jsonl", "data/test.jsonl", "h/test.jsonl", "h/train.jsonl", "plain.jsonl")
    found = find_held_out(
        job(tmp_path, eval_dataset_name=f"one={tmp_path}/h two={tmp_path}/plain.jsonl {tmp_path}/data".split()), []
    )
    assert {name: [shard.name for shard in shards] for name, shards in found.items()} == {
        "": ["test.jsonl"],
        "one": ["test.jsonl"],
        "two": ["plain.jsonl"],
    }
    with pytest.raises(DataError, match=r"train\.jsonl is named for training and for evaluation"):
        find_data(job(tmp_path, eval_dataset_name=f"one={tmp_path}/data/train.jsonl"))


def test_the_test_split_of_a_mixture_is_found(tmp_path: Path) -> None:
    write_files(tmp_path, "a/train_prefs.jsonl", "a/test_prefs.jsonl", "b/train_prefs.jsonl", "b/test_prefs.jsonl")
    mixer = {str(tmp_path / "a"): 1, str(tmp_path / "b"): 0.5}
    splits = ["train_prefs", "test_prefs"]
    entries, held_out = find_data(job(tmp_path, dataset_name=(), dataset_mixer=mixer, dataset_splits=splits))
    assert [[shard.name for shard in entry.shards] for entry in entries] == [
        ["a/train_prefs.jsonl"],
        ["b/train_prefs.jsonl"],
    ]
    assert {name: [shard.name for shard in shards] for name, shards in held_out.items()} == {
        "": ["a/test_prefs.jsonl", "b/test_prefs.jsonl"]
    }


def test_rows_that_are_held_out_by_size_need_no_files(tmp_path: Path) -> None:
    write_files(tmp_path, "data/rows.jsonl")
    with pytest.raises(DataError, match=r"needs held-out pairs.*test_split_size"):
        find_data(job(tmp_path))
    assert find_data(job(tmp_path, test_split_size=0.1))[1] == {}
