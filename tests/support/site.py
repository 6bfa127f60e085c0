"""An origin such as users have: a few static files, and behind the same host and port a node.

A browser's page may only listen to its own origin, so something has to serve both. Files are answered
here; any other request goes to the node, and its answer comes back byte for byte, including the way it
ended: a reset stays a reset, a missing final chunk stays missing. A node that is down looks like one: the
connection is reset, where most proxies would answer 502 and so end an EventSource for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from support.http1 import reset_on_close
from support.ports import free_port
from support.tcp_server import TcpServer

_PIECE = 64 << 10
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}


class Asked(NamedTuple):
    """One request as it came from the browser."""

    target: str  # path and query
    headers: Mapping[str, str]  # names in lower case


class Site(TcpServer):
    """An async context manager; `folders` gives the first part of a path its directory.

    Every answer closes its connection, so that one connection is one request.
    """

    def __init__(self, node_url: str, folders: Mapping[str, Path]) -> None:
        super().__init__(free_port())
        self.node_url = node_url
        self.requests: list[Asked] = []  # those for the node
        self._folders = folders

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cursors(self) -> list[str | None]:
        """The Last-Event-ID of every events request, in order."""
        return [asked.headers.get("last-event-id") for asked in self.requests if "/events" in asked.target]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A file, or what the node answers."""
        await self._answer(await reader.readuntil(b"\r\n\r\n"), reader, writer)

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        target = first.split(" ")[1]
        _, folder, *rest = urlsplit(target).path.split("/")
        if folder in self._folders:
            writer.write(_file(self._folders[folder].joinpath(*rest)))
            return
        fields = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        self.requests.append(Asked(target, fields))
        fields["connection"] = "close"
        request = "\r\n".join([first, *(f"{name}: {value}" for name, value in fields.items()), "", ""])
        await self._forward(request.encode("latin-1"), reader, writer)

    async def _forward(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node = urlsplit(self.node_url)
        try:
            node_reader, node_writer = await asyncio.open_connection(node.hostname, node.port)
            node_writer.write(request)
        except OSError:
            _reset(writer)
            return
        pumps = [
            asyncio.ensure_future(_pump(reader, node_writer)),
            asyncio.ensure_future(_pump(node_reader, writer)),
        ]
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if any(pump.exception() for pump in done):
                _reset(writer)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            node_writer.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_PIECE):
        sink.write(data)
        await sink.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    reset_on_close(writer.get_extra_info("socket"))
    writer.transport.abort()


def _file(path: Path) -> bytes:
    path = path if path.suffix else path.with_suffix(".js")  # as bundlers resolve an import
    if not path.is_file():
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    body = path.read_bytes()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {_TYPES[path.suffix]}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Cache-Control: no-store\r\nConnection: close\r\n\r\n".encode() + body
