"""The stages of a run, in the order that the data goes through them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from raydpo import storage
from raydpo.config import JobConfig
from raydpo.data.prepare import PreparedData, TokenizationRequest, prepare
from raydpo.data.shards import Shard, find_shards
from raydpo.data.tokenization import Truncation
from raydpo.errors import ConfigError, DataError
from raydpo.objectives.objective import counts_prompts
from raydpo.reference.absent import Unscored
from raydpo.reference.ahead import Ahead
from raydpo.reference.pool import ScoringReport
from raydpo.reference.store import ReferenceStore
from raydpo.reporting.console import Poller, Stage, say
from raydpo.schema import Block
from raydpo.scoring import (
    Progress,
    reader_of,
    reference_store,
    score_as_asked,
    score_blocks,
    score_reference,
    sync_plan,
    without_poisonous,
)
from raydpo.setting import Setting, settle
from raydpo.summary import Scored, Stopwatch, sum_up, sum_up_scoring
from raydpo.training import trainer
from raydpo.training.feed import FeedSpec, start_feed
from raydpo.training.task import Schedule, SyncPlan, TrainReport, TrainTask


def run(job: JobConfig) -> dict[str, Any]:
    """Preference shards in, an aligned model out -> the summary, which is also in `output_dir/summary.json`.

    `job.run.output_dir`, `job.model.model_name_or_path` and `job.data.dataset_name` must be set, and Ray started.
    """
    watch = Stopwatch()
    setting = settle(job)
    say("Policy", setting.policy.told)
    if job.scores_reference and setting.reference.told != setting.policy.told:
        say("Reference", setting.reference.told)
    train, held_out = tokenize(setting)
    watch.lap("tokenizing")
    store = reference_store(setting)
    if isinstance(store, ReferenceStore) and setting.pipelined:
        scoring, report = score_and_train(setting, store, train, held_out)
        watch.lap("reference and training")
    else:
        scoring = score_reference(setting, store, in_order_of_need(setting, train, held_out))
        train, held_out = without_poisonous(setting, scoring, train, held_out)
        watch.lap("reference")
        report = train_policy(setting, start_feeds(setting, store, train, held_out))
        watch.lap("training")
    return sum_up(setting, Scored(train, held_out, store, scoring), report, watch.seconds)


def score_ahead(job: JobConfig) -> dict[str, Any]:
    """The stages before training alone, so that runs to come find their scores -> summary, as `run` has it."""
    if not job.loss.needs_reference:
        raise ConfigError(f"loss_type={','.join(job.loss.loss_type)} takes no reference, so there is nothing to score")
    if job.reference.sync_ref_model:
        raise ConfigError("sync_ref_model=true moves the reference, whose scores are those of a run; leave it out here")
    if job.reference.reference_from_dataset:
        raise ConfigError("reference_from_dataset=true takes the data set's log-probs, so there is nothing to score")
    watch = Stopwatch()
    setting = settle(job)
    say("Reference", setting.reference.told)
    train, held_out = tokenize(setting)
    watch.lap("tokenizing")
    store = reference_store(setting)
    scoring = score_reference(setting, store, in_order_of_need(setting, train, held_out))
    train, held_out = without_poisonous(setting, scoring, train, held_out)
    watch.lap("reference")
    return sum_up_scoring(setting, Scored(train, held_out, store, scoring), watch.seconds)


def tokenize(setting: Setting) -> tuple[PreparedData, PreparedData | None]:
    """Shards to tokenized blocks: of the pairs to train on, and of the held-out ones where evaluation is asked for."""
    data = setting.job.data
    shards = find_shards(data.dataset_name, data.dataset_train_split, data.dataset_config)
    held_out_shards = held_out(setting.job, shards)
    stage = Stage("Tokenizing", "rows")
    quarantine = setting.run_dir.quarantine
    folders = ((shards, quarantine), (held_out_shards, quarantine / "held_out"))
    every = [_prepare(setting, part, folder, stage) for part, folder in folders if part]
    rows, bad = sum(part.rows_read for part in every), sum(part.rows_quarantined for part in every)
    dialects = sorted({dialect for part in every for dialect in part.dialects.values()})
    stage.done(f"{rows:,} rows ({', '.join(dialects)}), {bad:,} to quarantine")
    return every[0], every[1] if held_out_shards else None


def held_out(job: JobConfig, train: Sequence[Shard]) -> tuple[Shard, ...]:
    """The shards of held-out pairs; none with `eval_strategy=no`. `DataError` where they are wanted and not there."""
    data = job.data
    if job.optim.eval_strategy == "no":
        return ()
    names = data.eval_dataset_name or data.dataset_name
    # Files named one by one belong to whichever option names them; only other sources are looked through for a split.
    shards = find_shards(names, data.dataset_test_split, data.dataset_config, required=bool(data.eval_dataset_name))
    if not shards:
        raise DataError(
            f"eval_strategy={job.optim.eval_strategy} needs held-out pairs, and {', '.join(names)} has no split "
            f"{data.dataset_test_split}; name files with eval_dataset_name, or set eval_strategy=no"
        )
    if both := {shard.url for shard in train} & {shard.url for shard in shards}:
        raise DataError(f"{min(both)} is named for training and for evaluation; name other files in eval_dataset_name")
    return shards


def _prepare(setting: Setting, shards: Sequence[Shard], quarantine: Path, stage: Stage) -> PreparedData:
    data = setting.job.data
    request = TokenizationRequest(
        tokenizer=setting.tokenizer,
        cache_dir=storage.absolute(data.cache_dir),
        quarantine_dir=str(quarantine),
        dialect=data.dataset_format,
        truncation=Truncation(data.max_length, data.max_prompt_length, data.truncation_mode),
        block_pairs=data.block_pairs,
        given_logps=setting.job.loss.needs_reference and not setting.job.scores_reference,
        per_token=setting.job.loss.ld_alpha is not None,
    )
    return prepare(shards, request, data.max_bad_rows, stage.update)


def feed_spec(setting: Setting) -> FeedSpec:
    """How the training pairs are ordered, and cut into batches."""
    optim, policy = setting.job.optim, setting.policy
    return FeedSpec(
        seed=optim.order_seed,
        sampling=setting.job.data.train_sampling_strategy,
        window=setting.job.data.shuffle_window,
        global_batch=setting.job.global_batch(policy.group.workers),
        cut=policy.cut,
        update_work=policy.cut.work.trained(frozen=setting.job.adapter.use_peft),
        ranks=policy.group.workers,
        with_prompts=counts_prompts(setting.job.loss),
    )


def in_order_of_need(setting: Setting, train: PreparedData, held_out: PreparedData | None) -> list[Block]:
    """The blocks as training reads them, held-out ones first; one order in all schedules, as blocks lend to later ones.

    Where a completion is scored in another block, its last digits are others.
    """
    order = feed_spec(setting).order(train.blocks, epoch=0)
    first = held_out.blocks if held_out else ()  # evaluated before the first update
    return [*first, *(train.blocks[index] for window in order.windows for index in window.blocks)]


def score_and_train(
    setting: Setting, store: ReferenceStore, train: PreparedData, held_out: PreparedData | None
) -> tuple[ScoringReport, TrainReport]:
    """Both at once: the pool scores what training is about to read, which waits for that and no more."""
    progress = Progress()
    feeds = start_feeds(setting, store, train, held_out)
    if feeds.sync:
        scoring = partial(score_as_asked, setting, store, feeds.actors, progress)
    else:
        scoring = partial(score_blocks, setting, store, in_order_of_need(setting, train, held_out), progress)
    with Ahead(scoring, feeds.fail) as ahead:
        report = train_policy(setting, feeds, progress.told)
    scored = ahead.report
    say(
        "Reference", f"{scored.completions_scored:,} completions scored meanwhile, {scored.completions_reused:,} reused"
    )
    return scored, report


@dataclass(frozen=True)
class Feeds:
    """The actors that give batches, and how long they do."""

    spec: FeedSpec
    train: Any
    held_out: Any
    """None without held-out pairs."""
    schedule: Schedule
    held_out_schedule: Schedule | None
    fingerprint: dict[str, str]
    """Digests of reference and data."""
    sync: SyncPlan | None
    """Where the reference takes after the policy."""

    @property
    def actors(self) -> list[Any]:
        """Those that there are."""
        return [feed for feed in (self.train, self.held_out) if feed is not None]

    def fail(self, message: str) -> None:
        """Tell those who wait for scores that none will come."""
        for feed in self.actors:
            feed.fail.remote(message)


def start_feeds(
    setting: Setting, store: ReferenceStore | Unscored, train: PreparedData, held_out: PreparedData | None
) -> Feeds:
    """Feeds of the training pairs, and of the held-out ones."""
    optim, policy = setting.job.optim, setting.policy
    ranks = policy.group.workers
    schedule = Schedule.of(
        train.pairs, setting.job.global_batch(ranks), num_train_epochs=optim.num_train_epochs, max_steps=optim.max_steps
    )
    sync = sync_plan(setting, store, schedule)
    spec = replace(feed_spec(setting), sync=sync.schedule if sync else None)
    eval_spec = replace(
        spec,
        seed=optim.seed,
        sampling="sequential",
        window=1,
        global_batch=optim.per_device_eval_batch_size * ranks,
        sync=None,  # each reference scores them all
    )
    scores = reader_of(setting, store)
    return Feeds(
        spec=spec,
        train=start_feed(train.blocks, scores, spec),
        held_out=start_feed(held_out.blocks, scores, eval_spec) if held_out else None,
        schedule=schedule,
        held_out_schedule=Schedule.one_epoch(held_out.pairs, eval_spec.global_batch) if held_out else None,
        fingerprint={
            "reference": store.digest,
            "data": data_digest(train.blocks),
            **(sync.fingerprint if sync else {}),
        },
        sync=sync,
    )


def train_policy(setting: Setting, feeds: Feeds, note: Callable[[], str] = lambda: "") -> TrainReport:
    """The updates, by workers under Ray Train; the result in `output_dir/model`. `note` ends the line of progress."""
    policy = setting.policy
    task = TrainTask(
        job=setting.job,
        source=policy.source,
        adapter=policy.adapter,
        precision=policy.precision,
        attention=policy.attention,
        gpu=policy.gpu,
        schedule=feeds.schedule,
        feed=feeds.train,
        eval_feed=feeds.held_out,
        eval_schedule=feeds.held_out_schedule,
        drift_tolerance=setting.drift_tolerance,
        run_dir=str(setting.run_dir.path),
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


def data_digest(blocks: Sequence[Block]) -> str:
    """What the order of pairs depends on, beside the seed: the blocks' contents, in order."""
    return hashlib.sha256("\n".join(block.content for block in blocks).encode()).hexdigest()[:16]
