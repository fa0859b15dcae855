"""A run that diverged: every ZeRO stage's gradient norm shows it, whatever the objective, and weights are looked at."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from raydpo import config
from raydpo.errors import TrainingError
from raydpo.feed.schedule import Schedule
from raydpo.training import deepspeed_engine
from raydpo.training.deepspeed_config import deepspeed_config
from raydpo.training.deepspeed_engine import MAX_SKIPPED, DeepSpeedEngine
from raydpo.training.divergence import DivergenceCheck, check_start, poisoned
from tests.training.engines import GROUP

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture
def process(single_rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set this process up as a train worker, on a CPU whose float16 DeepSpeed does not refuse."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    deepspeed_engine.prepare_process(gpu=False)
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)


def engine_of(stage: int, precision: str) -> DeepSpeedEngine:
    """Return DeepSpeed's engine around a small model."""
    halves = {"bf16": precision == "bfloat16", "fp16": precision == "float16"}
    job = config.from_flat({"zero_stage": stage, "learning_rate": 1e-2, **halves})
    torch.manual_seed(0)
    task: Any = SimpleNamespace(
        job=job,
        schedule=Schedule(pairs=10, global_batch=1, total_steps=100),
        deepspeed_config=deepspeed_config(job, {}, GROUP, None),
        policy=SimpleNamespace(gpu=False),
    )
    return DeepSpeedEngine(nn.Linear(4, 4).to(DTYPES[precision]), task)


def step(engine: DeepSpeedEngine, factor: float) -> str | None:
    """Make an update on a loss times `factor`, whose hinge has a gradient of 0 where it is not a number."""
    inputs = torch.ones(2, 4, dtype=next(engine.engine.module.parameters()).dtype)
    engine.engine.set_gradient_accumulation_boundary(True)
    engine.engine.backward(poisoned(torch.relu(1 + engine.engine(inputs).float().pow(2).sum() * factor)))
    engine.step()
    return engine.fault


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "float32"), (1, "float32"), (2, "float32"), (3, "float32"), (0, "bfloat16"), (2, "bfloat16"), (3, "bfloat16")],
)
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_found_at_its_update(stage: int, precision: str, factor: float) -> None:
    engine = engine_of(stage, precision)
    assert step(engine, 1.0) is None
    fault = step(engine, factor)
    assert fault is not None
    assert "the gradient norm is" in fault


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_float16_that_overflows_is_skipped_until_its_scale_is_smallest(stage: int) -> None:
    engine = engine_of(stage, "float16")
    assert [step(engine, math.inf) for _ in range(10)] == [None] * 10, "the loss scale has not come down yet"
    assert step(engine, 1.0) is None
    faults = [step(engine, math.inf) for _ in range(20)]
    first = next(index for index, fault in enumerate(faults) if fault)
    assert first >= MAX_SKIPPED
    assert f"smallest loss scale, for {MAX_SKIPPED} updates" in str(faults[first])


def test_a_finite_loss_keeps_its_value_and_gradient_bit_for_bit() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e3
    gradients = []
    for change in (lambda loss: loss, poisoned):
        x = values.clone().requires_grad_()
        loss = change(torch.nn.functional.softplus(x).sum())
        loss.backward()
        gradients.append((loss.detach(), x.grad))
    assert gradients[0][0].equal(gradients[1][0])
    assert gradients[0][1] is not None
    assert gradients[0][1].equal(gradients[1][1])


@pytest.mark.usefixtures("single_rank")
@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_not_written(dtype: torch.dtype, value: float) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(dtype)
    check = DivergenceCheck("checkpoint-5", CPU)
    check.check_weights(model, 7, "the export")
    with torch.no_grad():
        model[1].weight[2, 1] = value
    with pytest.raises(TrainingError) as caught:
        check.check_weights(model, 7, "the export")
    for word in ("after step 7", "first 1.weight", "the export is not written", "checkpoint-5", "learning_rate"):
        assert word in str(caught.value)


def test_metrics_that_are_not_finite_end_the_run() -> None:
    check = DivergenceCheck(None, CPU)
    good = {"eval_loss": 0.5, "eval_hard_loss": 0.4, "eval_logps/chosen": -3.0, "eval_logits/chosen": math.nan}
    check.check_metrics(good, 3, ["eval_", "eval_hard_"])
    with pytest.raises(TrainingError, match=r"at step 3 eval_hard_loss is nan\. .*there is no checkpoint yet"):
        check.check_metrics({**good, "eval_hard_loss": math.nan}, 3, ["eval_", "eval_hard_"])
    with pytest.raises(TrainingError, match=r"at step 4 logps/chosen is -inf"):
        check.check_metrics({"loss": 0.1, "logps/chosen": -math.inf}, 4)
    with pytest.raises(TrainingError, match=r"loss is nan before the first update.*dtype=float32"):
        check_start(math.nan)
