"""An HTTP/1.1 client that tells how a response ended.

Libraries hide what the tests are about: the exact bytes, when they came, and whether the response
ended with its final chunk or was aborted. One request per connection, no redirects.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from support.deadlines import DEADLINE_S, within

_PIECE = 64 << 10


class NotHttp(Exception):
    """What came is not an HTTP/1.1 response."""


class _Inbox(asyncio.Protocol):
    """What has come over a connection, down to the last byte before it was reset.

    asyncio's StreamReader drops what it still holds when a reset arrives; here those bytes are the subject.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()
        self._ended = False  # by FIN or by RST: for HTTP/1.1 with a length or chunks the difference tells nothing
        self._changed = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > self._limit:
            self.transport.pause_reading()
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._changed.set()

    async def _more(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def read(self, most: int) -> bytes:
        """Some bytes, at least one; b"" at the end of the connection."""
        while not self._held and not self._ended:
            await self._more()
        return self._take(min(most, len(self._held)))

    async def until(self, needle: bytes) -> bytes:
        """Everything up to the needle, included."""
        searched = 0
        while (found := self._held.find(needle, searched)) < 0:
            if self._ended:
                raise asyncio.IncompleteReadError(self._take(len(self._held)), None)
            searched = max(0, len(self._held) - len(needle) + 1)
            await self._more()
        return self._take(found + len(needle))

    def _take(self, count: int) -> bytes:
        taken = bytes(self._held[:count])
        del self._held[:count]
        if len(self._held) <= self._limit and not self._ended:
            self.transport.resume_reading()
        return taken


@dataclass
class Answer:
    """A response that has been read to its end."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    clean: bool  # the end was said (final chunk, Content-Length), not just seen

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass
class Stream:
    """A response whose body is read as it comes."""

    status: int
    headers: Mapping[str, str]
    _inbox: _Inbox
    body: bytearray = field(default_factory=bytearray)
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # monotonic seconds, length of `body` after it
    chunks: list[int] = field(default_factory=list)  # sizes, of HTTP's transfer coding
    clean: bool | None = None  # None while it goes on
    _chunk_left: int = 0
    _length_left: int | None = None

    def __post_init__(self) -> None:
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if self.status in (204, 304):
            self.clean = True
        elif not self._chunked and "content-length" in self.headers:
            self._length_left = int(self.headers["content-length"])
            self.clean = True if self._length_left == 0 else None

    async def read(self) -> bytes:
        """The next bytes of the body, as soon as there are any; b"" when it has ended, see `clean`."""
        if self.clean is not None:
            return b""
        try:
            piece = await (self._read_chunked() if self._chunked else self._read_plain())
        except asyncio.IncompleteReadError:
            self.clean = False
            return b""
        if piece:
            self.body += piece
            self.arrivals.append((time.monotonic(), len(self.body)))
        return piece

    async def _read_chunked(self) -> bytes:
        if not self._chunk_left:
            if self.arrivals:
                await self._inbox.until(b"\r\n")  # the end of the chunk before
            size = (await self._inbox.until(b"\r\n")).partition(b";")[0]
            self._chunk_left = int(size, 16)
            if not self._chunk_left:
                while await self._inbox.until(b"\r\n") != b"\r\n":
                    pass  # trailers
                self.clean = True
                return b""
            self.chunks.append(self._chunk_left)
        piece = await self._inbox.read(min(self._chunk_left, _PIECE))
        if not piece:
            raise asyncio.IncompleteReadError(b"", self._chunk_left)
        self._chunk_left -= len(piece)
        return piece

    async def _read_plain(self) -> bytes:
        piece = await self._inbox.read(_PIECE if self._length_left is None else min(self._length_left, _PIECE))
        if self._length_left is None:
            self.clean = None if piece else True  # nothing but the close says where such a body ends
        elif not piece:
            raise asyncio.IncompleteReadError(b"", self._length_left)
        else:
            self._length_left -= len(piece)
            self.clean = True if self._length_left == 0 else None
        return piece

    async def until(self, needle: bytes, after: int = 0, seconds: float = DEADLINE_S) -> bytes:
        """Read until `needle` stands in the body after its first `after` bytes; the whole body so far."""

        async def search() -> None:
            while self.body.find(needle, after) < 0:
                if not await self.read():
                    how = "cleanly" if self.clean else "by an abort"
                    raise AssertionError(f"ended {how} before {needle!r} came: {bytes(self.body)!r}")

        await within(f"{needle!r} in a response that so far is {bytes(self.body)[-300:]!r}", search(), seconds)
        return bytes(self.body)

    async def to_end(self, seconds: float = DEADLINE_S) -> Answer:
        """Read until the response ends, one way or the other."""

        async def drain() -> None:
            while await self.read():
                pass

        await within(f"the end of a response that so far is {bytes(self.body)[-300:]!r}", drain(), seconds)
        self.hang_up()
        return Answer(self.status, self.headers, bytes(self.body), bool(self.clean))

    def hang_up(self) -> None:
        """Close the connection, whatever is still to come."""
        self._inbox.transport.abort()


async def open_stream(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    receive_buffer: int | None = None,
    seconds: float = DEADLINE_S,
) -> Stream:
    """Send a request and return when the response's headers are there.

    `receive_buffer` makes the kernel take no more than about that many bytes ahead of the reader.
    Raises OSError when there is no connection or it is cut before the headers.
    """
    return await within(f"headers of {method} {url}", _open(url, method, headers or {}, body, receive_buffer), seconds)


async def _open(
    url: str, method: str, headers: Mapping[str, str], body: bytes | None, receive_buffer: int | None
) -> Stream:
    parts = urlsplit(url)
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        _, inbox = await asyncio.get_running_loop().create_connection(
            lambda: _Inbox(receive_buffer or 1 << 20), sock=sock
        )
    except BaseException:
        sock.close()
        raise
    try:
        inbox.transport.write(_request_head(parts.netloc, method, parts.path or "/", parts.query, headers, body))
        inbox.transport.write(body or b"")
        return Stream(*await _read_head(inbox), inbox)
    except BaseException:
        inbox.transport.abort()
        raise


def _request_head(
    host: str, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes | None
) -> bytes:
    fields = {"Host": host, **headers}
    if body is not None and "Transfer-Encoding" not in fields:
        fields.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {path}{'?' if query else ''}{query} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _read_head(inbox: _Inbox) -> tuple[int, dict[str, str]]:
    try:
        lines = (await inbox.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError as cut:
        raise ConnectionResetError(f"cut before the headers ended, after {cut.partial!r}") from cut
    version, _, rest = lines[0].partition(" ")
    if not version.startswith("HTTP/1."):
        raise NotHttp(lines[0])
    fields = (line.partition(":") for line in lines[1:] if line)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in fields}


async def request(
    method: str,
    url: str,
    *,
    json_body: Any = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = DEADLINE_S,
) -> Answer:
    """One request and its whole answer."""
    headers = dict(headers or {})
    if json_body is not None:
        body = json.dumps(json_body).encode()
        headers.setdefault("Content-Type", "application/json")
    if body is None and method in ("POST", "PUT", "PATCH"):
        body = b""
    stream = await open_stream(url, method=method, headers=headers, body=body, seconds=seconds)
    return await stream.to_end(seconds)


def reset_on_close(sock: Any) -> None:
    """Make the next close of this socket an RST: what is in flight is lost, the other side sees an error."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
