"""The updates."""

from collections.abc import Callable

import ray

from raydpo.reporting.console import Poller, Stage
from raydpo.stages.feeds import Feeds
from raydpo.stages.plan import RunPlan
from raydpo.training import trainer
from raydpo.training.task import TrainReport, TrainTask


def train_policy(plan: RunPlan, feeds: Feeds, note: Callable[[], str] = lambda: "") -> TrainReport:
    """The updates, by workers under Ray Train; the result in `output_dir/model`. `note` ends the line of progress."""
    policy = plan.policy
    task = TrainTask(
        job=plan.job,
        source=policy.source,
        adapter=policy.adapter,
        precision=policy.precision,
        attention=policy.attention,
        gpu=policy.gpu,
        schedule=feeds.schedule,
        feed=feeds.train,
        eval_feed=feeds.held_out,
        eval_schedule=feeds.held_out_schedule,
        drift_tolerance=plan.drift_tolerance,
        run_dir=str(plan.run_dir.path),
        fingerprint=feeds.fingerprint,
        sync=feeds.sync,
    )
    stage = Stage("Training", "updates")

    def show() -> None:
        line = ray.get(feeds.train.progress.remote())
        if "loss" in line:
            stage.update(line["step"], feeds.schedule.total_steps, f"loss {line['loss']:.4f}{note()}")

    with Poller(show):
        report = trainer.fit(task, policy.group)
    resumed = f" ({report.resumed_at:,} of them before the resume)" if report.resumed_at else ""
    stage.done(f"{report.steps:,} updates{resumed}")
    return report
