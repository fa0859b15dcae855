"""The files that rank 0 writes during training: metrics.jsonl and the ledger of the pairs of each update."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raydpo.runtime import storage


class RunLog:
    """The metrics and the ledger of a run, truncated to the step that it resumes from."""

    def __init__(self, run_dir: str, resumed_at: int) -> None:
        """Open the files of the run and drop the lines of steps after `resumed_at`, as these steps will be repeated."""
        self._metrics = Path(run_dir) / "metrics.jsonl"
        self._ledger = Path(run_dir) / "ledger"
        self._pending: list[dict[str, Any]] = []
        for file in [self._metrics, *sorted(self._ledger.glob("*.jsonl"))]:
            # A run that starts at step 0 keeps nothing, not even the line before its first update.
            _keep_lines(file, lambda line: 0 < resumed_at >= line["step"])

    def log(self, line: dict[str, Any]) -> None:
        """Append one line of metrics and close the file, so that other processes can follow it."""
        with self._metrics.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def record_pairs(self, step: int, epoch: int, pair_ids: Sequence[str]) -> None:
        """Record the pairs of an update in memory until `flush` writes them."""
        self._pending.append({"step": step, "epoch": epoch, "pairs": list(pair_ids)})

    def flush(self) -> None:
        """Write the recorded updates as one ledger file.

        It must be called just before each checkpoint, so that ledger and checkpoint agree.
        """
        if not self._pending:
            return
        first, last = self._pending[0]["step"], self._pending[-1]["step"]
        content = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self._pending)
        storage.write_bytes(str(self._ledger / f"{first:08d}-{last:08d}.jsonl"), content.encode())
        self._pending = []


def _keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a JSONL file with the lines to keep, or remove it if there are none.

    A last line that a crash cut short is dropped.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n") and keep(json.loads(line)):
            kept.append(line)
    if kept:
        storage.write_bytes(str(path), "".join(kept).encode())
    else:
        os.remove(path)
