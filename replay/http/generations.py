"""Generations: start, look up, list, cancel, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from replay.config import Settings
from replay.http import negotiation
from replay.http.bodies import Bodies
from replay.http.events import Events, read_events_query
from replay.http.generation_list import read_query, spell
from replay.http.headers import names_of
from replay.http.negotiation import generation_id_of
from replay.http.start_requests import read_start_request
from replay.live.activity import Activity
from replay.live.catalogue import Catalogue, Listed
from replay.live.endings import Endings
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.starter import Starter
from replay.model.event import FROM_START, Event
from replay.model.generation import Generation
from replay.store import EventStore
from replay.wire import json
from replay.wire.events import generation_of

_STREAM = "text/event-stream"
_AT_ONCE = 50  # generations that are described before others have their turn: less than a millisecond


class Generations:
    """`/generations` and `/generations/{id}`."""

    def __init__(
        self,
        store: EventStore,
        hub: Hub,
        activity: Activity,
        catalogue: Catalogue,
        endings: Endings,
        starter: Starter,
        events: Events,
        bodies: Bodies,
        settings: Settings,
        *,
        node: str,
    ) -> None:
        self._store = store
        self._hub = hub
        self._activity = activity
        self._catalogue = catalogue
        self._endings = endings
        self._starter = starter
        self._events = events
        self._bodies = bodies
        self._settings = settings
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [
            web.post("/generations", self.start),
            web.get("/generations", self.list_recent),
            web.get("/generations/{id}", self.get),
            web.post("/generations/{id}/cancel", self.cancel),
            web.delete("/generations/{id}", self.delete),
        ]

    async def start(self, request: web.Request) -> web.StreamResponse:
        """Start a generation; answer with its object, or with its event stream where that is asked for."""
        media_type = negotiation.accepted(request, ("application/json", _STREAM))
        query = read_events_query(request) if media_type == _STREAM else None
        async with self._bodies.read_object(request) as body:
            started = await self._starter.start(read_start_request(request, body, self._settings))
            del body
        generation_id = started.feed.generation_id
        if query is not None:
            return await self._events.answer(request, generation_id, query)
        headers = {"Location": f"/generations/{generation_id}", **names_of(started.feed.start)}
        return _answer(await self._describe_feed(started.feed), status=201 if started.created else 200, headers=headers)

    async def get(self, request: web.Request) -> web.Response:
        """Answer with one generation."""
        generation_id = generation_id_of(request)
        (bounds,) = await self._store.bounds([generation_id])
        if bounds is None:
            return _answer(await self._describe_feed(await self._hub.open(generation_id)))
        counts = await self._count_subscribers([generation_id])
        return _answer(describe(generation_of(bounds.first, bounds.last), bounds.expires_at_ms, counts[generation_id]))

    async def list_recent(self, request: web.Request) -> web.Response:
        """Answer with generations, newest first."""
        query = read_query(request)
        cursor = await self._activity.last_id()  # read first, so that nothing falls between the list and the activity
        found = await self._catalogue.find(query.selection, before=query.before, limit=query.limit)
        body = b'{"generations":[%b],"next":%b,"feed_cursor":%b}' % (
            b",".join(await self._described(found.listed)),
            json.dumps(spell(found.next)),
            json.dumps(FROM_START if cursor is None else str(cursor)),
        )
        return _answer(body)

    async def _described(self, listed: Sequence[Listed]) -> list[bytes]:
        counts = await self._count_subscribers([generation.start.generation_id for generation, _ in listed])
        described: list[bytes] = []
        for start in range(0, len(listed), _AT_ONCE):
            described += [
                json.dumps(describe(generation, expires_at_ms, counts[generation.start.generation_id]))
                for generation, expires_at_ms in listed[start : start + _AT_ONCE]
            ]
            await asyncio.sleep(0)
        return described

    async def cancel(self, request: web.Request) -> web.Response:
        """Stop a generation, on whichever node it runs; what it has said stays."""
        return _answer(await self._describe_feed(await self._endings.cancel(generation_id_of(request))))

    async def delete(self, request: web.Request) -> web.Response:
        """Cancel if live, and remove every trace."""
        await self._endings.delete(generation_id_of(request))
        return web.Response(status=204)

    async def _describe_feed(self, feed: Feed) -> dict[str, Any]:
        """The object of a generation whose events are here."""
        log = feed.log
        first, last = (Event(log.event_id(seq), log.entries[seq]) for seq in (0, len(log) - 1))
        counts = await self._count_subscribers([feed.generation_id])
        (bounds,) = await self._store.bounds([feed.generation_id])
        expires_at_ms = None if bounds is None else bounds.expires_at_ms
        return describe(generation_of(first, last), expires_at_ms, counts[feed.generation_id])

    async def _count_subscribers(self, generation_ids: Sequence[str]) -> dict[str, int]:
        """How many follow each, here and on the other nodes."""
        counts = await self._store.subscribers(generation_ids, beside=self._node)
        for generation_id in generation_ids:
            feed = self._hub.get(generation_id)
            counts[generation_id] += 0 if feed is None else feed.subscribers
        return counts


def _answer(body: dict[str, Any] | bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    headers = {"Cache-Control": "no-cache"} | (headers or {})
    encoded = body if isinstance(body, bytes) else json.dumps(body)
    return web.Response(body=encoded, status=status, content_type="application/json", headers=headers)


def describe(generation: Generation, expires_at_ms: int | None, subscribers: int) -> dict[str, Any]:
    """The generation object; times are unix seconds."""
    start, end = generation.start, generation.end
    path = f"/generations/{start.generation_id}"
    described = {
        "id": start.generation_id,
        "status": generation.status.value,
        "model": start.model,
        "created": generation.first_id.ms / 1000,
        "last_event_id": str(generation.last_id),
        "events": generation.last_id.seq + 1,
        "subscribers": subscribers,
        "metadata": start.metadata or {},
        "expires_at": None if expires_at_ms is None else expires_at_ms / 1000,
        "links": {
            "self": path,
            "events": f"{path}/events",
            "transcript": f"{path}/transcript",
            "cancel": f"{path}/cancel",
        },
    }
    if end is None:
        return described
    return described | {
        "finish_reason": end.finish_reason,
        "usage": end.usage,
        "error": end.error,
        "ended": generation.last_id.ms / 1000,
        "tokens": end.total_tokens,
        "total_tokens": end.total_tokens,  # its name of old
        "ttft_ms": end.ttft_ms,
        "duration_ms": end.duration_ms,
    }
