"""Benchmark raydpo against TRL on this machine (`python -m tests.bench`).

The results are written to results.json, results.md and results.svg.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench import data, report
from tests.bench.measure import machine
from tests.bench.measure.gate import SidesDiffer
from tests.bench.measure.memory import CommandFailed
from tests.bench.measure.sections import SECTIONS, Bench, Sizes
from tests.bench.measure.sides import Setup

HERE = Path(__file__).parent
ORDER = ("main", "shared", "ablation", "overhead", "tokenization")


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the parsed command-line flags."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--repeats", type=int, help="number of repeats of each run (default: 3; with --quick: 1)")
    parser.add_argument(
        "--pairs",
        type=int,
        help="number of HH-like pairs per TRL run (default: 16; on a GPU: 1024), a multiple of the global batch; the "
        "profile with long answers uses a third of it (on a GPU: half), and raydpo runs use eight times as many",
    )
    parser.add_argument(
        "--only", choices=ORDER, help="run one section only; the results of the others are kept in results.json"
    )
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="number of threads (default: all cores)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the results (default: tests/bench; with --quick: a new temporary folder)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="use tiny sizes, to check that the benchmark runs; the rates mean nothing"
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="compare TRL default and tuned with raydpo on one GPU, with random Qwen2-shaped 0.5B and 1.5B models in "
        "bfloat16; writes results-gpu.*. Not tested: this was written without a GPU",
    )
    return parser.parse_args(argv)


def sizes_of(flags: argparse.Namespace) -> Sizes:
    """Return the number of repeats, pairs and rows to run."""
    batch = global_batch(flags)
    hh = flags.pairs or (1024 if flags.gpu else batch)
    long = max(hh // (2 if flags.gpu else 3) // batch, 1) * batch
    if hh % batch:
        raise SystemExit(f"--pairs {hh} must be a multiple of the global batch, {batch}")
    repeats = flags.repeats or (1 if flags.quick else 3)
    return Sizes(repeats, {"hh": hh, "long": long}, raydpo_factor=8, tokenized_rows=400 if flags.quick else 12_000)


def global_batch(flags: argparse.Namespace) -> int:
    """Return the number of pairs per update."""
    return 4 if flags.quick else 64 if flags.gpu else 16


def setup_of(flags: argparse.Namespace, folder: Path, model: Path) -> Setup:
    """Return the setup that all sides share."""
    micro_batch = 2 if flags.quick else 8
    precompute = 4 if flags.quick else 64 if flags.gpu else 16
    accumulation = global_batch(flags) // micro_batch
    return Setup(folder, model, flags.threads, flags.gpu, micro_batch, accumulation, precompute)


def shapes_of(flags: argparse.Namespace) -> tuple[data.ModelShape, ...]:
    """Return the shapes of the models to run."""
    if flags.gpu:
        return data.QWEN_SHAPES
    return (data.TINY,) if flags.quick else (data.SMALL,)


def run(flags: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, Any]]:
    """Run the sections one by one, and yield (model title, section, raw numbers) of each."""
    for number, shape in enumerate(shapes_of(flags)):
        model_folder = folder / f"model-{number}"
        data.write_model(model_folder / "weights", shape)
        bench = Bench(
            setup_of(flags, model_folder, model_folder / "weights"),
            sizes_of(flags),
            lambda text: print(text, flush=True),
        )
        for section in [flags.only] if flags.only else ORDER:
            print(f"{shape.title}: {section}", flush=True)
            yield shape.title, section, SECTIONS[section](bench)


def write(results: dict[str, Any], output: Path, name: str) -> None:
    """Write the JSON and Markdown files, and the SVG chart if there are results of the section main."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / f"{name}.md").write_text(report.markdown(results))
    if any("main" in parts for parts in results["models"].values()):
        (output / f"{name}.svg").write_text(report.svg(results))


def earlier_results(path: Path, description: dict[str, str]) -> dict[str, Any]:
    """Return the results by model of an earlier run, if it was on the same machine with the same versions."""
    if not path.exists():
        return {}
    results: dict[str, Any] = json.loads(path.read_text())
    return results["models"] if results["machine"] == description else {}


def main(argv: list[str]) -> int:
    """Run the benchmark, write the results after each section, and return the exit status."""
    flags = parse(argv)
    output = flags.output or (Path(tempfile.mkdtemp(prefix="bench-quick-")) if flags.quick else HERE)
    name = "results-gpu" if flags.gpu else "results"
    description = machine.describe(flags.threads, flags.gpu)
    sizes = sizes_of(flags)
    terms = {
        "repeats": sizes.repeats,
        "batch": global_batch(flags),
        "precision": "bfloat16" if flags.gpu else "fp32",
        "precompute": setup_of(flags, output, output).precompute_batch,
    }
    models = earlier_results(output / f"{name}.json", description) if flags.only else {}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        try:
            for model, section, raw in run(flags, Path(folder)):
                models.setdefault(model, {})[section] = raw
                date = time.strftime("%Y-%m-%d")
                results = {"date": date, "machine": description, "gpu": flags.gpu, "terms": terms, "models": models}
                write(results, output, name)
        except (CommandFailed, SidesDiffer) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print((output / f"{name}.md").read_text())
    print(f"{output / name}.json, .md, .svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
