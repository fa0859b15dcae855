"""The demonstration: the built-in model and pairs for a job that names none, and a comparison of answers at the end."""

from dataclasses import asdict
from typing import Any

from raydpo.config import JobConfig, ParsedOptions
from raydpo.demo.facts import dialogues
from raydpo.demo.judge import assess
from raydpo.demo.model import ensure_starter
from raydpo.demo.preferences import DEMO_DEFAULTS, HELD_OUT_PAIRS, ORPO_DEFAULTS, write_preferences
from raydpo.models.loading import quiet_libraries
from raydpo.reporting.console import Stage
from raydpo.reporting.rundir import RunDir
from raydpo.runtime import storage
from raydpo.stages.tokenize import find_data


def complete(parsed: ParsedOptions, *, use_starter: bool) -> tuple[JobConfig, bool]:
    """Return the job with the demonstration's pairs where it names none, and whether it is the demonstration.

    `use_starter` puts the built-in model in place of model_name_or_path. The demonstration is its pairs on the built-in
    model: only then do the demonstration's options and the comparison of answers apply.
    """
    assert parsed.job.run.output_dir, "the command line sets it"
    quiet_libraries()
    run_dir = RunDir(parsed.job.run.output_dir)
    is_demo = use_starter and not parsed.job.data.entries
    if not parsed.job.data.entries:
        train, held_out = write_preferences(str(run_dir.path / "data"), parsed.job.optim.seed)
        data = {"dataset_name": train, "eval_dataset_name": held_out, "eval_strategy": "epoch"}
        options = {**DEMO_DEFAULTS, **(ORPO_DEFAULTS if "orpo" in parsed.job.loss.loss_type else {})}
        if parsed.explicit & {"lr_scheduler_type", "warmup_steps"}:
            del options["warmup_ratio"]  # a schedule of the user's own may have no warm-up, or another
        parsed = parsed.with_defaults({**(options if is_demo else {}), **data})
    if use_starter:
        find_data(parsed.job)  # training the built-in model takes a minute, and a wrong name is found at once
        parsed = parsed.with_values({"model_name_or_path": _make_starter(parsed.job.data.cache_dir, run_dir)})
    return parsed.job, is_demo


def _make_starter(cache_dir: str, run_dir: RunDir) -> str:
    """Make the built-in model, in the run's folder if the cache is remote, unless it is there; return its folder."""
    local = str(run_dir.path) if storage.is_remote(storage.absolute(cache_dir)) else storage.absolute(cache_dir)
    stage = Stage("Starter", "steps")
    folder = ensure_starter(local, stage.update)
    stage.done(f"model in {folder}")
    return folder


def print_answers(job: JobConfig, summary: dict[str, Any]) -> None:
    """Let the model before and after training answer held-out requests; print the shares and add them to summary.json.

    The requests combine facts that no training pair combines.
    """
    assert job.model.model_name_or_path, "`complete` sets it"
    assert job.run.output_dir, "the command line sets it"
    requests = dialogues(HELD_OUT_PAIRS, job.optim.seed + 1, "held_out")
    stage = Stage("Answers", "requests")
    before = assess(job.model.model_name_or_path, requests, job.optim.seed)
    after = assess(summary["model"], requests, job.optim.seed)
    stage.done(f"{4 * len(requests):,} answers to held-out requests")
    print(f"\n{'':<12} {'courteous':>20} {'facts right, well-formed':>30}")
    for how in ("greedy", "sampled"):
        old, new = getattr(before, how), getattr(after, how)
        print(f"{how:<12} {_shares(old.courteous, new.courteous):>20} {_shares(old.well_formed, new.well_formed):>30}")
    print(f"\nRequest      {requests[0].request.messages[-1]['content']}")
    print(f"before       {before.sampled.examples[0]}")
    print(f"after        {after.sampled.examples[0]}")
    RunDir(job.run.output_dir).write_summary({**summary, "demo": {"before": asdict(before), "after": asdict(after)}})


def _shares(before: float, after: float) -> str:
    return f"{before:.1%} -> {after:.1%}"
