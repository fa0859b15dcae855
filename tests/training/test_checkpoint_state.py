"""A checkpoint is used only if it is complete and belongs to the run."""

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.errors import ResumeError
from raydpo.training.checkpoint import read_state

FINGERPRINT = {"reference": "abc", "data": "def"}


def checkpoint(folder: Path, **changes: Any) -> Path:
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "shard.pt").write_bytes(b"12345")
    content = {
        "step": 7,
        "position": 56,
        "tokens": 900,
        "sums": {"loss": [3.5, 8]},
        "rewards": [4.5, 16],
        "reference": None,
        "num_workers": 2,
        "fingerprint": FINGERPRINT,
        "files": {"engine/shard.pt": 5},
    }
    (folder / "state.json").write_text(json.dumps({**content, **changes}))
    return folder


def test_a_complete_checkpoint_is_read(tmp_path: Path) -> None:
    state = read_state(checkpoint(tmp_path / "c"), FINGERPRINT, num_workers=2)
    assert (state.step, state.position, state.tokens) == (7, 56, 900)
    assert list(state.rewards) == [4.5, 16]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {"engine/shard.pt": 6}}, "not 6 bytes"),
        ({"files": {"engine/other.pt": 5}}, r"other\.pt is missing"),
        ({"num_workers": 4}, "resume with num_workers=4"),
        ({"fingerprint": {"reference": "xyz", "data": "def"}}, r"another reference \(xyz, now abc\)"),
        ({"fingerprint": {"reference": "abc"}}, "another data"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=message):
        read_state(checkpoint(tmp_path / "c", **changes), FINGERPRINT, num_workers=2)


def test_an_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    (folder / "state.json").unlink()
    with pytest.raises(ResumeError, match="not a whole checkpoint"):
        read_state(folder, FINGERPRINT, num_workers=2)
