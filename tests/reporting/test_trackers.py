"""Trackers: checked before a run starts, and sent every metric of a line at its step."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raydpo import config
from raydpo.errors import ConfigError
from raydpo.reporting.trackers import PACKAGES, Trackers, check_trackers

LINES = [{"step": 1, "loss": 0.69, "rewards/margins": 0.0}, {"step": 2, "loss": 0.5, "rewards/margins": 1.25}]


def test_a_tracker_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_trackers(config.from_flat({}))
    with pytest.raises(ConfigError, match="report_to=wandb needs the package wandb: pip install wandb"):
        check_trackers(config.from_flat({"report_to": "wandb"}))


def test_every_value_of_report_to_has_a_package() -> None:
    with pytest.raises(ConfigError, match=f"report_to=other must be one of none, {', '.join(PACKAGES)};"):
        config.from_flat({"report_to": "other"})


def test_tensorboard_has_all_metrics_of_a_resumed_run(tmp_path: Path) -> None:
    job = config.from_flat({"report_to": "tensorboard"})
    for line in LINES:  # a new writer for each, as before and after a resume
        trackers = Trackers(job, str(tmp_path))
        trackers.log(line)
        trackers.close()
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(read.Tags()["scalars"]) == ["loss", "rewards/margins"]
    for name in ("loss", "rewards/margins"):
        found = [(event.step, event.value) for event in read.Scalars(name)]
        assert found == [(line["step"], pytest.approx(line[name])) for line in LINES]


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_other_trackers_get_the_metrics_and_the_options(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use fake modules that record their calls, because the real packages need a server."""
    calls: dict[str, list[Any]] = {}

    def recorder(name: str) -> Any:
        def record(*arguments: Any, **options: Any) -> Any:
            calls.setdefault(name, []).append((arguments, options))
            return module

        return record

    names = ("init", "log", "finish", "start_run", "log_params", "log_metrics", "end_run")
    module = SimpleNamespace(**{name: recorder(name) for name in names})
    monkeypatch.setitem(sys.modules, tracker, module)
    trackers = Trackers(config.from_flat({"report_to": tracker, "beta": 0.25, "run_name": "mine"}), str(tmp_path))
    for line in LINES:
        trackers.log(line)
    trackers.close()
    logged = calls["log" if tracker == "wandb" else "log_metrics"]
    assert logged == [
        (({"loss": line["loss"], "rewards/margins": line["rewards/margins"]},), {"step": line["step"]})
        for line in LINES
    ]
    if tracker == "wandb":
        ((_, options),) = calls["init"]
        assert (options["name"], options["resume"], options["config"]["beta"]) == ("mine", "allow", 0.25)
        assert len(calls["finish"]) == 1
    else:
        assert calls["start_run"] == [((), {"run_name": "mine"})]
        assert calls["log_params"][0][0][0]["beta"] == "0.25"
        assert len(calls["end_run"]) == 1
