"""Preference shards to tokenized blocks, for training and for evaluation."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from transformers import PreTrainedTokenizerBase

from raydpo.config import JobConfig
from raydpo.data.dialects.columns import ColumnMapping
from raydpo.data.extras import total_extras
from raydpo.data.prepare import PreparedData, TokenizationRequest, prepare
from raydpo.data.shards import Shard, find_shards
from raydpo.data.text_options import TextOptions
from raydpo.data.tokenization import Truncation
from raydpo.errors import DataError
from raydpo.reporting.console import Stage
from raydpo.runtime import storage
from raydpo.stages.extra_columns import describe_extras, extra_columns_of, unused_margins

if TYPE_CHECKING:
    from raydpo.stages.plan import RunPlan

HELD_OUT = "held_out"
"""Folder of the held-out pairs' bad rows in quarantine/."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """The tokenized blocks of a run."""

    train: PreparedData
    held_out: PreparedData | None
    """The pairs to evaluate on; None with eval_strategy=no."""


def tokenize(plan: "RunPlan") -> RunData:
    """Tokenize the training pairs and, if the run evaluates, the held-out pairs. Raises DataError where it cannot."""
    shards, held_out_shards = find_data(plan.job)
    stage = Stage("Tokenizing", "rows")
    quarantine = plan.run_dir.quarantine
    train = _prepare(plan, shards, quarantine, stage.update)
    held_out = _prepare(plan, held_out_shards, quarantine / HELD_OUT, stage.update) if held_out_shards else None
    parts = [part for part in (train, held_out) if part]
    rows, bad = sum(part.rows_read for part in parts), sum(part.rows_quarantined for part in parts)
    dialects = sorted({dialect for part in parts for dialect in part.dialects.values()})
    reused = sum(part.rows_reused for part in parts)
    cached = f", {reused:,} from the cache" if reused else ""
    extras = total_extras(part.extras for part in parts)
    stage.done(f"{rows:,} rows ({', '.join(dialects)}){cached}, {bad:,} to quarantine{describe_extras(extras)}")
    if unused := unused_margins(plan.job.loss, extras):
        _log.warning(unused)
    return RunData(train, held_out)


def find_data(job: JobConfig) -> tuple[tuple[Shard, ...], tuple[Shard, ...]]:
    """Return the shards of training pairs and those of held-out pairs; see `find_shards` and `find_held_out`."""
    shards = find_shards(job.data.dataset_name, job.data.dataset_train_split, job.data.dataset_config)
    return shards, find_held_out(job, shards)


def find_held_out(job: JobConfig, train: Sequence[Shard]) -> tuple[Shard, ...]:
    """Return the shards of held-out pairs; none with eval_strategy=no.

    Raises DataError where the run evaluates and there are none, or where one of them is a shard of `train` too.
    """
    data = job.data
    if job.optim.eval_strategy == "no":
        return ()
    names = data.eval_dataset_name or data.dataset_name
    # Files named one by one belong to the option that names them; only other sources are searched for a split.
    shards = find_shards(names, data.dataset_test_split, data.dataset_config, required=bool(data.eval_dataset_name))
    if not shards:
        raise DataError(
            f"eval_strategy={job.optim.eval_strategy} needs held-out pairs, and {', '.join(names)} has no split "
            f"{data.dataset_test_split}; name files with eval_dataset_name, or set eval_strategy=no"
        )
    if both := {shard.url for shard in train} & {shard.url for shard in shards}:
        raise DataError(f"{min(both)} is named for training and for evaluation; name other files in eval_dataset_name")
    return shards


def _prepare(
    plan: "RunPlan", shards: Sequence[Shard], quarantine: Path, on_progress: Callable[[int], None]
) -> PreparedData:
    return prepare(shards, tokenization_request(plan, quarantine), plan.job.data.max_bad_rows, on_progress)


class Tokenizing(Protocol):
    """What tokenization needs of a plan."""

    @property
    def job(self) -> JobConfig:
        """The options of the run."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model."""


def tokenization_request(plan: Tokenizing, quarantine: Path) -> TokenizationRequest:
    """Return the settings of the tokenization that a job's options stand for."""
    data = plan.job.data
    return TokenizationRequest(
        tokenizer=plan.tokenizer,
        cache_dir=storage.absolute(data.cache_dir),
        quarantine_dir=str(quarantine),
        dialect=data.dataset_format,
        mapping=ColumnMapping.parse(data.column_mapping),
        truncation=Truncation(data.max_length, data.max_prompt_length, data.truncation_mode),
        block_pairs=data.block_pairs,
        dataset_logps=plan.job.loss.needs_reference and not plan.job.scores_reference,
        per_token=plan.job.loss.ld_alpha is not None,
        assistant_only=plan.job.loss.loss_on == "assistant",
        text=TextOptions(data.on_template_loss, data.add_special_tokens, data.chat_template_date),
        extras=extra_columns_of(plan.job.loss),
    )
