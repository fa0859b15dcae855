"""The check of the first loss against its expected value."""

from dataclasses import replace
from math import log
from types import SimpleNamespace
from typing import Any

from raydpo.blocks.schema import Block
from raydpo.config import LossConfig, ReferenceConfig
from raydpo.stages.summarize import check_first_loss


def plan(loss: LossConfig | None = None, *, starts_from_reference: bool = True) -> Any:
    return SimpleNamespace(
        job=SimpleNamespace(loss=loss or LossConfig(), reference=ReferenceConfig()),
        policy=SimpleNamespace(precision="float32"),
        reference=SimpleNamespace(precision="float32"),
        starts_from_reference=starts_from_reference,
    )


def test_ln_2_is_the_expected_first_loss() -> None:
    assert check_first_loss(plan(), log(2) + 1e-6) == ""


def test_any_other_value_is_reported() -> None:
    assert "0.700000 and not 0.693147" in check_first_loss(plan(), 0.7)


def test_other_objectives_have_another_first_loss() -> None:
    hinge = plan(LossConfig(loss_type="hinge"))
    assert check_first_loss(hinge, 1.0) == ""
    assert "0.693147 and not 1.000000" in check_first_loss(hinge, log(2))
    assert check_first_loss(plan(LossConfig(loss_type="sft")), 3.1) == "", "the first loss of sft depends on the data"


def test_weights_and_margins_change_the_first_loss() -> None:
    plain = Block("content", "shard", 0, 4, 40, "url")
    weighted, with_margins = replace(plain, weights="digest"), replace(plain, margins="digest")
    as_given = plan(LossConfig(sample_weights="as_given"))
    assert check_first_loss(plan(), 0.9, [plain, with_margins]) == ""
    assert check_first_loss(as_given, 0.9, [weighted]) == ""
    assert check_first_loss(plan(), 0.0, [weighted]) == "", "all weights of the first batch are 0"
    assert "0.900000 and not 0.693147" in check_first_loss(plan(), 0.9, [weighted]), "the mean weight is divided out"
    assert "0.900000 and not 0.693147" in check_first_loss(as_given, 0.9, [plain])


def test_with_another_reference_the_first_loss_is_unknown() -> None:
    assert check_first_loss(plan(starts_from_reference=False), 0.7) == ""
    assert check_first_loss(plan(), None) == ""
