"""Trackers are checked for before work starts."""

import importlib.util

import pytest

from raydpo import config
from raydpo.errors import ConfigError
from raydpo.reporting.trackers import check_trackers


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_trackers(config.from_flat({}))
    with pytest.raises(ConfigError, match="report_to=wandb needs the package wandb: pip install wandb"):
        check_trackers(config.from_flat({"report_to": "wandb"}))
