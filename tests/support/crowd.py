"""Many readers in one test process, each no more than a socket, and what a node pays for them."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

from support.deadlines import DEADLINE_S, within
from support.sse import Message, messages


class Reader(asyncio.Protocol):
    """One GET of an event stream; keeps the bytes, and when each came."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self.arrivals: list[tuple[float, int]] = []  # time.perf_counter, bytes by then
        self.gone = asyncio.Event()
        self.reset = False  # ended by RST, not by FIN
        self.transport: asyncio.Transport
        self._needles: list[tuple[bytes, asyncio.Event]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.raw += data
        self.arrivals.append((time.perf_counter(), len(self.raw)))
        for needle, found in self._needles:
            if self.raw.find(needle, max(0, len(self.raw) - len(data) - len(needle))) >= 0:
                found.set()
        if data.endswith(b"0\r\n\r\n") and self.clean:
            self.gone.set()  # the connection may be used for another request; this one has what it wanted

    def connection_lost(self, exc: Exception | None) -> None:
        self.reset = isinstance(exc, ConnectionResetError)
        self.gone.set()

    async def has(self, needle: bytes, seconds: float = DEADLINE_S) -> None:
        """Wait until these bytes have come."""
        found = asyncio.Event()
        if needle in self.raw:
            return
        self._needles.append((needle, found))
        await within(f"{needle!r} in {bytes(self.raw[-200:])!r}", found.wait(), seconds)
        self._needles.remove((needle, found))

    async def ended(self, seconds: float = DEADLINE_S) -> None:
        """Wait until the response has ended, or the connection is closed."""
        await within("the end of a connection", self.gone.wait(), seconds)

    def stop_reading(self) -> None:
        """Stay connected and take nothing any more."""
        self.transport.pause_reading()

    def go_on_reading(self) -> None:
        self.transport.resume_reading()

    @property
    def head(self) -> bytes:
        return bytes(self.raw.partition(b"\r\n\r\n")[0])

    @property
    def body(self) -> bytes:
        """What came of the body, without its framing."""
        head, _, rest = bytes(self.raw).partition(b"\r\n\r\n")
        return _dechunked(rest)[0] if b"transfer-encoding: chunked" in head.lower() else rest

    @property
    def clean(self) -> bool:
        """Whether the final chunk has come."""
        return _dechunked(bytes(self.raw).partition(b"\r\n\r\n")[2])[1]

    @property
    def received(self) -> list[Message]:
        """The events of the log that have come whole."""
        return [event for event in messages(self.body) if event.event not in ("live", "reset", "expired")]

    def times_of(self, needle: bytes) -> list[float]:
        """When each occurrence of some bytes had come."""
        times, place, arrivals = [], 0, iter(self.arrivals)
        when, have = next(arrivals)
        while (place := self.raw.find(needle, place) + len(needle)) >= len(needle):
            while have < place:
                when, have = next(arrivals)
            times.append(when)
        return times


def _dechunked(data: bytes) -> tuple[bytes, bool]:
    body: list[bytes] = []
    place = 0
    while (end := data.find(b"\r\n", place)) >= 0:
        size = int(data[place:end], 16)
        if not size:
            return b"".join(body), True
        body.append(data[end + 2 : end + 2 + size])
        place = end + 2 + size + 2
    return b"".join(body), False


async def read(url: str, *, receive_buffer: int | None = None, version: str = "1.1", **headers: str) -> Reader:
    """Connect and ask; returns without waiting for an answer."""
    parts = urlsplit(url)
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (parts.hostname, parts.port))
    _, reader = await loop.create_connection(Reader, sock=sock)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    fields = {"Host": parts.netloc, "Accept": "text/event-stream"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"GET {path} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
    reader.transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    return reader


@contextlib.asynccontextmanager
async def crowd(url: str, size: int, *, receive_buffer: int | None = None) -> AsyncIterator[list[Reader]]:
    """So many readers that have all caught up; gone afterwards."""
    readers: list[Reader] = []
    try:
        for start in range(0, size, 100):  # a listening socket's backlog is not the subject
            some = [await read(url, receive_buffer=receive_buffer) for _ in range(start, min(size, start + 100))]
            readers += some
            for reader in some:
                await reader.has(b"event: live")
        yield readers
    finally:
        for reader in readers:
            reader.transport.abort()


def rss_bytes(pid: int) -> int:
    """A process's resident memory."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) << 10


def allow_open_files(count: int) -> None:
    """Raise the limit of this process and of those it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
