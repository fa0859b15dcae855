"""Preference shards to tokenized blocks, for training and for evaluation."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from transformers import PreTrainedTokenizerBase

from raydpo.config import JobConfig
from raydpo.data.dialects.columns import ColumnMapping
from raydpo.data.extras import total_extras
from raydpo.data.images.processing import ImageProcessing
from raydpo.data.images.rows import ImageCounts, total_images
from raydpo.data.mixtures.mixture import EntryRows, Mixture, draw_rows, find_entries
from raydpo.data.mixtures.row_counts import count_all
from raydpo.data.prepare import PreparedData, TokenizationRequest, prepare
from raydpo.data.ray_stream import Slicing
from raydpo.data.shards import Shard
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockRecipe
from raydpo.reporting.console import Stage
from raydpo.runtime import storage
from raydpo.stages.extras import describe_extras, extras_options, unused_margins
from raydpo.stages.held_out import find_held_out

if TYPE_CHECKING:
    from raydpo.stages.plan import RunPlan

HELD_OUT = "held_out"
"""Folder of the held-out pairs' bad rows in quarantine/; a set with a name has a folder of this name below it."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """The tokenized blocks of a run."""

    train: PreparedData
    held_out: Mapping[str, PreparedData]
    """The sets of pairs to evaluate on, by the name that the user gave, which is empty for a set without one; none with
    eval_strategy=no."""
    entries: tuple[EntryRows, ...] = ()
    """The data sets of the training data, and the rows that each gives."""


def tokenize(plan: "RunPlan") -> RunData:
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
    reused = sum(part.rows_reused for part in parts)
    cached = f", {reused:,} from the cache" if reused else ""
    extras = total_extras(part.extras_counts for part in parts)
    images = describe_images(total_images(part.images for part in parts))
    stage.done(f"{rows:,} rows ({', '.join(dialects)}){cached}, {bad:,} to quarantine{describe_extras(extras)}{images}")
    if unused := unused_margins(plan.job.loss, extras):
        _log.warning(unused)
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
    plan: "RunPlan", shards: Sequence[Shard], quarantine: Path, on_progress: Callable[[int], None]
) -> PreparedData:
    return prepare(shards, tokenization_request(plan, quarantine), plan.job.data.max_bad_rows, on_progress)


def describe_images(counts: ImageCounts) -> str:
    """Return the counts of images as the end of the line of the stage; empty without any."""
    if not counts.read:
        return ""
    return f", {counts.read:,} images ({counts.distinct:,} different, {counts.processed:,} processed now)"


class Tokenizing(Protocol):
    """What tokenization needs of a plan."""

    @property
    def job(self) -> JobConfig:
        """The options of the run."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model."""

    @property
    def images(self) -> ImageProcessing | None:
        """How the model reads images."""


def tokenization_request(plan: Tokenizing, quarantine: Path) -> TokenizationRequest:
    """Return the settings of the tokenization that a job's options stand for."""
    data = plan.job.data
    mapping = ColumnMapping.parse(data.column_mapping)
    recipe = BlockRecipe(
        truncation=Truncation(data.max_length, data.max_prompt_length, data.truncation_mode),
        cache_dir=storage.absolute(data.cache_dir),
        quarantine_dir=str(quarantine),
        mapping=mapping,
        dataset_logps=plan.job.loss.needs_reference and not plan.job.scores_reference,
        per_token=plan.job.loss.ld_alpha is not None,
        assistant_only=plan.job.loss.loss_on == "assistant",
        text=TextOptions(data.on_template_loss, data.add_special_tokens, data.chat_template_date),
        extras_options=extras_options(plan.job.loss),
        images=plan.images,
    )
    return TokenizationRequest(plan.tokenizer, Slicing(data.dataset_format, data.block_pairs, mapping), recipe)
