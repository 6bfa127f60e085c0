"""The life of all generations: a log that every node writes and anybody may follow.

It is a log like a generation's, with as many writers as there are nodes, each of which appends behind whatever is
there; it loses its beginning, and never ends. It is told after the fact: what a generation's own log says counts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from replay.errors import StoreUnavailable
from replay.live.feed import Feed, now_ms
from replay.live.follower import Follower
from replay.model.event import EventId, number
from replay.model.generation import End, Start
from replay.model.tail import ERASED, Tail
from replay.store import CHRONICLE, EventStore
from replay.wire import feed as wire
from replay.wire.events import Face

KEPT = 10_000  # events; a reader that has missed more is told so, and begins anew
_TTL_MS = 31 * 86_400_000  # since the last event
_BATCH = 500
_PAUSE_S = 0.25
_TOLD_S = 2.0
_LATEST_MS = 60_000  # how long after the fact something is told, at most
_MOST_WAITING = 100_000  # while Valkey is away


class Chronicle:
    """This node's part in it: tells what happens here, and follows what happens anywhere, once somebody asks."""

    def __init__(self, store: EventStore, *, patience_s: float) -> None:
        self._store = store
        self._patience_s = patience_s
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._work = asyncio.Event()
        self._idle = asyncio.Event()  # nothing waits
        self._idle.set()
        self._last: EventId | None = None  # where the log ends, as far as this writer knows
        self._appended: int | None = None  # since the log was trimmed here; None before the first
        self._follower: Follower | None = None
        self._opening: asyncio.Task[Feed] | None = None
        self._writing: asyncio.Task[None] | None = None

    # Telling.

    def created(self, start: Start, created_ms: int) -> None:
        """A generation was started here."""
        self._tell(wire.created(start, created_ms))

    def first_token(self, start: Start, created_ms: int, at_ms: int) -> None:
        """A generation of this node has begun to speak."""
        self._tell(wire.first_token(start, created_ms, at_ms))

    def ended(self, start: Start, created_ms: int, at_ms: int, end: End) -> None:
        """A generation was ended from here."""
        self._tell(wire.ended(start, created_ms, at_ms, end))

    def _tell(self, entry: bytes) -> None:
        self._waiting.append(entry)
        self._idle.clear()
        self._work.set()

    def start(self) -> None:
        """Begin to write."""
        self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._waiting:
                try:
                    await self._append()
                except StoreUnavailable:
                    await asyncio.sleep(_PAUSE_S)
            self._idle.set()

    async def _append(self) -> None:
        """Append what waits behind whatever is there."""
        if self._appended is None:
            self._last = await self.last_id()
            self._appended = 0
        entries = [self._waiting[place] for place in range(min(_BATCH, len(self._waiting)))]
        events = number(entries, after=self._last, now_ms=now_ms())
        while True:
            try:
                refused = await self._store.append(CHRONICLE, events, after=self._last, ttl_ms=_TTL_MS)
            except StoreUnavailable:
                await self._store.wait_up(_PAUSE_S)
                await asyncio.sleep(0.01)
                continue  # the same again: it may be there already, and that is told
            if refused is None:
                break
            if events[-1] in await self._store.read(CHRONICLE, after=self._last, limit=1000):
                break  # it was there, and another node has gone on
            self._last = None if refused.last is None else refused.last.id
            events = number(entries, after=self._last, now_ms=now_ms())
        self._last = events[-1].id
        for _ in entries:
            self._waiting.popleft()
        await self._trim(len(entries))

    async def _trim(self, appended: int) -> None:
        self._appended = (self._appended or 0) + appended
        if self._appended >= KEPT // 10:
            self._appended = 0
            await self._store.trim(CHRONICLE, KEPT)

    async def erase(self, generation_id: str, created_ms: int, ended_ms: int) -> None:
        """Leave no trace of a generation that was deleted; raises StoreUnavailable."""
        self._tell(ERASED)  # behind the last event about it: the log must not end with one that is taken out
        await self._told()
        mark = wire.mark_of(generation_id)
        found: list[EventId] = []
        after = EventId(created_ms - 1, 0)
        while events := await self._store.read(CHRONICLE, after=after, limit=1000):
            found += [event.id for event in events if mark in event.entry]
            after = events[-1].id
            if after.ms > ended_ms + _LATEST_MS:
                break
        await self._store.erase(CHRONICLE, found)

    def forget(self, generation_id: str) -> None:
        """A generation was deleted somewhere: do not keep, or tell, what happened to it."""
        mark = wire.mark_of(generation_id)
        for place, entry in enumerate(self._waiting):
            if mark in entry:
                self._waiting[place] = ERASED
        feed = self._follower.feed if self._follower is not None else None
        if feed is not None and isinstance(feed.log, Tail) and feed.log.erase(mark):
            feed.forget_segments()
            for face in (wire.FEED, wire.FEED_WITH_PROGRESS, wire.FEED_LINES):
                feed.tell(face, "deleted", {"generation_id": generation_id})

    async def _told(self) -> None:
        """Wait until everything that was told stands in the log."""
        try:
            async with asyncio.timeout(_TOLD_S):
                await self._idle.wait()
        except TimeoutError:
            raise StoreUnavailable("Valkey has not taken what was told of other generations yet") from None

    # Following.

    async def last_id(self) -> EventId | None:
        """The last event so far; None where there is none."""
        last = await self._store.last(CHRONICLE)
        return None if last is None else last.id

    async def open(self) -> Feed:
        """The feed of it, followed from now on; raises StoreUnavailable."""
        if self._follower is not None and not self._follower.feed.invalid:
            return self._follower.feed
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Feed:
        if self._follower is not None:
            await self._follower.stop()
        follower = Follower(self._store, Feed(CHRONICLE, Tail(KEPT)), patience_s=self._patience_s)
        try:
            await follower.listen()
            await follower.catch_up()
        except BaseException:
            await follower.stop()
            raise
        self._follower = follower
        return follower.feed

    def is_read_with(self, face: Face) -> bool:
        """Whether anybody here follows it in that form."""
        return self._follower is not None and self._follower.feed.is_read_with(face)

    def pass_on(self, face: Face, name: str, data: dict[str, Any]) -> None:
        """Tell who follows it in that form something that is not in it."""
        if self._follower is not None:
            self._follower.feed.tell(face, name, data)

    async def look(self) -> None:
        """The slow safety read."""
        if self._follower is not None:
            await self._follower.look(asyncio.get_running_loop().time())

    def keep_alive(self, silence: float) -> None:
        """Write keep-alives where nothing was written for that long."""
        if self._follower is not None:
            self._follower.feed.keep_alive(asyncio.get_running_loop().time(), silence)

    async def stop(self) -> None:
        """Tell what is left, and follow no more."""
        if self._writing is not None:
            if self._waiting:
                await asyncio.wait((self._writing,), timeout=_PAUSE_S)
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._follower is not None:
            await self._follower.stop()
