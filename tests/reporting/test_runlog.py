"""Metrics and ledger, truncated to the step from which a run resumes."""

import json
from pathlib import Path

from raydpo.reporting.runlog import RunLog


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_steps_after_the_resumed_one_are_dropped(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path), resumed_at=0)
    for step in range(1, 6):
        log.log({"step": step, "loss": 0.5})
        log.record_pairs(step, 0, [f"a:{step}"])
        if step in (2, 5):
            log.flush()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')  # truncated by a crash
    RunLog(str(tmp_path), resumed_at=3)
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3]
    entries = [step for file in sorted((tmp_path / "ledger").iterdir()) for step in steps(file)]
    assert entries == [1, 2, 3]


def test_a_run_from_the_start_drops_everything(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path), resumed_at=0)
    log.log({"step": 0})
    log.log({"step": 1})
    RunLog(str(tmp_path), resumed_at=0)
    assert not (tmp_path / "metrics.jsonl").exists()
