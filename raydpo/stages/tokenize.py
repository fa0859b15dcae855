"""Preference shards to tokenized blocks, for training and for evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raydpo.config import JobConfig
from raydpo.data.mixture import EntryRows, Mixture, draw_rows, find_entries
from raydpo.data.prepare import PreparedData, TokenizationRequest, prepare
from raydpo.data.row_counts import count_all
from raydpo.data.shards import Shard
from raydpo.data.tokenization import Truncation
from raydpo.reporting.console import Stage
from raydpo.runtime import storage
from raydpo.stages.held_out import find_held_out
from raydpo.stages.plan import RunPlan

HELD_OUT = "held_out"
"""Folder of the held-out pairs' bad rows in quarantine/; a set with a name has a folder of this name below it."""


@dataclass(frozen=True)
class RunData:
    """The tokenized blocks of a run."""

    train: PreparedData
    held_out: Mapping[str, PreparedData]
    """The sets of pairs to evaluate on, by the name that the user gave, which is empty for a set without one; none with
    eval_strategy=no."""
    entries: tuple[EntryRows, ...] = ()
    """The data sets of the training data, and the rows that each gives."""


def tokenize(plan: RunPlan) -> RunData:
    """Tokenize the training pairs and, if the run evaluates, the held-out pairs. Raises DataError where it cannot."""
    found, held_out_shards = find_data(plan.job)
    mixture = draw_mixture(plan.job, found)
    if mixture.held_out and plan.job.optim.eval_strategy != "no":
        held_out_shards = {"": mixture.held_out}
    stage = Stage("Tokenizing", "rows")
    quarantine = plan.run_dir.quarantine
    train = _prepare(plan, mixture.train, quarantine, stage.update)
    held_out = {
        name: _prepare(plan, shards, quarantine / HELD_OUT / name, stage.update)
        for name, shards in held_out_shards.items()
    }
    parts = [train, *held_out.values()]
    rows, bad = sum(part.rows_read for part in parts), sum(part.rows_quarantined for part in parts)
    dialects = sorted({dialect for part in parts for dialect in part.dialects.values()})
    stage.done(f"{rows:,} rows ({', '.join(dialects)}), {bad:,} to quarantine")
    return RunData(train, held_out, mixture.entries)


def find_data(job: JobConfig) -> tuple[tuple[EntryRows, ...], dict[str, tuple[Shard, ...]]]:
    """Return the data sets to train on, and the shards of each set of held-out pairs, as `find_held_out` does."""
    entries = find_entries(job.data.entries, job.data.dataset_train_split)
    return entries, find_held_out(job, [shard for entry in entries for shard in entry.shards])


def draw_mixture(job: JobConfig, entries: Sequence[EntryRows]) -> Mixture:
    """Choose the rows of each data set, and count rows on the cluster where that needs it."""

    def count(urls: Sequence[str]) -> list[int]:
        stage = Stage("Counting", "files")
        counts = count_all(urls, stage.update)
        stage.done(f"{sum(counts):,} rows in {len(urls):,} files")
        return counts

    return draw_rows(entries, job.data.dataset_seed, job.data.test_split_size, count)


def _prepare(
    plan: RunPlan, shards: Sequence[Shard], quarantine: Path, on_progress: Callable[[int], None]
) -> PreparedData:
    data = plan.job.data
    request = TokenizationRequest(
        tokenizer=plan.tokenizer,
        cache_dir=storage.absolute(data.cache_dir),
        quarantine_dir=str(quarantine),
        dialect=data.dataset_format,
        truncation=Truncation(data.max_length, data.max_prompt_length, data.truncation_mode),
        block_pairs=data.block_pairs,
        dataset_logps=plan.job.loss.needs_reference and not plan.job.scores_reference,
        per_token=plan.job.loss.ld_alpha is not None,
    )
    return prepare(shards, request, data.max_bad_rows, on_progress)
