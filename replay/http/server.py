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


# A connection that is given back waits no longer than this for another request: most readers have what they wanted.
_IDLE_S = 2.0


class _Connection(RequestHandler):
    asked = False  # something has come on this connection

    def data_received(self, data: bytes) -> None:
        self.asked = True
        super().data_received(data)

    def successor(self, transport: asyncio.Transport) -> Callable[[], None]:
        """What gives a connection that was taken over back to the server, for the client's next request.

        A client may take the connection from its pool as soon as it has read the end of a response: closing it then
        would fail a request that has just been sent.
        """
        server = self._manager
        assert isinstance(server, _Server)

        def give_back() -> None:
            fresh = server()
            transport.set_protocol(fresh)
            transport.set_write_buffer_limits()
            fresh.connection_made(transport)
            asyncio.get_running_loop().call_later(_IDLE_S, fresh.close_if_idle)

        return give_back

    def close_if_idle(self) -> None:
        """Close the connection if nobody has asked for anything."""
        if not self.asked:
            self.close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)  # logs it, and raises where it is too late for an answer
        detail = f"expected HTTP/1.1 with lines of at most {LONGEST_LINE} bytes"
        response = problem(status, "The request is not understood.", detail, "invalid_request")
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> _Connection:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application; lines of a request's head may be `LONGEST_LINE` bytes long."""

    def __init__(self, app: web.Application, **options: Any) -> None:
        super().__init__(app, max_line_size=LONGEST_LINE, max_field_size=LONGEST_LINE, **options)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        loop = asyncio.get_running_loop()
        return _Server(made.request_handler, request_factory=made.request_factory, loop=loop, **self._kwargs)
