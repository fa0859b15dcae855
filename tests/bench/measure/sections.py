"""The sections of the benchmark: each runs its sides repeat by repeat and returns raw numbers."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import data
from tests.bench.measure import gate, overhead, tokenization
from tests.bench.measure.sides import SIDES, Figures, Setup, run

Raw = dict[str, Any]
LEVERS: Mapping[str, Mapping[str, Any]] = {
    "all on": {},
    "share_prompts=false": {"share_prompts": False},
    "tokens_per_micro_batch=512": {"tokens_per_micro_batch": 512},
    "gradient_checkpointing=true": {"gradient_checkpointing": True},
    "logits_chunk_tokens=64": {"logits_chunk_tokens": 64},
}
"""Options that turn off one optimisation at a time.

Without prompt sharing, each completion has a padded row with its own copy of the prompt; small micro-batches pack few
pairs; the other two recompute layers, or logits, in the backward."""


@dataclass(frozen=True)
class Sizes:
    """The numbers of repeats, pairs and rows to run."""

    repeats: int
    pairs: Mapping[str, int]
    """Number of pairs per TRL run, by profile."""
    raydpo_factor: int
    """Factor by which raydpo runs have more pairs, for steadier rates; the global batch is the same on all sides."""
    tokenized_rows: int


@dataclass(frozen=True)
class Bench:
    """The setup, sizes and log function that the sections share."""

    setup: Setup
    sizes: Sizes
    log: Callable[[str], None]

    def rows(self, profile: str, pairs: int, seed: int) -> Path:
        """Write a file of pairs and return its path."""
        path = self.setup.folder / f"{profile}-{pairs}-{seed}.jsonl"
        return data.write_rows(path, data.rows(data.PROFILES[profile], pairs, seed))

    def raydpo_pairs(self, profile: str) -> int:
        """Return the number of pairs per raydpo run."""
        return self.sizes.raydpo_factor * self.sizes.pairs[profile]

    def measured(self, run_once: Callable[[], Figures | Raw], **labels: Any) -> Raw:
        """Run once, log the result, and return the run's figures with its labels."""
        start = time.monotonic()
        figures = run_once()
        raw = dataclasses.asdict(figures) if isinstance(figures, Figures) else figures
        rate = f"{raw['end_to_end']:.2f} pairs/s, " if "end_to_end" in raw else ""
        name = ", ".join(str(label) for label in labels.values())
        self.log(f"  {name}: {rate}{time.monotonic() - start:.0f} s in total")
        return {**labels, **raw}


def main(bench: Bench) -> Raw:
    """Run all sides one after the other in each repeat; each repeat has its own pairs."""
    equality = gate.check(bench.setup)
    bench.log(f"  losses agree; relative gaps: {equality['gaps']}")
    runs = []
    for repeat in range(bench.sizes.repeats):
        for profile in data.PROFILES:
            few = bench.rows(profile, bench.sizes.pairs[profile], repeat)
            many = bench.rows(profile, bench.raydpo_pairs(profile), repeat)
            for side in sides_of(bench.setup):
                rows = many if side == "raydpo" else few
                once = partial(run, bench.setup, side, rows)
                runs.append(bench.measured(once, profile=profile, side=side, repeat=repeat))
    return {"equality": equality, "runs": runs}


def sides_of(setup: Setup) -> list[str]:
    """Return the sides to run; on a GPU there is no patched one, as TRL scores only completion tokens there anyway."""
    return [side for side in SIDES if not (setup.gpu and side == "patched")]


def ablation(bench: Bench) -> Raw:
    """Run raydpo with one optimisation off at a time, on HH-like pairs."""
    runs = []
    for repeat in range(min(bench.sizes.repeats, 2)):
        rows = bench.rows("hh", max(bench.raydpo_pairs("hh") // 2, 4 * bench.setup.global_batch), repeat)
        for lever, options in LEVERS.items():
            once = partial(run, bench.setup, "raydpo", rows, options)
            runs.append(bench.measured(once, lever=lever, repeat=repeat))
    return {"runs": runs}


def shared(bench: Bench) -> Raw:
    """Run raydpo on eight pairs per prompt from five completions, and on as many pairs of the same lengths unshared."""
    runs = []
    for repeat in range(bench.sizes.repeats):
        for sharing in (True, False):
            name = "shared" if sharing else "unshared"
            content = data.rows_of_shared_prompts(data.PROFILES["hh"], bench.raydpo_pairs("hh"), repeat, shared=sharing)
            rows = data.write_rows(bench.setup.folder / f"{name}-{repeat}.jsonl", content)
            runs.append(bench.measured(partial(run, bench.setup, "raydpo", rows), prompts=name, repeat=repeat))
    return {"runs": runs}


def overheads(bench: Bench) -> Raw:
    """Time the job's updates against those of a bare torch loop."""
    runs = []
    for repeat in range(bench.sizes.repeats):
        rows = bench.rows("hh", bench.raydpo_pairs("hh"), repeat)
        runs.append(bench.measured(partial(overhead.measure, bench.setup, rows), repeat=repeat))
    return {"runs": runs}


def tokenizing(bench: Bench) -> Raw:
    """Time the tokenization stage against bare `encode_batch`."""
    once = partial(tokenization.measure, bench.setup, bench.sizes.tokenized_rows)
    return {"runs": [bench.measured(once, repeat=repeat) for repeat in range(bench.sizes.repeats)]}


SECTIONS: Mapping[str, Callable[[Bench], Raw]] = {
    "main": main,
    "shared": shared,
    "ablation": ablation,
    "overhead": overheads,
    "tokenization": tokenizing,
}
