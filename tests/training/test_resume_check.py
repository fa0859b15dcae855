"""The driver checks the checkpoint that a run resumes from against the run, before it writes or starts anything."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raydpo import config
from raydpo.config import HINTS
from raydpo.config.resume import BY_CONTENT, FIXES, MAY_CHANGE, recorded
from raydpo.errors import ResumeError
from raydpo.reporting.rundir import RunDir
from raydpo.runtime.resources import WorkerGroup
from raydpo.training.resume import check_options, check_resume, with_absolute_path

FINGERPRINT = {"data": "abc", "reference": "def", "model": "ghi", "precision": "float32"}
OPTIONS: dict[str, Any] = {"use_peft": True, "lora_r": 8, "learning_rate": 1e-3, "seed": 1, "model_name_or_path": "m"}


def task(folder: Path, workers: int = 1, steps: int = 12, **options: Any) -> Any:
    return SimpleNamespace(
        job=config.from_flat(options),
        policy=SimpleNamespace(group=WorkerGroup(workers, 0, 1, {}, {})),
        run_dir=str(folder),
        fingerprint=FINGERPRINT,
        schedule=SimpleNamespace(total_steps=steps),
    )


def write_checkpoint(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    state: dict[str, Any] = {"step": 3, "position": 6, "tokens": 9, "sums": {}, "rewards": [0, 0], "num_workers": 1}
    state |= {"reference": None, "fingerprint": FINGERPRINT, "files": {}, "total_steps": 12}
    state |= {"options": recorded(config.from_flat(OPTIONS))} | changes
    content = {key: value for key, value in state.items() if value != "left out"}
    (folder / "state.json").write_text(json.dumps(content))
    return folder


def write_run(folder: Path, snapshot: str | None = None, **changes: Any) -> Path:
    """Write a run's folder with one checkpoint, which Ray Train lists, and return the checkpoint."""
    checkpoint = write_checkpoint(folder / "checkpoints" / "checkpoint-3", **changes)
    newest = json.dumps({"latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint-3"}})
    (folder / "checkpoints" / "checkpoint_manager_snapshot.json").write_text(snapshot or newest)
    return checkpoint


def test_every_option_is_in_exactly_one_class() -> None:
    classes = [set(FIXES), set(BY_CONTENT), set(MAY_CHANGE)]
    assert sum(map(len, classes)) == len(set.union(*classes)), "an option is in two classes"
    assert set.union(*classes) == set(HINTS), "each option needs a class in config/resume.py, and only options have one"


def test_a_new_run_passes_the_check(tmp_path: Path) -> None:
    assert check_options(config.from_flat(OPTIONS), str(tmp_path)) == []
    assert check_resume(task(tmp_path)) == []


def test_the_newest_checkpoint_must_fit_the_run(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert check_resume(task(tmp_path)) == []
    with pytest.raises(ResumeError, match="written by 1 workers and this run has 2"):
        check_resume(task(tmp_path, workers=2))


def test_a_truncated_list_of_checkpoints_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, snapshot='{"latest_checkpoint_res')
    with pytest.raises(ResumeError, match=r"was cut short.*resume_from_checkpoint"):
        check_resume(task(tmp_path))


CHANGED: list[tuple[str, Any, str]] = [
    ("seed", 2, "seed=1, but this run has seed=2; it fixes the order of the pairs"),
    ("lora_r", 4, "lora_r=8, but this run has lora_r=4; it fixes the parameters that are trained"),
    ("lora_target_modules", ["q_proj"], "lora_target_modules=unset, but this run has lora_target_modules=q_proj"),
    ("gradient_accumulation_steps", 2, "it fixes the global batch"),
    ("shuffle_window", 2, "it fixes the order of the pairs"),
    ("lr_scheduler_type", "cosine", "lr_scheduler_type=linear, but .*; it fixes the learning rate of each update"),
    ("warmup_steps", 2, "warmup_steps=0, but this run has warmup_steps=2"),
    ("adam_beta2", 0.95, "it fixes the state of the optimizer"),
    ("beta", 0.3, "beta=0.1, but this run has beta=0.3"),
    ("max_length", 64, "it fixes the token ids of the pairs"),
    ("fp16", True, "fp16=false, but this run has fp16=true"),
]


@pytest.mark.parametrize(("name", "value", "message"), CHANGED)
def test_what_must_not_change_is_refused_with_both_values_by_folder_and_by_path(
    tmp_path: Path, name: str, value: Any, message: str
) -> None:
    checkpoint = write_run(tmp_path / "run")
    changed = {**OPTIONS, name: value}
    with pytest.raises(ResumeError, match=message):
        check_options(config.from_flat(changed), str(tmp_path / "run"))
    with pytest.raises(ResumeError, match=message):
        check_options(
            config.from_flat({**changed, "resume_from_checkpoint": str(checkpoint)}), str(tmp_path / "another")
        )
    run_dir = RunDir(str(tmp_path / "old"))
    write_run(run_dir.path, options="left out", fingerprint={"data": "abc", "reference": "def"})
    run_dir.config.write_text(config.to_yaml(config.from_flat(OPTIONS)))  # all that an earlier version recorded
    for resume in (str(tmp_path / "old"), str(tmp_path / "another")):
        path = str(run_dir.checkpoints / "checkpoint-3")
        with pytest.raises(ResumeError, match=message):
            check_options(config.from_flat({**changed, "resume_from_checkpoint": path}), resume)
    with pytest.raises(ResumeError, match=message):
        run_dir.start(config.from_flat(changed))


def test_what_may_change_is_noted_in_one_line_with_both_values(tmp_path: Path) -> None:
    checkpoint = write_run(tmp_path / "run")
    changed = {**OPTIONS, "learning_rate": 5e-4, "weight_decay": 0.1, "save_steps": 7}
    for options, folder in (
        (changed, tmp_path / "run"),
        ({**changed, "resume_from_checkpoint": str(checkpoint)}, tmp_path / "another"),
    ):
        assert check_options(config.from_flat(options), str(folder)) == [
            f"{checkpoint} is resumed with learning_rate=0.0005 (it was 0.001), weight_decay=0.1 (it was 0), "
            "save_steps=7 (it was 500)"
        ]
    (note,) = check_resume(task(tmp_path / "run", steps=20))
    assert "of a run of 12 updates, and this one has 20" in note


def test_files_may_have_moved_where_their_content_is_the_same(tmp_path: Path) -> None:
    checkpoint = write_run(tmp_path / "run")
    moved = {**OPTIONS, "model_name_or_path": "moved"}
    with pytest.raises(ResumeError, match="model_name_or_path=m, but this run has model_name_or_path=moved"):
        check_options(config.from_flat(moved), str(tmp_path / "run"))
    by_path = {**moved, "resume_from_checkpoint": str(checkpoint)}
    assert len(check_options(config.from_flat(by_path), str(tmp_path / "another"))) == 1
    assert check_resume(task(tmp_path / "another", **by_path)) == []
    other = write_checkpoint(tmp_path / "other", fingerprint={**FINGERPRINT, "model": "xyz"})
    with pytest.raises(ResumeError, match=r"another model \(xyz, now ghi\)"):
        check_resume(task(tmp_path / "another", **{**by_path, "resume_from_checkpoint": str(other)}))


def test_a_checkpoint_of_an_earlier_version_goes_on_and_a_note_says_what_is_not_checked(tmp_path: Path) -> None:
    old = write_checkpoint(
        tmp_path / "old",
        options="left out",
        total_steps="left out",
        fingerprint={"data": "abc", "reference": "def"},
    )
    job = {**OPTIONS, "resume_from_checkpoint": str(old)}
    (note,) = check_options(config.from_flat(job), str(tmp_path / "another"))
    assert "records no options" in note
    (note,) = check_resume(task(tmp_path / "another", **job))
    assert "does not record model, precision" in note


def test_a_folder_that_is_no_checkpoint_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for folder, message in (
        (tmp_path / "missing", "is not a whole checkpoint"),
        (tmp_path, "is not a whole checkpoint"),
        (write_checkpoint(tmp_path / "damaged", rewards="left out", files="left out"), "lacks files, rewards, so"),
    ):
        job = config.from_flat({"resume_from_checkpoint": str(folder)})
        with pytest.raises(ResumeError, match=message):
            check_options(job, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_path_that_the_run_would_not_take_is_refused_or_noted(tmp_path: Path) -> None:
    newest = write_run(tmp_path / "run")
    older = write_checkpoint(tmp_path / "run" / "checkpoints" / "checkpoint-1")
    with pytest.raises(ResumeError, match="goes on from its newest one"):
        check_options(config.from_flat({**OPTIONS, "resume_from_checkpoint": str(older)}), str(tmp_path / "run"))
    elsewhere = {**OPTIONS, "resume_from_checkpoint": str(write_checkpoint(tmp_path / "elsewhere"))}
    (note,) = check_options(config.from_flat(elsewhere), str(tmp_path / "run"))
    assert f"goes on from its own {newest}" in note
    stored = {**OPTIONS, "resume_from_checkpoint": "none", "storage_path": str(tmp_path / "run")}
    with pytest.raises(ResumeError, match="set another run_name"):
        check_options(config.from_flat({**stored, "run_name": "checkpoints"}), str(tmp_path / "new"))


def test_a_relative_path_is_made_absolute_for_the_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    job = with_absolute_path(config.from_flat({"resume_from_checkpoint": "runs/checkpoint-3"}))
    assert job.run.resume_from_checkpoint == str(tmp_path / "runs" / "checkpoint-3")
