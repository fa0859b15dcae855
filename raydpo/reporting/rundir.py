"""The run's folder (`output_dir`): its paths, its creation, the check against an earlier run in it, and its summary."""

import json
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from raydpo.config import JobConfig, from_flat, to_yaml
from raydpo.config.reading import read_yaml
from raydpo.config.resume import changes, check_changes, recorded
from raydpo.runtime import storage

REFERENCES = "references"
"""Name of the run's subfolder for the references that training writes."""


class RunDir:
    """The paths in a run's folder (`output_dir`)."""

    def __init__(self, path: str) -> None:
        """Resolve the folder's path to an absolute one, as workers run in other working directories."""
        self.path = Path(storage.absolute(path))
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.ledger = self.path / "ledger"
        self.quarantine = self.path / "quarantine"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.references = self.path / REFERENCES

    def start(self, job: JobConfig) -> None:
        """Create the folder and write config.yaml.

        With `resume_from_checkpoint=none`, the files of an earlier run are removed first. Raises ResumeError if the
        folder has checkpoints of a run with other options.
        """
        if job.run.resume_from_checkpoint == "none":
            for old in (self.ledger, self.checkpoints, self.model, self.references):
                shutil.rmtree(old, ignore_errors=True)
            self.metrics.unlink(missing_ok=True)
        elif self.checkpoints.exists() and self.config.exists():
            self._check_same(job)
        shutil.rmtree(self.quarantine, ignore_errors=True)
        self.summary.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(str(self.config), to_yaml(job).encode())

    def first_day(self, *, start_over: bool) -> str:
        """Return the day on which the folder was first used, as YYYY-MM-DD: today in a new one, or to start over.

        It is the `chat_template_date` in config.yaml. A run of an earlier version has none there, and made its tokens
        on the day on which it last wrote the file.
        """
        if start_over or not self.config.exists():
            return date.today().isoformat()
        recorded = from_flat(read_yaml(str(self.config))).data.chat_template_date
        return recorded or date.fromtimestamp(self.config.stat().st_mtime).isoformat()

    def _check_same(self, job: JobConfig) -> None:
        """Raise ResumeError if an option that must not change differs from the run in the folder."""
        before = recorded(from_flat(read_yaml(str(self.config))))
        check_changes(changes(before, job), str(self.path), own_folder=True)

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; an empty list if the file does not exist yet."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        storage.write_json(str(self.summary), summary)
