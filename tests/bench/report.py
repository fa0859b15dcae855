"""results.md and results.svg from results.json."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.bench import chart, data, machine
from tests.bench.sections import LEVERS
from tests.bench.sides import SIDES
from tests.bench.stats import Spread
from tests.bench.targets import pick, ratio, spread, times, verdicts

Results = Mapping[str, Any]
MADE_BY = "`make bench`"
DEFINITIONS = """\
Medians, and in parentheses the lowest and the highest, of {repeats} repeats; the sides take turns. The same model,
threads, optimizer (AdamW), learning rate, beta and global batch of {batch} pairs on all sides, {precision}, no dropout,
`max_length` 1024. Each repeat has pairs of its own, of the same distribution of lengths on all sides.

- **TRL default**: `DPOTrainer` with its defaults, the reference in each step, gradient checkpointing. **TRL tuned**:
  reference scored beforehand in batches of {precompute}, pairs grouped by length in both passes as in a large data set,
  no gradient checkpointing (TRL then scores the reference with the policy's head, which computes its metrics too).
  **TRL tuned and patched**: besides, completion tokens alone are scored, which TRL does on GPUs only. **raydpo**:
  `jobs/dpo.py`, all of it under Ray, with an empty cache.
- **End to end** is the rate of reference and training, one after the other, in the steady state: what grows with the
  number of pairs. Starts of processes, imports, loading of models and tokenization are left out on all sides. TRL:
  pairs over the seconds of the reference's pass (`_precompute_ref_logps`) and of all updates, after two other pairs
  were trained on to warm up. raydpo: 1 / (1 / reference + 1 / training); reference is the pairs of all scored blocks
  but the first over the time from the first block's file to the last's; training is the pairs of all updates but the
  first over their time, by `pairs_per_second` in metrics.jsonl.
- **Training** leaves the reference out (TRL default: its forwards are timed and subtracted); **reference** is that
  alone.
- **First step**: from the start of the process to the end of the first update, all included; it depends on the number
  of pairs where the reference is scored before.
- **Memory**: of the training process its own highest (VmHWM); of the job the highest sum over all its processes, pages
  that several use counted once (PSS), Ray's included.
"""


def markdown(results: Results) -> str:
    """The tables."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Results) -> Iterator[str]:
    display_name = results["machine"]
    yield f"# Benchmark\n\nMade by {MADE_BY} on {results['date']}. {machine.title(display_name)}.\n"
    yield "; ".join(f"{name} {value}" for name, value in display_name.items()) + "."
    for model, parts in results["models"].items():
        yield f"\n## {model}\n"
        yield "| measure | target | seen | |\n|---|---|---|---|"
        for line in verdicts(model, parts, gpu=results["gpu"]):
            yield f"| {line.measure} | {line.target} | {line.seen} | {'met' if line.met else '**not met**'} |"
        if "main" in parts:
            yield from _main(parts["main"])
        if "shared" in parts:
            yield from _shared(parts["shared"]["runs"])
        if "ablation" in parts:
            yield from _ablation(parts["ablation"]["runs"])
        if "overhead" in parts:
            yield from _overhead(parts["overhead"]["runs"])
        if "tokenization" in parts:
            yield from _tokenization(parts["tokenization"]["runs"])
    yield "\n## What the numbers mean\n"
    yield DEFINITIONS.format(**results["terms"])


def _main(main: Mapping[str, Any]) -> Iterator[str]:
    rates = ("end_to_end", "training", "reference")
    for profile, display_name in data.PROFILES.items():
        yield f"\n### {display_name.title}: mean tokens of prompt, chosen, rejected {display_name.means}\n"
        yield (
            "| side | end to end, pairs/s | training, pairs/s | reference, pairs/s | first step, s | memory, "
            "training | memory, job | pairs |\n|---|---|---|---|---|---|---|---|"
        )
        for side, title in SIDES.items():
            if runs := pick(main["runs"], profile=profile, side=side):
                cells = [_rate(spread(runs, name)) for name in rates]
                cells.append(_rate(spread(runs, "first_step"), 0))
                cells += [_gigabytes(spread(runs, name)) for name in ("train_memory", "job_memory")]
                yield f"| {title} | {' | '.join(cells)} | {runs[0]['pairs']} |"
        yield ""
        yield from _beside(pick(main["runs"], profile=profile))


def _beside(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Padding, tokens a second, waiting, MFU and the GPU's memory, where they are known."""
    for side, title in SIDES.items():
        mine = pick(runs, side=side)
        known = {name: seen.median for name in mine[0]["extra"] if (seen := spread(mine, name))} if mine else {}
        if mine and any(run["gpu_memory"] for run in mine):
            known["GiB of the GPU"] = max(run["gpu_memory"] for run in mine) / 2**30
        if known:
            yield f"- {title}: " + ", ".join(f"{name} {value:,.4g}" for name, value in known.items())


def _shared(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"\n### {data.PAIRS_A_PROMPT} pairs a prompt, of {data.COMPLETIONS_A_PROMPT} completions\n"
    yield "| prompts | end to end, pairs/s | training, pairs/s | reference, pairs/s |\n|---|---|---|---|"
    for name in ("shared", "unshared"):
        cells = [_rate(spread(pick(runs, prompts=name), part)) for part in ("end_to_end", "training", "reference")]
        yield f"| {name} | {' | '.join(cells)} |"


def _ablation(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "\n### Each lever off in turn, HH-like\n"
    yield "| raydpo | end to end, pairs/s | as a share of all on | training process |\n|---|---|---|---|"
    every = pick(runs, lever="all on")
    for lever in LEVERS:
        mine = pick(runs, lever=lever)
        share = ratio(mine, every, "end_to_end")
        rate, memory = _rate(spread(mine, "end_to_end")), _gigabytes(spread(mine, "train_memory"))
        yield f"| {lever} | {rate} | {times(share)} | {memory} |"


def _overhead(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    job, bare = Spread.of(run["job"] for run in runs), Spread.of(run["bare"] for run in runs)
    yield "\n### Orchestration\n"
    yield (
        f"Seconds an update: {_rate(job, 3)} in the job, {_rate(bare, 3)} in a bare torch loop over the same "
        "micro-batches."
    )


def _tokenization(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    stage, bare = Spread.of(run["stage"] for run in runs), Spread.of(run["bare"] for run in runs)
    share = Spread.of(run["stage"] / run["bare"] for run in runs)
    yield "\n### Tokenization\n"
    yield (
        f"Rows/s: {_rate(stage, 0)} from JSONL to tokenized blocks, {_rate(bare, 0)} in bare `encode_batch` of the "
        f"same three texts a row on the same cores; {times(share)}."
    )


def svg(results: Results) -> str:
    """The chart of end-to-end rates."""
    groups = []
    for model, parts in results["models"].items():
        for profile, display_name in data.PROFILES.items():
            if "main" in parts:
                heading = "{}: prompts of {}, answers of {} and {} tokens".format(
                    display_name.title, *display_name.means
                )
                heading += f"; {model}" if len(results["models"]) > 1 else ""
                groups.append(chart.Group(heading, _bars(parts["main"]["runs"], profile)))
    model = next(iter(results["models"]))
    subtitle = machine.title(results["machine"]) + (
        f". {model}, {results['terms']['precision']}." if len(results["models"]) == 1 else "."
    )
    return chart.draw("DPO, preference pairs a second, reference included", subtitle, groups)


def _bars(runs: Sequence[Mapping[str, Any]], profile: str) -> list[chart.Bar]:
    default = pick(runs, profile=profile, side="default")
    bars = []
    for side, title in SIDES.items():
        if mine := pick(runs, profile=profile, side=side):
            seen, factor = Spread.of(run["end_to_end"] for run in mine), ratio(mine, default, "end_to_end").median
            text = f"{seen.median:.2f}" + (f"  ({factor:.1f}x)" if side != "default" else "")
            bars.append(chart.Bar(title, seen.median, text, seen.low, seen.high, accent=side == "raydpo"))
    return bars


def _rate(seen: Spread | None, digits: int = 2) -> str:
    if seen is None:
        return "-"
    return f"{seen.median:,.{digits}f} ({seen.low:,.{digits}f} to {seen.high:,.{digits}f})"


def _gigabytes(seen: Spread | None) -> str:
    return "-" if seen is None else f"{seen.median / 2**30:.2f} GiB"
