"""`/v1/completions/stream`: a generation for a plain page, three lines of `EventSource`.

The ids on the wire are `<generation id>:<event id>`. So when the browser comes back to the same URL by itself,
with the last of them, it resumes that generation; without that, every reconnect would start, and pay for, another.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web

from replay.errors import InvalidEventId, InvalidRequest
from replay.http.headers import REQUEST_ID
from replay.http.negotiation import generation_id_in
from replay.http.openai_service import OpenAIService, link_headers
from replay.http.origins import Origins
from replay.http.resuming import Resuming, Resumption, after_event, cursor_of
from replay.http.start_requests import chat_request, start_request_of
from replay.live.feed import Feed
from replay.live.starter import Started
from replay.model.event import EventId
from replay.upstream import Api
from replay.wire.openai_formats import TOKEN_LINES


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


# What a URL may ask for; everything else needs a body.
_PARAMETERS: dict[str, Callable[[str], Any]] = {
    "prompt": str,
    "model": str,
    "max_tokens": int,
    "temperature": _finite,
    "top_p": _finite,
    "seed": int,
}


class TokenStream:
    """`GET` and `POST /v1/completions/stream`."""

    def __init__(self, service: OpenAIService, resuming: Resuming, origins: Origins) -> None:
        self._service = service
        self._resuming = resuming
        self._origins = origins

    def routes(self) -> list[web.RouteDef]:
        """What this face answers."""
        path = "/v1/completions/stream"
        return [web.get(path, self.get, allow_head=False), web.post(path, self.post)]

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Start what the URL asks for, or go on with what this reader has begun."""
        cursor = cursor_of(request)
        if cursor:
            return await self._resume(request, cursor)
        self._origins.refuse_foreign(request)  # it costs money, and any page may make a browser send a GET
        return await self._show(request, await self._start(request, _body_of(request), None))

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Start what a body of JSON asks for, or go on with what this reader has begun."""
        cursor = cursor_of(request)
        if cursor:
            return await self._resume(request, cursor)
        return await self._show(request, await self._start_asked(request))

    async def _start_asked(self, request: web.Request) -> Started:
        async with self._service.bodies.read_object(request) as body:
            options = body.pop("replay", None)
            body.pop("stream", None)
            return await self._start(request, body, options)

    async def _start(self, request: web.Request, body: dict[str, Any], options: Any) -> Started:
        service = self._service
        if not isinstance(body.get("prompt"), str):
            raise InvalidRequest("prompt: expected a string")
        start_request = start_request_of(request, chat_request(body), options, service.settings, api=Api.CHAT)
        return await service.starter.start(start_request)

    async def _show(self, request: web.Request, started: Started) -> web.StreamResponse:
        service, feed = self._service, started.feed
        await self._first_token(feed)
        if feed.unanswered:
            return await service.failure(feed, alone=started.alone)
        # A reader that is cut before its first token has to know where it was all the same.
        with_head = b"" if _has_token(feed) else _cursor_alone(feed, service.settings.retry_ms)
        return service.streaming.stream(
            request, feed, TOKEN_LINES, with_head=with_head, headers=_headers(request, feed)
        )

    async def _first_token(self, feed: Feed) -> None:
        """Wait for the first token or the end, but not so long that a client or a proxy gives up."""
        head_wait_s = self._service.head_wait_s
        with contextlib.suppress(TimeoutError), feed.subscribed():
            async with asyncio.timeout(head_wait_s):
                while not (_has_token(feed) or feed.log.complete or feed.invalid):
                    await feed.wait_change(len(feed.log), head_wait_s)
        self._service.check_open(feed)

    async def _resume(self, request: web.Request, cursor: str) -> web.StreamResponse:
        service = self._service
        name, colon, text = cursor.rpartition(":")
        if not colon:
            raise InvalidEventId(f"Last-Event-ID {cursor[:150]!r}: expected <generation id>:<ms>-<seq>")
        generation_id, event_id = generation_id_in(name), EventId.parse(text)

        async def resume(feed: Feed) -> Resumption:
            return after_event(feed, event_id, known=await service.hub.find(feed, event_id), asked=cursor)

        open_feed, headers = partial(service.hub.open, generation_id), partial(_headers, request)
        return await self._resuming.follow(request, TOKEN_LINES, open_feed, resume, headers=headers)


def _headers(request: web.Request, feed: Feed) -> dict[str, str]:
    return link_headers(feed) | {"x-request-id": request[REQUEST_ID]}


def _has_token(feed: Feed) -> bool:
    return bool(feed.log.token_times())


def _cursor_alone(feed: Feed, retry_ms: int) -> bytes:
    return b"retry: %d\nid: %b:%d-%d\n\n" % (retry_ms, feed.generation_id.encode(), *feed.log.event_id(0))


def _body_of(request: web.Request) -> dict[str, Any]:
    """The parameters of a URL; raises InvalidRequest."""
    body: dict[str, Any] = {}
    for name, text in request.query.items():
        if name not in _PARAMETERS:
            raise InvalidRequest(f"{name[:100]}: expected {', '.join(_PARAMETERS)}; anything else in a POST")
        try:
            body[name] = _PARAMETERS[name](text)
        except ValueError:
            raise InvalidRequest(
                f"{name}={text[:100]!r}: expected {'an integer' if _PARAMETERS[name] is int else 'a number'}"
            ) from None
    return body
