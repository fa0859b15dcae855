"""Names and defaults against those of TRL, read from TRL itself."""

import dataclasses
from typing import Any

import pytest

from raydpo.config import HINTS, SCHEDULERS, JobConfig, to_flat

trl = pytest.importorskip("trl", reason="needs the extra `parity`")

OURS = {
    "block_pairs", "cache_dir", "cpus_per_worker", "dataset_format", "eval_dataset_name", "gpus_per_worker",
    "max_bad_rows", "max_failures", "num_workers", "offload", "reference_cpus_per_worker", "reference_gpus_per_worker",
    "reference_label_selector", "reference_model", "reference_num_workers", "reference_resources", "shuffle_window",
    "storage_path", "verbose", "worker_label_selector", "worker_resources", "zero_stage",
    "max_prompt_length",  # TRL had it until 0.28
    "warmup_ratio",  # transformers had it until version 5
}  # fmt: skip
DIFFERENT = {
    "dtype": ("float32", "auto"),
    "model_revision": ("main", None),
    "precompute_ref_batch_size": (None, 8),
    "resume_from_checkpoint": (None, "auto"),
}
"""Option: (TRL's default, ours); the help of each says what ours means."""


def trl_defaults() -> dict[str, Any]:
    """Default of every option that a DPO command of TRL takes."""
    found: dict[str, Any] = {}
    for options in (trl.DPOConfig, trl.ModelConfig, trl.ScriptArguments):
        for field in dataclasses.fields(options):
            factory = field.default_factory
            found[field.name] = field.default if factory is dataclasses.MISSING else factory()
    return found


def plain(value: Any) -> Any:
    """A default without the differences of writing: a list of one is its element, no list and no value are the same."""
    if isinstance(value, list | tuple):
        value = value[0] if len(value) == 1 else tuple(value)
    return None if value in ((), {}) else getattr(value, "value", value)


def test_names_are_those_of_trl_or_known_to_be_ours() -> None:
    assert set(HINTS) - set(trl_defaults()) == OURS


def test_defaults_are_those_of_trl_or_known_to_differ() -> None:
    theirs = trl_defaults()
    differing = {
        name: (plain(theirs[name]), plain(value))
        for name, value in to_flat(JobConfig()).items()
        if name in theirs and plain(theirs[name]) != plain(value)
    }
    assert differing == DIFFERENT


def test_schedules_need_no_further_arguments() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    for name in SCHEDULERS:
        transformers.get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=10)
