"""What a run gets where the user names no model or no data, and what the demonstration tells at the end."""

from dataclasses import asdict
from typing import Any

from raydpo import config
from raydpo.config import JobConfig
from raydpo.demo.facts import dialogues
from raydpo.demo.judge import assess
from raydpo.demo.model import ensure_starter
from raydpo.demo.preferences import DEMO_DEFAULTS, HELD_OUT_PAIRS, ORPO_DEFAULTS, write_preferences
from raydpo.models.loading import quiet_libraries
from raydpo.reporting.console import Stage
from raydpo.reporting.rundir import RunDir
from raydpo.runtime import storage


def complete(job: JobConfig) -> tuple[JobConfig, bool]:
    """The job with the starter model and the demonstration's pairs where it names none -> job, whether to tell of it.

    The story is told of the demonstration's pairs on the starter model alone: other models answer in other ways.
    """
    assert job.run.output_dir, "the command line sets it"
    quiet_libraries()
    run_dir = RunDir(job.run.output_dir)
    demo = not job.model.model_name_or_path and not job.data.dataset_name
    if not job.data.dataset_name:
        train, held_out = write_preferences(str(run_dir.path / "data"), job.optim.seed)
        data = {"dataset_name": train, "eval_dataset_name": held_out, "eval_strategy": "epoch"}
        suited = {**DEMO_DEFAULTS, **(ORPO_DEFAULTS if "orpo" in job.loss.loss_type else {})}
        job = config.with_defaults(job, {**(suited if demo else {}), **data})
    if not job.model.model_name_or_path:
        cache_dir = storage.absolute(job.data.cache_dir)
        stage = Stage("Starter", "steps")
        folder = ensure_starter(str(run_dir.path) if storage.is_remote(cache_dir) else cache_dir, stage.update)
        stage.done(f"model in {folder}")
        job = config.with_defaults(job, {"model_name_or_path": folder})
    return job, demo


def tell(job: JobConfig, summary: dict[str, Any]) -> None:
    """Let the model answer held-out requests as it was and as it is now; print the shares and add them to summary.json.

    The requests combine facts that were in no training pair.
    """
    assert job.model.model_name_or_path, "set by `complete`"
    assert job.run.output_dir, "the command line sets it"
    asked = dialogues(HELD_OUT_PAIRS, job.optim.seed + 1, "held_out")
    stage = Stage("Answers", "requests")
    before = assess(job.model.model_name_or_path, asked, job.optim.seed)
    after = assess(summary["model"], asked, job.optim.seed)
    stage.done(f"{4 * len(asked):,} answers to requests that no pair holds")
    print(f"\n{'':<12} {'courteous':>20} {'facts right, well-formed':>30}")
    for how in ("greedy", "sampled"):
        old, new = getattr(before, how), getattr(after, how)
        print(f"{how:<12} {_shares(old.courteous, new.courteous):>20} {_shares(old.well_formed, new.well_formed):>30}")
    print(f"\nAsked        {asked[0].request.messages[-1]['content']}")
    print(f"before       {before.sampled.examples[0]}")
    print(f"after        {after.sampled.examples[0]}")
    RunDir(job.run.output_dir).write_summary({**summary, "demo": {"before": asdict(before), "after": asdict(after)}})


def _shares(before: float, after: float) -> str:
    return f"{before:.1%} -> {after:.1%}"
