"""Progress lines of a stage."""

import io

import pytest

from raydpo.reporting import console
from raydpo.reporting.console import Stage, duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (42.4, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_duration_as_text(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_lines_have_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    stage = Stage("Reference", "pairs", stream)
    stage.update(0, 1000)
    now[0] += 20
    stage.update(200, 1000, "on 2 workers")
    now[0] += 1
    stage.update(210, 1000)  # too soon for another line in a log
    now[0] += 79
    stage.done("1,000 pairs scored")
    assert stream.getvalue().splitlines() == [
        "Reference    200 of 1,000 pairs, 10.0/s, 1 min 20 s left, on 2 workers",
        "Reference    1,000 pairs scored in 1 min 40 s",
    ]
