"""Tells how generations live, from the first event of their logs to the last.

A generation is on the list of live ones, under the node that tells of it, until its end is told. That node tells the
end whoever has written it. Should it not come to that, whoever finds the generation on the list tells its life again,
which adds what is missing (see `scribe.py`), and takes it off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from replay.live.chronicle import Chronicle
from replay.live.feed import Feed
from replay.store import EventStore
from replay.wire.events import decode_end

Own = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Lives:
    """The lives that this node tells."""

    def __init__(self, store: EventStore, chronicle: Chronicle, own: Own) -> None:
        self._store = store
        self._chronicle = chronicle
        self._own = own  # runs a task
        self._telling: dict[Feed, asyncio.Task[None]] = {}

    def begin(self, feed: Feed) -> None:
        """Tell of a generation that is produced here, as it lives."""
        self._begin(feed, since_ms=0)

    async def begin_again(self, feeds: list[Feed]) -> None:
        """Valkey was away: tell again what it has lost, and take off the list what is told; raises StoreUnavailable."""
        since_ms = await self._chronicle.oldest_ms()
        lost = await self._chronicle.has_lost()
        for feed in feeds:
            if lost:
                self._begin(feed, since_ms=since_ms)
            elif feed not in self._telling:
                await self._take_off(feed)

    def _begin(self, feed: Feed, *, since_ms: int) -> None:
        self.give_up(feed)
        telling = self._telling[feed] = self._own(self._tell(feed, since_ms=since_ms))
        telling.add_done_callback(lambda _: self._telling.get(feed) is telling and self._telling.pop(feed))

    def give_up(self, feed: Feed) -> None:
        """Tell no more of a generation."""
        if feed in self._telling:
            self._telling[feed].cancel()

    async def tell_again(self, feed: Feed) -> None:
        """Tell all of an ended generation that nobody else will tell; raises StoreUnavailable."""
        await self._tell(feed, since_ms=await self._chronicle.oldest_ms())

    async def _tell(self, feed: Feed, *, since_ms: int) -> None:
        """Tell a life, but for what was before ``since_ms``: it may have been told, and forgotten."""
        start, created_ms = feed.start, feed.log.times[0]
        if created_ms > since_ms:
            self._chronicle.created(start, created_ms)
        first_token = await feed.wait_token()
        if first_token is not None and first_token.ms > since_ms:
            self._chronicle.first_token(start, created_ms, first_token.ms)
        if not await feed.wait_end(None):
            return
        end = decode_end(feed.log.entries[-1])
        if await self._chronicle.ended(start, created_ms, feed.log.times[-1], end):
            await self._take_off(feed)

    async def _take_off(self, feed: Feed) -> None:
        """Its end is told: it is live no more."""
        await self._store.unregister(feed.generation_id)
        if feed.start.digest is not None and feed.log.complete:
            await self._store.forget_try(feed.start.digest, feed.generation_id)

    async def wait_told(self, timeout: float) -> None:
        """Wait until everything is told, but not for longer than that."""
        if self._telling:
            await asyncio.wait(self._telling.values(), timeout=timeout)
