"""The demonstration works: training makes the replies courteous and keeps them well formed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


def test_training_makes_replies_courteous_and_keeps_them_well_formed(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/dpo.py", "--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path)]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    before, after = summary["demo"]["before"], summary["demo"]["after"]
    assert 0.35 <= before["sampled"]["courteous"] <= 0.65
    assert after["sampled"]["courteous"] >= 0.95
    assert after["greedy"]["courteous"] >= 0.95
    for decoding in ("greedy", "sampled"):
        assert after[decoding]["well_formed"] >= 0.95
    assert summary["evaluation"]["after"]["eval_rewards/accuracies"] >= 0.97
    assert (
        summary["evaluation"]["after"]["eval_rewards/margins"] > summary["evaluation"]["before"]["eval_rewards/margins"]
    )
    files = list((tmp_path / "run" / "data").iterdir())
    assert len(files) > 2
    assert {path.suffix for path in files} == {".jsonl", ".parquet"}
    assert "sampled" in done.stdout
