"""Experiment trackers selected by `report_to` (TensorBoard, Weights & Biases, MLflow), with a common interface."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydpo.config import JobConfig, to_flat
from raydpo.errors import ConfigError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Python package of each tracker."""


def check_trackers(job: JobConfig) -> None:
    """Raise ConfigError if `report_to` names a tracker whose package is not installed."""
    for tracker in job.run.report_to:
        package = PACKAGES.get(tracker)
        if package and importlib.util.find_spec(package) is None:
            raise ConfigError(f"report_to={tracker} needs the package {package}: pip install {package} on every node")


class Trackers:
    """The trackers of a run; without any, its methods do nothing."""

    def __init__(self, job: JobConfig, run_dir: str) -> None:
        """Open the trackers. A resumed run continues its earlier TensorBoard and W&B records."""
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._mlflow: Any = None
        name = job.run.run_name or Path(run_dir).name
        if "tensorboard" in job.run.report_to:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(Path(run_dir) / "tensorboard"))
        if "wandb" in job.run.report_to:
            import wandb

            # With the id, a resumed run continues its W&B run instead of starting a new one.
            identifier = name.replace("/", "-")
            self._wandb = wandb.init(name=name, id=identifier, resume="allow", dir=run_dir, config=to_flat(job))
        if "mlflow" in job.run.report_to:
            import mlflow

            mlflow.start_run(run_name=name)
            mlflow.log_params({key: str(value)[:250] for key, value in to_flat(job).items()})
            self._mlflow = mlflow

    def log(self, line: Mapping[str, float]) -> None:
        """Send one line of metrics, including its `step`, to every tracker."""
        step = int(line["step"])
        metrics = {key: value for key, value in line.items() if key != "step"}
        if self._tensorboard:
            for key, value in metrics.items():
                self._tensorboard.add_scalar(key, value, step)
        if self._wandb:
            self._wandb.log(metrics, step=step)
        if self._mlflow:
            self._mlflow.log_metrics(metrics, step=step)

    def close(self) -> None:
        """Send buffered metrics and close the trackers."""
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()
        if self._mlflow:
            self._mlflow.end_run()
