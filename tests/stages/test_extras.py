"""Which columns of weights and margins a run reads for its objective, and what it says about them."""

from typing import Any

import pytest

from raydpo.config import LossConfig
from raydpo.data.extras import ExtrasCounts, ExtrasOptions
from raydpo.stages.extras import describe_extras, extras_options, unused_margins


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ExtrasOptions(weight=True, margin=True)),
        ({"loss_type": "ipo"}, ExtrasOptions(weight=True)),
        ({"loss_type": ("ipo", "hinge"), "sample_weights": "ignore"}, ExtrasOptions(margin=True)),
        ({"use_margins": False, "margin_from_scores": "log"}, ExtrasOptions(weight=True, margin_from_scores="log")),
        ({"loss_type": "rpo_bwd_kl"}, ExtrasOptions(weight=True, margin=True, margin_required=True)),
    ],
)
def test_only_columns_that_have_an_effect_are_read(options: dict[str, Any], expected: ExtrasOptions) -> None:
    assert extras_options(LossConfig(**options)) == expected


def test_margins_without_effect_are_told_of() -> None:
    counts = ExtrasCounts(unread_margins=1234)
    message = unused_margins(LossConfig(loss_type="ipo"), counts)
    assert "1,234 rows has no effect" in message
    assert "sigmoid, hinge, robust, sigmoid_norm, rpo_bwd_kl, simpo" in message
    assert unused_margins(LossConfig(loss_type="ipo"), ExtrasCounts()) == ""
    assert unused_margins(LossConfig(loss_type="ipo", use_margins=False), counts) == "", "the user knows"


def test_the_line_of_the_stage_has_weights_and_margins() -> None:
    assert describe_extras(ExtrasCounts()) == ""
    assert describe_extras(ExtrasCounts(weights=1200, margins=3)) == ", 1,200 with a weight, 3 with a margin"
