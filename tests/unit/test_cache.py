"""The cache of ended logs, against a plain list."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from support.chunk_streams import START, STARTED_MS

from replay.live import cache as cache_module
from replay.live.cache import Cache
from replay.live.clock import now_ms
from replay.live.encoding import Encoding
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.memory import Memory
from replay.model.event import number
from replay.model.generation import End, Status
from replay.wire.events import SSE, encode_end, encode_start
from replay.wire.framing import CHUNKED

TTL_MS = 1000
ENCODING = Encoding(SSE, CHUNKED)


def ended(name: str, *, size: int = 100, ended_ms: int = STARTED_MS, kind: type[Feed] = Feed) -> Feed:
    """A log that has ended, and is kept for a second."""
    feed = kind(name)
    start = encode_start(replace(START, generation_id=name, ttl_ms=TTL_MS))
    whole = b'T{"id":"c","choices":[{"index":0,"delta":{"content":"%b"}}]}' % (b"x" * size)
    end = encode_end(End(status=Status.COMPLETED))
    feed.extend(number([start, whole, end], after=None, now_ms=ended_ms))
    return feed


def frame(feed: Feed) -> None:
    """Leave a segment in it for late joiners."""
    feed.segment(ENCODING, 0, len(feed.log))


async def test_what_is_put_in_is_taken_out_once():
    cache, feed = Cache(1 << 20, Memory()), ended("g")
    cache.put(feed)
    assert (len(cache), cache.size) == (1, feed.size)
    assert cache.take("g") is feed
    assert cache.take("g") is None
    assert (len(cache), cache.size) == (0, 0)


@given(
    steps=st.lists(st.tuples(st.sampled_from(["put", "take"]), st.integers(0, 9), st.integers(1, 5000)), max_size=60)
)
async def test_the_longest_idle_go_first_when_memory_is_short(steps):
    cache, known, room = Cache(30_000, Memory()), [], 30_000
    for step, number_, size in steps:
        name = f"g{number_}"
        there = [feed for feed in known if feed.generation_id == name]
        if step == "take" or there:
            assert cache.take(name) is (there[0] if there else None)
            known = [feed for feed in known if feed not in there]
            continue
        feed = ended(name, size=size)
        cache.put(feed)
        known.append(feed)
        while sum(feed.size for feed in known) > room:
            known.pop(0)
        assert len(cache) == len(known)
        assert cache.size == sum(feed.size for feed in known)


async def test_what_is_framed_goes_before_what_would_have_to_be_read_again():
    # given a cache that is full with two logs, of which the newer is framed for late joiners
    plain, framed, last = (ended(name, size=3000) for name in ("plain", "framed", "last"))
    frame(framed)
    cache = Cache(plain.size + framed.size, Memory())
    cache.put(plain)
    cache.put(framed)
    # when there is one more
    cache.put(last)
    # then all three logs may stay if the frames suffice, and else the oldest goes too
    assert framed.segments_size == 0
    assert cache.size <= plain.size + framed.size + 4000
    assert cache.take("framed") is framed
    assert cache.take("last") is last


async def test_what_has_expired_is_forgotten_and_nothing_else():
    cache = Cache(1 << 20, Memory())
    for place in range(5):
        cache.put(ended(f"g{place}", ended_ms=STARTED_MS + 100 * place))
    cache.forget_expired(STARTED_MS + TTL_MS + 250)
    assert [cache.take(f"g{place}") is None for place in range(5)] == [True, True, True, False, False]


async def test_another_run_under_the_same_id_has_its_own_time():
    cache = Cache(1 << 20, Memory())
    cache.put(ended("g"))
    cache.take("g")
    second = ended("g", ended_ms=STARTED_MS + 500)
    cache.put(second)
    cache.forget_expired(STARTED_MS + TTL_MS + 250)
    assert cache.take("g") is second


async def test_a_log_that_is_taken_out_again_and_again_leaves_nothing_behind():
    cache, feed = Cache(1 << 20, Memory()), ended("g")
    for _ in range(10_000):
        cache.put(feed)
        cache.take("g")
    assert len(cache._expiries) <= cache_module._SPARE + 1
    cache.put(feed)
    cache.forget_expired(STARTED_MS + TTL_MS + 1)
    assert len(cache) == 0


async def test_a_cached_log_keeps_nothing_that_is_made_of_it_but_its_frames():
    cache, feed = Cache(1 << 20, Memory()), ended("g")
    transcript, recording = feed.transcript(len(feed.log)), feed.recording
    frame(feed)
    cache.put(feed)
    assert feed.recording is not recording
    assert feed.transcript(len(feed.log)) is not transcript
    assert feed.segments_size > 0


# The hub.


class LookedAt(Feed):
    """Counts how often the clock has come by."""

    looks = 0

    @property
    def in_use(self) -> bool:
        type(self).looks += 1
        return super().in_use

    @property
    def subscribers(self) -> int:
        type(self).looks += 1
        return super().subscribers

    @property
    def size(self) -> int:
        type(self).looks += 1
        return super().size

    def keep_alive(self, now: float, silence: float) -> None:
        type(self).looks += 1
        super().keep_alive(now, silence)


async def test_what_is_done_by_the_clock_does_not_look_at_what_is_cached():
    # given a node with thousands of generations that have ended here
    hub = Hub(None, cache_bytes=1 << 30, lost_after_s=1)
    for place in range(3000):
        feed = ended(f"g{place}", ended_ms=now_ms() + 60_000, kind=LookedAt)
        hub.produce(feed)
        hub.settle(feed)
    hub.tidy()
    assert len(hub) == 3000
    LookedAt.looks = 0

    # when time passes
    for _ in range(10):
        hub.keep_alive(0.0)
        await hub.look()
        assert [feed.generation_id for feed in hub if feed.subscribers] == []
        hub.tidy()

    # then none of them is touched
    assert LookedAt.looks == 0
    assert len(hub) == 3000
