"""Several generations on one connection: a browser allows six per host."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from aiohttp import web

from replay.errors import GenerationNotFound, InvalidRequest, StoreUnavailable
from replay.http import negotiation
from replay.http.events import cursor_of, read_mode
from replay.http.streaming import Streaming
from replay.http.transcripts import transcript_of
from replay.live.bundle import Origin
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.model.event import FROM_START, EventId
from replay.model.generation import is_generation_id
from replay.wire.bundle import Cursor, Stand, notice
from replay.wire.events import SSE

_MOST = 100  # generations on one connection; every event's id tells where each of them stands


class Bundles:
    """`GET /events`."""

    def __init__(self, hub: Hub, streaming: Streaming) -> None:
        self._hub = hub
        self._streaming = streaming

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [web.get("/events", self.events)]

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Exactly what comes after the cursor, for each generation, then live."""
        generation_ids = _generation_ids(request)
        negotiation.accepted(request, ("text/event-stream",))
        snapshot = read_mode(request) == "snapshot"
        given = cursor_of(request)
        cursor = Cursor.parse(given, generation_ids) if given not in (None, FROM_START) else Cursor(generation_ids)
        try:
            feeds = await asyncio.gather(*map(self._feed, generation_ids))
            if not any(feeds):
                raise GenerationNotFound("none of these generations exists; they may have expired")
            origins = [
                await self._origin(place, generation_id, feed, cursor, snapshot=snapshot and given is None)
                for place, (generation_id, feed) in enumerate(zip(generation_ids, feeds, strict=True))
            ]
        except StoreUnavailable:
            return await self._streaming.come_back(request, SSE)
        if self._streaming.closed or any(feed is not None and feed.invalid for feed in feeds):
            return await self._streaming.come_back(request, SSE)
        if not any(map(_goes_on, origins)):
            return web.Response(status=204)
        return self._streaming.bundle(request, origins, cursor)

    async def _feed(self, generation_id: str) -> Feed | None:
        try:
            return await self._hub.open(generation_id) if is_generation_id(generation_id) else None
        except GenerationNotFound:
            return None

    async def _origin(
        self, place: int, generation_id: str, feed: Feed | None, cursor: Cursor, *, snapshot: bool
    ) -> Origin:
        """Where this reader goes on; moves the cursor to there, or lets the snapshot do so."""
        stand = cursor.stands[place]
        if feed is None:
            cursor.move(place, Stand.GONE)
            return Origin(
                None, first=None if stand is Stand.GONE else partial(notice, "expired", generation_id, cursor)
            )
        if isinstance(stand, EventId) and await self._hub.find(feed, stand):
            return Origin(feed, stand.seq + 1)
        if isinstance(stand, EventId):
            cursor.move(place, Stand.BEFORE)
            told: dict[str, Any] = {"reason": "unknown_event_id", "asked": str(stand)}
            return Origin(feed, 0, partial(notice, "reset", generation_id, **told))
        if not snapshot:
            return Origin(feed, 0)
        log = feed.log
        stop = len(log) - 1 if log.complete else len(log)
        return Origin(feed, stop, snapshot=partial(_snapshot, place, feed, stop, cursor))


def _snapshot(place: int, feed: Feed, stop: int, cursor: Cursor) -> bytes:
    cursor.move(place, feed.log.event_id(stop - 1))
    return notice("snapshot", feed.generation_id, cursor, **transcript_of(feed, stop))


def _generation_ids(request: web.Request) -> list[str]:
    generation_ids = list(dict.fromkeys(request.query.getall("generation", [])))
    if not 1 <= len(generation_ids) <= _MOST:
        raise InvalidRequest(f"generation: expected 1 to {_MOST} of them, got {len(generation_ids)}")
    return generation_ids


def _goes_on(origin: Origin) -> bool:
    return origin.feed is not None and not (origin.feed.log.complete and origin.start >= len(origin.feed.log))
