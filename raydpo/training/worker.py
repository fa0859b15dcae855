"""What each train worker runs: build the policy, resume from a checkpoint, update, evaluate, save, export."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import ray.train
import torch

from raydpo.errors import (
    ConfigError,
    ModelError,
    RaydpoError,
    ReferenceMismatch,
    ResumeError,
    StorageError,
    TrainingError,
)
from raydpo.feed.batches import RankBatch
from raydpo.feed.prefetch import Prefetcher
from raydpo.models.device import device
from raydpo.models.loading import quiet_libraries
from raydpo.reporting.rundir import REFERENCES
from raydpo.reporting.runlog import RunLog
from raydpo.reporting.trackers import Trackers
from raydpo.runtime.actors import get_result
from raydpo.tr_dpo.sync import ReferenceSync
from raydpo.tr_dpo.version import ReferenceVersion
from raydpo.training import checkpoint, deepspeed_engine
from raydpo.training.checkpoint import TrainState
from raydpo.training.divergence import DivergenceCheck, check_start
from raydpo.training.drift import Drift, check_drift
from raydpo.training.evaluation import evaluate
from raydpo.training.exporting import export_policy, run_target
from raydpo.training.global_batch_loss import RewardMean
from raydpo.training.metric_sums import MetricSums
from raydpo.training.policy import build_policy, check_policy
from raydpo.training.step import Objective, train_micro_batches
from raydpo.training.task import TrainReport, TrainTask
from raydpo.training.throughput import Throughput, total_peak_flops


def train_worker(config: dict[str, Any]) -> TrainReport | RaydpoError:
    """Train on one rank; Ray Train calls it with a `TrainTask` in `config["task"]`. Rank 0's report is the run's.

    An error that all ranks find alike, and would find again after a restart, is returned: a raised one restarts them.
    """
    task: TrainTask = config["task"]
    quiet_libraries()
    check_run_dir(task.run_dir)
    device(task.policy.gpu)
    deepspeed_engine.prepare_process(task.policy.gpu)
    try:
        worker = Worker(task)
    except ConfigError as error:  # DeepSpeed refuses the file; a damaged checkpoint may be found by one rank only
        return error
    try:
        worker.train()
        return worker.export()
    except (ModelError, ReferenceMismatch, ResumeError, TrainingError) as error:
        return error


def check_run_dir(run_dir: str) -> None:
    """Raise StorageError unless this process sees the run's folder, which the driver made."""
    if not Path(run_dir).is_dir():
        raise StorageError(
            f"output_dir={run_dir} does not exist on node {ray.util.get_node_ip_address()}; every node must see it: "
            "use a folder on shared storage"
        )


class Worker:
    """One rank's state over the run."""

    def __init__(self, task: TrainTask) -> None:
        """Load the policy, start DeepSpeed, and resume from the newest checkpoint if there is one."""
        self._task = task
        self._job = task.job
        self._rank = torch.distributed.get_rank()
        torch.manual_seed(task.job.optim.seed)  # the random weights of LoRA must be the same on all ranks
        policy, router = build_policy(task)
        self._model: Any = policy.model
        self._deepspeed = deepspeed_engine.DeepSpeedEngine(policy, task)
        self._engine = self._deepspeed.engine
        self._sync = self._reference_sync()
        self._state = TrainState()
        newest = ray.train.get_checkpoint() or self._named_checkpoint()
        if newest:
            self._state = checkpoint.restore(self._deepspeed, newest, task.fingerprint)
        self._divergence = DivergenceCheck(newest.path if newest else None, self._engine.device)
        self._resumed_at = self._state.step
        self._objective = Objective(
            task.job.loss, router.coefficient if router else 0.0, RewardMean(*self._state.rewards)
        )
        self._sums = MetricSums(self._state.sums if self._rank == 0 else None)
        self._log = RunLog(task.run_dir, self._resumed_at) if self._rank == 0 else None
        self._trackers = Trackers(task.job, task.run_dir) if self._rank == 0 else None
        self._feed = Prefetcher(task.feed, self._rank, task.schedule, self._version)
        self._last_line: dict[str, float] = {}
        self._throughput = Throughput(total_peak_flops(task))

    def _named_checkpoint(self) -> ray.train.Checkpoint | None:
        path = self._job.run.resume_from_checkpoint
        return None if path in ("auto", "none") else ray.train.Checkpoint(path)

    def train(self) -> None:
        """Make all updates that are left."""
        task = self._task
        self._forward_check = check_policy(self._engine, task)
        self._feed.padded = self._forward_check.layout == "padded"
        self._engine.train()

        # Before the first update: the version of the reference in force, and metrics of the policy as it starts.
        if self._sync:
            self._sync.start(self._state.reference)
        if self._state.step == 0:
            self._evaluate()

        while self._state.step < task.schedule.total_steps:
            # Each step: one update on the next global batch, with its ledger entry and its line of metrics.
            self._update(self._next_batch())
            step = self._state.step

            # After each sync interval (TR-DPO): mix the policy into the reference.
            synced = task.sync_due(step)
            if synced:
                self._divergence.check_weights(self._model, step, "the next reference")
                self._sync_reference()

            # Once in a while: metrics of the held-out pairs.
            if task.evaluation_due(step):
                self._evaluate()

            # Once in a while: a checkpoint, from which a lost run resumes with the next pair.
            if task.checkpoint_due(step, synced=synced):
                self._save()
            if synced and self._sync:
                self._sync.prune()
        if self._log:
            self._log.flush()
        self._divergence.check_weights(self._model, self._state.step, "the export")

    def _next_batch(self) -> RankBatch:
        started = time.monotonic()
        batch = self._feed.get(self._state.position, self._known_until())
        self._throughput.wait(time.monotonic() - started)
        return batch

    def _known_until(self) -> int:
        """Return the position up to which batches can be asked for: the end of the sync interval, or of the run."""
        schedule, sync = self._task.schedule, self._task.sync
        if sync is None:
            return schedule.end
        return sync.schedule.interval(self._state.position, schedule.pairs, schedule.global_batch)[1]

    @property
    def _version(self) -> ReferenceVersion | None:
        """Version of the reference in force; None if it never changes."""
        return self._sync.version if self._sync else None

    def _reference_sync(self) -> ReferenceSync | None:
        sync = self._task.sync
        if sync is None:
            return None
        target, gather = (
            run_target(self._task, REFERENCES, sync.source),
            deepspeed_engine.gather(self._task.deepspeed_config),
        )
        return ReferenceSync(sync, self._model, target, gather, self._announce)

    def _announce(self, version: ReferenceVersion) -> None:
        """Fetch batches that this version scores, and let the driver know which pairs it has to score."""
        task, step = self._task, self._state.step
        self._feed.version = version
        if self._rank != 0 or task.sync is None:
            return
        if any(map(task.evaluation_due, task.sync.steps_of_interval(step))):
            # Answered before the other is made, so that the driver scores all with one load of the reference.
            for held_out in task.eval_sets:
                get_result(held_out.feed.announce(version, 0))
        task.feed.announce(version, self._state.position)

    def _sync_reference(self) -> None:
        assert self._sync, "a sync is due only where there is a plan for it"
        started = time.monotonic()
        self._sync.sync()
        self._throughput.wait(time.monotonic() - started)

    def _update(self, batch: RankBatch) -> None:
        """Make one update, its ledger entry and, where one is due, its line of metrics."""
        step = self._state.step + 1
        logging = self._task.logging_due(step)
        # Seeded by step and rank, so that dropout after a resume is that of the uninterrupted run.
        seed = hash((self._job.optim.seed, step, self._rank))
        drift = Drift(self._engine.device)
        for micro_batch, token_logps in train_micro_batches(
            self._engine, batch, self._objective, self._sums, seed=seed, with_statistics=logging
        ):
            if step == 1:
                drift.add(micro_batch, token_logps)
        if step == 1:
            self._check_first_batch(drift)
        grad_norm, learning_rate = self._deepspeed.step()
        self._divergence.check_update(self._deepspeed.fault, step)
        self._throughput.add(batch)
        tokens = self._state.tokens + batch.tokens
        self._state = TrainState(step, batch.stop, tokens, rewards=self._objective.rewards.totals)
        if self._log:
            self._log.record_pairs(step, batch.start // self._task.schedule.pairs, batch.pair_ids)
        if logging:
            self._log_line(grad_norm, learning_rate)

    def _check_first_batch(self, drift: Drift) -> None:
        """Write the first loss and the drift. Raises ReferenceMismatch where the drift is above its tolerance."""
        first_loss = self._sums.means(self._engine.device)["loss"]
        # Reference log-probs from the data set may be sums, which cannot be compared token by token.
        metrics = drift.reduced() if self._job.scores_reference else {}
        self._write({"step": 0, "epoch": 0.0, "loss": first_loss, **metrics})
        check_start(first_loss)
        check_drift(metrics.get("reference_drift/mean", 0.0), self._task.drift_tolerance)

    def _log_line(self, grad_norm: float, learning_rate: float) -> None:
        """Write the means, over ranks and samples, of what was summed since the last line."""
        metrics = self._sums.means(self._engine.device)
        self._sums = MetricSums()
        state, schedule = self._state, self._task.schedule
        line = {
            "step": state.step,
            "epoch": state.position / schedule.pairs,
            "loss": metrics.pop("loss"),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            **metrics,
            "num_tokens": state.tokens,
            **self._throughput.values(),
        }
        self._last_line = line
        self._write(line)
        self._divergence.check_metrics(line, state.step)

    def _write(self, line: dict[str, float]) -> None:
        if self._log and self._trackers:
            self._log.log(line)
            self._trackers.log(line)
            self._task.feed.report(line)

    def _evaluate(self) -> None:
        """Write the metrics of all sets of held-out pairs as one line of its own; do nothing without held-out pairs."""
        task = self._task
        if not task.eval_sets:
            return
        feeds = [Prefetcher(held_out.feed, self._rank, held_out.schedule, self._version) for held_out in task.eval_sets]
        for feed, held_out in zip(feeds, task.eval_sets, strict=True):
            feed.padded = self._feed.padded
            feed.ask(0, held_out.schedule.pairs)
        self._feed.ask(self._state.position, self._known_until())  # after the held-out pairs, as it is needed later
        line = {"step": self._state.step, "epoch": self._state.position / task.schedule.pairs}
        for feed, held_out in zip(feeds, task.eval_sets, strict=True):
            line |= evaluate(self._engine, feed, held_out, self._objective)
        self._write(line)
        self._divergence.check_metrics(line, self._state.step, [held_out.prefix for held_out in task.eval_sets])
        self._throughput.restart()  # its rates are those of training alone

    def _save(self) -> None:
        self._divergence.check_weights(self._model, self._state.step, "this checkpoint")
        if self._log:
            self._log.flush()
        metrics = {name: value for name, value in self._last_line.items() if math.isfinite(value)}
        sums = self._sums.totals(self._engine.device)
        state = dataclasses.replace(self._state, sums=sums, reference=self._version)
        checkpoint.save(self._deepspeed, state, self._task, metrics)
        self._divergence.checkpoint = checkpoint.name(state.step)
        self._throughput.restart()

    def export(self) -> TrainReport:
        """Write the trained model or adapter, and return the report of the run."""
        target = run_target(self._task, "model", self._task.policy.source)
        exported = export_policy(self._engine, self._task, target)
        if self._trackers:
            self._trackers.close()
        return TrainReport(
            steps=self._state.step,
            resumed_at=self._resumed_at,
            pairs_trained=self._state.position,
            reference=self._version.identity.digest if self._version else None,
            syncs=self._task.sync.syncs_until(self._state.step) if self._task.sync else 0,
            model_dir=target.folder,
            forward_check=self._forward_check.summary(),
            export_check=exported.summary(),
        )
