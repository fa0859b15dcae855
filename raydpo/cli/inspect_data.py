"""The command line of jobs/inspect_data.py: what a model will see of preference data, without Ray and without a run."""

import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raydpo import config
from raydpo.cli.run import BAD_INPUT, STARTER
from raydpo.config import JobConfig
from raydpo.config.fields import Section, at_least, hints_of, option
from raydpo.config.help import help_section
from raydpo.config.reading import read_flags
from raydpo.errors import ConfigError, RaydpoError, StorageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raydpo.data.images.processing import ImageProcessing
    from raydpo.data.inspection import ShardReport
    from raydpo.data.shards import Shard

PROGRAM = "inspect_data"


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Section):
    """What jobs/inspect_data.py prints."""

    rows: int = option(3, "Number of pairs to print of each file.", at_least(0), "pairs")
    max_rows: int | None = option(None, "Number of rows to read of each file. Unset: all.", at_least(1), "rows")
    png: str | None = option("lengths.png", "File for the histograms of lengths, as a PNG. none: no picture.")


@dataclass(frozen=True)
class Inspected:
    """The options, and the tokenizer that rows are tokenized with."""

    job: JobConfig
    tokenizer: "PreTrainedTokenizerBase"
    images: "ImageProcessing | None" = None


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect data with these flags (None: those of the process); return the exit status.

    It is 2 for wrong options, and 1 where a file cannot be read or has no row that can be trained on.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "-h" in words or "--help" in words:
        print(config.help_text(PROGRAM), help_section("inspect", InspectConfig, {}), sep="\n\n")
        return 0
    try:
        job, shown = parse_arguments(words)
        return inspect(job, shown)
    except RaydpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ConfigError) else 1


def parse_arguments(words: Sequence[str]) -> tuple[JobConfig, InspectConfig]:
    """Return the options of the job and those of this program. Raises ConfigError where one is wrong.

    Words before the first option are names of data, as in dataset_name.
    """
    first = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    files, flags = tuple(words[:first]), list(words[first:])
    own = _take_flags(flags, hints_of(InspectConfig))
    parsed = config.parse(flags, PROGRAM)
    if files and parsed.job.data.dataset_name and "dataset_name" in parsed.explicit:
        raise ConfigError(f"{files[0]} and dataset_name={parsed.job.data.dataset_name[0]} both name data; name it once")
    # Pairs that are held out are files of their own, which can be named here.
    values: dict[str, Any] = {"eval_strategy": "no", **({"dataset_name": files} if files else {})}
    job = parsed.with_values(values).job
    if not job.data.entries:
        raise ConfigError("no data is named; write the files after the name of the program, or set dataset_name")
    return job, InspectConfig(**cast(dict[str, Any], own))


def _take_flags(words: list[str], hints: dict[str, Any]) -> dict[str, str]:
    """Remove the flags of this program from the words, and return their values."""
    taken: list[str] = []
    place = 0
    while place < len(words):
        name = words[place].partition("=")[0].removeprefix("--").replace("-", "_")
        if not words[place].startswith("--") or name not in hints:
            place += 1
            continue
        end = place + 1
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        taken += words[place:end]
        del words[place:end]
    return read_flags(taken, hints)


def inspect(job: JobConfig, shown: InspectConfig) -> int:
    """Print what is in the data of a job; return 1 where a file has no row that can be trained on, else 0."""
    # Imported here, so that `--help` and wrong flags are answered at once.
    from raydpo.data.inspection import inspect_shard, with_tokenizer, without_tokenizer
    from raydpo.data.templates.chat_template import writes_date
    from raydpo.reporting import data_report
    from raydpo.reporting.console import Stage, print_line
    from raydpo.stages.tokenize import tokenization_request

    shards = shards_of(job)
    tokenizer = tokenizer_of(job)
    if tokenizer is not None and writes_date(tokenizer) and job.data.chat_template_date is None:
        today = datetime.date.today().isoformat()  # that of a run which starts now
        job = replace(job, data=replace(job.data, chat_template_date=today))
    plan = Inspected(job, cast("PreTrainedTokenizerBase", tokenizer), images_of(job, tokenizer))
    request = tokenization_request(plan, Path())
    slicing, recipe = request.slicing, request.recipe
    examine = without_tokenizer(recipe.mapping) if tokenizer is None else with_tokenizer(tokenizer, recipe)
    if tokenizer is None:
        print_line("Model", "none: texts before the chat template, lengths in characters; see --model_name_or_path")
    else:
        template = "with a chat template" if tokenizer.chat_template else "without a chat template"
        print_line("Model", f"{job.model.model_name_or_path}, {template}")
    reports, failed = [], False
    for shard in shards:
        stage = Stage("Reading", "rows")
        try:
            report = inspect_shard(
                shard, slicing, examine, show=shown.rows, max_rows=shown.max_rows, on_progress=stage.update
            )
        except RaydpoError as error:
            stage.clear()
            print(f"\n{data_report.heading(shard.name)}\nerror: {error}", flush=True)
            failed = True
            continue
        stage.clear()
        data_report.print_shard(report, "tokens" if tokenizer is not None else "characters")
        failed = failed or not report.pairs
        reports.append(report)
    if len(shards) > 1:
        data_report.print_total(reports)
    draw_lengths(reports, job, shown.png, "tokens" if tokenizer is not None else "characters")
    return int(failed)


def shards_of(job: JobConfig) -> list["Shard"]:
    """Return the shards of the data with the rows that a run would use: those to train on, then those held out."""
    from raydpo.data.mixtures.mixture import draw_rows
    from raydpo.data.mixtures.row_counts import count_rows
    from raydpo.stages.tokenize import find_data

    entries, _ = find_data(job)
    data = job.data
    mixture = draw_rows(entries, data.dataset_seed, data.test_split_size, lambda urls: list(map(count_rows, urls)))
    return [*mixture.train, *mixture.held_out]


def tokenizer_of(job: JobConfig) -> "PreTrainedTokenizerBase | None":
    """Return the tokenizer of the job's model, for which no weights are read; None without a model."""
    name, trust = job.model.model_name_or_path, job.model.trust_remote_code
    if name is None:
        return None
    if name == STARTER:
        from raydpo.demo.model import Recipe
        from raydpo.demo.tokenizer import build_tokenizer

        return build_tokenizer(Recipe().vocab_size)
    from raydpo.models import loading
    from raydpo.models.source import resolve_tokenizer
    from raydpo.models.template_option import read_chat_template

    loading.quiet_libraries()
    source = resolve_tokenizer(name, job.model.model_revision, trust_remote_code=trust)
    template = read_chat_template(job.model.chat_template)
    return loading.load_tokenizer(source, trust_remote_code=trust, chat_template=template)


def images_of(job: JobConfig, tokenizer: "PreTrainedTokenizerBase | None") -> "ImageProcessing | None":
    """Return how the job's model reads images; None without a model whose files are here."""
    name, trust = job.model.model_name_or_path, job.model.trust_remote_code
    if name in (None, STARTER) or tokenizer is None:
        return None
    from raydpo.models.source import resolve_tokenizer
    from raydpo.stages.plan import plan_images

    return plan_images(resolve_tokenizer(str(name), job.model.model_revision, trust_remote_code=trust), tokenizer, job)


def draw_lengths(reports: Sequence["ShardReport"], job: JobConfig, png: str | None, unit: str) -> None:
    """Write the histograms of lengths, and print the path, or why there is no picture."""
    from raydpo.reporting import length_chart
    from raydpo.reporting.console import print_line
    from raydpo.reporting.data_report import lengths_by_name

    if png is None or not any(report.pairs for report in reports):
        return
    if not length_chart.can_draw():
        print_line("Picture", "none: it needs matplotlib; `pip install matplotlib`, or set --png none")
        return
    options = {"prompt": "max_prompt_length", "prompt + longer completion": "max_length"}
    values = {part: (name, getattr(job.data, name)) for part, name in options.items()} if unit == "tokens" else {}
    limits = {part: (name, limit) for part, (name, limit) in values.items() if limit is not None}
    path = Path(png).expanduser().absolute()
    try:
        length_chart.draw(str(path), lengths_by_name(reports), unit, limits)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"cannot write png={png}: {error}; name a file that ends in .png in a folder that exists"
        ) from error
    print_line("Picture", str(path))
