"""The HTTP server: aiohttp's, with limits for those who send or take nothing, and answers to what is not HTTP.

A connection has `--request-timeout-s` for the head of a request, from its first byte on, `--idle-connection-s` without
one, and `--write-deadline-s` to take something of an answer that waits for it. Of the process's file descriptors an
eighth is kept for Valkey and the upstreams: who connects when the others are taken is cut, and comes back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
from collections.abc import Callable
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.web_protocol import RequestHandler

from replay.config import Settings
from replay.errors import RequestTimeout
from replay.http.headers import STANDING
from replay.http.problems import problem

logger = logging.getLogger(__name__)

# Enough for a hundred generations on one connection, and for the cursor over all of them.
LONGEST_LINE = 32 << 10

_END_OF_HEAD = b"\r\n\r\n"
_SPLIT = len(_END_OF_HEAD) - 1
# A connection that is given back waits no longer than this for another request: most readers have what they wanted.
_AFTER_STREAM_S = 15.0
_LEAST_RESERVE = 32  # file descriptors
_WARN_EVERY_S = 10.0


class _Connection(RequestHandler):
    """A connection that knows whether it stands between two requests.

    What it has received behind the head of its last request is counted. If that is as much as the head announces, and
    the parser has seen the end of the body, then nothing of another request has come, not even in part. The count can
    only be too large (an empty line in front of a request looks like the end of a head), never too small.
    """

    _beginning = b""  # the last bytes before those that come now; the end of a head may be split between them
    _behind_head: int | None = None  # bytes; None where no request has come, or it cannot be said

    def __init__(self, server: _Server, settings: Settings, **options: Any) -> None:
        super().__init__(server, **options)
        self._settings = settings
        self._body: StreamReader | None = None  # of the last request
        self._head_limit: asyncio.TimerHandle | None = None  # while a part of a head is here
        self._write_limit: asyncio.TimerHandle | None = None  # while the transport is full

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        server = self._manager
        assert isinstance(server, _Server)
        if self.transport is not None and not server.has_room(self.transport):
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._cancel(self._head_limit)
        self._cancel(self._write_limit)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        requests = self._request_count
        between = self._body is None or self._body.is_eof()
        super().data_received(data)
        if self._request_count == requests:
            self._behind_head = None if self._behind_head is None else self._behind_head + len(data)
            if data and between and self._head_limit is None:
                self._limit_head()
        else:
            self._cancel(self._head_limit)
            self._head_limit = None
            self._body = self._messages[-1][1]
            seen = self._beginning + data
            end = seen.find(_END_OF_HEAD) if self._request_count == requests + 1 else -1
            self._behind_head = None if end < 0 else len(seen) - end - len(_END_OF_HEAD)
        self._beginning = (self._beginning + data[-_SPLIT:])[-_SPLIT:]

    def _limit_head(self) -> None:
        self._head_limit = self._loop.call_later(self._settings.request_timeout_s, self._refuse_late_head)

    def _refuse_late_head(self) -> None:
        if self._waiter is None:  # another request is being answered: what is behind it comes when it comes
            self._limit_head()
            return
        error = RequestTimeout(f"head: expected within {self._settings.request_timeout_s:g} s")
        if self.transport is not None:
            self.transport.write(_raw(problem(error.status, error.title, str(error), error.code)))
        self.force_close()

    def _cancel(self, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()

    async def start(self) -> None:
        """Answer requests until the connection closes, and see to it that it does."""
        transport = self.transport
        try:
            await super().start()
        finally:
            # Closing waits until the client has taken what is buffered, which it may never do.
            if transport is not None and transport.is_closing() and transport.get_write_buffer_size():
                self._loop.call_later(self._settings.write_deadline_s, transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self._watch_writing(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel(self._write_limit)

    def _watch_writing(self, transport: asyncio.Transport) -> None:
        """Cut a client that takes nothing of its answer for as long as the deadline."""
        waiting = transport.get_write_buffer_size()

        def look() -> None:
            if transport.get_write_buffer_size() < waiting:
                self._watch_writing(transport)
            else:
                transport.abort()

        self._write_limit = self._loop.call_later(self._settings.write_deadline_s, look)

    def successor(self, request: web.Request, transport: asyncio.Transport) -> Callable[[], None] | None:
        """What gives a connection that was taken over back to the server, for the client's next request.

        A client may take the connection from its pool as soon as it has read the end of a response: closing it then
        would fail a request that has just been sent. But what comes next on it has to be a request: None where a part
        of this one's body is still to come, or where something has come behind it.
        """
        whole = request.content.is_eof() and self._behind_head == (request.content_length or 0)
        if self._messages or not (whole and request.keep_alive):
            return None
        server = self._manager
        assert isinstance(server, _Server)

        def give_back() -> None:
            fresh = server.connection(idle_s=_AFTER_STREAM_S)
            transport.set_protocol(fresh)
            transport.set_write_buffer_limits()
            fresh.connection_made(transport)

        return give_back

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)  # logs it, and raises where it is too late for an answer
        detail = f"expected HTTP/1.1 with lines of at most {LONGEST_LINE} bytes"
        response = problem(status, "The request is not understood.", detail, "invalid_request")
        response.headers.update(STANDING)
        response.force_close()
        return response


def _raw(response: web.Response) -> bytes:
    """A response as it is written where the server has no request to answer."""
    assert isinstance(response.body, bytes)
    headers = {**response.headers, **STANDING, "Content-Length": str(len(response.body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + response.body


class _Server(web.Server):
    def __init__(self, made: web.Server, settings: Settings, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(made.request_handler, request_factory=made.request_factory, loop=loop, **options)
        self._settings = settings
        self._most = _descriptors_for_clients()
        self._warned = -_WARN_EVERY_S

    def __call__(self) -> _Connection:
        return self.connection(idle_s=self._settings.idle_connection_s)

    def connection(self, *, idle_s: float) -> _Connection:
        """What serves one connection, which is closed when it has waited so long for a request."""
        return _Connection(self, self._settings, loop=self._loop, keepalive_timeout=idle_s, **self._kwargs)

    def has_room(self, transport: asyncio.Transport) -> bool:
        """Whether another client may have a descriptor; a new one has the lowest number that is free."""
        if transport.get_extra_info("socket").fileno() < self._most:
            return True
        now = self._loop.time()
        if now - self._warned >= _WARN_EVERY_S:
            self._warned = now
            logger.warning("connections are cut: too few file descriptors are left", extra={"most": self._most})
        return False


def _descriptors_for_clients() -> float:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft - max(_LEAST_RESERVE, soft // 8)


class Runner(web.AppRunner):
    """Runs an application; lines of a request's head may be `LONGEST_LINE` bytes long."""

    def __init__(self, app: web.Application, settings: Settings, **options: Any) -> None:
        super().__init__(app, max_line_size=LONGEST_LINE, max_field_size=LONGEST_LINE, auto_decompress=False, **options)
        self._settings = settings

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._settings, **self._kwargs)
