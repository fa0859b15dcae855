"""The command line: options to a run, Ray started or joined, errors as one line, a short summary at the end."""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence

from raydpo import config
from raydpo.config import JobConfig
from raydpo.errors import ConfigError, RaydpoError
from raydpo.runtime import storage

BAD_INPUT = 2
"""Exit status where the options are wrong, as argparse has it; other failures exit with 1."""
SCORE_REFERENCE = "score_reference"
"""The job that does not train."""


def main(argv: Sequence[str] | None = None, job: str = "dpo") -> int:
    """Run one of jobs/ as the flags describe -> exit status."""
    try:
        given = with_output_dir(config.parse(sys.argv[1:] if argv is None else argv, job), job)
        for notice in given.notices:
            print(f"note: {notice}")
        # Imported here, so that `--help` and wrong flags answer at once.
        from raydpo import pipeline
        from raydpo.stages.summarize import tell

        completed, told = complete(given)
        start_ray(completed)
        summary = (pipeline.score_only if job == SCORE_REFERENCE else pipeline.run)(completed)
        tell(summary)
        if told and job != SCORE_REFERENCE:
            from raydpo.demo import story

            story.tell(completed, summary)
    except RaydpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ConfigError) else 1
    return 0


def with_output_dir(given: JobConfig, job: str = "dpo") -> JobConfig:
    """The config with its output folder settled: a new one in runs/, called after the job, where none is given."""
    name = given.run.run_name or time.strftime(f"{job}-%Y%m%d-%H%M%S")
    return config.with_defaults(given, {"output_dir": storage.join("runs", name)})


def complete(job: JobConfig) -> tuple[JobConfig, bool]:
    """The job with a model and data where it names none -> job, whether the demonstration's story is to be told."""
    if job.model.model_name_or_path and job.data.dataset_name:
        return job, False
    from raydpo.demo import story

    return story.complete(job)


KEPT_BYTES = 2**30
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_ARENA_MAX": "1",  # other arenas, which threads get, keep nothing of this size
}
"""Settings of glibc for the workers of a Ray that is started here. On a CPU each activation is a fresh allocation,
which glibc by default takes from the system, page by page, and gives back at once: a softmax over the vocabulary takes
three times as long for it."""


def start_ray(job: JobConfig) -> None:
    """Join the cluster that this process belongs to (RAY_ADDRESS, a submitted job), or start Ray on this machine.

    Without `--verbose`, what Ray and its libraries say stays out of the console; it is in Ray's logs all the same.
    """
    if not job.run.verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of Ray's C++ parts, which write to stderr
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default, otherwise announced
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
    """Drop what is written to file descriptor 2: Ray's C++ parts announce there that they were told to be quiet."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
