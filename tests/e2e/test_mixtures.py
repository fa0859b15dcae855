"""Runs on mixtures: the rows that each data set gives, held-out rows, several evaluation sets, a chat template."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from raydpo import pipeline
from raydpo.config import parse
from tests.e2e.jobs import Run, rows, run_job, write_rows

pytestmark = pytest.mark.usefixtures("ray_local")

SIZES = {"one": 40, "two": 24, "three": 30, "four": 9}
RECIPE = """
dataset_mixture:
  datasets:
    - {{id: {folder}/one.jsonl, config: default, split: train_prefs, columns: [prompt, chosen, rejected], weight: 0.5}}
    - {{id: {folder}/two.jsonl, weight: 0.25}}
    - {{path: {folder}/three.jsonl, fraction: 0.1}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    for seed, (name, size) in enumerate(SIZES.items()):
        write_rows(folder / f"{name}.jsonl", [{**row, "source": name} for row in rows(size, seed)])
    with (folder / "one.jsonl").open("a") as stream:
        stream.writelines("broken\n" for _ in range(4))
    return folder


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "model_name_or_path": str(tiny_model),
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        "num_workers": 1,
        "cpus_per_worker": 1,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "learning_rate": 1e-3,
    }


def run_recipe(text: str, folder: Path, job: dict[str, Any]) -> Run:
    folder.mkdir()
    path = folder / "recipe.yaml"
    path.write_text(text)
    flags = [part for name, value in job.items() for part in (f"--{name}", str(value))]
    parsed = parse(["--config", str(path), *flags, "--output_dir", str(folder / "run")])
    return Run(pipeline.run(parsed.job), folder / "run")


def pairs(run: Run) -> set[str]:
    ledger = [pair for entry in run.ledger() for pair in entry["pairs"]]
    assert len(ledger) == len(set(ledger))
    return set(ledger)


def test_a_recipe_gives_these_counts_and_the_same_rows_with_a_fourth_data_set(
    folder: Path, job: dict[str, Any], tmp_path: Path
) -> None:
    recipe = RECIPE.format(folder=folder)
    first = run_recipe(recipe, tmp_path / "first", job)
    counts = {Path(part["path"]).stem: part for part in first.summary["rows"]["datasets"]}
    assert {name: (part["rows"], part["taken"]) for name, part in counts.items()} == {
        "one": (44, 22),
        "two": (24, 6),
        "three": (30, 3),
    }
    bad = [row for row in first.quarantine() if row["shard"] == "one.jsonl"]
    assert counts["one"]["quarantined"] == len(bad)
    assert all(row["row"] > 40 for row in bad)
    assert len(pairs(first)) == 22 + 6 + 3 - len(bad) == first.summary["rows"]["pairs"]

    fourth = run_recipe(recipe + f"    - {{id: {folder}/four.jsonl}}\n", tmp_path / "second", job)
    assert pairs(fourth) - pairs(first) == {f"four.jsonl:{row}" for row in range(1, 10)}
    assert pairs(first) < pairs(fourth)
    assert first.summary["reference"]["completions_scored"] > 0
    assert fourth.summary["reference"]["completions_scored"] == 2 * 9, "the blocks of the first three are reused"


def test_held_out_rows_are_evaluated_and_not_trained_on(folder: Path, job: dict[str, Any], tmp_path: Path) -> None:
    names = [str(folder / "two.jsonl"), str(folder / "four.jsonl")]
    run = run_job(tmp_path / "run", **job, dataset_name=names, test_split_size=11, eval_strategy="epoch", seed=1)
    counts = run.summary["rows"]
    assert (counts["pairs"], counts["held_out_pairs"]) == (22, 11)
    assert [(part["rows"], part["taken"], part["held_out"]) for part in counts["datasets"]] == [(24, 16, 8), (9, 6, 3)]
    other = run_job(tmp_path / "other", **job, dataset_name=names, test_split_size=11, seed=2)
    assert pairs(other) == pairs(run), "neither the seed nor eval_strategy changes the split"
    assert run.summary["evaluation"]["after"]["eval_loss"] < run.summary["evaluation"]["before"]["eval_loss"]


@pytest.mark.parametrize(
    "options",
    [
        {"reference_schedule": "staged"},
        pytest.param(
            {"sync_ref_model": True, "ref_model_sync_steps": 5, "reference_num_workers": 1, "cpus_per_worker": 1},
            marks=pytest.mark.whole,
        ),
    ],
    ids=["staged", "tr-dpo"],
)
def test_each_evaluation_set_has_the_metrics_that_it_has_alone(
    folder: Path, job: dict[str, Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    files = {name: str(folder / f"{name}.jsonl") for name in ("two", "three", "four")}
    common = {**job, "eval_strategy": "steps", "eval_steps": 5, **options, "dataset_name": str(folder / "one.jsonl")}
    named = [f"helpful={files['two']}", f"harmless={files['three']}", files["four"]]
    run = run_job(tmp_path / "several", **common, eval_dataset_name=named)
    counts = run.summary["rows"]["held_out_sets"]
    assert {name: part["pairs"] for name, part in counts.items()} == {"": 9, "helpful": 24, "harmless": 30}
    lines = [line for line in run.all_lines() if "eval_loss" in line]
    assert [line["step"] for line in lines] == [0, 5, 10]
    assert run.summary["evaluation"] == {"before": lines[0], "after": lines[-1]}
    assert len({lines[-1][f"eval_{name}loss"] for name in ("", "helpful_", "harmless_")}) == 3

    alone = run_job(tmp_path / "alone", **common, eval_dataset_name=files["two"])
    for line, expected in zip(lines, [line for line in alone.all_lines() if "eval_loss" in line], strict=True):
        for metric, value in expected.items():
            name = metric.replace("eval_", "eval_helpful_")
            assert line[name] == pytest.approx(value, rel=1e-3, abs=1e-4), metric


def test_a_chat_template_decides_the_tokens_and_is_exported(job: dict[str, Any], tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    path = tmp_path / "template.jinja"
    path.write_text(template)
    conversations = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows(8)
    ]
    data = write_rows(tmp_path / "rows.jsonl", conversations)
    run = run_job(tmp_path / "run", **job, dataset_name=data, chat_template=str(path))
    tokenizer = AutoTokenizer.from_pretrained(run.summary["model"])
    assert tokenizer.chat_template == template
    expected = sum(
        len(tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=True)["input_ids"])
        for row in conversations
        for side in ("chosen", "rejected")
    )
    assert run.lines[-1]["num_tokens"] == expected
    assert json.loads((run.folder / "summary.json").read_text())["rows"]["pairs"] == 8
