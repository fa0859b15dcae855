"""The updates: train workers under Ray Train, with progress on the console, alone or while the pool scores."""

from collections.abc import Callable
from functools import partial

from raydpo.reference.background import BackgroundScoring
from raydpo.reference.pool import ScoringReport
from raydpo.reference.store import ReferenceStore
from raydpo.reporting.console import Poller, Stage, print_line
from raydpo.runtime.actors import get_result
from raydpo.stages.feeds import Feeds, blocks_in_training_order, start_feeds
from raydpo.stages.plan import RunPlan
from raydpo.stages.resume import plan_fingerprint
from raydpo.stages.score import ScoringProgress, score_in_background
from raydpo.stages.sync_scoring import serve_requests
from raydpo.stages.tokenize import RunData
from raydpo.training import trainer
from raydpo.training.deepspeed_sections import schedule_notes
from raydpo.training.resume import check_resume
from raydpo.training.task import TrainReport, TrainTask


def train_policy(plan: RunPlan, feeds: Feeds, note: Callable[[], str] = lambda: "") -> TrainReport:
    """Make all updates and write the result to `output_dir/model`. `note()` is appended to the line of progress."""
    file, total_steps = str(plan.job.cluster.deepspeed), feeds.schedule.total_steps
    plan.notes.add(*schedule_notes(file, plan.deepspeed_config, plan.job.optim, total_steps))
    task = TrainTask(
        job=plan.job,
        policy=plan.policy,
        deepspeed_config=plan.deepspeed_config,
        schedule=feeds.schedule,
        feed=feeds.train,
        eval_sets=feeds.held_out,
        drift_tolerance=plan.drift_tolerance,
        run_dir=str(plan.run_dir.path),
        fingerprint={**feeds.fingerprint, **plan_fingerprint(plan)},
        sync=feeds.sync,
        chat_template=plan.tokenizer.chat_template if plan.job.model.chat_template else None,
    )
    plan.notes.add(*check_resume(task))
    stage = Stage("Training", "updates")

    def show_progress() -> None:
        line = get_result(feeds.train.progress())
        if "loss" in line:
            stage.update(int(line["step"]), feeds.schedule.total_steps, f"loss {line['loss']:.4f}{note()}")

    with Poller(show_progress):
        report = trainer.fit(task)
    resumed = f" ({report.resumed_at:,} of them before the resume)" if report.resumed_at else ""
    stage.done(f"{report.steps:,} updates{resumed}")
    return report


def train_while_scoring(plan: RunPlan, store: ReferenceStore, data: RunData) -> tuple[ScoringReport, TrainReport]:
    """Train while the pool scores what training reads next; training waits for no more than that."""
    progress = ScoringProgress()
    feeds = start_feeds(plan, store, data)
    if feeds.sync:
        scoring = partial(serve_requests, plan, store, feeds.handles, progress)
    else:
        scoring = partial(score_in_background, plan, store, blocks_in_training_order(plan, data), progress)
    with BackgroundScoring(scoring, feeds.fail) as background:
        report = train_policy(plan, feeds, lambda: progress.note)
    scored = background.report
    print_line(
        "Reference", f"{scored.completions_scored:,} completions scored meanwhile, {scored.completions_reused:,} reused"
    )
    return scored, report
