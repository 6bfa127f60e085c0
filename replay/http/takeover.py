"""Takes a connection away from the HTTP server once a request is understood.

A response that lasts for minutes needs nothing of the request any more: not its handler, not its task, not its
parser. The connection gets a protocol of its own, and the server forgets it.
"""

from __future__ import annotations

from email.utils import formatdate

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from replay.http.headers import complete
from replay.http.server import Connection
from replay.live.stream_connection import Handover
from replay.wire.framing import CHUNKED, UNTIL_CLOSE, Framing


class TakenOver(web.StreamResponse):
    """What a handler returns whose connection answers for itself."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write nothing: the head is written already."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing: the end is not the server's to write."""


def framing_of(request: web.Request) -> Framing:
    """The framing that a client knows."""
    return CHUNKED if request.version >= HttpVersion11 else UNTIL_CLOSE


def head(request: web.Request, headers: dict[str, str]) -> bytes:
    """Status line and headers of a stream's 200; its framing says how it ends."""
    lines = [f"HTTP/{request.version.major}.{request.version.minor} 200 OK"]
    fields = CIMultiDict(headers)
    complete(fields, request)
    fields["Date"] = formatdate(usegmt=True)
    if framing_of(request) is CHUNKED:
        # No `Connection: close`: with it, Node 20's fetch takes a cut for a clean end.
        fields["Transfer-Encoding"] = "chunked"
    else:
        fields["Connection"] = "close"
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def release(request: web.Request) -> Handover | None:
    """Take the connection of a request, which is the caller's from now on; its handler has to return TakenOver.

    None when the client has left.
    """
    server = request.protocol
    assert isinstance(server, Connection), "the runner makes no others"
    transport = request.transport
    if transport is None or transport.is_closing():
        return None
    give_back = None if framing_of(request).ends_by_closing else server.successor(request, transport)
    server.detach()
    return Handover(transport, give_back)
