"""The stages of a run, in the order that the data goes through them."""

import hashlib
from collections.abc import Sequence
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
from raydpo.reference.absent import NoReference
from raydpo.reference.digest import identify
from raydpo.reference.poison import set_aside
from raydpo.reference.pool import ScoringReport, score
from raydpo.reference.scorer import ScorerSpec
from raydpo.reference.store import ReferenceStore
from raydpo.reporting.console import Poller, Stage, say
from raydpo.schema import Block
from raydpo.setting import Setting, settle
from raydpo.summary import Scored, Stopwatch, sum_up, sum_up_scoring
from raydpo.training import trainer
from raydpo.training.drift import TOLERANCES
from raydpo.training.feed import FeedSpec, start_feed
from raydpo.training.task import Schedule, TrainReport, TrainTask


def run(job: JobConfig) -> dict[str, Any]:
    """Preference shards in, an aligned model out -> the summary, which is also in `output_dir/summary.json`.

    `job.run.output_dir`, `job.model.model_name_or_path` and `job.data.dataset_name` must be set, and Ray started.
    """
    watch = Stopwatch()
    setting = settle(job)
    say("Policy", setting.policy.told)
    if job.loss.needs_reference and setting.reference.told != setting.policy.told:
        say("Reference", setting.reference.told)
    train, held_out = tokenize(setting)
    watch.lap("tokenizing")
    store, scoring = score_reference(setting, train.blocks, held_out.blocks if held_out else ())
    train, held_out = without_poisonous(setting, scoring, train, held_out)
    watch.lap("reference")
    report = train_policy(setting, store, train, held_out)
    watch.lap("training")
    return sum_up(setting, Scored(train, held_out, store, scoring), report, watch.seconds)


def score_ahead(job: JobConfig) -> dict[str, Any]:
    """The stages before training alone, so that runs to come find their scores -> summary, as `run` has it."""
    if not job.loss.needs_reference:
        raise ConfigError(f"loss_type={','.join(job.loss.loss_type)} takes no reference, so there is nothing to score")
    watch = Stopwatch()
    setting = settle(job)
    say("Reference", setting.reference.told)
    train, held_out = tokenize(setting)
    watch.lap("tokenizing")
    store, scoring = score_reference(setting, train.blocks, held_out.blocks if held_out else ())
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
    )
    return prepare(shards, request, data.max_bad_rows, stage.update)


def score_reference(
    setting: Setting, train: Sequence[Block], held_out: Sequence[Block]
) -> tuple[ReferenceStore | NoReference, ScoringReport]:
    """Reference log-probs of every block: read where they are known, scored by the pool where they are not."""
    if not setting.job.loss.needs_reference:
        return NoReference(), ScoringReport()
    model, reference = setting.job.model, setting.reference
    numerics = {
        "dtype": reference.precision,
        "attention": reference.attention.implementation or "default",
        "device": "cuda" if reference.gpu else "cpu",
    }
    stage = Stage("Reference", "pairs")
    store = ReferenceStore(
        storage.absolute(setting.job.data.cache_dir),
        identify(reference.source.folder, None, numerics),
        reference.source.described,
    )
    scorer = ScorerSpec(
        source=reference.source,
        dtype=reference.precision,
        attention=reference.attention,
        trust_remote_code=model.trust_remote_code,
        gpu=reference.gpu,
        cut=reference.cut,
        logits_chunk_tokens=model.logits_chunk_tokens,
        torch_compile=model.torch_compile,
    )
    report = score([*train, *held_out], store, scorer, reference.group, stage.update)
    stage.done(f"{report.completions_scored:,} completions scored, {report.completions_reused:,} reused")
    return store, report


def without_poisonous(
    setting: Setting, scoring: ScoringReport, train: PreparedData, held_out: PreparedData | None
) -> tuple[PreparedData, PreparedData | None]:
    """The data without the blocks that no scorer survived."""

    def kept(data: PreparedData, folder: Path) -> PreparedData:
        decode, most = setting.tokenizer.decode, setting.job.data.max_bad_rows
        return set_aside(data, scoring.poisonous, str(folder), lambda ids: str(decode(ids)), most)

    quarantine = setting.run_dir.quarantine
    return kept(train, quarantine), kept(held_out, quarantine / "held_out") if held_out else None


def train_policy(
    setting: Setting, store: ReferenceStore | NoReference, train: PreparedData, held_out: PreparedData | None
) -> TrainReport:
    """The updates: feeds in actors of this job, workers under Ray Train, the result in `output_dir/model`."""
    optim, policy = setting.job.optim, setting.policy
    ranks = policy.group.workers
    batches = FeedSpec(
        seed=optim.order_seed,
        sampling=setting.job.data.train_sampling_strategy,
        window=setting.job.data.shuffle_window,
        global_batch=setting.job.global_batch(ranks),
        cut=policy.cut,
        update_work=policy.cut.work.trained(frozen=setting.job.adapter.use_peft),
        ranks=ranks,
        with_prompts=counts_prompts(setting.job.loss),
    )
    eval_batches = FeedSpec(
        seed=optim.seed,
        sampling="sequential",
        window=1,
        global_batch=optim.per_device_eval_batch_size * ranks,
        cut=policy.cut,
        update_work=batches.update_work,
        ranks=ranks,
        with_prompts=batches.with_prompts,
    )
    schedule = Schedule.of(
        train.pairs, batches.global_batch, num_train_epochs=optim.num_train_epochs, max_steps=optim.max_steps
    )
    feed = start_feed(train.blocks, store, batches)
    task = TrainTask(
        job=setting.job,
        source=policy.source,
        precision=policy.precision,
        attention=policy.attention,
        gpu=policy.gpu,
        schedule=schedule,
        feed=feed,
        eval_feed=start_feed(held_out.blocks, store, eval_batches) if held_out else None,
        eval_schedule=Schedule.one_epoch(held_out.pairs, eval_batches.global_batch) if held_out else None,
        drift_tolerance=drift_tolerance(setting),
        run_dir=str(setting.run_dir.path),
        fingerprint={"reference": store.digest, "data": data_digest(train.blocks)},
    )
    stage = Stage("Training", "updates")

    def show() -> None:
        line = ray.get(feed.progress.remote())
        if "loss" in line:
            stage.update(line["step"], schedule.total_steps, f"loss {line['loss']:.4f}")

    with Poller(show):
        report = trainer.fit(task, policy.group)
    resumed = f" ({report.resumed_at:,} of them before the resume)" if report.resumed_at else ""
    stage.done(f"{report.steps:,} updates{resumed}")
    return report


def drift_tolerance(setting: Setting) -> float | None:
    """What `reference_drift_tolerance` says, of a policy that starts from its reference; None for others."""
    job, policy, reference = setting.job, setting.policy, setting.reference
    if policy.source != reference.source or not job.loss.disable_dropout:
        return None
    usual = max(TOLERANCES[policy.precision], TOLERANCES[reference.precision])
    return job.reference.reference_drift_tolerance or usual


def data_digest(blocks: Sequence[Block]) -> str:
    """What the order of pairs depends on, beside the seed: the blocks' contents, in order."""
    return hashlib.sha256("\n".join(block.content for block in blocks).encode()).hexdigest()[:16]
