"""The check of the first loss."""

from math import log
from types import SimpleNamespace
from typing import Any

from raydpo.summary import check_first_loss


def setting(**changes: Any) -> Any:
    return SimpleNamespace(**{"source": "a", "reference": "a", "precision": "float32", **changes})


def test_ln_2_is_right() -> None:
    assert check_first_loss(setting(), log(2) + 1e-6) == ""


def test_anything_else_is_told() -> None:
    assert "0.700000 and not ln 2 = 0.693147" in check_first_loss(setting(), 0.7)


def test_another_reference_has_no_known_first_loss() -> None:
    assert check_first_loss(setting(reference="b"), 0.7) == ""
    assert check_first_loss(setting(), None) == ""
