"""Blocks, the spec of a scorer, and scorers that fail, for tests of scoring."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from raydpo.batching.flops import FlopsModel
from raydpo.batching.planner import MicroBatchPlanner
from raydpo.blocks import schema
from raydpo.blocks.schema import Block
from raydpo.models.attention.choice import choose
from raydpo.models.loading import load_config
from raydpo.models.plan import ModelPlan
from raydpo.models.source import resolve_model
from raydpo.reference.dedup import NOTHING_REUSED, ReusedScores
from raydpo.reference.scorer import Scorer, ScorerSpec, ScoringResult
from raydpo.reference.store import ReferenceStore
from raydpo.runtime import storage
from raydpo.runtime.resources import WorkerGroup

PAIRS_PER_BLOCK = 6


def make_blocks(folder: Path, count: int, vocabulary: int = 260) -> list[Block]:
    """Return blocks of PAIRS_PER_BLOCK pairs, each block from a shard of its own.

    Two pairs of each block have the same prompt and chosen completion; one pair of block 2 is a pair of block 1 with
    chosen and rejected swapped.
    """
    draw = np.random.default_rng(0)
    blocks = []
    repeated: list[list[int]] = []
    for index in range(count):
        rows: list[dict[str, Any]] = []
        for row in range(PAIRS_PER_BLOCK):
            prompt, chosen, rejected = (draw.integers(4, vocabulary, size).tolist() for size in (5, 4, 7))
            if row == 1:
                prompt, chosen = rows[0][schema.PROMPT_IDS], rows[0][schema.CHOSEN_IDS]
            if (index, row) == (2, 3):
                prompt, chosen, rejected = repeated
            elif (index, row) == (1, 2):
                repeated = [prompt, rejected, chosen]  # swapped
            ids = {schema.PROMPT_IDS: prompt, schema.CHOSEN_IDS: chosen, schema.REJECTED_IDS: rejected}
            rows.append({schema.PAIR_ID: f"shard-{index}.jsonl:{row + 1}", **ids})
        url = str(folder / f"block-{index}.parquet")
        storage.write_table(url, schema.pa.Table.from_pylist(rows, schema=schema.TOKENIZED_SCHEMA))
        blocks.append(Block(f"content-{index}", f"shard-{index}.jsonl", 0, PAIRS_PER_BLOCK, 100, url))
    return blocks


def spec_of(model: Path) -> ScorerSpec:
    """Return the spec of a scorer on the CPU, in float32."""
    source = resolve_model(str(model), None)
    config = load_config(source, trust_remote_code=False)
    return ScorerSpec(
        model=ModelPlan(
            source=source,
            adapter=None,
            group=group_of(1),
            precision="float32",
            attention=choose(config, attn_implementation=None, share_prompts=True, gpu=False, dtype="float32"),
            planner=MicroBatchPlanner(tokens=256, flops=FlopsModel(1.0, 1.0, ()), padded=False),
        ),
        trust_remote_code=False,
        quantization=None,
        logits_chunk_tokens=None,
        torch_compile=False,
    )


def group_of(workers: int) -> WorkerGroup:
    """Return a group of scoring workers that share the CPUs of the tests' Ray instance."""
    return WorkerGroup(workers, gpus=0, cpus=1, resources={}, label_selector={})


class FailingScorer(Scorer):
    """A scorer that is killed by block 1, as by a fault in a kernel."""

    def score_block(
        self, block: Block, store: ReferenceStore, tokens: int, reused: ReusedScores = NOTHING_REUSED
    ) -> ScoringResult:
        """Score a block like `Scorer`, but kill this process for block 1."""
        if block.url.endswith("block-1.parquet"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score_block(block, store, tokens, reused)


class SlowScorer(Scorer):
    """A scorer that is slow enough to be killed while it scores a block."""

    def score_block(
        self, block: Block, store: ReferenceStore, tokens: int, reused: ReusedScores = NOTHING_REUSED
    ) -> ScoringResult:
        """Score a block like `Scorer`, after a delay."""
        time.sleep(0.3)
        return super().score_block(block, store, tokens, reused)


class UnloadableScorer(Scorer):
    """A scorer that dies while it loads its model."""

    def load(self) -> None:
        """Kill this process."""
        os.kill(os.getpid(), signal.SIGKILL)
