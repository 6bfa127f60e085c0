"""Readers of chat completions, each to be run in a process of its own, and what they cost.

`load` is a client of the gateway that counts events and parses nothing, and meters other processes meanwhile. All
others are the official SDK, and beside each the transport that it stands on, which reads the same bytes and drops
them.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import httpx2
import uvloop
from openai import AsyncOpenAI, DefaultAioHttpClient, OpenAI

from replay.wire import json

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_S = 0.1
_ENDING = 4  # events that close a stream, and are not like the others
_LEAST_S = 1.0  # what is shorter is no measurement
_START_S = 1.0  # streams are not started all at once
_PATH = "/chat/completions"
_OK = b"HTTP/1.1 200 "
_LAST_CHUNK = b"\r\n0\r\n\r\n"


def request(number: int) -> dict[str, Any]:
    """The body that asks for one of the model server's answers."""
    return {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": f"answer {number}"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


# CPU over the time in which all streams run.


def cpu_of(pid: int) -> Callable[[], float]:
    """A process's CPU time so far, user and system, in seconds."""
    stat = Path(f"/proc/{pid}/stat")

    def read() -> float:
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / _TICKS

    return read


class Steady(NamedTuple):
    """What happened while all streams ran."""

    seconds: float
    events: int
    cpu_s: list[float]  # by clock; what an event took

    @property
    def per_second(self) -> float:
        """Events; fewer than were said when the machine was too busy."""
        return self.events / self.seconds if self.seconds else 0.0


class Meter:
    """How many events each stream has had, and what some CPU clocks show, ten times a second."""

    def __init__(self, streams: int, clocks: Sequence[Callable[[], float]]) -> None:
        self.counts = [0] * streams
        self._clocks = clocks
        self._samples: list[tuple[float, list[int], list[float]]] = []

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._samples.append((time.monotonic(), self.counts.copy(), [clock() for clock in self._clocks]))
            await asyncio.sleep(_SAMPLE_S)

    def steady(self, events: int) -> Steady:
        """From when all streams of so many events had a tenth of them until the first had nearly all."""
        samples = [each for each in self._samples if min(each[1]) >= events / 10 and max(each[1]) < events - _ENDING]
        if not samples or samples[-1][0] - samples[0][0] < _LEAST_S:  # on a machine that is too busy
            return Steady(0.0, 0, [math.nan] * len(self._clocks))
        (began, before, cpu_before), (ended, after, cpu_after) = samples[0], samples[-1]
        read = sum(after) - sum(before)
        spent = [(late - early) / read for early, late in zip(cpu_before, cpu_after, strict=True)]
        return Steady(ended - began, read, spent)


class EventCounter:
    """Counts the blank lines that end events, however the bytes are cut."""

    def __init__(self) -> None:
        self.events = 0
        self._tail = b""

    def count(self, data: bytes) -> int:
        """How many events the bytes complete."""
        data = self._tail + data
        completed = data.count(b"\n\n")
        self._tail = b"\n" if data.endswith(b"\n") and not data.endswith(b"\n\n") else b""
        self.events += completed
        return completed


# The gateway's client.


class _Reader(asyncio.Protocol):
    """One POST, on a connection of its own."""

    def __init__(self, number: int, head: bytes, meter: Meter, *, keep: bool) -> None:
        self.gone = asyncio.Event()
        self.kept: list[bytes] | None = [] if keep else None
        self.reads = 0
        self.first = self.last = b""
        self._number = number
        self._request = head
        self._meter = meter
        self._counter = EventCounter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._meter.counts[self._number] += self._counter.count(data)
        self.reads += 1
        self.first = self.first or data
        self.last = self.last[-len(_LAST_CHUNK) :] + data
        if self.kept is not None:
            self.kept.append(data)
        if self.last.endswith(_LAST_CHUNK) or not self.first.startswith(_OK):
            self._transport.abort()  # a whole answer, or a refusal, leaves the connection open

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()

    @property
    def clean(self) -> bool:
        """Whether it was answered and ended as it should be."""
        return self.first.startswith(_OK) and self.last.endswith(_LAST_CHUNK)


@dataclass
class Load:
    """What came of all streams."""

    steady: Steady
    events: int
    reads: int
    kept: dict[int, bytes]  # all bytes of one connection in ten


def load(base_url: str, streams: int, events: int, pids: Sequence[int], deadline_s: float) -> Load:
    """Read so many streams at once, and meter these processes; raises RuntimeError where a stream is not whole."""
    return uvloop.run(_load(base_url, streams, events, pids, deadline_s))


async def _load(base_url: str, streams: int, events: int, pids: Sequence[int], deadline_s: float) -> Load:
    meter = Meter(streams, [cpu_of(pid) for pid in pids])
    readers = [_Reader(number, _post(base_url, number), meter, keep=number % 10 == 0) for number in range(streams)]
    address = urlsplit(base_url)

    async def read(number: int) -> None:
        await asyncio.sleep(number / streams * _START_S)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: readers[number], address.hostname or "", address.port or 80)
        await readers[number].gone.wait()

    await _meter_all(meter, read, deadline_s)
    for number, reader in enumerate(readers):
        if not reader.clean:
            raise RuntimeError(f"stream {number} was refused, or cut before its end: {reader.first[:500]!r}")
    _expect(meter.counts, events)
    return Load(
        meter.steady(events),
        sum(meter.counts),
        sum(reader.reads for reader in readers),
        {number: b"".join(reader.kept) for number, reader in enumerate(readers) if reader.kept is not None},
    )


def _post(base_url: str, number: int) -> bytes:
    address, body = urlsplit(base_url), json.dumps(request(number))
    head = f"POST {address.path}{_PATH} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


async def _meter_all(meter: Meter, read: Callable[[int], Coroutine[Any, Any, None]], deadline_s: float) -> None:
    looking = asyncio.create_task(meter.run())
    try:
        async with asyncio.timeout(deadline_s), asyncio.TaskGroup() as group:
            for number in range(len(meter.counts)):
                group.create_task(read(number))
    except TimeoutError:
        raise RuntimeError(f"not through within {deadline_s:g} s; events by stream: {meter.counts}") from None
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


def _expect(counts: Sequence[int], events: int) -> None:
    for number, count in enumerate(counts):
        if count != events:
            raise RuntimeError(f"stream {number}: expected {events} events, got {count}")


# The SDK and its transport: what reads one answer, and gives 0 when it has begun and then how many events have come.

Reader = Callable[[int], Iterator[int]]
AsyncReader = Callable[[int], AsyncIterator[int]]
Kind = Callable[[str], AbstractAsyncContextManager[Reader | AsyncReader]]  # takes the base URL
_NO_LIMITS = httpx2.Limits(max_connections=None)


@asynccontextmanager
async def openai_sync(base_url: str) -> AsyncIterator[Reader]:
    """The SDK."""
    with OpenAI(base_url=base_url, api_key="none") as sdk:

        def read(number: int) -> Iterator[int]:
            stream = sdk.chat.completions.create(**request(number))
            yield 0
            for _ in stream:
                yield 1
            yield 1  # [DONE], which it keeps to itself

        yield read


@asynccontextmanager
async def bytes_sync(base_url: str) -> AsyncIterator[Reader]:
    """What it stands on, and nothing else."""
    with httpx2.Client() as client:

        def read(number: int) -> Iterator[int]:
            counter = EventCounter()
            with client.stream("POST", base_url + _PATH, json=request(number)) as response:
                yield 0
                for piece in response.iter_bytes():
                    yield counter.count(piece)

        yield read


@asynccontextmanager
async def openai_async(base_url: str, client: httpx2.AsyncClient | None = None) -> AsyncIterator[AsyncReader]:
    """The asynchronous SDK."""
    async with AsyncOpenAI(base_url=base_url, api_key="none", http_client=client) as sdk:

        async def read(number: int) -> AsyncIterator[int]:
            stream = await sdk.chat.completions.create(**request(number))
            yield 0
            async for _ in stream:
                yield 1
            yield 1

        yield read


@asynccontextmanager
async def bytes_async(base_url: str, client: httpx2.AsyncClient | None = None) -> AsyncIterator[AsyncReader]:
    """What it stands on."""
    async with client or httpx2.AsyncClient(limits=_NO_LIMITS) as transport:

        async def read(number: int) -> AsyncIterator[int]:
            counter = EventCounter()
            async with transport.stream("POST", base_url + _PATH, json=request(number)) as response:
                yield 0
                async for piece in response.aiter_bytes():
                    yield counter.count(piece)

        yield read


def openai_aiohttp(base_url: str) -> AbstractAsyncContextManager[AsyncReader]:
    """The asynchronous SDK over aiohttp, its other transport, which the gateway uses too."""
    return openai_async(base_url, DefaultAioHttpClient(limits=_NO_LIMITS))


def bytes_aiohttp(base_url: str) -> AbstractAsyncContextManager[AsyncReader]:
    """That transport."""
    return bytes_async(base_url, DefaultAioHttpClient(limits=_NO_LIMITS))


# Two ways to run them.


def drain(kind: Kind, base_url: str, streams: int, events: int, rounds: int) -> float:
    """CPU seconds an event, for answers one after the other as fast as they come, without what asking takes."""
    figures = []
    for _ in range(rounds):
        spent, counts = uvloop.run(_drain(kind, base_url, streams))
        _expect(counts, events)
        figures.append(spent / sum(counts))
    return median(figures)


async def _drain(kind: Kind, base_url: str, streams: int) -> tuple[float, list[int]]:
    spent, counts = 0.0, []
    async with kind(base_url) as reader:
        for number in range(streams):
            pieces, read = reader(number), 0
            if isinstance(pieces, Iterator):
                next(pieces)
                began = time.process_time()
                for events in pieces:
                    read += events
            else:
                await anext(pieces)
                began = time.process_time()
                async for events in pieces:
                    read += events
            spent += time.process_time() - began
            counts.append(read)
    return spent, counts


def follow(kind: Kind, base_url: str, streams: int, events: int, deadline_s: float) -> Steady:
    """All answers at once, as they are said; the clock is this process's."""
    return uvloop.run(_follow(kind, base_url, streams, events, deadline_s))


async def _follow(kind: Kind, base_url: str, streams: int, events: int, deadline_s: float) -> Steady:
    meter, all_open = Meter(streams, [time.process_time]), asyncio.Barrier(streams)
    async with kind(base_url) as reader:

        async def read(number: int) -> None:
            await asyncio.sleep(number / streams * _START_S)
            pieces = cast(AsyncReader, reader)(number)
            await anext(pieces)
            await all_open.wait()  # opening takes long on a busy machine, and the first must not be done by then
            async for more in pieces:
                meter.counts[number] += more

        await _meter_all(meter, read, deadline_s)
    _expect(meter.counts, events)
    return meter.steady(events)
