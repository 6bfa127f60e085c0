"""A connection on which a test writes what it likes, byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from support.deadlines import DEADLINE_S, within


class Wire:
    """The two directions of it, and what an answer is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: str | bytes) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, bytes] | None:
        """Status and body of the next response; None when the connection is closed instead."""
        return await within("an answer, or the end of the connection", self._answer(), DEADLINE_S)

    async def _answer(self) -> tuple[int, bytes] | None:
        first = await self.reader.read(1)
        if not first:
            return None
        head = (first + await self.reader.readuntil(b"\r\n\r\n")).decode()
        fields = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n"))
        }
        if "content-length" in fields:
            return int(head[9:12]), await self.reader.readexactly(int(fields["content-length"]))
        if head[9:12] == "204":
            return 204, b""
        assert fields["transfer-encoding"] == "chunked"
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readexactly(2) == b"\r\n"
        return int(head[9:12]), body

    async def said_within(self, seconds: float) -> bytes | None:
        """What comes in a while, empty when the connection ends; None when nothing does."""
        try:
            return await asyncio.wait_for(self.reader.read(1 << 16), seconds)
        except TimeoutError:
            return None


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Wire]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()
