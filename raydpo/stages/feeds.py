"""The feeds of a run."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raydpo.blocks.schema import Block
from raydpo.data.prepare import PreparedData
from raydpo.feed.actor import start_feed
from raydpo.feed.batches import FeedSpec
from raydpo.feed.schedule import Schedule
from raydpo.objectives.objective import counts_prompts
from raydpo.reference.readers import Unscored
from raydpo.reference.store import ReferenceStore
from raydpo.stages.plan import RunPlan
from raydpo.stages.score import (
    reader_of,
    sync_plan,
)
from raydpo.tr_dpo.schedule import SyncPlan


def feed_spec(plan: RunPlan) -> FeedSpec:
    """How the training pairs are ordered, and cut into batches."""
    optim, policy = plan.job.optim, plan.policy
    return FeedSpec(
        seed=optim.order_seed,
        sampling=plan.job.data.train_sampling_strategy,
        window=plan.job.data.shuffle_window,
        global_batch=plan.job.global_batch(policy.group.workers),
        planner=policy.planner,
        update_flops=policy.planner.flops.update(frozen=plan.job.adapter.use_peft),
        ranks=policy.group.workers,
        with_prompts=counts_prompts(plan.job.loss),
    )


def in_order_of_need(plan: RunPlan, train: PreparedData, held_out: PreparedData | None) -> list[Block]:
    """The blocks as training reads them, held-out ones first; one order in all schedules, as blocks lend to later ones.

    Where a completion is scored in another block, its last digits are others.
    """
    order = feed_spec(plan).order(train.blocks, epoch=0)
    first = held_out.blocks if held_out else ()  # evaluated before the first update
    return [*first, *(train.blocks[index] for window in order.windows for index in window.blocks)]


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
    plan: RunPlan, store: ReferenceStore | Unscored, train: PreparedData, held_out: PreparedData | None
) -> Feeds:
    """Feeds of the training pairs, and of the held-out ones."""
    optim, policy = plan.job.optim, plan.policy
    ranks = policy.group.workers
    schedule = Schedule.from_options(
        train.pairs, plan.job.global_batch(ranks), num_train_epochs=optim.num_train_epochs, max_steps=optim.max_steps
    )
    sync = sync_plan(plan, store, schedule)
    spec = replace(feed_spec(plan), sync=sync.schedule if sync else None)
    eval_spec = replace(
        spec,
        seed=optim.seed,
        sampling="sequential",
        window=1,
        global_batch=optim.per_device_eval_batch_size * ranks,
        sync=None,  # each reference scores them all
    )
    scores = reader_of(plan, store)
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


def data_digest(blocks: Sequence[Block]) -> str:
    """What the order of pairs depends on, beside the seed: the blocks' contents, in order."""
    return hashlib.sha256("\n".join(block.content for block in blocks).encode()).hexdigest()[:16]
