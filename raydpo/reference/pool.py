"""Scores the blocks that have no scores yet, by a pool of actors under Ray Data."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from raydpo.errors import RaydpoError, ReferenceMismatch
from raydpo.placement import Group
from raydpo.reference.scorer import Scorer, ScorerSpec
from raydpo.reference.store import ReferenceStore
from raydpo.schema import Block


@dataclass(frozen=True)
class ScoringReport:
    """What the stage did; two completions a pair."""

    completions_scored: int
    completions_reused: int
    seconds: float


def score(
    blocks: Sequence[Block],
    store: ReferenceStore,
    scorer: ScorerSpec,
    group: Group,
    on_progress: Callable[[int, int], None],
) -> ScoringReport:
    """Score each block that `store` lacks, and return when all blocks have scores.

    `on_progress(done, total)` counts pairs. A block is one task: a lost actor costs its present block and no other, as
    finished blocks are files already. Raises `ReferenceMismatch` if a block is still without scores at the end.
    """
    started = time.monotonic()
    missing = store.missing(blocks)
    pairs = sum(block.pairs for block in missing)
    if missing:
        store.open()
        on_progress(0, pairs)
        done = 0
        try:
            for batch in _scored_batches(missing, store, scorer, group):
                done += int(batch["pairs"].sum())
                on_progress(done, pairs)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RaydpoError):  # what an actor said, without the way it came
                raise error.cause from None
            raise
        if still := store.missing(blocks):
            raise ReferenceMismatch(
                f"{len(still)} of {len(blocks)} blocks have no reference log-probs, first {store.url(still[0])}; "
                "cache_dir must be a folder or URL that every node reaches"
            )
    reused = sum(block.pairs for block in blocks) - pairs
    return ScoringReport(2 * pairs, 2 * reused, time.monotonic() - started)


def _scored_batches(blocks: Sequence[Block], store: ReferenceStore, scorer: ScorerSpec, group: Group) -> Iterable[Any]:
    rows = [{"tokenized_url": block.url, "scores_url": store.url(block)} for block in blocks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Scorer,
        fn_constructor_args=(scorer,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(group.workers, len(blocks))),
        num_cpus=group.cpus,
        num_gpus=group.gpus or None,
        resources=dict(group.resources) or None,
        label_selector=dict(group.label_selector) or None,
    )
    return dataset.iter_batches(batch_size=None)
