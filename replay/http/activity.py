"""The activity of all generations, followed: what a dashboard shows."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from replay.errors import InvalidRequest
from replay.http import negotiation
from replay.http.resuming import Resuming, Resumption, after_event, event_id_of
from replay.live.activity import Activity
from replay.live.feed import Feed
from replay.model.event import FROM_START, EventId
from replay.wire.activity import ACTIVITY_EVENTS, ACTIVITY_LINES, ACTIVITY_WITH_PROGRESS

_STREAM = "text/event-stream"
_LINES = "application/x-ndjson"


class ActivityEvents:
    """`GET /feed`."""

    def __init__(self, activity: Activity, resuming: Resuming) -> None:
        self._activity = activity
        self._resuming = resuming

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [web.get("/feed", self.events)]

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Answer with what happens from now on or after the cursor; with `progress=1` also how far live ones are."""
        cursor = event_id_of(request)
        progress = request.query.get("progress", "0")
        if progress not in ("0", "1"):
            raise InvalidRequest(f"progress={progress[:100]!r}: expected 0 or 1")
        lines = negotiation.accepted(request, (_STREAM, _LINES)) == _LINES
        format = ACTIVITY_LINES if lines else ACTIVITY_WITH_PROGRESS if progress == "1" else ACTIVITY_EVENTS
        return await self._resuming.follow(request, format, self._activity.open, partial(_resumption, cursor))


async def _resumption(cursor: EventId | str | None, feed: Feed) -> Resumption:
    if cursor is None:
        return Resumption(len(feed.log))
    if cursor == FROM_START:
        return Resumption(feed.log.first)
    assert isinstance(cursor, EventId), "there is no other text"
    return after_event(feed, cursor, known=feed.log.holds(cursor))
