"""The sync schedule decides when the reference is synced, and which reference version each evaluation reads."""

from typing import Any

import pytest

from raydpo.models.source import ModelSource
from raydpo.reference.identity import ReferenceIdentity
from raydpo.tr_dpo.schedule import SyncPlan, SyncSchedule


def plan(every: int, total: int, *, after_last: bool = True) -> SyncPlan:
    identity, source = ReferenceIdentity("weights", "", None, "{}"), ModelSource("model", "/model", None)
    return SyncPlan(
        SyncSchedule(every, total), 0.5, source, None, identity, lora=False, kept=None, after_last=after_last
    )


def due(sync: SyncPlan) -> list[int]:
    return [step for step in range(1, sync.schedule.total_steps + 1) if sync.due(step)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every": 3, "total": 10}, [3, 6, 9]),
        ({"every": 3, "total": 9}, [3, 6, 9]),
        ({"every": 3, "total": 9, "after_last": False}, [3, 6]),
        ({"every": 20, "total": 9}, []),
    ],
)
def test_syncs_follow_each_interval_except_a_last_one_that_nothing_reads(
    options: dict[str, Any], expected: list[int]
) -> None:
    sync = plan(**options)
    assert due(sync) == expected
    assert sync.syncs_until(sync.schedule.total_steps) == len(expected)
    assert sync.syncs_until(3) == len([step for step in expected if step <= 3])


def test_intervals_cover_the_run_exactly_once() -> None:
    schedule = SyncSchedule(every=3, total_steps=8)  # an epoch of 22 pairs has 4 updates of 6 pairs, the last of 4
    spans = [schedule.interval(position, pairs=22, global_batch=6) for position in (0, 6, 12, 18, 22, 28, 34, 40)]
    assert spans == [(0, 18)] * 3 + [(18, 34)] * 3 + [(34, 44)] * 2


def test_each_evaluation_reads_one_reference_version() -> None:
    """A sync precedes the evaluation of the same step, so that evaluation reads the new version."""
    sync = plan(every=3, total=8)
    assert [list(sync.steps_of_interval(step)) for step in (0, 3, 6)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert list(sync.steps_of_interval(4)) == [4, 5], "after a resume"
    assert list(plan(every=3, total=9).steps_of_interval(6)) == [6, 7, 8]
    assert list(plan(every=3, total=9).steps_of_interval(9)) == [9]
