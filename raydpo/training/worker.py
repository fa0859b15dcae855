"""What each train worker runs: build the policy, go on from a checkpoint, update, evaluate, save, export."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import ray.train
import torch

from raydpo.errors import RaydpoError, ReferenceMismatch, ResumeError, StorageError, TrainingError
from raydpo.feed.batches import RankBatch
from raydpo.feed.prefetch import Prefetcher
from raydpo.models.device import device
from raydpo.models.export import ExportTarget, export_adapter, export_model
from raydpo.models.loading import load_tokenizer, quiet_libraries
from raydpo.models.source import ModelSource
from raydpo.reporting.rundir import REFERENCES
from raydpo.reporting.runlog import RunLog
from raydpo.reporting.trackers import Trackers
from raydpo.tr_dpo.sync import check_sync, find_version, prune_versions, sync_reference
from raydpo.tr_dpo.version import ReferenceVersion
from raydpo.training import checkpoint, deepspeed_engine
from raydpo.training.checkpoint import TrainState
from raydpo.training.drift import Drift, check_drift
from raydpo.training.evaluation import evaluate
from raydpo.training.global_batch_loss import RewardMean
from raydpo.training.metric_sums import MetricSums
from raydpo.training.policy import build_policy
from raydpo.training.step import Objective, train_micro_batches
from raydpo.training.task import TrainReport, TrainTask
from raydpo.training.throughput import Throughput, all_peak_flops


def train_worker(config: dict[str, Any]) -> TrainReport | RaydpoError:
    """Ray Train's entry: `config["task"]` is a `TrainTask`. Rank 0's report is the run's.

    What all ranks find alike, and would find again, is returned: what is raised starts them anew.
    """
    task: TrainTask = config["task"]
    quiet_libraries()
    check_run_dir(task.run_dir)
    device(task.gpu)
    deepspeed_engine.prepare_process(task.gpu)
    worker = Worker(task)
    try:
        worker.train()
    except (ReferenceMismatch, ResumeError, TrainingError) as error:
        return error
    return worker.export()


def check_run_dir(run_dir: str) -> None:
    """`StorageError` unless this process sees the run's folder, which the driver made."""
    if not Path(run_dir).is_dir():
        raise StorageError(
            f"output_dir={run_dir} does not exist on node {ray.util.get_node_ip_address()}; every node must see it: "
            "use a folder on shared storage"
        )


class Worker:
    """One rank's state over the run."""

    def __init__(self, task: TrainTask) -> None:
        """Load the policy, start DeepSpeed, and go on from the newest checkpoint if there is one."""
        self._task = task
        self._job = task.job
        self._rank = torch.distributed.get_rank()
        torch.manual_seed(task.job.optim.seed)  # what LoRA draws must be alike on all ranks
        self._zero_config = deepspeed_engine.deepspeed_config(
            task.job, task.precision, gpu=task.gpu, num_workers=torch.distributed.get_world_size()
        )
        policy, router = build_policy(task, self._zero_config)
        self._model: Any = policy.model
        self._zero = deepspeed_engine.Engine(policy, task, self._zero_config)
        self._engine = self._zero.engine
        self._state = TrainState()
        if task.sync:
            self._state = TrainState(reference=ReferenceVersion(task.sync.identity))
            check_sync(self._model, task.sync)
        if newest := ray.train.get_checkpoint() or self._given_checkpoint():
            self._state = checkpoint.restore(self._engine, newest, task.fingerprint)
        self._resumed_at = self._state.step
        self._objective = Objective(
            task.job.loss, router.coefficient if router else 0.0, RewardMean(*self._state.rewards)
        )
        self._sums = MetricSums(self._state.sums if self._rank == 0 else None)
        self._log = RunLog(task.run_dir, self._resumed_at) if self._rank == 0 else None
        self._trackers = Trackers(task.job, task.run_dir) if self._rank == 0 else None
        schedule = task.schedule
        self._feed = Prefetcher(
            task.feed,
            self._rank,
            pairs=schedule.pairs,
            global_batch=schedule.global_batch,
            reference=self._state.reference,
        )
        self._last_line: dict[str, float] = {}
        self._rates = Throughput(all_peak_flops(task))

    def _given_checkpoint(self) -> ray.train.Checkpoint | None:
        path = self._job.run.resume_from_checkpoint
        return None if path in ("auto", "none") else ray.train.Checkpoint(path)

    def train(self) -> None:
        """All updates that are left."""
        schedule, job = self._task.schedule, self._job
        self._engine.train()
        self._find_reference()
        if self._state.step == 0:
            self._evaluate()
        while self._state.step < schedule.total_steps:
            waiting = time.monotonic()
            batch = self._feed.get(self._state.position, self._known_until())
            self._rates.wait(time.monotonic() - waiting)
            self._update(batch)
            step, done = self._state.step, self._state.step == schedule.total_steps
            synced = self._sync()
            if self._evaluation_due(step):
                self._evaluate()
            epoch_done = schedule.ends_epoch(self._state.position)
            if due(job.run.save_strategy, step, job.run.save_steps, epoch_done) or (
                (done or synced) and job.run.save_strategy != "no"
            ):
                self._save()
            if synced and self._task.sync and self._rank == 0:  # after the checkpoint that goes on with the new one
                prune_versions(str(Path(self._task.run_dir) / REFERENCES), self._task.sync.kept)
        if self._log:
            self._log.flush()

    def _find_reference(self) -> None:
        """`ResumeError` on all ranks unless the reference that a checkpoint goes on with is there as it was."""
        sync, version = self._task.sync, self._state.reference
        if sync and version:
            version = find_version(version, sync, str(Path(self._task.run_dir) / REFERENCES), is_main=self._rank == 0)
            self._hold_against(version)

    def _hold_against(self, reference: ReferenceVersion) -> None:
        """From here on this is the reference in force."""
        self._state = dataclasses.replace(self._state, reference=reference)
        self._feed.reference = reference

    def _known_until(self) -> int:
        """The position up to which batches may be asked for: the reference of those after it is still to come."""
        schedule, sync = self._task.schedule, self._task.sync
        if sync is None:
            return schedule.end
        return sync.schedule.window(self._state.position, schedule.pairs, schedule.global_batch)[1]

    def _sync(self) -> bool:
        """Let the reference take after the policy, where that is due -> True where it did."""
        sync, step, previous = self._task.sync, self._state.step, self._state.reference
        if sync is None or previous is None or not self._sync_due(step):
            return False
        waiting = time.monotonic()
        target = self._target(REFERENCES, sync.source)
        reference = sync_reference(self._model, previous, sync, target, deepspeed_engine.gather(self._zero_config))
        self._hold_against(reference)
        until = min(step + sync.schedule.every, self._task.schedule.total_steps + 1)
        if self._task.eval_feed and self._rank == 0 and any(map(self._evaluation_due, range(step, until))):
            self._task.eval_feed.fetch.remote(0, 0, reference)  # so that its pairs are scored together with the others
        self._rates.wait(time.monotonic() - waiting)
        return True

    def _evaluation_due(self, step: int) -> bool:
        """After the updates that `eval_strategy` names, and after the last."""
        optim, schedule = self._job.optim, self._task.schedule
        epoch_done = schedule.ends_epoch(schedule.position_after(step))
        return due(optim.eval_strategy, step, optim.eval_steps or 1, epoch_done) or step == schedule.total_steps

    def _sync_due(self, step: int) -> bool:
        """After every so many updates; not after the last of a run that cannot go on, where nothing would use it."""
        sync, last = self._task.sync, step == self._task.schedule.total_steps
        unused = last and self._task.eval_feed is None and self._job.run.save_strategy == "no"
        return sync is not None and step % sync.schedule.every == 0 and not unused

    def _update(self, batch: RankBatch) -> None:
        """One update, its ledger entry and, where one is due, its line of metrics."""
        step = self._state.step + 1
        run, schedule = self._job.run, self._task.schedule
        logging = (
            due(run.logging_strategy, step, run.logging_steps, schedule.ends_epoch(batch.stop))
            or step == schedule.total_steps
            or (run.logging_first_step and step == 1)
        )
        # Seeded by step and rank, so that dropout after a resume is that of the uninterrupted run.
        seed = hash((self._job.optim.seed, step, self._rank))
        drift = Drift(self._engine.device)
        for micro_batch, token_logps in train_micro_batches(
            self._engine, batch, self._objective, self._sums, seed=seed, with_statistics=logging
        ):
            if step == 1:
                drift.add(micro_batch, token_logps)
        if step == 1:
            first_loss = self._sums.means(self._engine.device)["loss"]
            # Scores that the rows carry may be sums, which say nothing of a token.
            against = drift.reduced() if self._job.scores_reference else {}
            self._write({"step": 0, "epoch": 0.0, "loss": first_loss, **against})
            check_drift(against.get("reference_drift/mean", 0.0), self._task.drift_tolerance)
        grad_norm, learning_rate = self._zero.step()
        self._rates.add(batch)
        rewards = (self._objective.rewards.total, self._objective.rewards.count)
        self._state = TrainState(
            step, batch.stop, self._state.tokens + batch.tokens, rewards=rewards, reference=self._state.reference
        )
        if self._log:
            self._log.enter(step, batch.start // self._task.schedule.pairs, batch.pair_ids)
        if logging:
            self._log_line(grad_norm, learning_rate)

    def _log_line(self, grad_norm: float, learning_rate: float) -> None:
        """Average what was gathered since the last line, over ranks and samples, and write it."""
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
            **self._rates.values(),
        }
        self._last_line = line
        self._write(line)
        if not math.isfinite(line["loss"]):
            raise TrainingError(
                f"the loss is {line['loss']} at step {state.step}; lower learning_rate, or compute in a wider type "
                "(bf16=true instead of fp16, or dtype=float32)"
            )

    def _write(self, line: dict[str, float]) -> None:
        if self._log and self._trackers:
            self._log.log(line)
            self._trackers.log(line)
            self._task.feed.report.remote(line)

    def _evaluate(self) -> None:
        """Held-out metrics, as a line of their own; nothing where there are no held-out pairs."""
        task = self._task
        if task.eval_feed is None or task.eval_schedule is None:
            return
        feed = Prefetcher(
            task.eval_feed,
            self._rank,
            pairs=task.eval_schedule.pairs,
            global_batch=task.eval_schedule.global_batch,
            reference=self._state.reference,
        )
        feed.ask(0, task.eval_schedule.pairs)
        self._feed.ask(self._state.position, self._known_until())  # after the other, as it is needed later
        metrics = evaluate(self._engine, feed, task.eval_schedule, self._objective)
        self._write({"step": self._state.step, "epoch": self._state.position / task.schedule.pairs, **metrics})
        self._rates.restart()  # the rates are those of training

    def _save(self) -> None:
        if self._log:
            self._log.flush()
        metrics = {name: value for name, value in self._last_line.items() if math.isfinite(value)}
        state = dataclasses.replace(self._state, sums=self._sums.totals(self._engine.device))
        checkpoint.save(self._engine, state, self._task.fingerprint, metrics)
        self._rates.restart()

    def _target(self, name: str, source: ModelSource) -> ExportTarget:
        """A folder of the run, for weights."""
        return ExportTarget(
            folder=str(Path(self._task.run_dir) / name),
            source=source,
            tokenizer=load_tokenizer(self._task.source, trust_remote_code=self._job.model.trust_remote_code),
            is_main=self._rank == 0,
        )

    def export(self) -> TrainReport:
        """Write the trained model, and sum the run up."""
        job = self._job
        target = self._target("model", self._task.source)
        write = export_adapter if job.adapter.use_peft else export_model
        write(self._model, target, deepspeed_engine.gather(self._zero_config))
        torch.distributed.barrier()
        if self._trackers:
            self._trackers.close()
        return TrainReport(
            steps=self._state.step,
            resumed_at=self._resumed_at,
            pairs_trained=self._state.position,
            reference=self._state.reference.identity.digest if self._state.reference else None,
            syncs=sum(map(self._sync_due, range(1, self._state.step + 1))),
            model_dir=target.folder,
        )


def due(strategy: str, step: int, every: int, epoch_done: bool) -> bool:
    """True after the updates that `save_strategy`, `eval_strategy` or `logging_strategy` names."""
    return {"no": False, "steps": step % every == 0, "epoch": epoch_done}[strategy]
