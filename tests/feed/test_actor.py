"""The feed's requests to the driver for the scores it needs: one per sync interval, also after a restart."""

import threading
from pathlib import Path

import pytest

from raydpo.batching.flops import FlopsModel
from raydpo.batching.planner import MicroBatchPlanner
from raydpo.blocks.schema import Block
from raydpo.errors import ReferenceMismatch
from raydpo.feed.actor import Feed
from raydpo.feed.batches import FeedSpec
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.readers import WaitingReader
from raydpo.reference.store import ReferenceStore
from raydpo.tr_dpo.schedule import SyncSchedule
from raydpo.tr_dpo.version import ReferenceVersion
from tests.reference.scoring import PAIRS_PER_BLOCK, make_blocks

FLOPS = FlopsModel(1.0, 1.0, ())
FIRST, SECOND = (ReferenceVersion(ReferenceIdentity(name, "", None, "{}")) for name in ("first", "second"))


@pytest.fixture
def blocks(tmp_path: Path) -> list[Block]:
    return make_blocks(tmp_path, 2)


@pytest.fixture
def feed(blocks: list[Block], tmp_path: Path) -> Feed:
    """Return a feed in this process, with two updates per sync interval."""
    spec = FeedSpec(
        seed=0,
        sampling="sequential",
        window=1,
        global_batch=3,
        planner=MicroBatchPlanner(tokens=100, flops=FLOPS, padded=False),
        update_flops=FLOPS,
        ranks=1,
        sync=SyncSchedule(every=2, total_steps=4),
    )
    return Feed(blocks, WaitingReader(ReferenceStore(str(tmp_path / "cache"), FIRST.identity)), spec)


def test_announcements_within_an_interval_are_one_request(feed: Feed, blocks: list[Block]) -> None:
    feed.announce(FIRST, 0)
    request = feed.next_request("")
    assert request is not None
    assert request.version == FIRST
    assert [(block.url, block.pairs) for block in request.blocks] == [(blocks[0].url, PAIRS_PER_BLOCK)]
    feed.announce(FIRST, 3)  # the second update of the same interval
    assert feed.next_request("") is request
    feed.announce(SECOND, 6)
    following = feed.next_request(request.name)
    assert following is not None
    assert (following.version, following.blocks[0].url) == (SECOND, blocks[1].url)


def test_the_driver_waits_until_there_is_a_request(feed: Feed) -> None:
    threading.Timer(0.2, feed.announce, (FIRST, 0)).start()
    request = feed.next_request("")
    assert request is not None
    assert request.version == FIRST


def test_a_restarted_feed_takes_the_version_from_a_fetch(feed: Feed) -> None:
    feed.fail("no more scores")
    with pytest.raises(ReferenceMismatch, match="no more scores"):
        feed.fetch(6, 0, SECOND)
    request = feed.next_request("")
    assert request is not None
    assert request.version == SECOND
