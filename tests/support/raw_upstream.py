"""An upstream that is made of bytes: whatever a server, a proxy or a broken network can send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from support.http1 import reset_on_close
from support.tcp_server import TcpServer

_BETWEEN_S = 0.02  # so that what is sent in two writes arrives as two

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Data as one chunk of HTTP's transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def sized(status: str, content_type: str, body: bytes) -> bytes:
    """A whole answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Reset:
    """Stands for an RST among the writes."""


class Silence:
    """Stands for a connection that is left open, among the writes."""


class Kept:
    """Stands for a connection that is kept for another request, among the writes."""


@dataclass(frozen=True)
class Asked:
    """One request, as it came."""

    head: bytes
    body: bytes
    again: bool = False  # on a connection that had been kept

    def header(self, name: str) -> str:
        """A header's value, empty where there is none."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            found, _, value = line.partition(":")
            if found.lower() == name.lower():
                return value.strip()
        return ""


Write = bytes | type[Reset] | type[Silence] | type[Kept]
Play = Callable[[Asked], Iterable[Write]]


class RawUpstream(TcpServer):
    """An async context manager; `play` says what each request is answered with, a write each, and then a close."""

    def __init__(self, play: Play | None = None) -> None:
        super().__init__()
        self.play: Play = play or (lambda asked: [])
        self.asked: list[Asked] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what is asked on a connection, for as long as it is kept."""
        kept = await self._answer(reader, writer, again=False)
        while kept:
            kept = await self._answer(reader, writer, again=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, again: bool) -> bool:
        """Answer one request; whether the connection is kept."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(Asked(head, b"").header("content-length") or 0)
        asked = Asked(head, await reader.readexactly(length), again)
        self.asked.append(asked)
        for write in self.play(asked):
            if write is Reset:
                reset_on_close(writer.get_extra_info("socket"))
                return False
            if write is Silence:
                await reader.read()
                return False
            if write is Kept:
                return True
            assert isinstance(write, bytes)
            writer.write(write)
            await writer.drain()
            await asyncio.sleep(_BETWEEN_S)
        return False
