"""The run's folder (`output_dir`): its paths, its creation, the check against an earlier run in it, and its summary."""

import json
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from raydpo.config import JobConfig, from_flat, to_flat, to_yaml
from raydpo.config.reading import read_yaml
from raydpo.errors import ResumeError
from raydpo.runtime import storage

REFERENCES = "references"
"""Name of the run's subfolder for the references that training writes."""

# Options that may change when a run is resumed: they affect where it runs, what it logs and when it ends, but not what
# an update computes.
MAY_CHANGE = {
    "cache_dir",
    "cpus_per_worker",
    "device_peak_tflops",
    "eval_steps",
    "eval_strategy",
    "gpus_per_worker",
    "gradient_checkpointing",
    "logging_first_step",
    "logging_steps",
    "logging_strategy",
    "logits_chunk_tokens",
    "max_bad_rows",
    "max_failures",
    "max_steps",
    "num_train_epochs",
    "output_dir",
    "per_device_eval_batch_size",
    "reference_cpus_per_worker",
    "reference_gpus_per_worker",
    "reference_label_selector",
    "reference_num_workers",
    "reference_resources",
    "report_to",
    "resume_from_checkpoint",
    "run_name",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "storage_path",
    "tokens_per_micro_batch",
    "torch_compile",
    "trust_remote_code",
    "verbose",
    "worker_label_selector",
    "worker_resources",
}


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
        before = to_flat(from_flat(read_yaml(str(self.config))))
        for name, value in to_flat(job).items():
            if name == "chat_template_date" and before[name] is None:
                continue  # a run of an earlier version; the blocks of its data show whether its tokens are the same
            if name not in MAY_CHANGE and before[name] != value:
                raise ResumeError(
                    f"{self.path} holds a run with {name}={before[name]}, but this run has {name}={value}; choose "
                    "another output_dir, or start over with resume_from_checkpoint=none (this removes the old "
                    "checkpoints)"
                )

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; an empty list if the file does not exist yet."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        storage.write_json(str(self.summary), summary)
