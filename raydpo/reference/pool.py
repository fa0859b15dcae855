"""Scores the blocks that have no scores yet, by a pool of actors: a block is a task, of which nothing else depends.

Not Ray Data's pool, which repeats a task whose actor dies for ever, and cannot tell which block it was.
"""

import dataclasses
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from raydpo.blocks.schema import Block
from raydpo.errors import ReferenceMismatch, TrainingError
from raydpo.reference.dedup import NOTHING_REUSED, ReusedScores, fill_in, find_reused_scores
from raydpo.reference.scorer import Scorer, ScorerSpec, ScoringResult
from raydpo.reference.store import ReferenceStore
from raydpo.runtime.actors import get_result
from raydpo.runtime.resources import WorkerGroup

_log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Scorers that may die of one block before it is set aside, or while they load before the run stops."""


@dataclass(frozen=True)
class ScoringReport:
    """What the stage did; two completions a pair."""

    completions_scored: int = 0
    completions_reused: int = 0
    completions_computed: int = 0
    """Of those scored: one that stands in several pairs counts once."""
    forwards: int = 0
    """Of the reference, as the actors counted them."""
    scorers_lost: int = 0
    failed_blocks: tuple[Block, ...] = ()
    """Blocks without scores, as each killed MOST_DEATHS scorers."""


def total(reports: Iterable[ScoringReport]) -> ScoringReport:
    """What several scorings did together."""
    fields = [field.name for field in dataclasses.fields(ScoringReport)]
    every = list(reports)
    zero = ScoringReport()
    return ScoringReport(**{name: sum((getattr(each, name) for each in every), getattr(zero, name)) for name in fields})


def check_none_failed(report: ScoringReport, remedy: str) -> None:
    """ReferenceMismatch where a block that training counts on killed every scorer."""
    if report.failed_blocks:
        block = report.failed_blocks[0]
        raise ReferenceMismatch(
            f"a block of {block.shard} ({block.url}) killed every scorer that took it, and training has counted on it; "
            f"{remedy}"
        )


def score(
    blocks: Sequence[Block],
    store: ReferenceStore,
    scorer: ScorerSpec,
    group: WorkerGroup,
    on_progress: Callable[[int, int], None],
    stopped: Callable[[], bool] = lambda: False,
) -> ScoringReport:
    """Score each block that `store` lacks, and return when all blocks have scores, but for the poisonous.

    Blocks are scored in the order given. `on_progress(done, total)` counts pairs. Once `stopped()`, which is asked
    every second, nothing more is scored, and what is missing is no error. A lost actor costs its present block and no
    other, as finished blocks are files already. Raises what a scorer raised, `TrainingError` if scorers die while they
    load, `ReferenceMismatch` if a block is still without scores at the end.
    """
    missing = store.missing(blocks)
    pairs = sum(block.pairs for block in missing)
    found: list[ScoringResult] = []
    failed_blocks: list[Block] = []
    pool = _Pool(scorer, group, store)
    if missing:
        store.open()
        on_progress(0, pairs)
        done = 0
        for outcome in pool.outcomes(missing, blocks, stopped):
            if isinstance(outcome, Block):
                failed_blocks.append(outcome)
            else:
                found.append(outcome)
                done += outcome.pairs
                on_progress(done, pairs)
        lacking = store.absent([block for block in missing if block not in failed_blocks])
        if lacking and not stopped():
            raise ReferenceMismatch(
                f"{len(lacking)} of {len(blocks)} blocks have no reference log-probs, first {store.url(lacking[0])}; "
                "cache_dir must be a folder or URL that every node reaches"
            )
    return ScoringReport(
        completions_scored=2 * sum(block.pairs for block in found),
        completions_reused=2 * (sum(block.pairs for block in blocks) - pairs),
        completions_computed=sum(block.completions for block in found),
        forwards=pool.forwards,
        scorers_lost=pool.lost,
        failed_blocks=tuple(failed_blocks),
    )


class _Pool:
    """The actors, and what each of them is at."""

    def __init__(self, spec: ScorerSpec, group: WorkerGroup, store: ReferenceStore) -> None:
        self.lost = 0
        """Scorers that died."""
        self.forwards = 0
        """Of the reference, also those that were for nothing."""
        self._spec = spec
        self._group = group
        self._store = store
        self._tokens = spec.planner.tokens
        self._deaths: Counter[str] = Counter()
        self._deaths_in_loading = 0
        self._loans: dict[str, ReusedScores] = {}
        self._parts: dict[Block, ScoringResult] = {}
        """Blocks that are scored but for what they take from others."""
        self._waiting: deque[Block] = deque()
        self._tasks: dict[Any, tuple[Any, Block | None]] = {}
        """By the result to come: the actor, and its block; None while it loads."""

    def outcomes(
        self, missing: Sequence[Block], blocks: Sequence[Block], stopped: Callable[[], bool]
    ) -> Iterator[ScoringResult | Block]:
        """What is said of each missing block that was scored, and each that no scorer survives, as they come.

        Until all are done, or `stopped()`. Completions that stand in several of `blocks` are scored in the first.
        """
        try:
            for _ in range(min(self._group.workers, len(missing))):
                self._start()
            self._loans = find_reused_scores(
                list({block.content: block for block in blocks}.values())
            )  # while the actors load
            self._waiting.extend(missing)
            while self._busy() and not stopped():
                done, _ = ray.wait(list(self._tasks), num_returns=1, timeout=1.0)
                if not done:
                    continue
                (result,) = done
                outcome = self._outcome(result)
                if outcome is not None:
                    yield outcome
                yield from self._complete()
        finally:
            for actor, _ in self._tasks.values():
                ray.kill(actor)

    def _busy(self) -> bool:
        """True while there are blocks to do; a scorer for which no room was found may still wait then."""
        return bool(self._waiting) or any(block is not None for _, block in self._tasks.values())

    def _start(self) -> None:
        """One more scorer, wherever there is room for it."""
        group = self._group
        options = {
            "num_cpus": group.cpus,
            "num_gpus": group.gpus,
            "resources": dict(group.resources),
            "label_selector": dict(group.label_selector),
        }
        actor: Any = ray.remote(Scorer).options(**options).remote(self._spec)
        self._tasks[actor.load.remote()] = (actor, None)

    def _outcome(self, result: Any) -> ScoringResult | Block | None:
        """Take in what an actor has done, and give it the next block, or let it go."""
        actor, block = self._tasks[result]  # stays there until it has answered: after an error, all in there are ended
        try:
            scored: ScoringResult | None = get_result(result)
        except (RayActorError, OutOfMemoryError) as error:
            del self._tasks[result]
            ray.kill(actor)  # where it is only out of reach, it must not go on
            return self._died(block, error)
        del self._tasks[result]
        if scored is None:
            self._deaths_in_loading = 0
        elif block:
            if not self._deaths[block.content]:
                self._tokens = min(self._tokens, scored.tokens)
            self.forwards += scored.forwards
        if self._waiting:
            self._give(actor, self._waiting.popleft())
        else:
            ray.kill(actor)
        if block and scored and block.content in self._loans:
            self._parts[block] = scored
            return None
        return scored

    def _give(self, actor: Any, block: Block) -> None:
        # What killed a scorer may have been a lack of memory that Python was not told of.
        tokens = max(self._tokens >> self._deaths[block.content], 1)
        task = actor.score_block.remote(block, self._store, tokens, self._loans.get(block.content, NOTHING_REUSED))
        self._tasks[task] = (actor, block)

    def _complete(self) -> Iterator[ScoringResult]:
        """Fill up the parts that can be: all blocks that lend to them are there, or will not be."""
        while block := self._fillable():
            scored, loans = self._parts.pop(block), self._loans[block.content]
            if fill_in(self._store, block, loans):
                yield scored
                continue
            del self._loans[block.content]
            self._waiting.append(block)
            if len(self._tasks) < self._group.workers:
                self._start()

    def _fillable(self) -> Block | None:
        if not self._parts:
            return None
        unfinished = {block.content for block in [*self._waiting, *self._parts]}
        unfinished |= {block.content for _, block in self._tasks.values() if block}
        for block in self._parts:
            if not any(lender.content in unfinished for lender in self._loans[block.content].source_blocks):
                return block
        return None

    def _died(self, block: Block | None, error: RayError) -> Block | None:
        """Give the block to another scorer, unless it has killed too many."""
        self.lost += 1
        outcome = None
        why = str(error).strip().splitlines()[0]
        blamed = not (isinstance(error, RayActorError) and error.preempted)
        if block is None:
            self._deaths_in_loading += blamed
            if self._deaths_in_loading == MAX_DEATHS:
                raise TrainingError(
                    f"{MAX_DEATHS} scorers died while they loaded the reference ({why}); mostly that is too little "
                    "memory: give a node fewer scorers (reference_num_workers), or take nodes with more of it"
                )
        else:
            self._deaths[block.content] += blamed
            if self._deaths[block.content] == MAX_DEATHS:
                _log.warning("A block of %s is set aside, as %d scorers died of it: %s", block.shard, MAX_DEATHS, why)
                outcome = block
            else:
                _log.warning("A scorer died, and its block of %s goes to another: %s", block.shard, why)
                self._waiting.appendleft(block)
        if self._waiting:
            self._start()
        return outcome
