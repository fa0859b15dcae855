"""The stages of a run, in the order in which the data goes through them.

    plan        options and cluster -> what each stage does, checked before any work
    tokenize    preference shards -> tokenized blocks; bad rows go to quarantine
    score       tokenized blocks -> reference log-probs, once per reference, kept across runs
    feeds       blocks and log-probs -> the micro-batches of each rank, in an order that only the seed decides
    train       micro-batches -> updates, checkpoints, metrics, and the trained model
    summarize   what every stage counted -> summary.json

Each stage is a module of raydpo/stages/.
"""

from typing import Any

from raydpo.config import JobConfig
from raydpo.errors import ConfigError
from raydpo.reporting.console import print_line
from raydpo.runtime.resources import cluster_nodes
from raydpo.stages.feeds import blocks_in_training_order, check_schedule, start_feeds
from raydpo.stages.plan import plan_run
from raydpo.stages.score import quarantine_failed, reference_store, score_reference
from raydpo.stages.summarize import PreparedRun, Stopwatch, summarize, summarize_scoring
from raydpo.stages.token_ids import check_lengths, check_token_ids
from raydpo.stages.tokenize import tokenize
from raydpo.stages.train import train_policy, train_while_scoring
from raydpo.training.resume import check_options


def run(job: JobConfig) -> dict[str, Any]:
    """Train a policy on preference shards; return the summary, which is also in `output_dir/summary.json`.

    `output_dir`, `model_name_or_path` and `dataset_name` must be set, and Ray started. Raises a `RaydpoError` with
    value, rule and remedy where the run cannot go on.
    """
    watch = Stopwatch()
    plan = plan_run(job, cluster_nodes())
    resumed = check_options(plan.job, str(plan.run_dir.path))
    plan.run_dir.start(plan.job)
    plan.notes.add(*resumed)
    print_line("Policy", plan.policy.summary_line)
    if job.scores_reference and plan.reference.summary_line != plan.policy.summary_line:
        print_line("Reference", plan.reference.summary_line)

    check_schedule(plan)
    data = tokenize(plan)
    check_schedule(plan, data.train.pairs)
    check_token_ids(data.blocks, plan.tokenizer, plan.vocabularies)
    check_lengths(data.longest, plan.vocabularies)
    watch.lap("tokenizing")

    store = reference_store(plan)
    if store and plan.pipelined:
        scoring, report = train_while_scoring(plan, store, data)
        watch.lap("reference and training")
    else:
        scoring = score_reference(plan, store, blocks_in_training_order(plan, data))
        data = quarantine_failed(plan, scoring, data)
        watch.lap("reference")
        report = train_policy(plan, start_feeds(plan, store, data))
        watch.lap("training")
    return summarize(plan, PreparedRun(data, scoring, store), report, watch.seconds)


def score_only(job: JobConfig) -> dict[str, Any]:
    """Score the reference and do not train, so that later runs find the scores; return the summary, as `run` does."""
    check_scores_reference(job)
    watch = Stopwatch()
    plan = plan_run(job, cluster_nodes())
    plan.run_dir.start(plan.job)
    print_line("Reference", plan.reference.summary_line)

    data = tokenize(plan)
    check_token_ids(data.blocks, plan.tokenizer, plan.vocabularies)
    check_lengths(data.longest, plan.vocabularies)
    watch.lap("tokenizing")

    store = reference_store(plan)
    scoring = score_reference(plan, store, blocks_in_training_order(plan, data))
    data = quarantine_failed(plan, scoring, data)
    watch.lap("reference")
    return summarize_scoring(plan, PreparedRun(data, scoring, store), watch.seconds)


def check_scores_reference(job: JobConfig) -> None:
    """Raise ConfigError where the job has no reference whose scores another run could use."""
    if not job.loss.needs_reference:
        raise ConfigError(f"loss_type={','.join(job.loss.loss_type)} takes no reference, so there is nothing to score")
    if job.reference.sync_ref_model:
        raise ConfigError(
            "sync_ref_model=true changes the reference during a run, so other runs cannot use its scores; leave it out"
        )
    if job.reference.reference_from_dataset:
        raise ConfigError("reference_from_dataset=true takes the data set's log-probs, so there is nothing to score")
