"""The driver's side of training: Ray Train's TorchTrainer around `worker.train_worker`."""

import os
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from raydpo.errors import RaydpoError, TrainingError
from raydpo.training.resume import storage_of
from raydpo.training.task import TrainReport, TrainTask
from raydpo.training.worker import train_worker

COLLECTIVE_TIMEOUT_S = 1800
"""Seconds that a rank waits for the others: saving to slow storage and loading a large model take minutes."""


def fit(task: TrainTask) -> TrainReport:
    """Train, resuming from the newest checkpoint after a lost worker, and return rank 0's report.

    A run of the same name in the same storage is resumed; `check_resume` has looked at its checkpoint. Raises the
    `RaydpoError` that a worker raised, or TrainingError where workers were lost more often than `max_failures` allows.
    """
    job, group = task.job, task.policy.group
    storage_path, name = storage_of(job, task.run_dir)
    # Ray gives a group of workers up that takes longer than this to start, as large images and models do.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": task},
        scaling_config=ray.train.ScalingConfig(
            num_workers=group.workers,
            use_gpu=group.gpu,
            resources_per_worker={"CPU": group.cpus, "GPU": group.gpus, **group.resources},
            label_selector=dict(group.label_selector) or None,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_path,
            failure_config=ray.train.FailureConfig(max_failures=job.cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=job.run.save_total_limit),
        ),
        torch_config=TorchConfig(backend="nccl" if task.policy.gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
    )
    try:
        report: Any = trainer.fit().return_value
    except TrainingFailedError as error:
        raise _cause(error) from error
    if isinstance(report, RaydpoError):
        raise report
    assert isinstance(report, TrainReport), f"rank 0 returned {type(report)}"
    return report


def _cause(error: TrainingFailedError) -> RaydpoError:
    """Return the error to show: the `RaydpoError` that a worker raised, if there is one."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    for failure in failures.values():
        cause = getattr(failure, "_base_exc", failure)  # Ray Train wraps what a worker raised
        if isinstance(cause, RaydpoError):
            return cause
    return TrainingError(
        f"training failed: {error}\nRay's logs have the messages of each worker; run the same command again to resume "
        "from the newest checkpoint"
    )
