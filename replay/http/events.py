"""A generation's events: as an event stream, as lines, as pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from aiohttp import web

from replay.errors import InvalidRequest
from replay.http import negotiation
from replay.http.negotiation import generation_id_of
from replay.http.resuming import Notice, Resuming, Resumption, after_event, event_id_of
from replay.http.transcripts import transcript_of
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.subscriber import Pace
from replay.model.event import FROM_START, EventId
from replay.wire import json
from replay.wire.events import NDJSON, SSE, Format, event_objects
from replay.wire.openai_formats import OPENAI_CHUNKS

_STREAM = "text/event-stream"
_LINES = "application/x-ndjson"
_PAGE = "application/json"
_FORMATS = {_STREAM: SSE, _LINES: NDJSON}
_LARGEST_PAGE = 1000
_DEFAULT_PAGE = 100


@dataclass(frozen=True, slots=True)
class EventsQuery:
    """What a request for events asks for."""

    format: Format | None  # None: a page
    cursor: EventId | str | None  # the string is `-1`, from the start
    pace: Pace
    snapshot: bool
    since_ms: int | None
    limit: int  # events of a page


def read_events_query(request: web.Request) -> EventsQuery:
    """What a request asks for; raises InvalidRequest, NotAcceptable."""
    format = _format(request)
    return EventsQuery(
        format=format,
        cursor=event_id_of(request),
        pace=_pace(request),
        snapshot=_mode(request, format) == "snapshot",
        since_ms=negotiation.time_ms(request, "since"),
        limit=negotiation.integer(request, "limit", least=1, most=_LARGEST_PAGE, default=_DEFAULT_PAGE),
    )


class Events:
    """`GET /generations/{id}/events`."""

    def __init__(self, hub: Hub, resuming: Resuming) -> None:
        self._hub = hub
        self._resuming = resuming

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [web.get("/generations/{id}/events", self.events)]

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Answer with exactly what comes after the cursor, then live."""
        return await self.answer(request, generation_id_of(request), read_events_query(request))

    async def answer(self, request: web.Request, generation_id: str, query: EventsQuery) -> web.StreamResponse:
        """Answer with the events of a generation, in the format, from where and at the pace that ``query`` asks for."""
        if query.format is None:
            return await self._page(await self._hub.open(generation_id), query)
        open_feed, resume = partial(self._hub.open, generation_id), partial(self._resumption, query)
        return await self._resuming.follow(request, query.format, open_feed, resume, pace=query.pace)

    async def _resumption(self, query: EventsQuery, feed: Feed) -> Resumption:
        """Where in the feed the query goes on, and what comes before that."""
        log, cursor = feed.log, query.cursor
        if isinstance(cursor, EventId):
            return after_event(feed, cursor, known=await self._hub.find(feed, cursor))
        if cursor == FROM_START:
            return Resumption(0)
        if query.snapshot:
            stop = len(log) - 1 if log.complete else len(log)
            return Resumption(stop, (Notice("snapshot", transcript_of(feed, stop), str(log.event_id(stop - 1))),))
        return Resumption(0 if query.since_ms is None else log.since(query.since_ms))

    async def _page(self, feed: Feed, query: EventsQuery) -> web.Response:
        resumption = await self._resumption(query, feed)
        log = feed.log
        stop = min(resumption.next_seq + query.limit, len(log))
        events = event_objects(feed.recording, resumption.next_seq, stop)
        complete = log.complete and stop == len(log)
        following = None if complete else str(log.event_id(stop - 1)) if stop else FROM_START
        reset = b"".join(b',"reset":' + json.dumps({"type": name, **data}) for name, data, _ in resumption.notices)
        body = b'{"events":[%b],"next":%b,"complete":%b%b}' % (
            b",".join(events),
            json.dumps(following),
            json.dumps(complete),
            reset,
        )
        return web.Response(body=body, content_type=_PAGE, headers={"Cache-Control": "no-cache"})


def _format(request: web.Request) -> Format | None:
    """The format that is asked for; None is a page."""
    name = request.query.get("format")
    if name == "openai":
        return OPENAI_CHUNKS  # whatever Accept says: the official SDK asks for JSON when it wants a stream
    if name is not None:
        raise InvalidRequest(f"format={name[:100]!r}: expected openai, or no format")
    return _FORMATS.get(negotiation.accepted(request, (_STREAM, _LINES, _PAGE)))


def _pace(request: web.Request) -> Pace:
    speed = negotiation.number(request, "speed", least=0.001, most=1_000_000)
    batch_ms = negotiation.number(request, "batch_ms", least=0, most=60_000)
    return Pace(speed=speed, batch_s=(batch_ms or 0.0) / 1000)


def read_mode(request: web.Request) -> str | None:
    """`snapshot`, or None; raises InvalidRequest."""
    mode = request.query.get("mode")
    if mode not in (None, "snapshot"):
        raise InvalidRequest(f"mode={mode[:100]!r}: expected snapshot, or no mode")
    return mode


def _mode(request: web.Request, format: Format | None) -> str | None:
    mode = read_mode(request)
    if mode is not None and format not in (SSE, NDJSON):
        raise InvalidRequest("mode=snapshot: expected for a stream of events, not for pages or format=openai")
    return mode
