"""Names and defaults of options, compared with those of the installed TRL."""

import dataclasses
import inspect
from typing import Any

import pytest

from raydpo.config import HINTS, SCHEDULERS, JobConfig, from_flat, parse, parse_options, to_flat, trl_compat

trl = pytest.importorskip("trl", reason="needs the extra `parity`")

OURS = {
    "reference_drift_tolerance",
    "reference_quantization",
    "reference_dtype", "reference_from_dataset", "reference_schedule",
    "freeze_vision_tower", "freeze_multi_modal_projector",
    "block_pairs", "cache_dir", "column_mapping", "cpus_per_worker", "dataset_format", "eval_dataset_name",
    "gpus_per_worker", "max_bad_rows", "max_failures", "num_workers", "offload", "reference_cpus_per_worker",
    "reference_gpus_per_worker", "reference_label_selector", "reference_model", "reference_num_workers",
    "reference_resources", "shuffle_window", "storage_path", "verbose", "worker_label_selector", "worker_resources",
    "zero_stage",
    "bco_running_mean",
    "loss_on",
    "add_special_tokens", "chat_template_date", "on_template_loss",
    "sample_weights", "use_margins", "margin_from_scores", "margin_scale",
    "device_peak_tflops", "logits_chunk_tokens", "share_prompts", "tokens_per_micro_batch",
    "max_prompt_length", "model_adapter_name", "ref_adapter_name", "reference_free",  # TRL had these
    "rpo_alpha",  # and this one until 0.28
    "warmup_ratio",  # transformers had it until version 5
    "chat_template", "dataset_seed",  # the alignment handbook has them, the second as seed of dataset_mixture
}  # fmt: skip
DIFFERENT = {
    "cpo_alpha": (1.0, 0.0),
    "dtype": ("float32", "auto"),
    "label_smoothing": (0.0, None),
    "model_revision": ("main", None),
    "gradient_checkpointing": (True, None),
    "resume_from_checkpoint": (None, "auto"),
}
"""Default in TRL and default here, by option; the help text of each option explains the default here."""


def trl_defaults() -> dict[str, Any]:
    """Return the default of every option that a DPO, ORPO or CPO command of TRL takes."""
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    found: dict[str, Any] = {}
    for options in (
        ORPOConfig,
        CPOConfig,
        trl.DPOConfig,
        trl.ModelConfig,
        trl.ScriptArguments,
        trl.DatasetMixtureConfig,
    ):
        for field in dataclasses.fields(options):
            factory = field.default_factory
            found[field.name] = field.default if factory is dataclasses.MISSING else factory()
    return found


def plain(value: Any) -> Any:
    """Return a default in a common notation: a list of one is its element, an empty list or mapping is None."""
    if isinstance(value, list | tuple):
        value = value[0] if len(value) == 1 else tuple(value)
    return None if value in ((), {}) else getattr(value, "value", value)


def test_names_are_those_of_trl_or_listed_as_ours() -> None:
    assert set(HINTS) - set(trl_defaults()) == OURS


def test_defaults_are_those_of_trl_or_listed_as_different() -> None:
    theirs = trl_defaults()
    differing = {
        name: (plain(theirs[name]), plain(value))
        for name, value in to_flat(JobConfig()).items()
        if name in theirs and plain(theirs[name]) != plain(value)
    }
    assert differing == DIFFERENT


def test_defaults_of_the_other_jobs_are_those_of_trl() -> None:
    from trl.experimental.cpo import CPOConfig

    theirs = {field.name: field.default for field in dataclasses.fields(CPOConfig)}
    for name in ("cpo_alpha", "simpo_gamma", "loss_type", "beta"):
        assert plain(to_flat(parse([], "cpo").job)[name]) == theirs[name]


def test_each_key_of_trl_is_in_exactly_one_table() -> None:
    tables = [
        set(HINTS),
        *map(set, (trl_compat.RENAMED, trl_compat.TRANSLATED, trl_compat.RECIPES)),
        *map(set, (trl_compat.NO_EFFECT, trl_compat.REFUSED)),
    ]
    assert {key: count for key in trl_defaults() if (count := sum(key in table for table in tables)) != 1} == {}
    assert all(sum(key in table for table in tables) == 1 for key in trl_compat.KEYS)


def test_neutral_values_are_trls_defaults() -> None:
    theirs = trl_defaults()
    ours = {key: entry.neutral[0] for key, entry in {**trl_compat.NO_EFFECT, **trl_compat.REFUSED}.items()}
    assert {key: (theirs[key], ours[key]) for key in theirs.keys() & ours if plain(theirs[key]) != ours[key]} == {}


def test_every_default_of_trl_is_accepted_without_a_notice() -> None:
    not_options = {key: value for key, value in trl_defaults().items() if key not in HINTS}
    assert parse_options(not_options).notices == ()
    assert from_flat(not_options) == JobConfig()


def test_schedules_and_their_arguments_are_those_of_transformers() -> None:
    optimization = pytest.importorskip("transformers.optimization")
    named = {kind.value: schedule for kind, schedule in optimization.TYPE_TO_SCHEDULER_FUNCTION.items()}
    assert set(named) - set(SCHEDULERS) == {"reduce_lr_on_plateau", "greedy"}  # these follow a metric
    common = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    for name, arguments in SCHEDULERS.items():
        assert set(inspect.signature(named[name]).parameters) - common == set(arguments), name
