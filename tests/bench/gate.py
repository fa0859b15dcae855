"""The condition of all timing: TRL and raydpo compute the same losses from the same pairs in the same order."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench import data, job, stats
from tests.bench.sides import Setup, new_folder, run_trl

TOLERANCES = {
    False: {"loss": 1e-4, "logps/chosen": 1e-4, "logps/rejected": 1e-4, "num_tokens": 0.0, "grad_norm": 1e-3},
    True: {"loss": 3e-2, "logps/chosen": 3e-3, "logps/rejected": 3e-3, "num_tokens": 0.0, "grad_norm": 1e-1},
}
"""Largest relative gaps; by whether a GPU computes in bfloat16. A norm adds up the rounding of all gradients, which
Adam's first updates, whose size hardly depends on the gradient's, hand on to the weights."""
MOVED = 1e-3
"""How far, as a share, the loss must go from ln 2 for a comparison to say something."""
UPDATES, MICRO_BATCH, ACCUMULATION = 3, 2, 2
OPTIONS = {"learning_rate": 5e-4, "logging_steps": 1, "train_sampling_strategy": "sequential"}
"""A rate at which the loss moves within a few updates."""

Line = Mapping[str, Any]


class SidesDiffer(Exception):
    """The sides do not compute the same thing, so their times say nothing."""


def check(setup: Setup) -> dict[str, Any]:
    """A few updates of TRL default, TRL patched and raydpo, step by step -> what was compared.

    `SidesDiffer` where a number of theirs is not the other's.
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
    """The largest relative gap over all updates, by key; `SidesDiffer` where one is above its tolerance."""
    if len(ours) != len(theirs):
        raise SidesDiffer(f"raydpo made {len(ours)} updates and TRL ({side}) {len(theirs)}; no time was taken")
    if max(stats.relative_gap(line["loss"], math.log(2)) for line in theirs) < MOVED:
        losses = [line["loss"] for line in theirs]
        raise SidesDiffer(f"TRL's losses {losses} hardly leave ln 2, so that comparing them says nothing")
    worst = dict.fromkeys(tolerances, 0.0)
    for step, (here, there) in enumerate(zip(ours, theirs, strict=True), start=1):
        for key, tolerance in tolerances.items():
            gap = stats.relative_gap(here[key], there[key])
            worst[key] = max(worst[key], gap)
            if gap > tolerance:
                raise SidesDiffer(
                    f"{key} of update {step} is {here[key]:.6g} in raydpo and {there[key]:.6g} in TRL ({side}), which "
                    f"differ by {gap:.1e} and not at most {tolerance:g}; no time was taken"
                )
    return worst
