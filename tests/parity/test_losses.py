"""Every objective: five updates of our job against TRL's trainers, the log number by number."""

from typing import Any

import pytest

from tests.parity.sides import BETA, CASES, Sides
from tests.parity.trl_side import needs_trl

pytestmark = [needs_trl, pytest.mark.usefixtures("ray_local")]

MEAN_LOGITS = {"logits/chosen", "logits/rejected"}
OTHER_MEANING = {"orpo": MEAN_LOGITS, "cpo": MEAN_LOGITS, "cpo's ipo": MEAN_LOGITS, "simpo": MEAN_LOGITS | {"nll_loss"}}
"""By case, what TRL logs under a name that means something else here: see test_differences.py."""


def floor(name: str, entry: dict[str, Any]) -> float:
    """Below which 1e-4 relative says nothing: the rounding of what the number is a small difference of."""
    if name.startswith("rewards/"):  # beta times sums over tokens, of the policy less those of the reference
        return 1e-6 * BETA * abs(entry["logps/chosen"])
    return 0.0


@pytest.mark.parametrize("name", CASES)
def test_each_update_equals_that_of_trl(name: str, sides: Sides) -> None:
    there, here = sides.theirs(name), sides.ours(name).lines
    assert len(here) == len(there) == 5
    for line, entry in zip(here, there, strict=True):
        # all that TRL logs, so that nothing that it has is missing here
        for key in sorted(entry.keys() - OTHER_MEANING.get(name, set())):
            assert line[key] == pytest.approx(entry[key], rel=1e-4, abs=floor(key, entry)), (entry["step"], key)
