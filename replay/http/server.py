"""The HTTP server: aiohttp's, with limits for those who send or take nothing, and answers to what is not HTTP.

A connection has `--request-timeout-s` for the head of a request, from its first byte on, `--idle-connection-s` without
one, and `--write-deadline-s` to take something of an answer that waits for it. Who connects when no file descriptor is
left but Valkey's is cut, and comes back.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import StreamReader, web

from replay import descriptors
from replay.config import Settings
from replay.errors import HeadTooLarge, ReplayError, RequestTimeout
from replay.http.aiohttp_server import BaseRunner, BaseServer, ServerConnection
from replay.http.headers import STANDING
from replay.http.heads import Heads
from replay.http.problems import answer_to_http, problem

logger = logging.getLogger(__name__)

# Enough for a hundred generations on one connection, and for the cursor over all of them.
LONGEST_LINE = 32 << 10
# The parser holds what it has of a head, and allows 128 lines.
_LARGEST_HEAD = 3 * LONGEST_LINE
# A connection that is given back waits no longer than this for another request: most readers have what they wanted.
_AFTER_STREAM_S = 15.0
# The kernel says that there is room when half of this is left to send, instead of most of its buffer of up to 4 MB: who
# reads slowly is seen to read.
_MOST_UNSENT = 128 << 10
_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_WARN_EVERY_S = 10.0


class Connection(ServerConnection):
    """A connection that knows whether it stands between two requests."""

    def __init__(self, server: _Server, settings: Settings, **options: Any) -> None:
        super().__init__(server, **options)
        self._settings = settings
        self._heads = Heads()
        self._requests = 0  # that `_heads` knows of
        self._refused = False  # by the parser, which is answered; nothing after it is a head
        self._body: StreamReader | None = None  # of the last request
        self._head_limit: asyncio.TimerHandle | None = None  # while a part of a head is here
        self._write_limit: asyncio.TimerHandle | None = None  # while the transport is full

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        server = self.server
        if self.transport is None:
            return
        if not server.has_room(self.transport):
            self.transport.abort()
        elif _NOTSENT_LOWAT is not None:
            self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _MOST_UNSENT)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._cancel(self._head_limit)
        self._cancel(self._write_limit)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come; what is a part of a head has its limits of time and size."""
        if self.closes:
            return
        if self.heads_read != self._requests:  # read by aiohttp out of what came after a WebSocket's request
            self._requests = self.heads_read
            self._body = self.latest_body
            self._heads.lose()
        within_body = self._body is not None and not self._body.is_eof()
        super().data_received(data)
        new = self.heads_read - self._requests
        if new:
            self._requests = self.heads_read
            self._body = self.latest_body
            self._cancel(self._head_limit)
            self._head_limit = None
        ended = self._body is None or self._body.is_eof()
        understood = self.latest_heads(new)
        self._refused = self._refused or len(understood) < new
        self._heads.take(data, understood, within_body=within_body, ended=ended)
        if self._heads.unfinished and not self._refused:
            self._limit_head()

    def _limit_head(self) -> None:
        if not self.reads:
            return
        if self._head_limit is None:
            self._head_limit = self.loop.call_later(self._settings.request_timeout_s, self._refuse_late_head)
        if (self._heads.unfinished or 0) > _LARGEST_HEAD:
            self._refuse(HeadTooLarge(f"head: expected at most {_LARGEST_HEAD} bytes"))

    def _refuse_late_head(self) -> None:
        self._head_limit = None
        if self._is_answering():  # what is after another request comes when it comes
            self._limit_head()
        else:
            self._refuse(RequestTimeout(f"head: expected within {self._settings.request_timeout_s:g} s"))

    def _refuse(self, error: ReplayError) -> None:
        """Close the connection over a head; another request's answer on it is cut."""
        if self.transport is not None and not self._is_answering():
            self.transport.write(_raw(problem(error.status, error.title, str(error), error.code)))
        self.force_close()

    def _is_answering(self) -> bool:
        return self._requests > 0 and not self.waits_for_request

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
                self.loop.call_later(self._settings.write_deadline_s, transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self._watch_writing(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel(self._write_limit)

    def _watch_writing(self, transport: asyncio.Transport) -> None:
        """Cut a client that takes nothing of its answer for as long as the deadline."""
        unsent = transport.get_write_buffer_size()

        def look() -> None:
            if transport.get_write_buffer_size() < unsent:
                self._watch_writing(transport)
            else:
                transport.abort()

        self._write_limit = self.loop.call_later(self._settings.write_deadline_s, look)

    def successor(self, request: web.Request, transport: asyncio.Transport) -> Callable[[], None] | None:
        """What gives a connection that was taken over back to the server, for the client's next request.

        A client may take the connection from its pool as soon as it has read the end of a response: closing it then
        would fail a request that has just been sent. But what comes next on it has to be a request: None where a part
        of this one's body is still to come, or where something has come after it.
        """
        whole = request.content.is_eof() and self._heads.unfinished == 0
        if self.has_more_requests or not (whole and request.keep_alive):
            return None
        server = self.server

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
        detail = f"expected HTTP/1.1, with one Host and lines of at most {LONGEST_LINE} bytes"
        response = problem(status, "The request is not understood.", detail, "invalid_request")
        response.headers.update(STANDING)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Answer; an `Expect` that is not known is refused before any middleware sees it."""
        if isinstance(resp, web.HTTPExpectationFailed):
            resp = answer_to_http(request, resp)
        return await super().finish_response(request, resp, start_time)


def _raw(response: web.Response) -> bytes:
    """A response as it is written where the server has no request to answer."""
    assert isinstance(response.body, bytes), "a problem is JSON"
    headers = {**response.headers, **STANDING, "Content-Length": str(len(response.body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + response.body


class _Server(BaseServer):
    def __init__(self, made: web.Server, settings: Settings, **options: Any) -> None:
        super().__init__(made, **options)
        self._settings = settings
        self._most = descriptors.mark()
        self._warned = -_WARN_EVERY_S

    def __call__(self) -> Connection:
        return self.connection(idle_s=self._settings.idle_connection_s)

    def connection(self, *, idle_s: float) -> Connection:
        """What serves one connection, which is closed when it has waited so long for a request."""
        return Connection(self, self._settings, loop=self.loop, keepalive_timeout=idle_s, **self.connection_options)

    def has_room(self, transport: asyncio.Transport) -> bool:
        """Whether a client may have the descriptor of its connection."""
        if transport.get_extra_info("socket").fileno() < self._most:
            return True
        now = self.loop.time()
        if now - self._warned >= _WARN_EVERY_S:
            self._warned = now
            logger.warning("connections are cut: too few file descriptors are left", extra={"most": self._most})
        return False


class Runner(BaseRunner):
    """Runs an application; lines of a request's head may be `LONGEST_LINE` bytes long."""

    def __init__(self, app: web.Application, settings: Settings, **options: Any) -> None:
        super().__init__(app, max_line_size=LONGEST_LINE, max_field_size=LONGEST_LINE, auto_decompress=False, **options)
        self._settings = settings

    def server_for(self, made: web.Server, options: dict[str, Any]) -> web.Server:
        return _Server(made, self._settings, **options)
