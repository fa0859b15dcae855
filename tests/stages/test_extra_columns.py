"""Which columns of weights and margins a run reads for its objective, and what it says about them."""

from typing import Any

import pytest

from raydpo.config import LossConfig
from raydpo.data.extras import ExtraColumns, ExtraCounts
from raydpo.stages.extra_columns import describe_extras, extra_columns_of, unused_margins


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ExtraColumns(weight=True, margin=True)),
        ({"loss_type": "ipo"}, ExtraColumns(weight=True)),
        ({"loss_type": ("ipo", "hinge"), "sample_weights": "ignore"}, ExtraColumns(margin=True)),
        ({"use_margins": False, "margin_from_scores": "log"}, ExtraColumns(weight=True, margin_from_scores="log")),
        ({"loss_type": "rpo_bwd_kl"}, ExtraColumns(weight=True, margin=True, margin_required=True)),
    ],
)
def test_only_columns_that_have_an_effect_are_read(options: dict[str, Any], expected: ExtraColumns) -> None:
    assert extra_columns_of(LossConfig(**options)) == expected


def test_margins_without_effect_are_told_of() -> None:
    counts = ExtraCounts(unread_margins=1234)
    message = unused_margins(LossConfig(loss_type="ipo"), counts)
    assert "1,234 rows has no effect" in message
    assert "sigmoid, hinge, robust, sigmoid_norm, rpo_bwd_kl, simpo" in message
    assert unused_margins(LossConfig(loss_type="ipo"), ExtraCounts()) == ""
    assert unused_margins(LossConfig(loss_type="ipo", use_margins=False), counts) == "", "the user knows"


def test_the_line_of_the_stage_has_weights_and_margins() -> None:
    assert describe_extras(ExtraCounts()) == ""
    assert describe_extras(ExtraCounts(weights=1200, margins=3)) == ", 1,200 with a weight, 3 with a margin"
