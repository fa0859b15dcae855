"""The check of the first loss."""

from math import log
from types import SimpleNamespace
from typing import Any

from raydpo.config import LossConfig, ReferenceConfig
from raydpo.stages.summarize import check_first_loss


def plan(loss: LossConfig | None = None, *, starts: bool = True) -> Any:
    return SimpleNamespace(
        job=SimpleNamespace(loss=loss or LossConfig(), reference=ReferenceConfig()),
        policy=SimpleNamespace(precision="float32"),
        reference=SimpleNamespace(precision="float32"),
        starts_from_reference=starts,
    )


def test_ln_2_is_right() -> None:
    assert check_first_loss(plan(), log(2) + 1e-6) == ""


def test_anything_else_is_told() -> None:
    assert "0.700000 and not 0.693147" in check_first_loss(plan(), 0.7)


def test_other_objectives_begin_elsewhere() -> None:
    hinge = plan(LossConfig(loss_type="hinge"))
    assert check_first_loss(hinge, 1.0) == ""
    assert "0.693147 and not 1.000000" in check_first_loss(hinge, log(2))
    assert check_first_loss(plan(LossConfig(loss_type="sft")), 3.1) == "", "that depends on the data"


def test_another_reference_has_no_known_first_loss() -> None:
    assert check_first_loss(plan(starts=False), 0.7) == ""
    assert check_first_loss(plan(), None) == ""
