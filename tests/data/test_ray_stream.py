"""Shards to raw blocks; `test_prepare.py` has the whole stream."""

import json
from pathlib import Path

from raydpo.data import ray_stream
from raydpo.data.shards import Shard


def test_the_dialect_is_detected_in_the_first_readable_rows(tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "a"}], "chosen": "b", "rejected": "c"}
    (tmp_path / "a.jsonl").write_bytes(b"{\n" * 100 + (json.dumps(row) + "\n").encode() * 10)
    shard = Shard("a.jsonl", str(tmp_path / "a.jsonl"))
    for block_pairs in (20, 200):
        raw_blocks = list(ray_stream.raw_blocks(shard, 0, ray_stream.Slicing("auto", block_pairs)))
        assert raw_blocks[-1].dialect == "sharegpt"
