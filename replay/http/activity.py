"""The activity of all generations, followed: what a dashboard shows."""

from __future__ import annotations

from aiohttp import web

from replay.errors import InvalidRequest, StoreUnavailable
from replay.http import negotiation
from replay.http.events import event_id_of
from replay.http.streaming import Streaming
from replay.live.activity import Activity
from replay.live.feed import Feed
from replay.model.event import FROM_START, EventId
from replay.wire.activity import ACTIVITY_EVENTS, ACTIVITY_LINES, ACTIVITY_WITH_PROGRESS

_STREAM = "text/event-stream"
_LINES = "application/x-ndjson"


class ActivityEvents:
    """`GET /feed`."""

    def __init__(self, activity: Activity, streaming: Streaming) -> None:
        self._activity = activity
        self._streaming = streaming

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        return [web.get("/feed", self.feed)]

    async def feed(self, request: web.Request) -> web.StreamResponse:
        """What happens from now on, or after the cursor; with `progress=1` how far the live ones have come too."""
        cursor = event_id_of(request)
        progress = request.query.get("progress", "0")
        if progress not in ("0", "1"):
            raise InvalidRequest(f"progress={progress[:100]!r}: expected 0 or 1")
        lines = negotiation.accepted(request, (_STREAM, _LINES)) == _LINES
        format = ACTIVITY_LINES if lines else ACTIVITY_WITH_PROGRESS if progress == "1" else ACTIVITY_EVENTS
        try:
            feed = await self._activity.open()
        except StoreUnavailable:
            return await self._streaming.come_back(request, format)
        if self._streaming.closed or feed.invalid:
            return await self._streaming.come_back(request, format)
        start, known = _resumption(feed, cursor)
        reset = b"" if known else format.notice("reset", {"reason": "unknown_event_id", "asked": str(cursor)})
        return self._streaming.stream(request, feed, format, start=start, preface=reset)


def _resumption(feed: Feed, cursor: EventId | str | None) -> tuple[int, bool]:
    """Where a reader begins, and whether its cursor is known."""
    if cursor is None:
        return len(feed.log), True
    if cursor == FROM_START:
        return feed.log.first, True
    assert isinstance(cursor, EventId)
    return (cursor.seq + 1, True) if feed.log.holds(cursor) else (feed.log.first, False)
