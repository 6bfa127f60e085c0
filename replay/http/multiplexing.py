"""Several generations on one connection: a browser allows six per host."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from aiohttp import web

from replay.errors import GenerationNotFound, InvalidRequest
from replay.http import negotiation
from replay.http.events import read_mode
from replay.http.resuming import Resumed, Resuming, cursor_of
from replay.http.streaming import Streaming
from replay.http.transcripts import transcript_of
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.multiplexing import TrackStart
from replay.model.event import FROM_START, EventId
from replay.model.generation import is_generation_id
from replay.wire.events import SSE
from replay.wire.multiplexing import Cursor, NoEvent, notice

_MOST = 100  # generations on one connection; every event's id tells where each of them stands


class MultiplexedEvents:
    """`GET /events`."""

    def __init__(self, hub: Hub, streaming: Streaming, resuming: Resuming) -> None:
        self._hub = hub
        self._resuming = resuming
        self._streaming = streaming

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [web.get("/events", self.events)]

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Answer with exactly what comes after the cursor, for each generation, then live."""
        generation_ids = _generation_ids(request)
        negotiation.accepted(request, ("text/event-stream",))
        snapshot = read_mode(request) == "snapshot"
        given = cursor_of(request)
        cursor = Cursor.parse(given, generation_ids) if given not in (None, FROM_START) else Cursor(generation_ids)
        resume = self._resume(request, generation_ids, cursor, snapshot=snapshot and given is None)
        return await self._resuming.answer(request, SSE, resume)

    async def _resume(
        self, request: web.Request, generation_ids: list[str], cursor: Cursor, *, snapshot: bool
    ) -> Resumed:
        feeds = await asyncio.gather(*map(self._feed, generation_ids))
        if not any(feeds):
            raise GenerationNotFound("none of these generations exists; they may have expired")
        starts = [
            await self._start(index, generation_id, feed, cursor, snapshot=snapshot)
            for index, (generation_id, feed) in enumerate(zip(generation_ids, feeds, strict=True))
        ]
        return Resumed(
            [feed for feed in feeds if feed is not None],
            not any(map(_goes_on, starts)),
            partial(self._streaming.multiplexed, request, starts, cursor),
        )

    async def _feed(self, generation_id: str) -> Feed | None:
        try:
            return await self._hub.open(generation_id) if is_generation_id(generation_id) else None
        except GenerationNotFound:
            return None

    async def _start(
        self, index: int, generation_id: str, feed: Feed | None, cursor: Cursor, *, snapshot: bool
    ) -> TrackStart:
        """Where this reader goes on; moves the cursor to there, or lets the snapshot do so."""
        position = cursor.positions[index]
        if feed is None:
            cursor.move(index, NoEvent.GONE)
            return TrackStart(
                None, first=None if position is NoEvent.GONE else partial(notice, "expired", generation_id, cursor)
            )
        if isinstance(position, EventId) and await self._hub.find(feed, position):
            return TrackStart(feed, position.seq + 1)
        if isinstance(position, EventId):
            cursor.move(index, NoEvent.BEFORE)
            reset: dict[str, Any] = {"reason": "unknown_event_id", "asked": str(position)}
            return TrackStart(feed, 0, partial(notice, "reset", generation_id, **reset))
        if not snapshot:
            return TrackStart(feed, 0)
        log = feed.log
        stop = len(log) - 1 if log.complete else len(log)
        return TrackStart(feed, stop, snapshot=partial(_snapshot, index, feed, stop, cursor))


def _snapshot(index: int, feed: Feed, stop: int, cursor: Cursor) -> bytes:
    cursor.move(index, feed.log.event_id(stop - 1))
    return notice("snapshot", feed.generation_id, cursor, **transcript_of(feed, stop))


def _generation_ids(request: web.Request) -> list[str]:
    generation_ids = list(dict.fromkeys(request.query.getall("generation", [])))
    if not 1 <= len(generation_ids) <= _MOST:
        raise InvalidRequest(f"generation: expected 1 to {_MOST} of them, got {len(generation_ids)}")
    return generation_ids


def _goes_on(start: TrackStart) -> bool:
    return start.feed is not None and not (start.feed.log.complete and start.next_seq >= len(start.feed.log))
