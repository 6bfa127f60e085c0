"""Answers a request with a stream of a generation's events, on a connection that is the subscriber's own.

A `HEAD` is answered with the headers of the `GET`; nobody is subscribed by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from aiohttp import web

from replay.config import Settings
from replay.http.headers import names_of
from replay.http.takeover import TakenOver, framing_of, head, release
from replay.live.counters import Counters
from replay.live.encoding import Encoding
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.multiplexing import MultiplexedStream, TrackStart
from replay.live.stream_connection import cut
from replay.live.subscriber import Delivery, Pace, Subscriber
from replay.store import ACTIVITY_LOG
from replay.wire.events import SSE, Format
from replay.wire.multiplexing import Cursor

_PACE = Pace()


class Streaming:
    """Makes subscribers of requests."""

    def __init__(self, hub: Hub, settings: Settings, counters: Counters) -> None:
        self.closed = False  # the node is going away: readers are sent elsewhere
        self._hub = hub
        self._settings = settings
        self._counters = counters

    def stream(
        self,
        request: web.Request,
        feed: Feed,
        format: Format,
        *,
        next_seq: int = 0,
        with_head: bytes = b"",
        preface: bytes = b"",
        pace: Pace = _PACE,
        headers: Mapping[str, str] | None = None,
    ) -> web.StreamResponse:
        """Make a subscriber of the request, which gets the events from ``next_seq`` on, then live.

        ``with_head`` is written at once, ``preface`` goes into the first block that carries data.
        """
        settings = self._settings
        whose = {} if feed.generation_id == ACTIVITY_LOG else names_of(feed.start)
        fields = {**_headers(format), **whose, **(headers or {})}
        if request.method == "HEAD":
            return web.StreamResponse(headers=fields)
        encoding = self._encoding(request, format)
        retry = b"retry: %d\n" % settings.retry_ms if format.event_source else b""
        delivery = Delivery(
            encoding=encoding,
            head=head(request, fields) + (encoding.framed(with_head) if with_head else b""),
            preface=retry + preface,
            next_seq=next_seq,
            pace=pace,
            buffer_bytes=settings.write_buffer_bytes,
            deadline_s=settings.write_deadline_s,
        )
        self._hub.wake(feed.generation_id)  # it may have been put away since it was opened
        connections = self._hub.connections
        subscriber = Subscriber(feed, delivery, self._counters, connections.discard)
        connections.add(subscriber)
        connection = release(request)
        if connection is None:
            connections.discard(subscriber)
        else:
            subscriber.take_over(connection, delivery)
        return TakenOver()

    def multiplexed(self, request: web.Request, starts: Sequence[TrackStart], cursor: Cursor) -> web.StreamResponse:
        """Make a subscriber of the request, which gets the events of several generations."""
        if request.method == "HEAD":
            return web.StreamResponse(headers=_headers(SSE))
        settings, connections = self._settings, self._hub.connections
        for start in starts:
            if start.feed is not None:
                self._hub.wake(start.feed.generation_id)
        multiplexed = MultiplexedStream(
            starts,
            cursor=cursor,
            encoding=self._encoding(request, SSE),
            counters=self._counters,
            deadline_s=settings.write_deadline_s,
            on_gone=connections.discard,
        )
        connection = release(request)
        if connection is not None:
            connections.add(multiplexed)
            retry = b"retry: %d\n" % settings.retry_ms
            multiplexed.take_over(connection, head(request, _headers(SSE)), retry, settings.write_buffer_bytes)
        return TakenOver()

    def _encoding(self, request: web.Request, format: Format) -> Encoding:
        # A piece may come on top of what waits already, of which there may be as much (see `StreamConnection`).
        return Encoding(format, framing_of(request), self._settings.write_buffer_bytes // 2)

    async def come_back(self, request: web.Request, format: Format) -> web.StreamResponse:
        """Answer so that an `EventSource` tries again: any other status would end it for good."""
        if request.method == "HEAD":
            return web.StreamResponse(headers=_headers(format))
        encoding = self._encoding(request, format)
        transport = request.transport
        if transport is not None and not transport.is_closing():
            transport.write(head(request, _headers(format)) + encoding.framed(format.keepalive))
            for _ in range(100):  # the transport may write only when the loop turns
                if not transport.get_write_buffer_size() or transport.is_closing():
                    break
                await asyncio.sleep(0.01)
        connection = release(request)
        if connection is not None:
            cut(connection.transport, encoding.framing)
        return TakenOver()


def _headers(format: Format) -> dict[str, str]:
    return {
        "Content-Type": format.content_type,
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
    }
