"""Writes what has happened on this node into the log of all generations' lives, which every node writes.

What is told is made of a generation's own log alone, so whoever tells the same tells the same bytes. A scribe reads
what the log has since the oldest thing it has to tell happened, leaves out what stands there already, and appends the
rest exactly behind the last event it has read; when another node was faster it reads on. So anything may be told any
number of times, by any number of nodes, also after an answer was lost, and stands there once. A deletion is told too,
without a name, and what is found to be deleted is left out as well.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import NamedTuple

from replay.errors import StoreUnavailable
from replay.live.feed import now_ms
from replay.model.event import EventId, number
from replay.store import CHRONICLE, EventStore

KEPT = 10_000  # events; a reader that has missed more is told so, and begins anew
_TTL_MS = 31 * 86_400_000  # since the last event
_BATCH = 500
_PAGE = 1000
_TRIM_EVERY = KEPT // 10  # events, whoever has appended them
_PAUSE_S = 0.25
_MOST_WAITING = 100_000  # protects from a Valkey that takes everything but this


class News(NamedTuple):
    """Something to be told."""

    at_ms: int  # when it happened
    entry: bytes
    grave: bytes  # the entry that says that the generation was deleted
    stands: asyncio.Future[bool]  # whether it was told, or would have been if the generation were not deleted


class Scribe:
    """This node's writer."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._waiting: dict[bytes, News] = {}  # by entry: what is told twice waits once
        self._work = asyncio.Event()
        self._last: EventId | None = None  # where the log ends, as far as is known here
        self._before: EventId | None = None  # where it ended when Valkey was away
        self._trim_due = True
        self._writing: asyncio.Task[None] | None = None

    def tell(self, at_ms: int, entry: bytes, grave: bytes) -> asyncio.Future[bool]:
        """Have something written behind everything that was told before; see `News.stands`."""
        news = self._waiting.get(entry)
        if news is None:
            news = News(at_ms, entry, grave, asyncio.get_running_loop().create_future())
            if len(self._waiting) >= _MOST_WAITING:
                self._settle(next(iter(self._waiting.values())), stands=False)
            self._waiting[entry] = news
            self._work.set()
        return news.stands

    def start(self) -> None:
        """Begin to write."""
        self._store.on_reconnect.append(self._note_reconnect)
        self._writing = asyncio.create_task(self._write())

    async def stop(self) -> None:
        """Write what is left, if that is quickly done, and no more."""
        if self._writing is None:
            return
        if self._waiting:
            await asyncio.wait([news.stands for news in self._waiting.values()], timeout=_PAUSE_S)
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)

    def _note_reconnect(self) -> None:
        self._before = self._before or self._last

    async def has_lost(self) -> bool:
        """Whether Valkey has been away and has come back without something that stood there."""
        if self._before is None:
            return False
        there = await self._store.read(CHRONICLE, after=EventId(self._before.ms - 1, 0), limit=_PAGE)
        lost = self._before not in [event.id for event in there]
        self._before = None
        return lost

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._waiting:
                try:
                    await self._append(list(islice(self._waiting.values(), _BATCH)))
                except StoreUnavailable:
                    await self._store.wait_up(_PAUSE_S)
                    await asyncio.sleep(_PAUSE_S / 10)  # it may answer, and refuse

    async def _append(self, batch: list[News]) -> None:
        since = EventId(min(news.at_ms for news in batch) - 1, 0)
        place = since if self._last is None else min(self._last, since)
        known: set[bytes] = set()
        while True:
            place = await self._read_on(place, known)
            fresh = [news.entry for news in batch if news.entry not in known and news.grave not in known]
            # An event never stands before what it tells happened, however wrong this node's clock is.
            events = number(fresh, after=self._last, now_ms=max(now_ms(), *(news.at_ms for news in batch)))
            refused = await self._store.append(CHRONICLE, events, after=self._last, ttl_ms=_TTL_MS) if events else None
            if refused is None:
                break
            self._last = None if refused.last is None else refused.last.id
        if events:
            self._trim_due |= self._last is None or events[-1].id.seq // _TRIM_EVERY > self._last.seq // _TRIM_EVERY
            self._last = events[-1].id
        for news in batch:
            self._settle(news, stands=True)
        if self._trim_due:
            await self._store.trim(CHRONICLE, KEPT)
            self._trim_due = False

    async def _read_on(self, place: EventId, known: set[bytes]) -> EventId:
        """Take up what the log has behind a place; where that ends."""
        while True:
            events = await self._store.read(CHRONICLE, after=place, limit=_PAGE)
            if events:
                known.update(event.entry for event in events)
                self._last = place = events[-1].id
            if len(events) < _PAGE:
                return place

    def _settle(self, news: News, *, stands: bool) -> None:
        self._waiting.pop(news.entry, None)
        if not news.stands.done():
            news.stands.set_result(stands)
