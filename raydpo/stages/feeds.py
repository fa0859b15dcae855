"""The feeds of a run: one actor gives the training batches, and one those of each set of held-out pairs."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raydpo.blocks.schema import Block
from raydpo.config.lr_schedule import check_length
from raydpo.feed.actor import start_feed
from raydpo.feed.batches import FeedSpec
from raydpo.feed.handle import FeedHandle
from raydpo.feed.schedule import Schedule
from raydpo.objectives.objective import counts_prompts
from raydpo.reference.readers import DatasetReference, LogpReader, StoreReader, WaitingReader, ZeroReference
from raydpo.reference.store import ReferenceStore
from raydpo.stages.plan import RunPlan
from raydpo.stages.tokenize import RunData
from raydpo.tr_dpo.schedule import SyncPlan, SyncSchedule
from raydpo.training.task import EvalSet

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feeds:
    """The feed actors, and the length of what they give."""

    train: FeedHandle
    held_out: tuple[EvalSet, ...]
    """The sets of held-out pairs, each with its feed; empty without held-out pairs."""
    schedule: Schedule
    fingerprint: dict[str, str]
    """Digests of reference and data, which a checkpoint and the run that resumes from it must have in common."""
    sync: SyncPlan | None
    """How the reference is synced towards the policy; None if it never changes."""

    @property
    def handles(self) -> list[FeedHandle]:
        """The feeds that there are, the training one first."""
        return [self.train, *(held_out.feed for held_out in self.held_out)]

    def fail(self, message: str) -> None:
        """Make the feeds stop waiting for scores."""
        for feed in self.handles:
            feed.fail(message)


def start_feeds(plan: RunPlan, store: ReferenceStore | None, data: RunData) -> Feeds:
    """Start the feeds of the training pairs and of the held-out pairs."""
    schedule = train_schedule(plan, data.train.pairs)
    sync = plan_sync(plan, store, schedule)
    reader = log_prob_reader(plan, store)
    spec = replace(train_feed_spec(plan), sync=sync.schedule if sync else None)
    eval_spec = eval_feed_spec(plan, spec)
    held_out = tuple(
        EvalSet(
            name, start_feed(part.blocks, reader, eval_spec), Schedule.one_epoch(part.pairs, eval_spec.global_batch)
        )
        for name, part in data.held_out.items()
    )
    return Feeds(
        train=start_feed(data.train.blocks, reader, spec),
        held_out=held_out,
        schedule=schedule,
        fingerprint=fingerprint(reader, data.train.blocks, sync),
        sync=sync,
    )


def train_schedule(plan: RunPlan, pairs: int) -> Schedule:
    """Return the length of the run on this many training pairs."""
    optim = plan.job.optim
    return Schedule.from_options(
        pairs, plan.global_batch, num_train_epochs=optim.num_train_epochs, max_steps=optim.max_steps
    )


def check_schedule(plan: RunPlan, pairs: int | None = None) -> None:
    """Log remarks on the learning-rate schedule of a run on this many pairs.

    Called without pairs before they are counted, which is early enough where max_steps tells the length of the run.
    Raises ConfigError where the schedule does not fit the length. A schedule that a DeepSpeed file sets is its own.
    """
    optim = plan.job.optim
    if "scheduler" in plan.deepspeed_config or (pairs is None) is not (optim.max_steps > 0):
        return
    total = optim.max_steps if pairs is None else train_schedule(plan, pairs).total_steps
    for remark in check_length(optim, total):
        _log.warning(remark)


def train_feed_spec(plan: RunPlan) -> FeedSpec:
    """Return how the training pairs are ordered and divided into micro-batches, without sync intervals."""
    planner = plan.policy.planner
    return FeedSpec(
        seed=plan.job.optim.order_seed,
        sampling=plan.job.data.train_sampling_strategy,
        window=plan.job.data.shuffle_window,
        global_batch=plan.global_batch,
        planner=planner,
        update_flops=planner.flops.update(frozen=plan.job.adapter.use_peft),
        ranks=plan.ranks,
        # An encoder-decoder predicts no prompts, so that the likelihood is that of completions alone.
        with_prompts=counts_prompts(plan.job.loss) and plan.seq2seq is None,
    )


def eval_feed_spec(plan: RunPlan, train: FeedSpec) -> FeedSpec:
    """Return how the held-out pairs are divided: in the order of the files, and all scored by each version."""
    return replace(
        train, seed=plan.job.optim.seed, sampling="sequential", window=1, global_batch=plan.eval_batch, sync=None
    )


def blocks_in_training_order(plan: RunPlan, data: RunData) -> list[Block]:
    """Return the blocks in the order in which training reads them; held-out blocks are evaluated first.

    Every reference_schedule scores in this order: a block takes scores that it shares with an earlier one from there,
    and the last digits of a score depend on the block in which it was computed.
    """
    order = train_feed_spec(plan).order(data.train.blocks, epoch=0)
    held_out = [block for part in data.held_out.values() for block in part.blocks]
    return [*held_out, *(data.train.blocks[index] for window in order.windows for index in window.blocks)]


def log_prob_reader(plan: RunPlan, store: ReferenceStore | None) -> LogpReader:
    """Return what the feeds read blocks with."""
    if store is None:
        return DatasetReference() if plan.job.loss.needs_reference else ZeroReference()
    return WaitingReader(store) if plan.pipelined else StoreReader(store)


def plan_sync(plan: RunPlan, store: ReferenceStore | None, schedule: Schedule) -> SyncPlan | None:
    """Return how the reference is synced towards the policy; None if it never changes."""
    options, run = plan.job.reference, plan.job.run
    if not options.sync_ref_model or store is None:
        return None
    # A checkpoint is written at each sync, so that the checkpoints that are kept need the newest versions.
    limit = 0 if run.save_strategy == "no" else run.save_total_limit
    return SyncPlan(
        schedule=SyncSchedule(options.ref_model_sync_steps, schedule.total_steps),
        alpha=options.ref_model_mixup_alpha,
        source=plan.reference.source,
        adapter=plan.reference.adapter,
        identity=store.identity,
        lora=plan.job.adapter.use_peft,
        kept=None if limit is None else limit + 1,
        after_last=run.save_strategy != "no" or plan.job.optim.eval_strategy != "no",
    )


def fingerprint(reader: LogpReader, blocks: Sequence[Block], sync: SyncPlan | None) -> dict[str, str]:
    """Return what a checkpoint and the run that resumes from it must have in common."""
    return {"reference": reader.digest, "data": data_digest(blocks), **(sync.fingerprint if sync else {})}


def data_digest(blocks: Sequence[Block]) -> str:
    """Return a digest of what, apart from the seed, the updates depend on: the blocks' contents, in order.

    With weights, margins and loss masks, it depends on these too.
    """
    parts: list[str] = []
    for block in blocks:
        digests = {"weights": block.weights, "margins": block.margins, "loss masks": block.loss_masks}
        parts.append(" ".join([block.content, *(f"{name} {digest}" for name, digest in digests.items() if digest)]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
