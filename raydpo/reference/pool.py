"""The scoring pool: scores the blocks that have no scores yet. A block is one task, independent of the other tasks.

Ray Data's actor pool would repeat a task whose actor dies for ever, and cannot say which block it was.
"""

import dataclasses
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from raydpo.blocks.schema import Block
from raydpo.errors import ReferenceMismatch, TrainingError
from raydpo.models.forward_check import ForwardCheck
from raydpo.reference.dedup import NOTHING_REUSED, ReusedScores, fill_in, find_reused_scores
from raydpo.reference.scorer import Scorer, ScorerSpec, ScoringResult
from raydpo.reference.store import ReferenceStore
from raydpo.runtime.actors import get_result
from raydpo.runtime.resources import WorkerGroup

_log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Number of scoring workers that die on one block before it is set aside, or while they load before the run stops."""


@dataclass(frozen=True)
class ScoringReport:
    """What the scoring stage did. A pair has two completions."""

    completions_scored: int = 0
    completions_reused: int = 0
    """Completions whose scores an earlier run, or an earlier stage of this one, had stored."""
    completions_computed: int = 0
    """Completions among those scored that were computed; one that stands in several pairs counts once."""
    forwards: int = 0
    """Number of forwards of the reference, as the scoring workers counted them."""
    scorers_lost: int = 0
    """Number of scoring workers that died."""
    failed_blocks: tuple[Block, ...] = ()
    """Blocks without scores, as MAX_DEATHS scoring workers died on each of them."""
    forward_checks: tuple[ForwardCheck, ...] = ()
    """The proof of the forward of each scoring worker that has loaded the reference."""


def total(reports: Iterable[ScoringReport]) -> ScoringReport:
    """Return the sum of several reports."""
    names = [field.name for field in dataclasses.fields(ScoringReport)]
    found, zero = list(reports), ScoringReport()
    return ScoringReport(**{name: sum((getattr(one, name) for one in found), getattr(zero, name)) for name in names})


def check_none_failed(report: ScoringReport, remedy: str) -> None:
    """Raise ReferenceMismatch where no scoring worker survived a block that training already counts on."""
    if report.failed_blocks:
        block = report.failed_blocks[0]
        raise ReferenceMismatch(
            f"a block of {block.shard} ({block.url}) killed every scoring worker that took it, and training has "
            f"counted on it; {remedy}"
        )


def score(
    blocks: Sequence[Block],
    store: ReferenceStore,
    spec: ScorerSpec,
    group: WorkerGroup,
    on_progress: Callable[[int, int], None],
    stopped: Callable[[], bool] = lambda: False,
) -> ScoringReport:
    """Score each block that `store` lacks, in the given order; return when all blocks but the failed ones have scores.

    `on_progress(done, total)` counts pairs. `stopped()` is asked every second; once it is true, nothing more is scored,
    and missing scores are no error. A lost worker costs the block that it was scoring and no other, as finished blocks
    are files already. Raises what a worker raised, TrainingError if workers die while they load, and ReferenceMismatch
    if a block has no scores at the end.
    """
    missing = store.missing(blocks)
    pairs = sum(block.pairs for block in missing)
    results: list[ScoringResult] = []
    failed: list[Block] = []
    pool = _Pool(spec, group, store)
    if missing:
        store.open()
        on_progress(0, pairs)
        done = 0
        for outcome in pool.outcomes(missing, blocks, stopped):
            if isinstance(outcome, Block):
                failed.append(outcome)
            else:
                results.append(outcome)
                done += outcome.pairs
                on_progress(done, pairs)
        absent = store.absent([block for block in missing if block not in failed])
        if absent and not stopped():
            raise ReferenceMismatch(
                f"{len(absent)} of {len(blocks)} blocks have no reference log-probs, first {store.url(absent[0])}; "
                "cache_dir must be a folder or URL that every node reaches"
            )
    return ScoringReport(
        completions_scored=2 * sum(result.pairs for result in results),
        completions_reused=2 * (sum(block.pairs for block in blocks) - pairs),
        completions_computed=sum(result.completions for result in results),
        forwards=pool.forwards,
        scorers_lost=pool.lost,
        failed_blocks=tuple(failed),
        forward_checks=tuple(pool.forward_checks),
    )


@dataclass(frozen=True)
class ScorerHandle:
    """Handle of a `Scorer` actor, with the types of its results."""

    actor: Any

    def load(self) -> "ObjectRef[ForwardCheck]":
        """Load the reference and prove its forward."""
        result: ObjectRef[ForwardCheck] = self.actor.load.remote()
        return result

    def score_block(
        self, block: Block, store: ReferenceStore, tokens: int, reused: ReusedScores
    ) -> "ObjectRef[ScoringResult]":
        """Score a block."""
        result: ObjectRef[ScoringResult] = self.actor.score_block.remote(block, store, tokens, reused)
        return result

    def kill(self) -> None:
        """End the actor's process."""
        ray.kill(self.actor)


def start_scorer(spec: ScorerSpec, group: WorkerGroup) -> ScorerHandle:
    """Start a scoring worker wherever the cluster has room for it."""
    actor: Any = ray.remote(Scorer).options(
        num_cpus=group.cpus,
        num_gpus=group.gpus,
        resources=dict(group.resources),
        label_selector=dict(group.label_selector),
    )
    return ScorerHandle(actor.remote(spec))


class _Pool:
    """The scoring workers, and the block that each of them is scoring."""

    def __init__(self, spec: ScorerSpec, group: WorkerGroup, store: ReferenceStore) -> None:
        self.lost = 0
        """Number of scoring workers that died."""
        self.forwards = 0
        """Number of forwards of the reference."""
        self.forward_checks: list[ForwardCheck] = []
        """The proof of each scoring worker that has loaded."""
        self._spec = spec
        self._group = group
        self._store = store
        self._tokens = spec.model.planner.tokens
        self._deaths: Counter[str] = Counter()
        self._deaths_while_loading = 0
        self._reused: dict[str, ReusedScores] = {}
        self._parts: dict[Block, ScoringResult] = {}
        """Blocks that are scored except for the scores that they reuse."""
        self._waiting: deque[Block] = deque()
        self._tasks: dict[ObjectRef[Any], tuple[ScorerHandle, Block | None]] = {}
        """The worker and its block, by the result that is to come; None while the worker loads."""

    def outcomes(
        self, missing: Sequence[Block], blocks: Sequence[Block], stopped: Callable[[], bool]
    ) -> Iterator[ScoringResult | Block]:
        """Yield, as they come, the result of each missing block, or the block itself where no worker survived it.

        Ends when all are done, or once `stopped()`. A completion that stands in several of `blocks` is scored in the
        first of them.
        """
        try:
            for _ in range(min(self._group.workers, len(missing))):
                self._start_scorer()
            # While the workers load.
            self._reused = find_reused_scores(list({block.content: block for block in blocks}.values()))
            self._waiting.extend(missing)
            while self._busy() and not stopped():
                done, _ = ray.wait(list(self._tasks), num_returns=1, timeout=1.0)
                if not done:
                    continue
                (task,) = done
                outcome = self._finish(task)
                if outcome is not None:
                    yield outcome
                yield from self._fill_in_parts()
        finally:
            for scorer, _ in self._tasks.values():
                scorer.kill()

    def _busy(self) -> bool:
        """Return whether blocks are left to do; a worker that the cluster has no room for yet does not count."""
        return bool(self._waiting) or any(block is not None for _, block in self._tasks.values())

    def _start_scorer(self) -> None:
        scorer = start_scorer(self._spec, self._group)
        self._tasks[scorer.load()] = (scorer, None)

    def _finish(self, task: "ObjectRef[Any]") -> ScoringResult | Block | None:
        """Take the result of a task, and give its worker the next block, or end it. Return what `outcomes` yields."""
        scorer, block = self._tasks[task]  # it stays there until it has answered: an error ends all workers there
        try:
            result: ScoringResult | ForwardCheck = get_result(task)
        except (RayActorError, OutOfMemoryError) as error:
            del self._tasks[task]
            scorer.kill()  # where it is only unreachable, it must not go on
            return self._handle_death(block, error)
        del self._tasks[task]
        if isinstance(result, ForwardCheck):
            self.forward_checks.append(result)
            self._deaths_while_loading = 0
        elif block:
            if not self._deaths[block.content]:
                self._tokens = min(self._tokens, result.tokens)
            self.forwards += result.forwards
        if self._waiting:
            self._assign(scorer, self._waiting.popleft())
        else:
            scorer.kill()
        if isinstance(result, ForwardCheck):
            return None
        if block and block.content in self._reused:
            self._parts[block] = result
            return None
        return result

    def _assign(self, scorer: ScorerHandle, block: Block) -> None:
        # A worker may have died from a lack of memory that Python was not told of: try again with smaller forwards.
        tokens = max(self._tokens >> self._deaths[block.content], 1)
        reused = self._reused.get(block.content, NOTHING_REUSED)
        self._tasks[scorer.score_block(block, self._store, tokens, reused)] = (scorer, block)

    def _fill_in_parts(self) -> Iterator[ScoringResult]:
        """Fill in the parts whose source blocks are all scored, or will not be."""
        while block := self._next_part():
            result, reused = self._parts.pop(block), self._reused[block.content]
            if fill_in(self._store, block, reused):
                yield result
                continue
            del self._reused[block.content]
            self._waiting.append(block)
            if len(self._tasks) < self._group.workers:
                self._start_scorer()

    def _next_part(self) -> Block | None:
        if not self._parts:
            return None
        unfinished = {block.content for block in [*self._waiting, *self._parts]}
        unfinished |= {block.content for _, block in self._tasks.values() if block}
        for block in self._parts:
            if not any(source.content in unfinished for source in self._reused[block.content].source_blocks):
                return block
        return None

    def _handle_death(self, block: Block | None, error: RayError) -> Block | None:
        """Give the block to another worker, or return it where it has killed too many."""
        self.lost += 1
        failed = None
        reason = str(error).strip().splitlines()[0]
        counts = not (isinstance(error, RayActorError) and error.preempted)
        if block is None:
            self._deaths_while_loading += counts
            if self._deaths_while_loading == MAX_DEATHS:
                raise TrainingError(
                    f"{MAX_DEATHS} scoring workers died while they loaded the reference ({reason}), mostly from a lack "
                    "of memory: run fewer of them per node (reference_num_workers), or use nodes with more memory"
                )
        else:
            self._deaths[block.content] += counts
            if self._deaths[block.content] == MAX_DEATHS:
                _log.warning(
                    "A block of %s is set aside, as %d scoring workers died on it: %s", block.shard, MAX_DEATHS, reason
                )
                failed = block
            else:
                _log.warning("A scoring worker died; another one gets its block of %s: %s", block.shard, reason)
                self._waiting.appendleft(block)
        if self._waiting:
            self._start_scorer()
        return failed
