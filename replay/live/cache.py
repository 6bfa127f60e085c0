"""Ended logs that nobody here produces or uses, kept for whoever comes next.

Nothing is done for them by the clock, but that those are forgotten whose time has come; so they cost memory alone,
however many there are. That one is still what Valkey has is not known here: whoever takes it out has to ask.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from replay.live.feed import Feed
from replay.live.memory import Memory

_SPARE = 1000  # expiries of what is not here any more, before they are cleared out


class _Cached(NamedTuple):
    feed: Feed
    size: int
    expires_ms: int


class Cache:
    """As many ended logs as there is memory for: when that is short, the longest idle go first."""

    def __init__(self, max_bytes: int, memory: Memory) -> None:
        self.size = 0  # bytes
        self._max_bytes = max_bytes
        self._memory = memory
        self._cached: OrderedDict[str, _Cached] = OrderedDict()  # by when they came
        self._framed: OrderedDict[str, Feed] = OrderedDict()  # those with segments, likewise
        self._expiries: list[tuple[int, str]] = []  # a heap of all of them, and of some that have been taken out

    def __len__(self) -> int:
        return len(self._cached)

    def put(self, feed: Feed) -> None:
        """Keep an ended log that nobody uses."""
        generation_id = feed.generation_id
        cached = _Cached(feed, feed.size, feed.expires_ms)
        feed.rest()
        self._cached[generation_id] = cached
        if feed.segments_size:
            self._framed[generation_id] = feed
        self.size += cached.size
        heappush(self._expiries, (cached.expires_ms, generation_id))
        self._clear_out()
        self._make_room()

    def take(self, generation_id: str) -> Feed | None:
        """Take a log out, if it is here."""
        cached = self._cached.pop(generation_id, None)
        if cached is None:
            return None
        self._framed.pop(generation_id, None)
        self.size -= cached.size
        return cached.feed

    def forget(self, generation_id: str) -> None:
        """Give a log up, if it is here."""
        feed = self.take(generation_id)
        self._memory.forget(0 if feed is None else feed.size)

    def forget_expired(self, now_ms: int) -> None:
        """Forget what nobody keeps any more."""
        while self._expiries and self._expiries[0][0] < now_ms:
            expires_ms, generation_id = heappop(self._expiries)
            cached = self._cached.get(generation_id)
            if cached is not None and cached.expires_ms == expires_ms:
                self.forget(generation_id)

    def _clear_out(self) -> None:
        if len(self._expiries) > 2 * len(self._cached) + _SPARE:
            self._expiries = [(cached.expires_ms, name) for name, cached in self._cached.items()]
            heapify(self._expiries)

    def _make_room(self) -> None:
        while self.size > self._max_bytes and self._framed:  # before a log that would have to be read again
            generation_id, feed = self._framed.popitem(last=False)
            self.size -= feed.segments_size
            self._memory.forget(feed.segments_size)
            feed.forget_segments()
            self._cached[generation_id] = self._cached[generation_id]._replace(size=feed.size)
        while self.size > self._max_bytes:
            self.forget(next(iter(self._cached)))
