"""The demonstration's preference shards, which prefer the courteous manner, and the options it runs with."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raydpo.demo.facts import Dialogue, dialogues
from raydpo.runtime import storage

TRAIN_PAIRS, HELD_OUT_PAIRS = 800, 128
SHARDS = 4

DEMO_DEFAULTS: dict[str, object] = {
    "learning_rate": 5e-3,
    # Large, so that updates follow the gradient's direction instead of its signs: with the usual 1e-8 every weight of
    # so small a model moves alike, and answers fall apart before their manner has changed.
    "adam_epsilon": 1e-2,
    "beta": 0.5,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "num_train_epochs": 1,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "logging_steps": 10,
    "block_pairs": 256,
}
"""What suits a model of a million weights; other models take the ordinary defaults."""

ORPO_DEFAULTS: dict[str, object] = {"learning_rate": 1e-3, "adam_epsilon": 1e-8, "num_train_epochs": 4}
"""What ORPO takes instead: its likelihood counts the requests, which the starter model has never been taught to write,
so there is more to learn, and in smaller steps."""

Row = dict[str, list[dict[str, str]]]


def write_preferences(folder: str, seed: int) -> tuple[list[str], list[str]]:
    """Write shards in two formats -> paths of those to train on, paths of those held out.

    JSONL with prompt, chosen and rejected as messages, and Parquet in which the prompt is the common part of two
    conversations. The held-out requests combine facts that no training request does.
    """
    train = dialogues(TRAIN_PAIRS, seed + 1)
    paths = []
    for shard in range(SHARDS):
        part = train[shard::SHARDS]
        if shard % 2 == 0:
            paths.append(_write_jsonl(f"{folder}/train-{shard}.jsonl", [_explicit(dialogue) for dialogue in part]))
        else:
            paths.append(_write_parquet(f"{folder}/train-{shard}.parquet", [_implicit(dialogue) for dialogue in part]))
    held_out = dialogues(HELD_OUT_PAIRS, seed + 1, "held_out")
    return paths, [_write_jsonl(f"{folder}/held-out.jsonl", [_explicit(dialogue) for dialogue in held_out])]


def _explicit(dialogue: Dialogue) -> Row:
    return {
        "prompt": dialogue.request.messages,
        "chosen": [{"role": "assistant", "content": dialogue.courteous}],
        "rejected": [{"role": "assistant", "content": dialogue.curt}],
    }


def _implicit(dialogue: Dialogue) -> Row:
    row = _explicit(dialogue)
    return {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}


def _write_jsonl(path: str, rows: Sequence[Row]) -> str:
    storage.write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def _write_parquet(path: str, rows: Sequence[Row]) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path
