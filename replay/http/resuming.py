"""Resuming: whoever comes back with a cursor gets exactly what follows it, then what happens.

    Valkey does not answer, this node is leaving,    the answer is begun and cut: an EventSource tries again, which
    or the log is not the one that was shown         any other status would end for good
    the cursor names an event                        all after it
    the cursor names none                            a `reset`, then all there is
    nothing is after it, and nothing will be         204 to an EventSource, which stays away then; else an empty answer

A face that resumes says how its feed is opened and where in it a reader goes on; the rest is here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiohttp import web

from replay.errors import StoreUnavailable
from replay.http.streaming import Streaming
from replay.live.feed import Feed
from replay.live.subscriber import Pace
from replay.model.event import FROM_START, EventId
from replay.wire.events import Format


class Notice(NamedTuple):
    """What a stream tells one reader beside its log."""

    name: str
    data: dict[str, Any]
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Resumption:
    """Where in a log a reader goes on, and what comes before that."""

    next_seq: int
    notices: tuple[Notice, ...] = ()


class Resumed(NamedTuple):
    """What an answer is made of."""

    feeds: Sequence[Feed]
    over: bool  # whether nothing will come any more
    answer: Callable[[], web.StreamResponse]


class Resuming:
    """Answers requests that come back, or come for the first time."""

    def __init__(self, streaming: Streaming) -> None:
        self._streaming = streaming

    async def answer(self, request: web.Request, format: Format, resume: Awaitable[Resumed]) -> web.StreamResponse:
        """Answer as the table has it; raises what ``resume`` does but StoreUnavailable."""
        try:
            resumed = await resume
        except StoreUnavailable:
            return await self._streaming.come_back(request, format)
        if self._streaming.closed or any(feed.invalid for feed in resumed.feeds):
            return await self._streaming.come_back(request, format)
        if resumed.over and format.event_source:
            return web.Response(status=204)
        return resumed.answer()

    async def follow(
        self,
        request: web.Request,
        format: Format,
        open_feed: Callable[[], Awaitable[Feed]],
        resume: Callable[[Feed], Awaitable[Resumption]],
        *,
        pace: Pace | None = None,
        headers: Callable[[Feed], Mapping[str, str]] | None = None,
    ) -> web.StreamResponse:
        """Answer with the rest of one feed: ``open_feed`` opens it, and ``resume`` finds where the reader goes on."""

        async def resumed() -> Resumed:
            feed = await open_feed()
            resumption = await resume(feed)

            def stream() -> web.StreamResponse:
                preface = b"".join(format.notice(*notice) for notice in resumption.notices)
                return self._streaming.stream(
                    request,
                    feed,
                    format,
                    next_seq=resumption.next_seq,
                    preface=preface,
                    pace=pace or Pace(),
                    headers=None if headers is None else headers(feed),
                )

            return Resumed((feed,), feed.log.complete and resumption.next_seq >= len(feed.log), stream)

        return await self.answer(request, format, resumed())


def after_event(feed: Feed, event_id: EventId, *, known: bool, asked: str | None = None) -> Resumption:
    """After an event, if the log has it; else all there is after a `reset`, which repeats what was ``asked``."""
    if known:
        return Resumption(event_id.seq + 1)
    data = {"reason": "unknown_event_id", "asked": asked or str(event_id)}
    return Resumption(feed.log.first, (Notice("reset", data),))


def cursor_of(request: web.Request) -> str | None:
    """The header, else the query, where libraries spell it in several ways."""
    spellings = (request.query.get(name) for name in ("after", "last_event_id", "lastEventId"))
    return request.headers.get("Last-Event-ID") or next(filter(None, spellings), None)


def event_id_of(request: web.Request) -> EventId | str | None:
    """The cursor as an event's id, or `-1`, or None; raises InvalidEventId."""
    text = cursor_of(request)
    return text if text in (None, FROM_START) else EventId.parse(text)
