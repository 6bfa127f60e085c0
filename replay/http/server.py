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


class _Connection(RequestHandler):
    def successor(self, transport: asyncio.Transport) -> Callable[[], None]:
        """What gives a connection that was taken over back to the server, for the client's next request.

        A client may take the connection from its pool as soon as it has read the end of a response: closing it then
        would fail a request that has just been sent.
        """
        server = self._manager
        assert server is not None

        def give_back() -> None:
            fresh = server()
            transport.set_protocol(fresh)
            transport.set_write_buffer_limits()
            fresh.connection_made(transport)
            fresh.keep_alive(True)  # closed when it stays idle

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
    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application; lines of a request's head may be `LONGEST_LINE` bytes long."""

    def __init__(self, app: web.Application, **options: Any) -> None:
        super().__init__(app, max_line_size=LONGEST_LINE, max_field_size=LONGEST_LINE, **options)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        loop = asyncio.get_running_loop()
        return _Server(made.request_handler, request_factory=made.request_factory, loop=loop, **self._kwargs)
