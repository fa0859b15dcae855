"""Shards to tokenized blocks, for training and for evaluation."""

from collections.abc import Sequence
from pathlib import Path

from raydpo.config import JobConfig
from raydpo.data.prepare import PreparedData, TokenizationRequest, prepare
from raydpo.data.shards import Shard, find_shards
from raydpo.data.tokenization import Truncation
from raydpo.errors import DataError
from raydpo.reporting.console import Stage
from raydpo.runtime import storage
from raydpo.stages.plan import RunPlan


def tokenize(plan: RunPlan) -> tuple[PreparedData, PreparedData | None]:
    """Shards to tokenized blocks: of the pairs to train on, and of the held-out ones where evaluation is asked for."""
    data = plan.job.data
    shards = find_shards(data.dataset_name, data.dataset_train_split, data.dataset_config)
    held_out_shards = held_out(plan.job, shards)
    stage = Stage("Tokenizing", "rows")
    quarantine = plan.run_dir.quarantine
    folders = ((shards, quarantine), (held_out_shards, quarantine / "held_out"))
    every = [_prepare(plan, part, folder, stage) for part, folder in folders if part]
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


def _prepare(plan: RunPlan, shards: Sequence[Shard], quarantine: Path, stage: Stage) -> PreparedData:
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
    return prepare(shards, request, data.max_bad_rows, stage.update)
