"""The HTTP server, with one thing changed: what is not HTTP is answered with an error document too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from replay.http.problems import problem

# Enough for a hundred generations on one connection, and for the cursor over all of them.
LONGEST_LINE = 32 << 10

_END_OF_HEAD = b"\r\n\r\n"
_SPLIT = len(_END_OF_HEAD) - 1
# A connection that is given back waits no longer than this for another request: most readers have what they wanted.
_IDLE_S = 15.0


class _Connection(RequestHandler):
    """A connection that knows whether it stands between two requests.

    What it has received behind the head of its last request is counted. If that is as much as the head announces, and
    the parser has seen the end of the body, then nothing of another request has come, not even in part. The count can
    only be too large (an empty line in front of a request looks like the end of a head), never too small.
    """

    _beginning = b""  # the last bytes before those that come now; the end of a head may be split between them
    _behind_head: int | None = None  # bytes; None where no request has come, or it cannot be said

    def data_received(self, data: bytes) -> None:
        requests = self._request_count
        super().data_received(data)
        if self._request_count == requests:
            self._behind_head = None if self._behind_head is None else self._behind_head + len(data)
        else:
            seen = self._beginning + data
            end = seen.find(_END_OF_HEAD) if self._request_count == requests + 1 else -1
            self._behind_head = None if end < 0 else len(seen) - end - len(_END_OF_HEAD)
        self._beginning = (self._beginning + data[-_SPLIT:])[-_SPLIT:]

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
            fresh = server(keepalive_timeout=_IDLE_S)
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
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self, **options: Any) -> _Connection:
        return _Connection(self, loop=self._loop, **self._kwargs | options)


class Runner(web.AppRunner):
    """Runs an application; lines of a request's head may be `LONGEST_LINE` bytes long."""

    def __init__(self, app: web.Application, **options: Any) -> None:
        super().__init__(app, max_line_size=LONGEST_LINE, max_field_size=LONGEST_LINE, **options)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        loop = asyncio.get_running_loop()
        return _Server(made.request_handler, request_factory=made.request_factory, loop=loop, **self._kwargs)
