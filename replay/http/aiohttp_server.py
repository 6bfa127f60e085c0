"""What this service needs of aiohttp's server that aiohttp does not promise; nothing else leans on its inside.

A connection is held to limits that aiohttp knows none of, is answered where aiohttp has no request to answer, and is
taken away from it for a stream. The names that takes are listed here and looked for as soon as this is imported: a
release of aiohttp that has others is refused at the start, and does not fail with some request later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from replay.errors import IncompatibleLibrary

_OF_A_CONNECTION = (
    *("_buffer_paused", "_close", "_force_close", "_loop", "_manager", "_messages", "_reading_paused"),
    *("_request_count", "_upgraded", "_waiter", "transport"),
    *("connection_lost", "connection_made", "data_received", "finish_response", "force_close", "handle_error", "start"),
)
_OF_A_SERVER = ("_kwargs", "_loop", "request_factory", "request_handler")
_OF_A_RUNNER = ("_kwargs",)


def _missing() -> Iterator[str]:
    yield from (f"RequestHandler.{name}" for name in _OF_A_CONNECTION if not hasattr(RequestHandler, name))
    yield from (f"Server.{name}" for name in _OF_A_SERVER if name not in web.Server.__init__.__code__.co_names)
    yield from (f"BaseRunner.{name}" for name in _OF_A_RUNNER if name not in web.BaseRunner.__init__.__code__.co_names)
    if not hasattr(web.AppRunner, "_make_server"):
        yield "AppRunner._make_server"


if _names := ", ".join(_missing()):
    raise IncompatibleLibrary(f"aiohttp {aiohttp.__version__} has no {_names}: expected aiohttp 3.14")


class ServerConnection(RequestHandler):
    """A connection of aiohttp's, with names for what is asked of it here."""

    @property
    def server(self) -> Any:
        """Whose connection it is; None once it is closed."""
        return self._manager

    @property
    def closes(self) -> bool:
        """Whether it closes after what is being answered, so that nothing more is read."""
        return self._close or self._force_close

    @property
    def heads_read(self) -> int:
        """How many heads of requests the parser has found."""
        return self._request_count

    def latest_heads(self, count: int) -> list[RawRequestMessage]:
        """The last so many of those that wait; without what the parser says against a request."""
        heads = [self._messages[index][0] for index in range(-count, 0)]
        return [head for head in heads if isinstance(head, RawRequestMessage)]

    @property
    def latest_body(self) -> StreamReader | None:
        """The body of the last request that waits; None where none does."""
        return self._messages[-1][1] if self._messages else None

    @property
    def has_more_requests(self) -> bool:
        """Whether requests wait that nobody has begun to answer."""
        return bool(self._messages)

    @property
    def reads(self) -> bool:
        """Whether it takes more in; where it does not, what is here may be whole requests."""
        return not (self._upgraded or self._buffer_paused or self._reading_paused)

    @property
    def waits_for_request(self) -> bool:
        """Whether every request that was read is answered."""
        return self._waiter is not None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it runs on."""
        return self._loop

    def detach(self) -> None:
        """Let go of the transport, whose next protocol is the caller's to set."""
        self.transport = None
        # When the handler has returned: the server drops the connection from its list, without closing it.
        self._loop.call_soon(self.connection_lost, None)


class BaseServer(web.Server):
    """A server of aiohttp's whose connections are its own."""

    def __init__(self, made: web.Server, **options: Any) -> None:
        """``made`` is the one that a runner has made, with these options."""
        loop = asyncio.get_running_loop()
        super().__init__(made.request_handler, request_factory=made.request_factory, loop=loop, **options)
        self.loop = loop
        self.connection_options: dict[str, Any] = self._kwargs


class BaseRunner(web.AppRunner):
    """A runner of aiohttp's that runs another server."""

    def server_for(self, made: web.Server, options: dict[str, Any]) -> web.Server:
        """The server to run, in place of the one that aiohttp has made with these options."""
        raise NotImplementedError

    async def _make_server(self) -> web.Server:
        return self.server_for(await super()._make_server(), self._kwargs)
