"""The rates and the weights of a run are those of the options or of its DeepSpeed file, also after a resume."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch

from raydpo.config import RunConfig
from raydpo.errors import ResumeError
from raydpo.training import checkpoint
from raydpo.training.checkpoint import TrainState
from raydpo.training.resume import check_options
from tests.training.engines import Trained, plain_weights

pytestmark = pytest.mark.usefixtures("single_rank")

TOTAL, WARMUP = 8, 3
OPTIONS: dict[str, Any] = {
    "learning_rate": 2e-2,
    "warmup_steps": WARMUP,
    "weight_decay": 0.3,
    "adam_beta2": 0.99,
    "zero_stage": 0,
}
ADAM = {"betas": (0.9, 0.99), "eps": 1e-8}
LINEAR = [step / WARMUP if step < WARMUP else (TOTAL - step) / (TOTAL - WARMUP) for step in range(TOTAL)]
"""Shares of the learning rate at each update: a warm-up of 3 updates from 0, then linearly to 0 at the end."""
AUTO = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}


def written(folder: Path, content: dict[str, Any]) -> str:
    file = folder / "deepspeed.json"
    file.write_text(json.dumps(content))
    return str(file)


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize(
    "optimizer",
    [{"type": "AdamW", "params": AUTO}, {"type": "AdamW"}, {"type": "Adam", "params": {"torch_adam": True}}, "auto"],
)
def test_a_file_with_auto_trains_exactly_as_the_options_do(tmp_path: Path, optimizer: Any, stage: int) -> None:
    file = written(tmp_path, {"optimizer": optimizer, "gradient_clipping": "auto", "bf16": {"enabled": "auto"}})
    by_options = Trained(TOTAL, **OPTIONS | {"zero_stage": stage}).update(range(1, TOTAL + 1))
    by_file = Trained(TOTAL, **OPTIONS | {"zero_stage": stage}, deepspeed=file).update(range(1, TOTAL + 1))
    assert (by_file.losses, by_file.norms, by_file.rates) == (by_options.losses, by_options.norms, by_options.rates)
    assert all(torch.equal(by_file.weights[name], tensor) for name, tensor in by_options.weights.items())
    rates = [OPTIONS["learning_rate"] * share for share in LINEAR]
    assert by_file.rates == pytest.approx(rates, rel=1e-12)
    assert_same(by_file.weights, plain_weights(rates, torch.optim.AdamW, weight_decay=0.3, **ADAM))


def test_values_of_the_file_are_what_is_applied_with_the_options_warm_up(tmp_path: Path) -> None:
    params = {"lr": 5e-3, "betas": [0.8, "auto"], "weight_decay": 0.1}
    run = Trained(TOTAL, **OPTIONS, deepspeed=written(tmp_path, {"optimizer": {"type": "AdamW", "params": params}}))
    rates = [5e-3 * share for share in LINEAR]
    assert run.update(range(1, TOTAL + 1)).rates == pytest.approx(rates, rel=1e-12)
    assert_same(run.weights, plain_weights(rates, torch.optim.AdamW, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-8))


@pytest.mark.parametrize(
    ("stage", "kind", "params", "expected", "arguments"),
    [
        (0, "Adam", {"adam_w_mode": False}, torch.optim.Adam, ADAM),
        (2, "Adam", {"adam_w_mode": False}, torch.optim.Adam, ADAM),
        (2, "SGD", {"momentum": 0.5}, torch.optim.SGD, {"momentum": 0.5}),
        (0, "Adagrad", {}, torch.optim.Adagrad, {"eps": 1e-8}),
    ],
)
def test_another_optimizer_has_the_options_rate_and_decays_no_norm(
    tmp_path: Path, stage: int, kind: str, params: dict[str, Any], expected: Any, arguments: dict[str, Any]
) -> None:
    content = {"optimizer": {"type": kind, "params": params}, "zero_allow_untested_optimizer": True}
    run = Trained(TOTAL, **OPTIONS | {"zero_stage": stage}, deepspeed=written(tmp_path, content))
    rates = [OPTIONS["learning_rate"] * share for share in LINEAR]
    assert run.update(range(1, TOTAL + 1)).rates == pytest.approx(rates, rel=1e-12)
    assert_same(run.weights, plain_weights(rates, expected, weight_decay=0.3, **arguments))


def log_warmup(iteration: int) -> float:
    """DeepSpeed's default warm-up: log(iteration + 1) / log(warm-up)."""
    return math.log(iteration + 1) / math.log(WARMUP)


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize(
    ("kind", "params", "share"),
    [
        ("WarmupLR", {"warmup_num_steps": "auto", "warmup_max_lr": "auto", "warmup_min_lr": "auto"}, log_warmup),
        ("WarmupDecayLR", {"total_num_steps": "auto", "warmup_type": "linear"}, lambda iteration: iteration / WARMUP),
        ("WarmupCosineLR", {"warmup_type": "linear", "cos_min_ratio": 0.0}, lambda iteration: iteration / WARMUP),
    ],
)
def test_a_schedule_of_deepspeed_has_the_options_rate_warm_up_and_length(
    tmp_path: Path, kind: str, params: dict[str, Any], share: Any, stage: int
) -> None:
    content = {"scheduler": {"type": kind, "params": params}}
    run = Trained(TOTAL, **OPTIONS | {"zero_stage": stage}, deepspeed=written(tmp_path, content))
    run.update(range(1, TOTAL + 1))
    warming = [0.0, *(share(iteration) for iteration in range(WARMUP))]  # DeepSpeed's first update has the lowest rate
    left = range(WARMUP, TOTAL - 1)
    after = {
        "WarmupLR": [1.0 for _ in left],
        "WarmupDecayLR": [(TOTAL - iteration) / (TOTAL - WARMUP) for iteration in left],
        "WarmupCosineLR": [(1 + math.cos(math.pi * (at - WARMUP + 1) / (TOTAL - WARMUP))) / 2 for at in left],
    }[kind]
    rates = [OPTIONS["learning_rate"] * part for part in [*warming, *after]]
    assert run.rates == pytest.approx(rates, rel=1e-9)
    assert_same(run.weights, plain_weights(rates, torch.optim.AdamW, weight_decay=0.3, **ADAM))


def test_a_schedule_of_torch_has_the_options_rate_and_the_runs_length(tmp_path: Path) -> None:
    content = {"scheduler": {"type": "CosineAnnealingLR", "params": {"T_max": "auto"}}}
    run = Trained(TOTAL, **OPTIONS | {"zero_stage": 2}, deepspeed=written(tmp_path, content))
    rates = [OPTIONS["learning_rate"] * (1 + math.cos(math.pi * step / TOTAL)) / 2 for step in range(TOTAL)]
    assert run.update(range(1, TOTAL + 1)).rates == pytest.approx(rates, rel=1e-9)


HALF = TOTAL // 2
RESUMED: dict[str, Any] = {"learning_rate": 2e-2, "warmup_steps": 3, "weight_decay": 0.3}
DEFAULTS = {"betas": (0.9, 0.999), "eps": 1e-8}


def linear(total: int) -> list[float]:
    return [step / 3 if step < 3 else (total - step) / (total - 3) for step in range(total)]


def checkpoint_of(folder: Path, **options: Any) -> str:
    run = Trained(TOTAL, **options).update(range(1, HALF + 1))
    run.wrapper.engine.save_checkpoint(str(folder / "half"), tag="engine")
    return str(folder / "half")


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize(
    "scheduler", [None, {"type": "WarmupDecayLR"}, {"type": "ExponentialLR", "params": {"gamma": 0.7}}]
)
def test_an_unchanged_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, stage: int, scheduler: Any) -> None:
    options = {**RESUMED, "zero_stage": stage}
    if scheduler:
        options["deepspeed"] = str(tmp_path / "file.json")
        Path(options["deepspeed"]).write_text(json.dumps({"scheduler": scheduler}))
    whole = Trained(TOTAL, **options).update(range(1, TOTAL + 1))
    resumed = Trained(TOTAL, **options)
    resumed.wrapper.load(checkpoint_of(tmp_path, **options), "engine")
    resumed.update(range(HALF + 1, TOTAL + 1))
    assert (resumed.losses, resumed.norms) == (whole.losses[HALF:], whole.norms[HALF:])
    assert resumed.rates == pytest.approx(whole.rates[HALF:], rel=1e-12)
    assert len(set(whole.rates)) > 3, "a constant rate would prove nothing"
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in whole.weights.items())


@pytest.mark.parametrize("stage", [0, 2])
def test_a_changed_rate_decay_and_length_are_applied_from_the_checkpoint_on(tmp_path: Path, stage: int) -> None:
    folder = checkpoint_of(tmp_path, **RESUMED, zero_stage=stage)
    longer = 12
    changed = {**RESUMED, "learning_rate": 5e-3, "weight_decay": 0.0, "zero_stage": stage}
    resumed = Trained(longer, **changed)
    resumed.wrapper.load(folder, "engine")
    resumed.update(range(HALF + 1, longer + 1))
    rates = [5e-3 * share for share in linear(longer)[HALF:]]
    assert resumed.rates == pytest.approx(rates, rel=1e-12)
    earlier = [2e-2 * share for share in linear(TOTAL)[:HALF]]
    expected = plain_weights([*earlier, *rates], torch.optim.AdamW, decays=[0.3] * HALF + [0.0] * 8, **DEFAULTS)
    torch.testing.assert_close(resumed.weights, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_checkpoint_of_another_model_or_optimizer_is_refused_in_words(tmp_path: Path, stage: int) -> None:
    folder = checkpoint_of(tmp_path, **RESUMED, zero_stage=stage)
    wider = Trained(TOTAL, width=9, **RESUMED, zero_stage=stage)
    assert wider.wrapper.fingerprint != Trained(TOTAL, **RESUMED, zero_stage=stage).wrapper.fingerprint
    with pytest.raises(ResumeError, match="does not fit the model and the optimizer of this run"):
        wider.wrapper.load(folder, "engine")
    with pytest.raises(ResumeError, match=r"no checkpoint|does not fit"):
        wider.wrapper.load(str(tmp_path), "engine")


def test_a_written_checkpoint_has_what_a_resume_is_checked_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(metrics: dict[str, Any], checkpoint: ray.train.Checkpoint, checkpoint_dir_name: str) -> None:
        """Copy the files, as Ray Train's storage does."""
        shutil.copytree(checkpoint.path, tmp_path / checkpoint_dir_name)

    monkeypatch.setattr(ray.train, "report", keep)
    run = Trained(TOTAL, **RESUMED, zero_stage=0).update(range(1, HALF + 1))
    checkpoint.save(run.wrapper, TrainState(step=HALF, position=32), run.task, {})
    written = ray.train.Checkpoint(str(tmp_path / f"checkpoint-{HALF}"))

    changed = Trained(TOTAL, **{**RESUMED, "learning_rate": 1e-3}, zero_stage=0)
    state = checkpoint.restore(changed.wrapper, written, changed.task.fingerprint)
    assert (state.step, state.position) == (HALF, 32)
    assert torch.equal(changed.weights["layers.0.weight"], run.weights["layers.0.weight"])
    assert changed.update([HALF + 1]).rates == pytest.approx([1e-3 * linear(TOTAL)[HALF]], rel=1e-12)
    job = dataclasses.replace(changed.task.job, run=RunConfig(resume_from_checkpoint=written.path))
    (note,) = check_options(job, str(tmp_path / "run"))
    assert note == f"{written.path} is resumed with learning_rate=0.001 (it was 0.02)"

    wider = Trained(TOTAL, width=9, **RESUMED, zero_stage=0)
    with pytest.raises(ResumeError, match=r"another trained parameters .*6 tensors, .*, now 6 tensors, "):
        checkpoint.restore(wider.wrapper, written, wider.task.fingerprint)
