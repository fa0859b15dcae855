"""The targets of the benchmark, and the verdicts on whether the measured numbers meet them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench import data
from tests.bench.measure.sides import SIDES
from tests.bench.stats import Spread

Run = Mapping[str, Any]
Parts = Mapping[str, Any]
"""Raw results of one model, by section."""

TIMES_ON_CPU = {
    "hh": {"default": 8.0, "tuned": 8.0, "patched": 3.0},
    "long": {"default": 5.0, "tuned": 5.0, "patched": 3.0},
}
TIMES_ON_GPU = {"hh": {"tuned": 2.0}, "long": {"tuned": 1.5}}


@dataclass(frozen=True)
class Verdict:
    """A row of the table of targets."""

    measure: str
    target: str
    measured: str
    met: bool


def pick(runs: Sequence[Run], **labels: str) -> list[Run]:
    """Return the runs with these labels, in the order of their repeats."""
    found = [run for run in runs if all(run[name] == label for name, label in labels.items())]
    return sorted(found, key=lambda run: run["repeat"])


def spread(runs: Sequence[Run], name: str) -> Spread | None:
    """Return the spread of a figure over the runs; None if no run has it."""
    values = [value for run in runs if (value := run.get(name, run.get("extra", {}).get(name))) is not None]
    return Spread.of(values) if values else None


def ratio(ours: Sequence[Run], theirs: Sequence[Run], name: str) -> Spread:
    """Return the spread of a figure's ratio within each repeat, as the machine's speed may vary between repeats."""
    return Spread.of(our_run[name] / their_run[name] for our_run, their_run in zip(ours, theirs, strict=True))


def verdicts(model: str, parts: Parts, *, gpu: bool) -> list[Verdict]:
    """Return the verdicts on the sections that were run."""
    result: list[Verdict] = []
    if "main" in parts:
        runs = parts["main"]["runs"]
        result += _times(runs, TIMES_ON_GPU if gpu else TIMES_ON_CPU)
        result += _memory(runs, gpu)
        result += _reference(runs)
        result += _waits(runs)
        if gpu and "1.5B" in model:
            result += _utilisation(runs)
        result += _equality(parts["main"]["equality"])
    if "shared" in parts:
        result += _shared(parts["shared"]["runs"])
    if "overhead" in parts:
        result += _overhead(parts["overhead"]["runs"])
    return result


def _times(runs: Sequence[Run], targets: Mapping[str, Mapping[str, float]]) -> Iterator[Verdict]:
    for profile, by_side in targets.items():
        ours = pick(runs, profile=profile, side="raydpo")
        for side, target in by_side.items():
            measured = ratio(ours, pick(runs, profile=profile, side=side), "end_to_end")
            yield Verdict(
                f"{data.PROFILES[profile].title}: end-to-end rate relative to {SIDES[side]}",
                f"≥ {target:g}x",
                times(measured),
                measured.median >= target,
            )


def _memory(runs: Sequence[Run], gpu: bool) -> Iterator[Verdict]:
    figure, limit = ("gpu_memory", 1.0) if gpu else ("train_memory", 0.2)
    for name, profile in data.PROFILES.items():
        measured = ratio(pick(runs, profile=name, side="raydpo"), pick(runs, profile=name, side="default"), figure)
        memory = "GPU memory" if gpu else "memory of the training process"
        yield Verdict(
            f"{profile.title}: peak {memory} relative to TRL default",
            f"≤ {limit:g}",
            f"{measured.median:.2f} ({measured.low:.2f} to {measured.high:.2f})",
            measured.median <= limit,
        )


def _reference(runs: Sequence[Run]) -> Iterator[Verdict]:
    for name, profile in data.PROFILES.items():
        ours = pick(runs, profile=name, side="raydpo")
        measured = Spread.of(run["reference"] / run["training"] for run in ours)
        yield Verdict(
            f"{profile.title}: reference rate relative to training rate", "≥ 3x", times(measured), measured.median >= 3
        )


def _waits(runs: Sequence[Run]) -> Iterator[Verdict]:
    for name, profile in data.PROFILES.items():
        measured = spread(pick(runs, profile=name, side="raydpo"), "data_wait")
        assert measured is not None
        yield Verdict(
            f"{profile.title}: share of time waiting for data",
            "< 2 %",
            f"{measured.median:.2%}",
            measured.median < 0.02,
        )


def _utilisation(runs: Sequence[Run]) -> Iterator[Verdict]:
    for name, profile in data.PROFILES.items():
        measured = spread(pick(runs, profile=name, side="raydpo"), "mfu")
        share = measured.median if measured else 0.0
        yield Verdict(f"{profile.title}: MFU", "≥ 40 %", f"{share:.1%}" if measured else "unknown", share >= 0.4)


def _equality(equality: Mapping[str, Any]) -> Iterator[Verdict]:
    limit, gaps = equality["tolerances"]["loss"], [gaps["loss"] for gaps in equality["gaps"].values()]
    yield Verdict("loss of each update: relative gap to TRL", f"≤ {limit:g}", f"{max(gaps):.1e}", max(gaps) <= limit)


def _shared(runs: Sequence[Run]) -> Iterator[Verdict]:
    measured = ratio(pick(runs, prompts="shared"), pick(runs, prompts="unshared"), "end_to_end")
    yield Verdict(
        f"{data.PAIRS_PER_PROMPT} pairs per prompt from {data.COMPLETIONS_PER_PROMPT} completions: end-to-end rate "
        "relative to unshared prompts",
        "≥ 2x",
        times(measured),
        measured.median >= 2,
    )


def _overhead(runs: Sequence[Run]) -> Iterator[Verdict]:
    measured = Spread.of(run["job"] / run["bare"] - 1 for run in runs)
    yield Verdict(
        "orchestration overhead in the steady state, relative to a bare torch loop",
        "≤ 3 %",
        f"{measured.median:.1%} ({measured.low:.1%} to {measured.high:.1%})",
        measured.median <= 0.03,
    )


def times(measured: Spread) -> str:
    """Return a factor with its spread as text."""
    return f"{measured.median:.2f}x ({measured.low:.2f} to {measured.high:.2f})"
