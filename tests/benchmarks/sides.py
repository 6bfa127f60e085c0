"""Who is measured: this service as a whole, the bare `send()`, and the peers, all behind the same few calls.

A side is opened with some streams; a subscriber of a stream sends `request`. From `go` on each stream has so many
events a second, each with the time at which its source let go of it (`@<ns>@`): for this service the model server's
write, for a peer the publisher's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from support.api import Api
from support.node import Node
from support.valkey import ValkeyServer

from tests.benchmarks.peers import Peer
from tests.benchmarks.programs import STAMP, Floor, Upstream, get, paced
from tests.benchmarks.storage import shipped_settings


class Side(ABC):
    """See the module."""

    name = ""
    counts_ids = True  # whether its ids are a contiguous count

    def __init__(self) -> None:
        self.parts = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.parts.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.parts.aclose()

    @property
    @abstractmethod
    def port(self) -> int:
        """Where subscribers connect."""

    @property
    @abstractmethod
    def pids(self) -> dict[str, int]:
        """The processes whose CPU it takes."""

    @abstractmethod
    async def start(self) -> None:
        """Run what it needs."""

    @abstractmethod
    async def open(self, streams: int, per_second: float, seconds: float) -> list[bytes]:
        """Make streams that wait for `go`; a subscriber's request for each."""

    @abstractmethod
    async def go(self) -> None:
        """Let the streams flow."""


class Replay(Side):
    """The service with all that it does: an upstream is read, everything is recorded in a real Valkey."""

    name = "replay"

    def __init__(self, *, nodes: int = 1, **settings: Any) -> None:
        super().__init__()
        self._settings = settings
        self._nodes = nodes

    async def start(self) -> None:
        directory = Path(self.parts.enter_context(tempfile.TemporaryDirectory()))
        options = {name.replace("-", "_"): value for name, value in shipped_settings().items()}
        # As the embedded server and deploy/valkey.conf have it.
        self.valkey = ValkeyServer(directory / "valkey", appendonly="yes", appendfsync="everysec", **options)
        self.parts.callback(self.valkey.destroy)
        await asyncio.to_thread(self.valkey.start)
        self.upstream = await self.parts.enter_async_context(Upstream())
        self.nodes = [
            Node(directory / f"node{number}", valkey_url=self.valkey.url, upstream_url=self.upstream.url)
            for number in range(self._nodes)
        ]
        for node in self.nodes:
            node.settings.update({"max_generations": 20_000, "log_level": "WARNING", **self._settings})
            self.parts.callback(node.destroy)
            await node.start(60)

    @property
    def node(self) -> Node:
        """The first, or only one."""
        return self.nodes[0]

    @property
    def api(self) -> Api:
        return self.node.api

    @property
    def port(self) -> int:
        return self.node.port

    @property
    def pids(self) -> dict[str, int]:
        return {"node": self.node.pid, "valkey": self.valkey.pid}

    async def open(self, streams: int, per_second: float, seconds: float) -> list[bytes]:
        await self.upstream.hold()
        ids = await self.generate(streams, paced(per_second, int(per_second * seconds), stamped=True))
        await self.upstream.until("all to be held", lambda mark: mark.held >= streams)
        return [get(f"/generations/{id}/events") for id in ids]

    async def go(self) -> None:
        await self.upstream.go()

    async def generate(self, count: int, model: str) -> list[str]:
        """Start generations; their ids."""
        answers = await in_turn(count, lambda: self.api.start({"prompt": "Hi", "model": model}))
        return [answer["id"] for answer in answers]

    async def commands(self) -> dict[str, int]:
        """How often Valkey was asked what, so far."""
        async with self.valkey.client() as client:
            stats = await client.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()}

    async def connections(self) -> int:
        """How many clients Valkey has; this question's own is one of them."""
        async with self.valkey.client() as client:
            return int((await client.info("clients"))["connected_clients"])


async def in_turn(count: int, call: Callable[[], Awaitable[Any]], *, at_once: int = 20) -> list[Any]:
    """Make so many calls, some of them at once."""
    turn = asyncio.Semaphore(at_once)

    async def one() -> Any:
        async with turn:
            return await call()

    return await asyncio.gather(*(one() for _ in range(count)))


class Sending(Side):
    """A C program that does nothing but `send()`: what the kernel needs, and nobody can do with less."""

    name = "send() in C, nothing else"
    counts_ids = False  # it sends the same bytes again and again

    def __init__(self, event: bytes) -> None:
        super().__init__()
        self._event = event
        self._floor: Floor | None = None

    async def start(self) -> None:
        pass

    async def open(self, streams: int, per_second: float, seconds: float) -> list[bytes]:
        assert streams == 1, "the floor has one stream"
        floor = Floor(self._event, per_second=per_second, events=int(per_second * seconds))
        self._floor = await self.parts.enter_async_context(floor)
        return [get("/")]

    async def go(self) -> None:
        assert self._floor is not None
        await self._floor.go()

    @property
    def port(self) -> int:
        assert self._floor is not None
        return self._floor.port

    @property
    def pids(self) -> dict[str, int]:
        assert self._floor is not None
        return {"send": self._floor.pid}


class Foreign(Side):
    """A peer, and its publisher in this process."""

    counts_ids = False

    def __init__(self, kind: type[Peer]) -> None:
        super().__init__()
        self.name = kind.name
        self._kind = kind

    async def start(self) -> None:
        await self._kind.install()
        self.peer = await self.parts.enter_async_context(self._kind())

    @property
    def port(self) -> int:
        return self.peer.port

    @property
    def pids(self) -> dict[str, int]:
        return self.peer.pids()

    async def open(self, streams: int, per_second: float, seconds: float) -> list[bytes]:
        names = [f"s{time.monotonic_ns()}-{number}" for number in range(streams)]
        for name in names:
            await self.peer.open(name)
        self._published = [(name, per_second, int(per_second * seconds)) for name in names]
        return [self.peer.request(name) for name in names]

    async def go(self) -> None:
        for stream in self._published:
            publishing = asyncio.create_task(self._publish(*stream))
            self.parts.push_async_callback(_cancelled, publishing)

    async def _publish(self, stream: str, per_second: float, events: int) -> None:
        loop = asyncio.get_running_loop()
        began, published = loop.time(), 0
        while published < events:
            due = min(events, int((loop.time() - began) * per_second) + 1)
            if due > published:
                await self.peer.publish_many(stream, [stamped() for _ in range(due - published)])
                published = due
            await asyncio.sleep(max(0.0, began + published / per_second - loop.time()))


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# An event of this service, as its own readers get it, and its data, which is what the others are given.
_DATA = {"type": "token", "content": " " + STAMP.decode(), "timestamp": 1763701200.123}
EVENT = b"event: token\ndata: " + json.dumps(_DATA, separators=(",", ":")).encode() + b"\nid: 1763701200123-1000\n\n"
CHUNKED_EVENT = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


def stamped() -> bytes:
    """The data of an event that is published now."""
    data = EVENT.partition(b"data: ")[2].partition(b"\n")[0]
    return data.replace(STAMP, b"@%019d@" % time.monotonic_ns())
