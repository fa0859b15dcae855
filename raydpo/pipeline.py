"""The stages of a run, in the order that the data goes through them."""

from functools import partial
from typing import Any

from raydpo.config import JobConfig
from raydpo.data.prepare import PreparedData
from raydpo.errors import ConfigError
from raydpo.reference.background import BackgroundScoring
from raydpo.reference.pool import ScoringReport
from raydpo.reference.store import ReferenceStore
from raydpo.reporting.console import say
from raydpo.stages.feeds import in_order_of_need, start_feeds
from raydpo.stages.plan import RunPlan, plan_run
from raydpo.stages.score import (
    Progress,
    quarantine_failed,
    reference_store,
    score_blocks,
    score_reference,
    serve_requests,
)
from raydpo.stages.summarize import PreparedRun, Stopwatch, summarize, summarize_scoring
from raydpo.stages.tokenize import tokenize
from raydpo.stages.train import train_policy
from raydpo.training.task import TrainReport


def run(job: JobConfig) -> dict[str, Any]:
    """Preference shards in, an aligned model out -> the summary, which is also in `output_dir/summary.json`.

    `job.run.output_dir`, `job.model.model_name_or_path` and `job.data.dataset_name` must be set, and Ray started.
    """
    watch = Stopwatch()
    plan = plan_run(job)
    say("Policy", plan.policy.summary_line)
    if job.scores_reference and plan.reference.summary_line != plan.policy.summary_line:
        say("Reference", plan.reference.summary_line)
    train, held_out = tokenize(plan)
    watch.lap("tokenizing")
    store = reference_store(plan)
    if isinstance(store, ReferenceStore) and plan.pipelined:
        scoring, report = score_and_train(plan, store, train, held_out)
        watch.lap("reference and training")
    else:
        scoring = score_reference(plan, store, in_order_of_need(plan, train, held_out))
        train, held_out = quarantine_failed(plan, scoring, train, held_out)
        watch.lap("reference")
        report = train_policy(plan, start_feeds(plan, store, train, held_out))
        watch.lap("training")
    return summarize(plan, PreparedRun(train, held_out, store, scoring), report, watch.seconds)


def score_only(job: JobConfig) -> dict[str, Any]:
    """The stages before training alone, so that runs to come find their scores -> summary, as `run` has it."""
    if not job.loss.needs_reference:
        raise ConfigError(f"loss_type={','.join(job.loss.loss_type)} takes no reference, so there is nothing to score")
    if job.reference.sync_ref_model:
        raise ConfigError("sync_ref_model=true moves the reference, whose scores are those of a run; leave it out here")
    if job.reference.reference_from_dataset:
        raise ConfigError("reference_from_dataset=true takes the data set's log-probs, so there is nothing to score")
    watch = Stopwatch()
    plan = plan_run(job)
    say("Reference", plan.reference.summary_line)
    train, held_out = tokenize(plan)
    watch.lap("tokenizing")
    store = reference_store(plan)
    scoring = score_reference(plan, store, in_order_of_need(plan, train, held_out))
    train, held_out = quarantine_failed(plan, scoring, train, held_out)
    watch.lap("reference")
    return summarize_scoring(plan, PreparedRun(train, held_out, store, scoring), watch.seconds)


def score_and_train(
    plan: RunPlan, store: ReferenceStore, train: PreparedData, held_out: PreparedData | None
) -> tuple[ScoringReport, TrainReport]:
    """Both at once: the pool scores what training is about to read, which waits for that and no more."""
    progress = Progress()
    feeds = start_feeds(plan, store, train, held_out)
    if feeds.sync:
        scoring = partial(serve_requests, plan, store, feeds.actors, progress)
    else:
        scoring = partial(score_blocks, plan, store, in_order_of_need(plan, train, held_out), progress)
    with BackgroundScoring(scoring, feeds.fail) as ahead:
        report = train_policy(plan, feeds, progress.summary_line)
    scored = ahead.report
    say(
        "Reference", f"{scored.completions_scored:,} completions scored meanwhile, {scored.completions_reused:,} reused"
    )
    return scored, report
