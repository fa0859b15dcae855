"""Recipes of the alignment handbook, and mixtures of data sets as TRL and the handbook write them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from raydpo.config import HINTS, ParsedOptions, from_flat, parse, parse_options, to_flat, to_yaml
from raydpo.config.mixture import DatasetEntry
from raydpo.config.trl_compat import NO_EFFECT, RENAMED, TRANSLATED
from raydpo.config.trl_compat import RECIPES as RECIPE_KEYS
from raydpo.errors import ConfigError
from tests.config.handbook import RECIPES

# Keys whose value is the default of TRL and asks for nothing.
NEUTRAL = {"optim", "torch_dtype", "hub_strategy", "do_eval"}


def parse_text(text: str, folder: Path, *flags: str) -> ParsedOptions:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return parse(["--config", str(path), *flags])


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_of_a_recipe_is_used_or_told_of(name: str, tmp_path: Path) -> None:
    parsed = parse_text(RECIPES[name], tmp_path)
    told = {notice.split("=")[0] for notice in parsed.notices}
    silent = []
    for key in yaml.safe_load(RECIPES[name]):
        options = {RENAMED.get(key, key)}
        if key in RECIPE_KEYS:
            options = {"datasets"}
        elif key in TRANSLATED:
            options = {name for meant in TRANSLATED[key].values() for name in meant}
        if not options & parsed.explicit and key not in told:
            silent.append(key)
    assert set(silent) <= NEUTRAL
    assert told <= NO_EFFECT.keys() | {"load_in_4bit", "optim", "torch_dtype"}
    assert from_flat(to_flat(parsed.job)) == parsed.job


def test_the_values_of_the_recipes_reach_the_options(tmp_path: Path) -> None:
    full, qlora, smol2, smol3 = (parse_text(text, tmp_path).job for text in RECIPES.values())
    ultrafeedback = DatasetEntry(
        "HuggingFaceH4/ultrafeedback_binarized", "default", "train_prefs", ("chosen", "rejected")
    )
    for job in (full, smol2):
        assert [entry.split for entry in job.data.datasets] == ["train_prefs", "test_prefs"]
        assert job.data.datasets[0] == ultrafeedback
        assert (job.data.test_split_size, job.data.dataset_seed, job.optim.seed) == (2000, 0, 42)
    assert qlora.data.datasets == (DatasetEntry(ultrafeedback.path, split="train_prefs"),)
    assert (qlora.data.dataset_test_split, qlora.data.test_split_size) == ("test_prefs", None)
    assert (qlora.adapter.use_peft, qlora.model.dtype, qlora.optim.bf16) == (True, "auto", True)
    assert qlora.precision(gpu=True) == "bfloat16"
    assert [entry.weight for entry in smol3.data.datasets] == [0.5, 0.25]
    assert smol3.data.datasets[0].columns == ("chosen", "rejected", "prompt", "chat_template_kwargs")
    assert (smol3.run.save_steps, smol3.run.resume_from_checkpoint) == (0.5, "none")
    assert smol3.model.chat_template == "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def test_trls_list_and_the_handbooks_mixture_are_the_same(tmp_path: Path) -> None:
    trl = """
datasets:
  - path: a/b
    name: en
    split: train_prefs
    columns: [chosen, rejected]
  - path: json
    data_files: [x.jsonl, y.jsonl]
streaming: true
test_split_size: 0.1
"""
    handbook = """
dataset_mixture:
  datasets:
    - {id: a/b, config: en, split: train_prefs, columns: [chosen, rejected], weight: 1.0}
    - {id: json, data_files: [x.jsonl, y.jsonl]}
  streaming: true
  test_split_size: 0.1
"""
    one, other = parse_text(trl, tmp_path), parse_text(handbook, tmp_path)
    assert one.job == other.job
    assert one.job.data.datasets[1] == DatasetEntry("json", data_files=("x.jsonl", "y.jsonl"))
    assert [notice.split("=")[0] for notice in one.notices] == ["streaming"]


def test_fraction_is_a_share_of_the_rows_and_says_so() -> None:
    parsed = parse_options({"datasets": [{"path": "a.jsonl", "fraction": "0.25"}]})
    assert parsed.job.data.datasets == (DatasetEntry("a.jsonl", weight=0.25),)
    (notice,) = parsed.notices
    assert "share of a data set's own rows" in notice
    assert parse_options({"datasets": [{"path": "a.jsonl", "weight": "0.25"}]}).notices == ()


def test_a_mixer_gives_an_entry_for_each_data_set_and_training_split() -> None:
    job = parse_options(
        {
            "dataset_mixer": {"a/b": "0.5", "c/d": "1"},
            "dataset_splits": ["train_x", "test_x"],
            "dataset_configs": ["one", "two"],
        }
    ).job
    assert job.data.datasets == (
        DatasetEntry("a/b", "one", "train_x", weight=0.5),
        DatasetEntry("c/d", "two", "train_x"),
    )
    assert job.data.dataset_test_split == "test_x"
    defaults = parse(["--dataset_mixer", "a/b=0.5"]).job.data
    assert (defaults.datasets[0].split, defaults.dataset_test_split) == ("train", "test")


def test_the_written_config_repeats_the_mixture(tmp_path: Path) -> None:
    job = parse_text(RECIPES["smollm3/dpo/apo.yaml"], tmp_path).job
    parsed = parse_text(to_yaml(job), tmp_path)
    assert parsed.job == job
    assert parsed.notices == ()
    assert yaml.safe_load(to_yaml(job))["datasets"][1]["weight"] == 0.25


def test_flags_take_a_mixture_as_json_and_override_the_file(tmp_path: Path) -> None:
    flags = ["--datasets", '[{"path": "a.jsonl", "columns": ["chosen", "rejected"]}, {"id": "b"}]']
    job = parse([*flags, "--test_split_size", "100"]).job
    assert job.data.datasets == (DatasetEntry("a.jsonl", columns=("chosen", "rejected")), DatasetEntry("b"))
    changed = parse_text(RECIPES["smollm2/dpo/config.yaml"], tmp_path, "--test_split_size", "0.5", *flags).job
    assert (changed.data.test_split_size, changed.data.datasets) == (0.5, job.data.datasets)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"datasets": [{"path": "a", "weight": "1.5"}]}, ["weight=1.5", "at most 1", "num_train_epochs"]),
        ({"datasets": [{"path": "a", "weight": "0"}]}, ["weight=0", "above 0"]),
        ({"datasets": [{"path": "a", "wieght": "0.5"}]}, ["wieght", "weight"]),
        ({"datasets": [{"name": "a"}]}, ["no path"]),
        ({"datasets": [{"path": "a", "id": "b"}]}, ["id", "keep one"]),
        ({"datasets": [{"path": "a", "split": "train[:10%]"}]}, ["train[:10%]", "weight"]),
        ({"datasets": [{"path": "json"}]}, ["file format", "data_files"]),
        ({"datasets": [{"path": "a"}], "dataset_name": "b"}, ["dataset_name=b", "leave one"]),
        ({"datasets": "a.jsonl"}, ["datasets=a.jsonl", "JSON"]),
        ({"dataset_name": "a", "test_split_size": 1.5}, ["test_split_size=1.5", "whole number"]),
        ({"dataset_name": "a", "test_split_size": 5, "eval_dataset_name": "b"}, ["test_split_size=5", "leave one"]),
        ({"dataset_mixture": {"datasets": []}}, ["dataset_mixture", "mapping with datasets"]),
        ({"dataset_mixture": {"datasets": [{"id": "a"}], "sead": 0}}, ["sead"]),
        ({"dataset_mixture": {"datasets": [{"id": "a"}]}, "dataset_mixer": {"a": 1}}, ["leave one of them out"]),
        ({"dataset_mixer": {"a": 1}, "dataset_splits": ["train", "test_a", "test_b"]}, ["at most one with test"]),
        ({"dataset_mixer": {"a": 1}, "dataset_configs": ["x", "y"]}, ["dataset_configs=x,y", "1 data sets"]),
        ({"dataset_splits": ["train"]}, ["dataset_mixer", "dataset_train_split"]),
        ({"dataset_mixture": {"datasets": [{"id": "a"}], "test_split_size": 5}, "test_split_size": 6}, ["contradicts"]),
    ],
)
def test_wrong_mixtures_are_refused_with_a_remedy(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(values)
    for word in words:
        assert word in str(caught.value)


def test_a_quantised_base_is_told_of_with_an_adapter_and_refused_without() -> None:
    with pytest.raises(ConfigError, match=r"load_in_4bit=true is not supported here.*use_peft=true"):
        parse_options({"load_in_4bit": True})
    parsed = parse_options({"load_in_8bit": "true", "use_peft": "true"})
    assert [notice.split("=")[0] for notice in parsed.notices] == ["load_in_8bit"]
    with pytest.raises(ConfigError, match="contradicts bf16"):  # without a quantised base the dtype is that of training
        parse_options({"torch_dtype": "float16", "bf16": True, "use_peft": True})


def test_every_option_of_a_recipe_key_exists() -> None:
    named = {word.strip("`") for text in RECIPE_KEYS.values() for word in text.split() if word.strip(",").endswith("`")}
    assert {name.strip("`,") for name in named} - {"seed"} <= set(HINTS)
