"""An engine that loads a checkpoint goes on with its weights and state, and with the rates and decay of its own run."""

import dataclasses
import json
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

TOTAL, HALF = 8, 4
OPTIONS: dict[str, Any] = {"learning_rate": 2e-2, "warmup_steps": 3, "weight_decay": 0.3}
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}


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
    options = {**OPTIONS, "zero_stage": stage}
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
    folder = checkpoint_of(tmp_path, **OPTIONS, zero_stage=stage)
    longer = 12
    changed = {**OPTIONS, "learning_rate": 5e-3, "weight_decay": 0.0, "zero_stage": stage}
    resumed = Trained(longer, **changed)
    resumed.wrapper.load(folder, "engine")
    resumed.update(range(HALF + 1, longer + 1))
    rates = [5e-3 * share for share in linear(longer)[HALF:]]
    assert resumed.rates == pytest.approx(rates, rel=1e-12)
    earlier = [2e-2 * share for share in linear(TOTAL)[:HALF]]
    expected = plain_weights([*earlier, *rates], torch.optim.AdamW, decays=[0.3] * HALF + [0.0] * 8, **ADAM)
    torch.testing.assert_close(resumed.weights, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_checkpoint_of_another_model_or_optimizer_is_refused_in_words(tmp_path: Path, stage: int) -> None:
    folder = checkpoint_of(tmp_path, **OPTIONS, zero_stage=stage)
    wider = Trained(TOTAL, width=9, **OPTIONS, zero_stage=stage)
    assert wider.wrapper.fingerprint != Trained(TOTAL, **OPTIONS, zero_stage=stage).wrapper.fingerprint
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
    run = Trained(TOTAL, **OPTIONS, zero_stage=0).update(range(1, HALF + 1))
    checkpoint.save(run.wrapper, TrainState(step=HALF, position=32), run.task, {})
    written = ray.train.Checkpoint(str(tmp_path / f"checkpoint-{HALF}"))

    changed = Trained(TOTAL, **{**OPTIONS, "learning_rate": 1e-3}, zero_stage=0)
    state = checkpoint.restore(changed.wrapper, written, changed.task.fingerprint)
    assert (state.step, state.position) == (HALF, 32)
    assert torch.equal(changed.weights["layers.0.weight"], run.weights["layers.0.weight"])
    assert changed.update([HALF + 1]).rates == pytest.approx([1e-3 * linear(TOTAL)[HALF]], rel=1e-12)
    job = dataclasses.replace(changed.task.job, run=RunConfig(resume_from_checkpoint=written.path))
    (note,) = check_options(job, str(tmp_path / "run"))
    assert note == f"{written.path} is resumed with learning_rate=0.001 (it was 0.02)"

    wider = Trained(TOTAL, width=9, **OPTIONS, zero_stage=0)
    with pytest.raises(ResumeError, match=r"another trained parameters .*6 tensors, .*, now 6 tensors, "):
        checkpoint.restore(wider.wrapper, written, wider.task.fingerprint)
