"""Checks before any timing that TRL and raydpo compute the same losses from the same pairs in the same order."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench import data, stats
from tests.bench.measure import job
from tests.bench.measure.sides import Setup, new_folder, run_trl

TOLERANCES = {
    False: {"loss": 1e-4, "logps/chosen": 1e-4, "logps/rejected": 1e-4, "num_tokens": 0.0, "grad_norm": 1e-3},
    True: {"loss": 3e-2, "logps/chosen": 3e-3, "logps/rejected": 3e-3, "num_tokens": 0.0, "grad_norm": 1e-1},
}
"""Largest relative gaps allowed, by whether a GPU computes in bfloat16.

The gradient norm sums the rounding errors of all gradients. Adam's first updates, whose size hardly depends on that of
the gradient, pass these errors on to the weights."""
MIN_CHANGE = 1e-3
"""Relative distance from ln 2 that the loss must reach for the comparison to be meaningful."""
UPDATES, MICRO_BATCH, ACCUMULATION = 3, 2, 2
OPTIONS = {"learning_rate": 5e-4, "logging_steps": 1, "train_sampling_strategy": "sequential"}
"""Options with a learning rate at which the loss changes within a few updates."""

Line = Mapping[str, Any]


class SidesDiffer(Exception):
    """The sides compute different numbers, so comparing their times would be meaningless."""


def check(setup: Setup) -> dict[str, Any]:
    """Compare a few updates of TRL default, TRL patched and raydpo, and return the gaps and losses.

    Raises SidesDiffer if a gap is above its tolerance.
    """
    small = dataclasses.replace(setup, micro_batch=MICRO_BATCH, accumulation=ACCUMULATION)
    pairs = UPDATES * small.global_batch
    rows = data.write_rows(setup.folder / "gate.jsonl", data.rows(data.PROFILES["hh"], pairs, seed=100))
    folder = new_folder(setup, "gate")
    logs: dict[str, Sequence[Line]] = {"raydpo": job.run(small, rows, folder, {**small.options, **OPTIONS}).lines}
    for side in ("default", "patched"):
        logs[side] = run_trl(small, side, rows, OPTIONS, warm_up=0)[1]
    tolerances = TOLERANCES[setup.gpu]
    gaps = {side: compare(logs["raydpo"], logs[side], side, tolerances) for side in ("default", "patched")}
    return {
        "updates": UPDATES,
        "tolerances": tolerances,
        "gaps": gaps,
        "losses": {side: [line["loss"] for line in log] for side, log in logs.items()},
    }


def compare(
    ours: Sequence[Line], theirs: Sequence[Line], side: str, tolerances: Mapping[str, float]
) -> dict[str, float]:
    """Return the largest relative gap over all updates, by key.

    Raises SidesDiffer if a gap is above its tolerance, or if the losses hardly change.
    """
    if len(ours) != len(theirs):
        raise SidesDiffer(f"raydpo made {len(ours)} updates and TRL ({side}) {len(theirs)}; nothing was timed")
    if max(stats.relative_gap(line["loss"], math.log(2)) for line in theirs) < MIN_CHANGE:
        losses = [line["loss"] for line in theirs]
        raise SidesDiffer(f"TRL's losses {losses} hardly leave ln 2, so comparing them proves nothing")
    worst = dict.fromkeys(tolerances, 0.0)
    for step, (our_line, their_line) in enumerate(zip(ours, theirs, strict=True), start=1):
        for key, tolerance in tolerances.items():
            gap = stats.relative_gap(our_line[key], their_line[key])
            worst[key] = max(worst[key], gap)
            if gap > tolerance:
                raise SidesDiffer(
                    f"{key} of update {step} is {our_line[key]:.6g} in raydpo and {their_line[key]:.6g} in TRL "
                    f"({side}): the relative gap {gap:.1e} is above {tolerance:g}; nothing was timed"
                )
    return worst
