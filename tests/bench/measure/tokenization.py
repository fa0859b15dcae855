"""Measures the rows per second of the tokenization stage and of bare `encode_batch` on the same cores.

The command is `python -m tests.bench.measure.tokenization FOLDER MODEL THREADS RESULT`. Both sides compute the three
encodings per row that the tokenization rules require: the prompt, and the prompt with each completion.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench import data
from tests.bench.measure.memory import watch
from tests.bench.measure.sides import Setup, new_folder

SHARDS = 8


def measure(setup: Setup, rows: int) -> dict[str, float]:
    """Return the rows/s of the stage and of the bare loop."""
    folder = new_folder(setup, "tokenization")
    content = data.rows(data.PROFILES["hh"], rows, seed=200)
    size = -(-rows // SHARDS)
    for shard in range(SHARDS):
        data.write_rows(folder / f"{shard}.jsonl", content[shard * size : (shard + 1) * size])
    result = folder / "result.json"
    command = [
        sys.executable,
        "-m",
        "tests.bench.measure.tokenization",
        str(folder),
        str(setup.model),
        str(setup.threads),
    ]
    watch([*command, str(result)], folder / "log", env=setup.env)
    measured: dict[str, float] = json.loads(result.read_text())
    return {"rows": rows, **measured}


def bare(tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """Return the seconds of encoding the rows, with as many threads as the tokenizers library uses."""
    texts = [
        text
        for row in rows
        for text in (row["prompt"], *(row["prompt"] + row[side] + data.EOS for side in ("chosen", "rejected")))
    ]
    start = time.monotonic()
    tokenizer.backend_tokenizer.encode_batch(texts)
    return time.monotonic() - start


def stage(tokenizer: Any, files: list[Path], folder: Path) -> float:
    """Return the seconds from JSONL to tokenized blocks on disk, after a warm-up that starts Ray's workers."""
    from raydpo.data.prepare import TokenizationRequest, prepare
    from raydpo.data.ray_stream import Slicing
    from raydpo.data.shards import find_shards
    from raydpo.data.tokenization import Truncation
    from raydpo.data.tokenize_block import BlockRecipe

    shards = find_shards([str(file) for file in files], "train")
    for part, is_warm_up in ((shards[:2], True), (shards, False)):
        name = "warm-up" if is_warm_up else "timed"
        recipe = BlockRecipe(Truncation(data.MAX_LENGTH), str(folder / name), str(folder / f"{name}-quarantine"))
        start = time.monotonic()
        prepare(part, TokenizationRequest(tokenizer, Slicing(), recipe))
    return time.monotonic() - start


def main(folder: Path, model: str, threads: int, result: Path) -> None:
    """Time both sides, and write their rows/s as JSON."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    files = sorted(folder.glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    bare(tokenizer, rows[: len(rows) // SHARDS])
    bare_seconds = bare(tokenizer, rows)
    import ray

    ray.init(num_cpus=threads, include_dashboard=False, log_to_driver=False)
    stage_seconds = stage(tokenizer, files, folder)
    result.write_text(json.dumps({"bare": len(rows) / bare_seconds, "stage": len(rows) / stage_seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
