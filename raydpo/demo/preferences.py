"""The demonstration's preference shards, in which the courteous answer is chosen, and its default options."""

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
    # Large, so that updates follow the direction of the gradient instead of its signs: with the usual 1e-8, every
    # weight of so small a model moves by the same amount, and answers fall apart before their manner has changed.
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
"""Options for a model of a million weights; other models use the ordinary defaults."""

ORPO_DEFAULTS: dict[str, object] = {"learning_rate": 1e-3, "adam_epsilon": 1e-8, "num_train_epochs": 4}
"""Options for ORPO that replace those above: its likelihood includes the requests, which the starter was not trained to
write, so there is more to learn, in smaller steps."""

Row = dict[str, list[dict[str, str]]]


def write_preferences(folder: str, seed: int) -> tuple[list[str], list[str]]:
    """Write shards in two formats, and return the paths of the training shards and of the held-out shards.

    JSONL shards have prompt, chosen and rejected as messages; in Parquet shards, the prompt is the common part of two
    conversations. The held-out requests combine facts that no training request combines.
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
    """Return a row with an explicit prompt."""
    return {
        "prompt": dialogue.request.messages,
        "chosen": [{"role": "assistant", "content": dialogue.courteous}],
        "rejected": [{"role": "assistant", "content": dialogue.curt}],
    }


def _implicit(dialogue: Dialogue) -> Row:
    """Return a row with an implicit prompt: the common start of the chosen and the rejected conversation."""
    row = _explicit(dialogue)
    return {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}


def _write_jsonl(path: str, rows: Sequence[Row]) -> str:
    storage.write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def _write_parquet(path: str, rows: Sequence[Row]) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path
