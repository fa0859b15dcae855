"""The model and the pairs of a run: those that are named, the built-in ones, or an error."""

from pathlib import Path
from typing import Any

import pytest

from raydpo import config
from raydpo.cli.run import BAD_INPUT, check_model_named, complete, main, with_output_dir
from raydpo.config import JobConfig
from raydpo.demo import story
from raydpo.demo.preferences import DEMO_DEFAULTS, HELD_OUT_PAIRS, TRAIN_PAIRS
from raydpo.errors import ConfigError


@pytest.fixture(autouse=True)
def starter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Return a folder that replaces the built-in model, which takes a minute to train."""
    folder = str(tmp_path / "starter-model")
    monkeypatch.setattr(story, "ensure_starter", lambda cache_dir, on_progress: folder)
    return folder


def completed(tmp_path: Path, program: str = "dpo", **options: Any) -> tuple[JobConfig, bool]:
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    parsed = config.parse([*flags, "--output_dir", str(tmp_path / "run")], program)
    check_model_named(parsed.job)
    return complete(parsed)


def test_no_options_run_the_demonstration(tmp_path: Path, starter: str) -> None:
    job, is_demo = completed(tmp_path)
    assert is_demo
    assert job.model.model_name_or_path == starter
    assert {Path(name).suffix for name in job.data.dataset_name} == {".jsonl", ".parquet"}
    assert job.optim.eval_strategy == "epoch"
    assert job.optim.learning_rate == DEMO_DEFAULTS["learning_rate"]
    lines = [line for name in job.data.eval_dataset_name for line in Path(name).read_text().splitlines()]
    assert len(lines) == HELD_OUT_PAIRS < TRAIN_PAIRS


def test_options_of_the_user_override_those_of_the_demonstration(tmp_path: Path) -> None:
    job, is_demo = completed(tmp_path, learning_rate=1e-5, eval_strategy="no")
    assert is_demo
    assert (job.optim.learning_rate, job.optim.eval_strategy) == (1e-5, "no")
    assert job.loss.beta == DEMO_DEFAULTS["beta"]


def test_the_starter_can_be_named(tmp_path: Path, starter: str) -> None:
    (pairs := tmp_path / "pairs.jsonl").touch()
    job, is_demo = completed(tmp_path, model_name_or_path="starter", dataset_name=str(pairs))
    assert not is_demo, "answers are compared only for the demonstration's pairs"
    assert job.model.model_name_or_path == starter
    assert job.data.dataset_name == (str(pairs),)
    assert job.optim.learning_rate == JobConfig().optim.learning_rate, "the demonstration's options are for its pairs"
    assert completed(tmp_path, model_name_or_path="starter")[1], "without pairs it is the demonstration"


def test_another_model_can_train_on_the_built_in_pairs(tmp_path: Path) -> None:
    job, is_demo = completed(tmp_path, model_name_or_path="some/model")
    assert not is_demo
    assert job.model.model_name_or_path == "some/model"
    assert job.data.dataset_name
    assert job.optim.learning_rate == JobConfig().optim.learning_rate


def test_a_named_model_and_named_pairs_are_not_changed(tmp_path: Path) -> None:
    parsed = config.parse(["--model_name_or_path", "some/model", "--dataset_name", "pairs.jsonl"])
    assert complete(parsed) == (parsed.job, False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("program", config.JOBS)
def test_pairs_without_a_model_are_refused_with_the_remedy(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset_name", "pairs.jsonl"], program) == BAD_INPUT
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: dataset_name=pairs.jsonl is set and model_name_or_path is not")
    assert "model_name_or_path=starter" in printed.err
    with pytest.raises(ConfigError, match="name the model to train"):
        check_model_named(with_output_dir(config.parse(["--dataset_name", "a", "b"], program), program).job)


def test_missing_pairs_are_found_out_before_the_built_in_model_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(story, "ensure_starter", unexpected)
    arguments = ["--model_name_or_path", "starter", "--dataset_name", str(tmp_path / "none.jsonl")]
    assert main([*arguments, "--output_dir", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.startswith(f"error: there is no file or folder {tmp_path}/none.jsonl")


def unexpected(*arguments: Any) -> str:
    raise AssertionError("the built-in model is not needed")


def test_nothing_to_score_is_found_out_before_a_model_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(story, "ensure_starter", unexpected)
    assert main(["--loss_type", "simpo"], "score_reference") == BAD_INPUT
    assert capsys.readouterr().err.startswith("error: loss_type=simpo takes no reference")
