"""The wires between nodes and Valkey, told apart: one connection can fail while the others of its node go on.

A node names each of its connections (`CLIENT SETNAME replay-appends`). `ValkeyWires` reads that name and leads
the connection through a `FaultProxy` of its kind, which does the rest:

    wires.channels.hold_replies()    # what is published is not heard; appends and reads go on
    wires.channels.cut()             # and is lost
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from urllib.parse import urlsplit

from support.deadlines import DEADLINE_S, within
from support.fault_proxy import FaultProxy
from support.http1 import reset_on_close

_NAME = re.compile(rb"SETNAME\r\n\$\d+\r\nreplay-(\w+)\r\n")
_PIECE = 64 << 10


class ValkeyWires:
    """An async context manager; `url` is where a node finds Valkey."""

    def __init__(self, target_url: str) -> None:
        self._target = urlsplit(target_url)
        self.appends = FaultProxy(target_url)
        self.reads = FaultProxy(target_url)
        self.channels = FaultProxy(target_url)
        self.kinds = {b"appends": self.appends, b"reads": self.reads, b"channels": self.channels}
        self._needle: bytes | None = None
        self._was_cut = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        port = self._server.sockets[0].getsockname()[1]
        return self._target._replace(netloc=f"127.0.0.1:{port}").geturl()

    async def __aenter__(self) -> ValkeyWires:
        async with contextlib.AsyncExitStack() as stack:
            for proxy in self.kinds.values():
                await stack.enter_async_context(proxy)
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self._proxies = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.refuse_for_good()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._proxies.aclose()

    def cut_requests_before(self, command: bytes) -> None:
        """Let everything up to this command through, then take the node off Valkey for good.

        What Valkey holds afterwards is what a node leaves that dies between two commands.
        """
        self._needle = command
        self._was_cut.clear()

    async def requests_cut(self, seconds: float = DEADLINE_S) -> None:
        """Wait until `cut_requests_before` has struck."""
        await within("the command before which to cut", self._was_cut.wait(), seconds)

    def refuse_for_good(self) -> None:
        """No connection any more."""
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(client)
        try:
            # asyncio calls a server's task that was cancelled an error, so it ends as if it were done.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._lead(client_reader, client)
        finally:
            self._open.discard(client)
            self._tasks.discard(task)
            client.transport.abort()

    async def _lead(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        greeting = b""
        while not (name := _NAME.search(greeting)):
            if not (data := await client_reader.read(_PIECE)):
                return
            greeting += data
        reader, server = await asyncio.open_connection("127.0.0.1", self.kinds[name[1]].port)
        pumps = (
            asyncio.ensure_future(self._requests(client_reader, server, greeting)),
            asyncio.ensure_future(_replies(reader, client)),
        )
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            server.close()
            reset_on_close(client.get_extra_info("socket"))

    async def _requests(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, data: bytes) -> None:
        while data:
            if self._needle is not None and (place := data.find(self._needle)) >= 0:
                sink.write(data[:place])
                await sink.drain()
                sink.close()
                await sink.wait_closed()
                self.refuse_for_good()
                self._was_cut.set()
                return
            sink.write(data)
            await sink.drain()
            data = await source.read(_PIECE)


async def _replies(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_PIECE):
        sink.write(data)
        await sink.drain()


def command(*words: str) -> bytes:
    """How a command begins on the wire, up to the end of these words, whatever their number in all."""
    return b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)
