"""The command line of the programs in jobs/ that run stages: options, Ray, errors as one line, a short report."""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence

from raydpo import config
from raydpo.config import JobConfig, ParsedOptions
from raydpo.errors import ConfigError, RaydpoError
from raydpo.runtime import storage

BAD_INPUT = 2
"""Exit status for wrong options, as in argparse; other failures exit with 1."""
SCORE_REFERENCE = "score_reference"
"""The program that scores the reference and does not train."""
STARTER = "starter"
"""The value of model_name_or_path that names the small built-in model."""


def main(argv: Sequence[str] | None = None, program: str = "dpo") -> int:
    """Run a program of jobs/ with these flags (None: those of the process) and return its exit status."""
    try:
        parsed = with_output_dir(config.parse(sys.argv[1:] if argv is None else argv, program), program)
        check_model_named(parsed.job)
        for notice in parsed.notices:
            print(f"note: {notice}")
        # Imported here, so that `--help` and wrong flags are answered at once.
        from raydpo import pipeline
        from raydpo.stages.summarize import print_summary

        if program == SCORE_REFERENCE:
            pipeline.check_scores_reference(parsed.job)
        job, is_demo = complete(parsed)
        start_ray(job)
        summary = (pipeline.score_only if program == SCORE_REFERENCE else pipeline.run)(job)
        print_summary(summary)
        if is_demo and program != SCORE_REFERENCE:
            from raydpo.demo import story

            story.print_answers(job, summary)
    except RaydpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ConfigError) else 1
    return 0


def with_output_dir(parsed: ParsedOptions, program: str = "dpo") -> ParsedOptions:
    """Return the options with output_dir set: by default a new folder in runs/, named after the program and time."""
    name = parsed.job.run.run_name or time.strftime(f"{program}-%Y%m%d-%H%M%S")
    return parsed.with_defaults({"output_dir": storage.join("runs", name)})


def check_model_named(job: JobConfig) -> None:
    """Raise ConfigError where there is a data set and no model: a run must not train another model than was meant."""
    if job.data.entries and not job.model.model_name_or_path:
        option = "dataset_name" if job.data.dataset_name else "datasets"
        paths = ",".join(entry.path for entry in job.data.entries)
        raise ConfigError(
            f"{option}={paths} is set and model_name_or_path is not; name the model to train, or set "
            f"model_name_or_path={STARTER} for the small built-in one"
        )


def complete(parsed: ParsedOptions) -> tuple[JobConfig, bool]:
    """Return the job with the built-in model and pairs where it names none, and whether it is the demonstration."""
    model = parsed.job.model.model_name_or_path
    if model and model != STARTER and parsed.job.data.entries:
        return parsed.job, False
    from raydpo.demo import story

    return story.complete(parsed, use_starter=model in (None, STARTER))


KEPT_BYTES = 2**30
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_ARENA_MAX": "1",  # the arenas of further threads do not keep blocks of this size
}
"""Settings of glibc for the workers of a Ray that is started here. On a CPU each activation is a new allocation, which
glibc by default takes from the system page by page and returns at once: a softmax over the vocabulary then takes three
times as long."""


def start_ray(job: JobConfig) -> None:
    """Join the cluster that this process belongs to (RAY_ADDRESS, a submitted job), or start Ray on this machine.

    Without `--verbose` the messages of Ray and its libraries stay out of the console; Ray's logs have them.
    """
    if not job.run.verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ parts write to stderr
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's next default, announced otherwise
    for name, value in KEEP_FREED_MEMORY.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data
    import ray.train

    if not job.run.verbose:
        # After the imports, which set up these loggers.
        for library in ("ray", "ray.data", "ray.train"):
            logging.getLogger(library).setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        warnings.filterwarnings("ignore", module="ray")
    level = logging.INFO if job.run.verbose else logging.ERROR
    with contextlib.nullcontext() if job.run.verbose else muted_stderr():
        ray.init(log_to_driver=job.run.verbose, logging_level=level)


@contextlib.contextmanager
def muted_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2, where Ray's C++ parts announce that their log level was set."""
    sys.stderr.flush()
    kept = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(devnull)
        os.close(kept)
