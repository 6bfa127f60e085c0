"""The two walks: what is done, and what of the package is called meanwhile.

The node is of this process and on asyncio's own loop, of which the tracer sees which bytes it sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from support.api import Api
from support.deadlines import within
from support.http1 import open_stream
from support.node import Node
from support.upstream import ScriptedUpstream
from support.valkey import ValkeyServer

from replay import config
from replay.app import App
from walk.tracing import Line, Tracer

_QUIET_S = "60"  # a connection to Valkey that is silent for a quarter of it is looked after
_SILENT_S = 0.2  # in which a node that still waits for Valkey would have gone on


class World:
    """What a walk needs."""

    def __init__(self, directory: Path, valkey: ValkeyServer, upstream: ScriptedUpstream, url: str) -> None:
        self.directory = directory
        self.valkey = valkey
        self.upstream = upstream
        self.api = Api(url)

    async def tracer(self) -> Tracer:
        """Notes what this process's node does from here on; what it had to do before is done."""
        own = urlsplit(self.api.url).port or 0
        ports = {-own: "the reader", self.valkey.port: "Valkey", self.upstream.port: "the upstream"}
        await within("the node to have nothing to do", _silence())
        return Tracer(ports)


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    """A node in this process, and what it speaks with."""
    valkey = ValkeyServer(directory / "valkey")
    valkey.start()
    try:
        async with ScriptedUpstream() as upstream:
            flags = {"port": "0", "valkey_url": valkey.url, "upstream_url": upstream.url, "drain_spread_s": "0"}
            app = App(config.load(flags | {"store_timeout_s": _QUIET_S}, {}))
            try:
                url = await app.start()
                _stop_clocks()
                yield World(directory, valkey, upstream, url)
            finally:
                await app.stop()
    finally:
        valkey.destroy()


async def _silence() -> None:
    silent = False
    while not silent:
        with Tracer({}) as tracer:
            await asyncio.sleep(_SILENT_S)
        silent = tracer.silent


def _stop_clocks() -> None:
    """Let nothing come by the clock, which is no part of any walk."""
    for task in asyncio.all_tasks():
        if task.get_name().startswith("every "):
            task.cancel()


async def token(world: World) -> list[Line]:
    """From the upstream's bytes to the socket of a reader that has everything before."""
    generation = await world.api.start()
    call = await world.upstream.called()
    await call.say("One")
    reader = await open_stream(world.api.events_url(generation["id"]))
    await reader.until(b"event: live")
    with await world.tracer() as tracer:
        await call.say("walked")
        await reader.until(b"walked")
    await call.finish()
    await reader.to_end()
    return tracer.lines()


async def last_event_id(world: World) -> list[Line]:
    """From a request's head to the rest of a log that another node writes, and on to the first token after that."""
    node = Node(world.directory / "node", valkey_url=world.valkey.url, upstream_url=world.upstream.url)
    try:
        await node.start()
        generation = await node.api.start()
        call = await world.upstream.called()
        await call.say("Before")
        await node.api.has(generation["id"], 2)
        cursor = (await node.api.generation(generation["id"]))["last_event_id"]
        await call.say("missed")
        await node.api.has(generation["id"], 3)
        url = world.api.events_url(generation["id"])
        with await world.tracer() as tracer:
            reader = await open_stream(url, headers={"Last-Event-ID": cursor, "Accept": "text/event-stream"})
            await reader.until(b"event: live")
            await call.say("walked")
            await reader.until(b"walked")
        await call.finish()
        await reader.to_end()
        return tracer.lines()
    finally:
        node.destroy()
