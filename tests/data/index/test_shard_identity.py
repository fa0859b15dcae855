"""What a shard in a remote store is identified by; `test_token_index.py` has local files."""

import time
from typing import Any

import fsspec
import pytest

from raydpo.data.index import shard_identity


def test_a_remote_shard_is_known_by_what_its_store_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/index/a.jsonl", b"content")
    facts: dict[str, Any] = {"name": "/index/a.jsonl", "size": 7, "type": "file", "created": time.time()}
    monkeypatch.setattr(type(memory), "info", lambda self, path: facts)
    assert shard_identity.shard_identity("memory://index/a.jsonl") is None
    known = []
    for version in (
        {"ETag": "1"},
        {"ETag": "2"},
        {"LastModified": "today"},
        {"md5Hash": "x"},
        {"size": 8, "ETag": "1"},
    ):
        monkeypatch.setattr(type(memory), "info", lambda self, path, more=version: {**facts, **more})
        known.append(shard_identity.shard_identity("memory://index/a.jsonl"))
    assert None not in known
    assert len(set(known)) == 5
    assert shard_identity.shard_identity("memory://index/a.jsonl") == known[-1]
