"""`python -m tests.bench`: raydpo against TRL on this machine. Writes results.json, results.md and results.svg."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench import data, machine, report
from tests.bench.gate import SidesDiffer
from tests.bench.memory import CommandFailed
from tests.bench.sections import SECTIONS, Bench, Sizes
from tests.bench.sides import Setup

HERE = Path(__file__).parent
ORDER = ("main", "shared", "ablation", "overhead", "tokenization")


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--repeats", type=int, help="repeats of each run (default 3; with --quick 1)")
    parser.add_argument(
        "--pairs",
        type=int,
        help="HH-like pairs of a run of TRL (default 16, on a GPU 1024), a multiple of the global batch; long answers "
        "take a third (on a GPU half) and raydpo eight times as many",
    )
    parser.add_argument("--only", choices=ORDER, help="one section; what the others gave is kept in results.json")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument(
        "--output", type=Path, help="folder of the results (default: tests/bench; with --quick a new one)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="random 0.5B and 1.5B models of Qwen2's shape in bfloat16 on one GPU, TRL default and tuned against "
        "raydpo; results in results-gpu.*. Unproven: no GPU was at hand where this was written",
    )
    return parser.parse_args(argv)


def sizes_of(flags: argparse.Namespace) -> Sizes:
    """How much is run."""
    batch = global_batch(flags)
    hh = flags.pairs or (1024 if flags.gpu else batch)
    long = max(hh // (2 if flags.gpu else 3) // batch, 1) * batch
    if hh % batch:
        raise SystemExit(f"--pairs {hh} must be a multiple of the global batch, {batch}")
    repeats = flags.repeats or (1 if flags.quick else 3)
    return Sizes(repeats, {"hh": hh, "long": long}, more=8, tokenized_rows=400 if flags.quick else 12_000)


def global_batch(flags: argparse.Namespace) -> int:
    """Pairs an update."""
    return 4 if flags.quick else 64 if flags.gpu else 16


def setup_of(flags: argparse.Namespace, folder: Path, model: Path) -> Setup:
    """What all sides have in common."""
    micro_batch = 2 if flags.quick else 8
    precompute = 4 if flags.quick else 64 if flags.gpu else 16
    accumulation = global_batch(flags) // micro_batch
    return Setup(folder, model, flags.threads, flags.gpu, micro_batch, accumulation, precompute)


def shapes_of(flags: argparse.Namespace) -> tuple[data.ModelShape, ...]:
    """The models."""
    if flags.gpu:
        return data.QWEN_SHAPES
    return (data.TINY,) if flags.quick else (data.SMALL,)


def run(flags: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, Any]]:
    """The sections, as they are done -> model, section, raw numbers."""
    for number, shape in enumerate(shapes_of(flags)):
        place = folder / f"model-{number}"
        data.write_model(place / "weights", shape)
        bench = Bench(setup_of(flags, place, place / "weights"), sizes_of(flags), lambda text: print(text, flush=True))
        for section in [flags.only] if flags.only else ORDER:
            print(f"{shape.title}: {section}", flush=True)
            yield shape.title, section, SECTIONS[section](bench)


def write(results: dict[str, Any], output: Path, name: str) -> None:
    """The three files, as far as the results go."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / f"{name}.md").write_text(report.markdown(results))
    if any("main" in parts for parts in results["models"].values()):
        (output / f"{name}.svg").write_text(report.svg(results))


def earlier(path: Path, display_name: dict[str, str]) -> dict[str, Any]:
    """The models' results of an earlier run on this machine with these versions."""
    if not path.exists():
        return {}
    results: dict[str, Any] = json.loads(path.read_text())
    return results["models"] if results["machine"] == display_name else {}


def main(argv: list[str]) -> int:
    """Run, and write the results after each section -> exit status."""
    flags = parse(argv)
    output = flags.output or (Path(tempfile.mkdtemp(prefix="bench-quick-")) if flags.quick else HERE)
    name = "results-gpu" if flags.gpu else "results"
    display_name = machine.describe(flags.threads, flags.gpu)
    sizes = sizes_of(flags)
    terms = {
        "repeats": sizes.repeats,
        "batch": global_batch(flags),
        "precision": "bfloat16" if flags.gpu else "fp32",
        "precompute": setup_of(flags, output, output).precompute_batch,
    }
    models = earlier(output / f"{name}.json", display_name) if flags.only else {}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        try:
            for model, section, raw in run(flags, Path(folder)):
                models.setdefault(model, {})[section] = raw
                date = time.strftime("%Y-%m-%d")
                results = {"date": date, "machine": display_name, "gpu": flags.gpu, "terms": terms, "models": models}
                write(results, output, name)
        except (CommandFailed, SidesDiffer) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print((output / f"{name}.md").read_text())
    print(f"{output / name}.json, .md, .svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
