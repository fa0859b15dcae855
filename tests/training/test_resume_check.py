"""The driver checks the newest checkpoint against the run before it starts workers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raydpo import config
from raydpo.errors import ResumeError
from raydpo.runtime.resources import WorkerGroup
from raydpo.training.trainer import check_resume


def task(folder: Path, workers: int = 1) -> Any:
    policy = SimpleNamespace(group=WorkerGroup(workers, 0, 1, {}, {}))
    return SimpleNamespace(job=config.from_flat({}), policy=policy, run_dir=str(folder), fingerprint={"data": "abc"})


def snapshot(folder: Path, content: str) -> None:
    checkpoint = folder / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    state = {"step": 3, "position": 6, "tokens": 9, "sums": {}, "rewards": [0, 0], "num_workers": 1}
    state["reference"] = None
    state["fingerprint"] = {"data": "abc"}
    (checkpoint / "state.json").write_text(json.dumps({**state, "files": {}}))
    (folder / "checkpoints" / "checkpoint_manager_snapshot.json").write_text(content)


def test_a_new_run_passes_the_check(tmp_path: Path) -> None:
    check_resume(task(tmp_path))


def test_the_newest_checkpoint_must_fit_the_run(tmp_path: Path) -> None:
    snapshot(tmp_path, json.dumps({"latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint-3"}}))
    check_resume(task(tmp_path))
    with pytest.raises(ResumeError, match="written by 1 workers and this run has 2"):
        check_resume(task(tmp_path, workers=2))


def test_a_truncated_list_of_checkpoints_is_refused(tmp_path: Path) -> None:
    snapshot(tmp_path, '{"latest_checkpoint_res')
    with pytest.raises(ResumeError, match=r"was cut short.*resume_from_checkpoint"):
        check_resume(task(tmp_path))
