"""The parts of the benchmark: what each runs, repeat by repeat, and the raw numbers that it gives."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import data, gate, overhead, tokenization
from tests.bench.sides import SIDES, Figures, Setup, run

Raw = dict[str, Any]
LEVERS: Mapping[str, Mapping[str, Any]] = {
    "all on": {},
    "share_prompts=false": {"share_prompts": False},
    "tokens_per_micro_batch=512": {"tokens_per_micro_batch": 512},
    "gradient_checkpointing=true": {"gradient_checkpointing": True},
    "logits_chunk_tokens=64": {"logits_chunk_tokens": 64},
}
"""Each lever off in turn. Without sharing, a prompt stands in a padded row for each completion; small micro-batches are
little packed; the other two compute layers, and logits, again in the backward."""


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    repeats: int
    pairs: Mapping[str, int]
    """By profile, of each run of TRL."""
    more: int
    """How many times as many pairs raydpo takes, whose rates are steadier so; all sides have the same global batch."""
    tokenized_rows: int


@dataclass(frozen=True)
class Bench:
    """What the sections share."""

    setup: Setup
    sizes: Sizes
    tell: Callable[[str], None]

    def rows(self, profile: str, pairs: int, seed: int) -> Path:
        """A file of pairs."""
        path = self.setup.folder / f"{profile}-{pairs}-{seed}.jsonl"
        return data.write_rows(path, data.rows(data.PROFILES[profile], pairs, seed))

    def many(self, profile: str) -> int:
        """Pairs of a run of raydpo."""
        return self.sizes.more * self.sizes.pairs[profile]

    def measured(self, run_it: Callable[[], Figures | Raw], **labels: Any) -> Raw:
        """A run's figures with its labels, told as they come."""
        began = time.monotonic()
        figures = run_it()
        raw = dataclasses.asdict(figures) if isinstance(figures, Figures) else figures
        rate = f"{raw['end_to_end']:.2f} pairs/s, " if "end_to_end" in raw else ""
        name = ", ".join(str(label) for label in labels.values())
        self.tell(f"  {name}: {rate}{time.monotonic() - began:.0f} s in all")
        return {**labels, **raw}


def main(bench: Bench) -> Raw:
    """The four sides, one after the other in every repeat, which has pairs of its own."""
    equality = gate.check(bench.setup)
    bench.tell(f"  the same losses: gaps {equality['gaps']}")
    runs = []
    for repeat in range(bench.sizes.repeats):
        for profile in data.PROFILES:
            few = bench.rows(profile, bench.sizes.pairs[profile], repeat)
            many = bench.rows(profile, bench.many(profile), repeat)
            for side in sides_of(bench.setup):
                rows = many if side == "raydpo" else few
                once = partial(run, bench.setup, side, rows)
                runs.append(bench.measured(once, profile=profile, side=side, repeat=repeat))
    return {"equality": equality, "runs": runs}


def sides_of(setup: Setup) -> list[str]:
    """On a GPU, TRL scores completion tokens only without a patch."""
    return [side for side in SIDES if not (setup.gpu and side == "patched")]


def ablation(bench: Bench) -> Raw:
    """raydpo with one lever off at a time, on HH-like pairs."""
    runs = []
    for repeat in range(min(bench.sizes.repeats, 2)):
        rows = bench.rows("hh", max(bench.many("hh") // 2, 4 * bench.setup.global_batch), repeat)
        for lever, options in LEVERS.items():
            once = partial(run, bench.setup, "raydpo", rows, options)
            runs.append(bench.measured(once, lever=lever, repeat=repeat))
    return {"runs": runs}


def shared(bench: Bench) -> Raw:
    """raydpo on eight pairs a prompt, of five completions, and on as many and as long pairs that share nothing."""
    runs = []
    for repeat in range(bench.sizes.repeats):
        for sharing in (True, False):
            name = "shared" if sharing else "unshared"
            made = data.rows_of_shared_prompts(data.PROFILES["hh"], bench.many("hh"), repeat, shared=sharing)
            rows = data.write_rows(bench.setup.folder / f"{name}-{repeat}.jsonl", made)
            runs.append(bench.measured(partial(run, bench.setup, "raydpo", rows), prompts=name, repeat=repeat))
    return {"runs": runs}


def overheads(bench: Bench) -> Raw:
    """The job's updates against those of a bare loop."""
    runs = []
    for repeat in range(bench.sizes.repeats):
        rows = bench.rows("hh", bench.many("hh"), repeat)
        runs.append(bench.measured(partial(overhead.measure, bench.setup, rows), repeat=repeat))
    return {"runs": runs}


def tokenizing(bench: Bench) -> Raw:
    """The first stage against bare `encode_batch`."""
    once = partial(tokenization.measure, bench.setup, bench.sizes.tokenized_rows)
    return {"runs": [bench.measured(once, repeat=repeat) for repeat in range(bench.sizes.repeats)]}


SECTIONS: Mapping[str, Callable[[Bench], Raw]] = {
    "main": main,
    "shared": shared,
    "ablation": ablation,
    "overhead": overheads,
    "tokenization": tokenizing,
}
