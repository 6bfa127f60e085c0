"""A TCP proxy that does to a connection what networks do: hold, stall, cut, refuse.

Both sides stay real. `hold_replies` is the gate that tells "executed" from "acknowledged": the server
has done its work, and nobody has been told.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from support.deadlines import DEADLINE_S, eventually, within
from support.http1 import reset_on_close
from support.ports import free_port

_PIECE = 64 << 10


class _Direction:
    """What flows one way, over all connections."""

    def __init__(self, name: str) -> None:
        self.bytes = 0  # handed on
        self._name = name
        self._open = asyncio.Event()
        self._open.set()
        self._held = asyncio.Event()

    def hold(self) -> None:
        self._open.clear()
        self._held.clear()

    def release(self) -> None:
        self._open.set()

    async def held(self, seconds: float) -> None:
        await within(f"a {self._name} to be held by the proxy", self._held.wait(), seconds)

    async def passage(self) -> None:
        """Return when what has been read may be handed on."""
        while not self._open.is_set():
            self._held.set()
            await self._open.wait()


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def reset(self) -> None:
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):  # closed by the other side in this very moment
                reset_on_close(side.get_extra_info("socket"))
            side.transport.abort()


class FaultProxy:
    """Stands before `target_url` (any scheme) on a port of its own; `url` is the target's with that port."""

    def __init__(self, target_url: str) -> None:
        self._target = urlsplit(target_url)
        self.port = free_port()
        self.accepted = 0  # connections so far
        self.requests = _Direction("request")
        self.replies = _Direction("reply")
        self.nonsense: bytes | None = None  # what new connections have instead of each reply, where it is set
        self._cut_at: int | None = None  # of replies.bytes
        self._was_cut = asyncio.Event()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        user, at, _ = self._target.netloc.rpartition("@")
        return self._target._replace(netloc=f"{user}{at}127.0.0.1:{self.port}").geturl()

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._links)

    async def __aenter__(self) -> FaultProxy:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Replies and requests: on their way, or held here.

    def hold_replies(self) -> None:
        """Read what the server answers, and keep it."""
        self.replies.hold()

    def hold_requests(self) -> None:
        """Read what the client sends, and keep it: the server never sees it."""
        self.requests.hold()

    async def reply_held(self, seconds: float = DEADLINE_S) -> None:
        """Wait until a reply is held: its request has been executed."""
        await self.replies.held(seconds)

    async def request_held(self, seconds: float = DEADLINE_S) -> None:
        """Wait until a request is held: it has not been executed."""
        await self.requests.held(seconds)

    def stall(self) -> None:
        """Nothing comes through any more, and nobody is told: a network that drops every packet."""
        self.hold_requests()
        self.hold_replies()

    def release(self) -> None:
        """Hand on what was held, and all that follows."""
        self.requests.release()
        self.replies.release()

    # Connections: cut, refused.

    def cut(self) -> None:
        """RST on every connection, both sides; what was held is lost."""
        for link in list(self._links):
            link.reset()

    def cut_replies_after(self, count: int) -> None:
        """Let exactly `count` more reply bytes through, then end the connection that carried the last one."""
        self._cut_at = self.replies.bytes + count
        self._was_cut.clear()

    @property
    def will_cut(self) -> bool:
        """Whether `cut_replies_after` is still to strike."""
        return self._cut_at is not None

    async def reply_cut(self, seconds: float = DEADLINE_S) -> None:
        """Wait until `cut_replies_after` has struck."""
        await within("a reply to be cut by the proxy", self._was_cut.wait(), seconds)

    async def refuse(self) -> None:
        """Refuse new connections; those that stand stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._placeholder.close()

    async def accept(self) -> None:
        """Take connections (again)."""
        if self._server is None:
            self._placeholder = _reserve(self.port)
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_port=True)

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        try:
            await self._link(client_reader, client)
        finally:
            self._tasks.discard(task)
            client.transport.abort()

    async def _link(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self.nonsense is not None:
            with contextlib.suppress(OSError):
                while self.nonsense is not None and await client_reader.read(_PIECE):
                    client.write(self.nonsense or b"")
            return
        try:
            server_reader, server = await asyncio.open_connection(self._target.hostname, self._target.port)
        except OSError:
            reset_on_close(client.get_extra_info("socket"))
            return
        link = _Link(client, server)
        self._links.add(link)
        pumps = (
            asyncio.ensure_future(self._pump(client_reader, server, self.requests)),
            asyncio.ensure_future(self._pump(server_reader, client, self.replies)),
        )
        try:
            # As soon as one side is done, so is the connection: neither HTTP nor RESP works half closed.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            client.close()  # what was handed on is still delivered
        except asyncio.CancelledError:
            client.transport.abort()  # the proxy goes away; its clients may stay
            raise
        finally:
            self._links.discard(link)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            server.transport.abort()
            with contextlib.suppress(OSError):
                await client.wait_closed()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: _Direction) -> None:
        with contextlib.suppress(OSError):  # a side that went away ends the link
            while data := await source.read(_PIECE):
                self._see(data, way)
                await way.passage()
                if way is self.replies and self._cut_at is not None and way.bytes + len(data) >= self._cut_at:
                    data = data[: self._cut_at - way.bytes]
                    self._cut_at = None
                    self._was_cut.set()
                    way.bytes += len(data)
                    sink.write(data)
                    return
                way.bytes += len(data)
                sink.write(data)
                await sink.drain()

    def _see(self, data: bytes, way: _Direction) -> None:
        """Look at what has come, before it is held or goes on; for subclasses that decide by that."""


def _reserve(port: int) -> socket.socket:
    """Hold the port while nobody listens on it, so that a refused connection is refused and not another's."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", port))
    return holder


async def keep_alives(network: FaultProxy, count: int = 3) -> None:
    """Wait until so many of a node's keep-alives have gone to a client."""
    target = network.replies.bytes + count * len(b"2\r\n:\n\r\n")

    async def passed() -> int:
        return network.replies.bytes

    await eventually(f"{count} keep-alives", passed, lambda size: size >= target)
