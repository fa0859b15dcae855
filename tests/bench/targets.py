"""What the numbers must reach, and whether they do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench import data
from tests.bench.sides import SIDES
from tests.bench.stats import Spread

Run = Mapping[str, Any]
Parts = Mapping[str, Any]
"""Raw results of a model, by section."""

TIMES_ON_CPU = {
    "hh": {"default": 8.0, "tuned": 8.0, "patched": 3.0},
    "long": {"default": 5.0, "tuned": 5.0, "patched": 3.0},
}
TIMES_ON_GPU = {"hh": {"tuned": 2.0}, "long": {"tuned": 1.5}}


@dataclass(frozen=True)
class Verdict:
    """A line of the table of targets."""

    measure: str
    target: str
    seen: str
    met: bool


def pick(runs: Sequence[Run], **labels: str) -> list[Run]:
    """The runs with these labels, in the order of repeats."""
    found = [run for run in runs if all(run[name] == label for name, label in labels.items())]
    return sorted(found, key=lambda run: run["repeat"])


def spread(runs: Sequence[Run], name: str) -> Spread | None:
    """Of a figure over repeats; None where it is not known."""
    values = [value for run in runs if (value := run.get(name, run.get("extra", {}).get(name))) is not None]
    return Spread.of(values) if values else None


def ratio(ours: Sequence[Run], theirs: Sequence[Run], name: str) -> Spread:
    """Of a figure, repeat by repeat, as the machine may be faster in one than in another."""
    return Spread.of(here[name] / there[name] for here, there in zip(ours, theirs, strict=True))


def verdicts(model: str, parts: Parts, *, gpu: bool) -> list[Verdict]:
    """Of the sections that were run."""
    made: list[Verdict] = []
    if "main" in parts:
        runs = parts["main"]["runs"]
        made += _times(runs, TIMES_ON_GPU if gpu else TIMES_ON_CPU)
        made += _memory(runs, gpu)
        made += _reference(runs)
        made += _waits(runs)
        if gpu and "1.5B" in model:
            made += _utilisation(runs)
        made += _equality(parts["main"]["equality"])
    if "shared" in parts:
        made += _shared(parts["shared"]["runs"])
    if "overhead" in parts:
        made += _overhead(parts["overhead"]["runs"])
    return made


def _times(runs: Sequence[Run], targets: Mapping[str, Mapping[str, float]]) -> Iterator[Verdict]:
    for profile, by_side in targets.items():
        ours = pick(runs, profile=profile, side="raydpo")
        for side, target in by_side.items():
            seen = ratio(ours, pick(runs, profile=profile, side=side), "end_to_end")
            yield Verdict(
                f"{data.PROFILES[profile].title}, end to end, against {SIDES[side]}",
                f"≥ {target:g}x",
                times(seen),
                seen.median >= target,
            )


def _memory(runs: Sequence[Run], gpu: bool) -> Iterator[Verdict]:
    name, limit = ("gpu_memory", 1.0) if gpu else ("train_memory", 0.2)
    for profile, display_name in data.PROFILES.items():
        seen = ratio(pick(runs, profile=profile, side="raydpo"), pick(runs, profile=profile, side="default"), name)
        what = "memory of the GPU" if gpu else "memory of the training process"
        yield Verdict(
            f"{display_name.title}, peak {what}, against TRL default",
            f"≤ {limit:g}",
            f"{seen.median:.2f} ({seen.low:.2f} to {seen.high:.2f})",
            seen.median <= limit,
        )


def _reference(runs: Sequence[Run]) -> Iterator[Verdict]:
    for profile, display_name in data.PROFILES.items():
        ours = pick(runs, profile=profile, side="raydpo")
        seen = Spread.of(run["reference"] / run["training"] for run in ours)
        yield Verdict(
            f"{display_name.title}, reference against training", "≥ 3x its pairs/s", times(seen), seen.median >= 3
        )


def _waits(runs: Sequence[Run]) -> Iterator[Verdict]:
    for profile, display_name in data.PROFILES.items():
        seen = spread(pick(runs, profile=profile, side="raydpo"), "data_wait")
        assert seen is not None
        yield Verdict(
            f"{display_name.title}, waiting for data", "< 2 % of the time", f"{seen.median:.2%}", seen.median < 0.02
        )


def _utilisation(runs: Sequence[Run]) -> Iterator[Verdict]:
    for profile, display_name in data.PROFILES.items():
        seen = spread(pick(runs, profile=profile, side="raydpo"), "mfu")
        share = seen.median if seen else 0.0
        yield Verdict(f"{display_name.title}, MFU", "≥ 40 %", f"{share:.1%}" if seen else "not known", share >= 0.4)


def _equality(equality: Mapping[str, Any]) -> Iterator[Verdict]:
    limit, gaps = equality["tolerances"]["loss"], [gaps["loss"] for gaps in equality["gaps"].values()]
    yield Verdict("loss of each update against TRL's", f"≤ {limit:g} relative", f"{max(gaps):.1e}", max(gaps) <= limit)


def _shared(runs: Sequence[Run]) -> Iterator[Verdict]:
    seen = ratio(pick(runs, prompts="shared"), pick(runs, prompts="unshared"), "end_to_end")
    yield Verdict(
        f"{data.PAIRS_A_PROMPT} pairs a prompt, of {data.COMPLETIONS_A_PROMPT} completions, against unshared",
        "≥ 2x",
        times(seen),
        seen.median >= 2,
    )


def _overhead(runs: Sequence[Run]) -> Iterator[Verdict]:
    seen = Spread.of(run["job"] / run["bare"] - 1 for run in runs)
    yield Verdict(
        "orchestration in the steady state, against a bare torch loop",
        "≤ 3 %",
        f"{seen.median:.1%} ({seen.low:.1%} to {seen.high:.1%})",
        seen.median <= 0.03,
    )


def times(seen: Spread) -> str:
    """A factor with its spread."""
    return f"{seen.median:.2f}x ({seen.low:.2f} to {seen.high:.2f})"
