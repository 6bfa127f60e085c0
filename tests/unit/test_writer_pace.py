"""A writer whose readers take long to be written to leaves as much time to everybody else."""

from __future__ import annotations

import asyncio
import time

from replay.live.counters import Counters
from replay.live.feed import Feed
from replay.live.writer import Writer
from replay.model.event import EventId
from replay.model.generation import Start
from replay.wire.events import encode_start


class Store:
    """Acknowledges at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    async def append(self, generation_id, events, *, after, ttl_ms=0):
        self.batches.append(len(events))


class CrowdedFeed(Feed):
    """A feed with so many readers that one batch takes a while."""

    takes_s = 0.0

    def extend(self, events):
        super().extend(events)
        time.sleep(self.takes_s)


async def batches_of(takes_s: float) -> list[int]:
    """What is appended of ten tokens that come one by one, 2 ms apart."""
    store, feed = Store(), CrowdedFeed("g")
    start = Start(generation_id="g", model="m", node="n", run="r", ttl_ms=60_000)
    feed.log.extend([(EventId(1, 0), encode_start(start))])
    feed.takes_s = takes_s
    options = {"ttl_ms": 60_000, "max_pending_bytes": 1 << 20, "heal_window_s": 1, "outage_s": 1}
    writer = Writer(store, feed, Counters(), **options)
    running = asyncio.create_task(writer.run(on_outage=lambda: None))
    for _ in range(10):
        writer.put(b"Dx")
        await asyncio.sleep(0.002)
    await feed.wait_change(10, 5.0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert sum(store.batches) == 10
    return store.batches


async def test_what_comes_while_others_have_their_turn_is_written_at_once():
    assert len(await batches_of(takes_s=0.05)) <= 3


async def test_nothing_waits_where_readers_are_few():
    assert len(await batches_of(takes_s=0.0)) >= 7  # two come together where the machine is busy
