"""What things cost, counted instead of timed: commands, connections, system calls, memory.

All bounds hold on a busy machine, too: what comes late comes in larger batches, which only lowers the counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import libvalkey
import pytest
from benchmarks.measuring import cpu_s, rss_bytes
from benchmarks.programs import Load, Subscribers, Upstream, get, paced
from support.deadlines import eventually, within
from support.node import Node
from support.valkey import ValkeyServer

PER_SECOND = 100
CONNECTIONS = 3  # appends, reads, channels
SPENT_BY_THE_SECOND = 15  # commands that are sent whether or not a token comes: leases, lists, looks
SPENT_ON_A_GENERATION = 20  # likewise on each: its first token and its end are told, too


class CountingProxy:
    """The wire between a node and Valkey; counts the commands that are sent over it, by name."""

    def __init__(self, valkey: ValkeyServer) -> None:
        self.sent: Counter[str] = Counter()
        self.connections = 0
        self._valkey = valkey
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        port = self._server.sockets[0].getsockname()[1]
        return urlsplit(self._valkey.url)._replace(netloc=f"127.0.0.1:{port}").geturl()

    async def __aenter__(self) -> CountingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server = await asyncio.open_connection("127.0.0.1", self._valkey.port)
        pumps = {asyncio.create_task(self._ask(reader, server)), asyncio.create_task(_pump(server_reader, writer))}
        self._tasks |= pumps
        self.connections += 1
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.connections -= 1
            for end in (writer, server):
                end.transport.abort()

    async def _ask(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        parser = libvalkey.Reader()  # commands are framed like replies
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                parser.feed(data)
                while (words := parser.gets()) is not False:
                    self.sent[words[0].decode().upper()] += 1
                sink.write(data)
                await sink.drain()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()


@pytest.fixture
async def wire(valkey: ValkeyServer) -> AsyncIterator[CountingProxy]:
    async with CountingProxy(valkey) as proxy:
        yield proxy


@pytest.fixture
async def model_server() -> AsyncIterator[Upstream]:
    async with Upstream(hold=True) as server:
        yield server


@pytest.fixture
async def node(wire, model_server, start_node) -> Node:
    """With the settings it is shipped with: what is done by the clock costs what it costs."""
    return await start_node(valkey_url=wire.url, upstream_url=model_server.url)


@contextlib.asynccontextmanager
async def reading(node: Node, upstream: Upstream, subscribers: int, tokens: int) -> AsyncIterator[Load]:
    """Subscribers of a generation that waits for `go`; each has all that there is."""
    await upstream.hold()
    before = (await upstream.mark()).held
    generation = await node.api.start({"prompt": "Hi", "model": paced(PER_SECOND, tokens)})
    await upstream.until("the generation to be held", lambda mark: mark.held == before + 1)
    crowd = Subscribers(get(f"/generations/{generation['id']}/events"), subscribers)
    async with Load(node.port, [crowd], sample=subscribers) as load:
        # Each is sent what there was, `live` included.
        there = 3 * subscribers
        await load.until("all to have what there is", lambda mark: mark.events >= there)
        yield load


async def read_to_the_end(load: Load, upstream: Upstream, subscribers: int, tokens: int) -> int:
    """Let it flow; how many events arrived. Nobody lacks any."""
    before = await load.mark()
    await upstream.go()
    await load.until("the end of all", lambda mark: mark.ended == subscribers)
    end = await load.stop()
    assert (end.holes, end.doubles, end.reorders) == (0, 0, 0)
    assert end.least == end.most
    assert end.least > tokens
    return end.events - before.events


# Valkey.


async def test_valkey_is_asked_once_a_token_and_over_the_same_connections_however_many_read(node, wire, model_server):
    tokens = 150
    for subscribers in (1, 50):
        async with reading(node, model_server, subscribers, tokens) as load:
            before, began = wire.sent.copy(), time.monotonic()
            await read_to_the_end(load, model_server, subscribers, tokens)
            seconds, spent = time.monotonic() - began, wire.sent - before
        assert wire.connections == CONNECTIONS
        assert spent["EVALSHA"] > 0  # it has looked
        assert spent.total() <= tokens + SPENT_ON_A_GENERATION + SPENT_BY_THE_SECOND * seconds, spent


# The kernel.


class Strace:
    """Counts the system calls of a process and its threads, by name; slows it down much."""

    def __init__(self, pid: int, report: Path) -> None:
        self._pid = pid
        self._report = report
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Strace:
        self._process = await asyncio.create_subprocess_exec(
            *("strace", "-c", "-f", "-o", self._report, "-p", f"{self._pid}"), stderr=subprocess.PIPE
        )
        assert self._process.stderr is not None
        line = (await within("strace to attach", self._process.stderr.readline())).decode()
        if "not permitted" in line:
            pytest.skip(f"nobody may be traced here: {line.strip()}")
        assert "attached" in line, line
        return self

    async def counted(self) -> dict[str, int]:
        """Look on no more; the calls so far."""
        await self._end()
        rows = (row.split() for row in self._report.read_text().splitlines())
        table = {row[-1]: row[3] for row in rows if len(row) in (5, 6)}
        return {name: int(calls) for name, calls in table.items() if calls.isdecimal() and name != "total"}

    async def _end(self) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
            await within("strace to let go", self._process.communicate())

    async def __aexit__(self, *_: object) -> None:
        await self._end()


_WRITES = ("write", "writev", "sendto", "sendmsg", "sendmmsg")


async def test_delivered_event_is_one_write_and_a_token_few_other_calls(node, model_server, tmp_path):
    subscribers, tokens = 20, 100
    async with (
        reading(node, model_server, subscribers, tokens) as load,
        Strace(node.pid, tmp_path / "strace") as strace,
    ):
        began = time.monotonic()
        events = await read_to_the_end(load, model_server, subscribers, tokens)
        calls, seconds = await strace.counted(), time.monotonic() - began
    writes = sum(calls.get(name, 0) for name in _WRITES)
    others = sum(calls.values()) - writes

    assert writes >= subscribers, calls  # it has looked
    # An event to each subscriber, its append, and the end of each response.
    assert writes <= events + tokens + 2 * subscribers + SPENT_ON_A_GENERATION + SPENT_BY_THE_SECOND * seconds, calls
    # Not for each event of each subscriber: to be woken, and to read, for the chunk and for the acknowledgement; what
    # a subscriber's end takes; what is done by the clock.
    assert others <= 15 * tokens + 10 * subscribers + 100 * seconds, calls


# Memory.


async def test_idle_subscriber_takes_no_more_than_8_kb(node, model_server):
    warm, many = 300, 2000
    async with reading(node, model_server, warm, 1):  # what grows once has grown
        pass
    async with reading(node, model_server, warm, 1):
        before = rss_bytes(node.pid)
        async with reading(node, model_server, many, 1):
            grown = rss_bytes(node.pid) - before

    assert grown / many <= 8 * 1024


# What is kept for whoever comes next.


async def gauge(node: Node, name: str) -> float:
    text = (await node.api.get("/metrics")).body.decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.split()[0] == name)


async def idle_cpu_s(node: Node, seconds: float) -> float:
    """What a node uses that is left alone."""
    before = cpu_s(node.pid)
    await asyncio.sleep(seconds)
    return cpu_s(node.pid) - before


async def test_ended_generation_costs_the_memory_that_is_counted_and_nothing_by_the_clock(
    wire, model_server, start_node
):
    node = await start_node(valkey_url=wire.url, upstream_url=model_server.url, heal_window_s=0)
    many, seconds = 2000, 3.0

    async def record(count: int) -> None:
        recorded = await gauge(node, "replay_feeds") + count
        for _ in range(count):
            await node.api.start({"prompt": "Hi", "model": paced(0, 20)})

        async def all_ended() -> bool:
            ended = 'replay_generations_ended_total{status="completed"}'
            return await gauge(node, ended) == await gauge(node, "replay_feeds") == recorded

        await eventually("all to have ended", all_ended)

    await model_server.go()
    await record(200)  # what grows once has grown
    await asyncio.sleep(1)
    alone = await idle_cpu_s(node, seconds)
    memory, counted = rss_bytes(node.pid), await gauge(node, "replay_feed_bytes")
    await record(many)
    await asyncio.sleep(1)
    taken, counted = rss_bytes(node.pid) - memory, await gauge(node, "replay_feed_bytes") - counted

    assert await idle_cpu_s(node, seconds) - alone <= 0.005 * seconds  # of a core: it was 0.02 for so many
    assert 0.75 <= counted / taken <= 1.4


async def test_memory_of_what_is_deleted_is_given_back_at_once(wire, upstream, start_node):
    # given 180 MB in large events, which a node has recorded a moment ago
    node = await start_node(valkey_url=wire.url, upstream_url=upstream.url)
    before, ids = rss_bytes(node.pid), []
    for _ in range(6):
        ids.append((await node.api.start())["id"])
        call = await upstream.called()
        for _ in range(200):
            await call.say("x" * 150_000)
        await call.finish()
        await node.api.ended(ids[-1])
    assert rss_bytes(node.pid) - before > 150 << 20

    for id in ids:
        assert (await node.api.delete(f"/generations/{id}")).status == 204

    async def left() -> int:
        return rss_bytes(node.pid) - before

    await eventually("what is deleted to be gone", left, lambda grown: grown < 30 << 20, seconds=3)
