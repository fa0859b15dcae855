"""For every objective, all metrics of five updates of raydpo equal the log of TRL's trainer."""

from typing import Any

import pytest

from tests.parity.sides import BETA, CASES, Sides
from tests.parity.trl_side import needs_trl

pytestmark = [needs_trl, pytest.mark.usefixtures("ray_local")]

MEAN_LOGITS = {"logits/chosen", "logits/rejected"}
OTHER_MEANING = {"orpo": MEAN_LOGITS, "cpo": MEAN_LOGITS, "cpo's ipo": MEAN_LOGITS, "simpo": MEAN_LOGITS | {"nll_loss"}}
"""By case, the metric names that mean different things in TRL and raydpo (see test_differences.py)."""


def floor(name: str, entry: dict[str, Any]) -> float:
    """Return the absolute tolerance of a metric: the rounding error of the large sums whose difference it is."""
    if name.startswith(
        "rewards/"
    ):  # beta times (sum over tokens of policy log-probs minus that of reference log-probs)
        return 1e-6 * BETA * abs(entry["logps/chosen"])
    return 0.0


CORE = (
    *("sigmoid", "ipo", "aot", "sft", "exo_pair", "js_divergence", "ld_alpha", "use_weighting"),
    *("sigmoid, bco_pair and sft", "orpo", "simpo", "cpo"),
)
"""Cases in `make test`: one for each option and each way in which a loss takes its numbers."""


@pytest.mark.parametrize(
    "name", [name if name in CORE else pytest.param(name, marks=pytest.mark.whole) for name in CASES]
)
def test_metrics_of_each_update_equal_trl(name: str, sides: Sides) -> None:
    trl_log, raydpo_lines = sides.trl_log(name), sides.raydpo_run(name).lines
    assert len(raydpo_lines) == len(trl_log) == 5
    for line, entry in zip(raydpo_lines, trl_log, strict=True):
        # Iterate over all keys that TRL logs, so that none of them can be missing in raydpo.
        for key in sorted(entry.keys() - OTHER_MEANING.get(name, set())):
            assert line[key] == pytest.approx(entry[key], rel=1e-4, abs=floor(key, entry)), (entry["step"], key)
