"""Answers a request with a stream of a generation's events, on a connection that is the subscriber's own.

A `HEAD` is answered with the headers of the `GET`; nobody is subscribed by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from aiohttp import web

from replay.config import Settings
from replay.http.headers import names_of
from replay.http.takeover import TakenOver, head, is_chunked, release
from replay.live.bundle import Bundle, Origin
from replay.live.counters import Counters
from replay.live.feed import Feed
from replay.live.framing import Channel
from replay.live.hub import Hub
from replay.live.outlet import cut
from replay.live.subscriber import Delivery, Pace, Subscriber
from replay.store import CHRONICLE
from replay.wire.bundle import Cursor
from replay.wire.events import SSE, Face

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
        face: Face,
        *,
        start: int = 0,
        opening: bytes = b"",
        preface: bytes = b"",
        pace: Pace = _PACE,
        headers: Mapping[str, str] | None = None,
    ) -> web.StreamResponse:
        """The events from the place ``start`` on, then live.

        ``opening`` is written at once, ``preface`` goes into the first block that carries data.
        """
        settings = self._settings
        whose = {} if feed.generation_id == CHRONICLE else names_of(feed.start)
        fields = {**_headers(face), **whose, **(headers or {})}
        if request.method == "HEAD":
            return web.StreamResponse(headers=fields)
        channel = self._channel(request, face)
        retry = b"retry: %d\n" % settings.retry_ms if face.retry else b""
        delivery = Delivery(
            channel=channel,
            head=head(request, fields) + (channel.framed(opening) if opening else b""),
            preface=retry + preface,
            start=start,
            pace=pace,
            buffer_bytes=settings.write_buffer_bytes,
            deadline_s=settings.write_deadline_s,
        )
        self._hub.wake(feed.generation_id)  # it may have been put away since it was opened
        subscribers = self._hub.subscribers
        subscriber = Subscriber(feed, delivery, self._counters, subscribers.discard)
        subscribers.add(subscriber)
        connection = release(request)
        if connection is None:
            subscribers.discard(subscriber)
        else:
            subscriber.take_over(connection, delivery)
        return TakenOver()

    def bundle(self, request: web.Request, origins: Sequence[Origin], cursor: Cursor) -> web.StreamResponse:
        """The events of several generations."""
        if request.method == "HEAD":
            return web.StreamResponse(headers=_headers(SSE))
        settings, subscribers = self._settings, self._hub.subscribers
        for origin in origins:
            if origin.feed is not None:
                self._hub.wake(origin.feed.generation_id)
        bundle = Bundle(
            origins,
            cursor=cursor,
            channel=self._channel(request, SSE),
            counters=self._counters,
            deadline_s=settings.write_deadline_s,
            on_gone=subscribers.discard,
        )
        connection = release(request)
        if connection is not None:
            subscribers.add(bundle)
            retry = b"retry: %d\n" % settings.retry_ms
            bundle.take_over(connection, head(request, _headers(SSE)), retry, settings.write_buffer_bytes)
        return TakenOver()

    def _channel(self, request: web.Request, face: Face) -> Channel:
        # A piece may come on top of what waits already, of which there may be as much (see `Outlet`).
        return Channel(face, is_chunked(request), self._settings.write_buffer_bytes // 2)

    async def come_back(self, request: web.Request, face: Face) -> web.StreamResponse:
        """Answer so that an `EventSource` tries again: any other status would end it for good."""
        if request.method == "HEAD":
            return web.StreamResponse(headers=_headers(face))
        channel = self._channel(request, face)
        transport = request.transport
        if transport is not None and not transport.is_closing():
            transport.write(head(request, _headers(face)) + channel.framed(face.keepalive))
            for _ in range(100):  # the transport may write only when the loop turns
                if not transport.get_write_buffer_size() or transport.is_closing():
                    break
                await asyncio.sleep(0.01)
        connection = release(request)
        if connection is not None:
            cut(connection.transport, chunked=channel.chunked)
        return TakenOver()


def _headers(face: Face) -> dict[str, str]:
    return {
        "Content-Type": face.content_type,
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
    }
