"""A server that speaks just enough RESP to say that it is one we cannot use."""

from __future__ import annotations

import asyncio
import contextlib


class FakeValkey:
    """Answers INFO with these lines and everything else with +OK: an async context manager."""

    def __init__(self, *info: str) -> None:
        self._info = "".join(f"{line}\r\n" for line in info).encode()
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def __aenter__(self) -> FakeValkey:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while words := await _command(reader):
                bulk = b"$%d\r\n%b\r\n" % (len(self._info), self._info)
                writer.write(bulk if words[0].upper() == b"INFO" else b"+OK\r\n")
                await writer.drain()
        writer.transport.abort()


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    head = await reader.readline()
    words = []
    for _ in range(int(head[1:] or 0)):
        size = int((await reader.readline())[1:])
        words.append((await reader.readexactly(size + 2))[:-2])
    return words
