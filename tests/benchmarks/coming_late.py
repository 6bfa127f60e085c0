"""Who waits, who comes late and who comes back: memory of the idle, replays, storms, and the first token.

    python -m tests.benchmarks [--quick] idle_memory idle_cached late_joiners disturbance storms first_tokens

Where a generation has to be live but quiet, its model server holds it, or is stopped (SIGSTOP) when it has said enough.
A node that has never seen a generation is a second one on the same Valkey.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from support.api import Api

from tests.benchmarks.fanout import PER_SECOND
from tests.benchmarks.measuring import Figure, cpu_of, cpu_s, peak_bytes, rss_bytes, spent, table
from tests.benchmarks.peers import AioHttp, DurableStreams, Missing, Nchan, NchanRedis, Peer, ResumableStream
from tests.benchmarks.peers.peer import http_request
from tests.benchmarks.programs import Load, LoadMark, Subscribers, get, paced, post
from tests.benchmarks.sides import Foreign, Replay, Side, in_turn

_ENDS_S = 120.0
_BESIDE_TOKENS = 4  # events of a generation: `start`, the role, the finish reason, `end`


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    repeats: int
    idle: int  # subscribers who wait
    idle_peers: Sequence[Callable[[], Side]]
    cached: int  # ended generations that nobody asks for
    joiners: int  # who are given a whole generation that the node has in memory
    cold: int  # generations that it has not
    window_s: float
    storm_peers: Sequence[type[Peer]]
    first_tokens: int


LONG = 10_000  # events of the generation that late joiners get
SUBSCRIBERS = 1000
BACKLOG = 1000  # events for each of the subscribers
_AT_ONCE_BY_DESCRIPTORS = 9_500  # of 20,000: the aiohttp tutorial's subscriber takes two


def _failed(mark: LoadMark) -> int:
    return mark.wrong_status + mark.refused + mark.reset + mark.closed


# Memory.


class Parked(Peer):
    """The least that a handler on aiohttp can do: answer, and wait. There is nothing to publish."""

    name = "aiohttp, a parked handler"
    replays = resumes = False
    _PROGRAM = """
import asyncio, sys, uvloop
from aiohttp import web

async def events(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b": subscribed\\n\\n")
    await asyncio.get_running_loop().create_future()

app = web.Application()
app.add_routes([web.get("/{stream}", events)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), backlog=8192, access_log=None, print=None,
            handler_cancellation=True, loop=uvloop.new_event_loop())
"""

    @classmethod
    async def install(cls) -> None:
        pass

    async def _start(self, directory: Path) -> None:
        await self._run("python", [sys.executable, "-c", self._PROGRAM, str(self.port)], directory)

    def _subscription(self, stream: str, replay: bool, after: str | None) -> tuple[str, Mapping[str, str]]:
        return f"/{stream}", {}

    def _publication(self, stream: str, data: bytes) -> bytes:
        return http_request("POST", f"/{stream}", self.port, {}, data)


def _resident(pids: Mapping[str, int]) -> dict[str, float]:
    return {name: float(rss_bytes(pid)) for name, pid in pids.items()}


async def _settled(pids: Mapping[str, int]) -> dict[str, float]:
    """Resident memory, once it does not change any more."""
    before = _resident(pids)
    for _ in range(20):
        await asyncio.sleep(1)
        now = _resident(pids)
        if all(abs(now[name] - before[name]) < before[name] / 200 for name in now):
            return now
        before = now
    return before


async def idle(side: Side, streams: int, subscribers: int) -> tuple[int, dict[str, float]]:
    """How many subscribers were let in, to wait, and what each of them takes, in bytes, by process."""
    requests = await side.open(streams, PER_SECOND, 600)
    before = await _settled(side.pids)
    crowd = [Subscribers(request, subscribers // streams) for request in requests]
    async with Load(side.port, crowd, sample=0, connect_per_second=1500) as load:
        answered = (
            await load.until("all to be answered", lambda mark: mark.answered + _failed(mark) >= subscribers, _ENDS_S)
        ).answered
        after = await _settled(side.pids)
    return answered, {name: grown / answered for name, grown in spent(before, after).items()}


def _foreign(kind: type[Peer]) -> Callable[[], Side]:
    return lambda: Foreign(kind)


async def idle_memory(size: Size) -> None:
    """A subscriber who waits, here and elsewhere."""
    makes: list[tuple[str, Callable[[], Side], int, int]] = [
        ("**replay**, one generation", Replay, 1, size.idle),
        ("**replay**, 100 generations", Replay, 100, size.idle),
    ]
    for make in size.idle_peers:
        most = _AT_ONCE_BY_DESCRIPTORS if make().name == AioHttp.name else size.idle
        makes.append((make().name, make, 1, min(most, size.idle)))
    rows = []
    for name, make, streams, subscribers in makes:
        try:
            async with make() as side:
                answered, each = await idle(side, streams, subscribers)
            parts = ", ".join(f"{part} {grown / 1024:.1f}" for part, grown in each.items())
            total = f"{sum(each.values()) / 1024:.1f}"
            rows.append([name, f"{answered:,}", total, parts if len(each) > 1 else ""])
        except Missing as missing:
            rows.append([name, f"missing: {missing}", "", ""])
    print("Memory of an idle subscriber: growth of resident memory, without the kernel's. Mark: at most 8 KiB\n")
    print(table(("side", "subscribers", "KiB each", "of that"), rows), flush=True)


# What is kept for whoever comes next.

_CACHED_TOKENS = 20
_CACHED_WINDOW_S = 4.0


async def _idle_cpu(pid: int) -> float:
    """CPU seconds a second of a process that is left alone."""
    before, began = cpu_s(pid), time.monotonic()
    await asyncio.sleep(_CACHED_WINDOW_S)
    return (cpu_s(pid) - before) / (time.monotonic() - began)


async def idle_cached(size: Size) -> None:
    """What ended generations cost that a node keeps in memory and nobody asks for."""
    rows = []
    async with Replay(heal_window_s=0) as side:
        await recorded(side.api, 50, _CACHED_TOKENS + _BESIDE_TOKENS)  # what grows once has grown
        before = await _settled(side.pids)
        for more in (0, size.cached):
            await side.generate(more, paced(0, _CACHED_TOKENS))
            after = await _settled(side.pids)
            grown = after["node"] - before["node"]
            cpu = await _idle_cpu(side.node.pid)
            rows.append([f"{more:,}", f"{100 * cpu:.2f} %", f"{grown / more / 1024:.1f}" if more else ""])
    print(f"Ended generations of {_CACHED_TOKENS + _BESIDE_TOKENS} events that are only cached. Mark: no more CPU\n")
    print(table(("cached", "of a core, idle", "KiB each"), rows), flush=True)


# Late joiners.


async def recorded(api: Api, count: int, events: int) -> list[str]:
    """Generations of so many events, plain tokens, that have ended; their ids."""
    body = {"prompt": "Hi", "model": paced(0, events - _BESIDE_TOKENS)}
    ids = [answer["id"] for answer in await in_turn(count, lambda: api.start(body), at_once=2)]
    for id in ids:
        generation = await api.ended(id, _ENDS_S)
        if generation["events"] != events:
            raise RuntimeError(f"expected {events} events, got {generation}")
    return ids


def _events_of(id: str, headers: Mapping[str, str] | None = None) -> bytes:
    return get(f"/generations/{id}/events", headers)


async def read_whole(port: int, id: str) -> int:
    """Read a generation that has ended; how many events that was."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(_events_of(id, {"Connection": "close"}))
    body = await reader.read()
    writer.close()
    return body.count(b"\nid: ")


@dataclass(frozen=True)
class Replayed:
    """What it took to give events to late joiners."""

    events: int
    cpu_s: dict[str, float]

    def us(self, process: str) -> float:
        """CPU microseconds an event."""
        return 1e6 * self.cpu_s[process] / self.events


def _pids(side: Replay, node: int) -> dict[str, int]:
    return {"node": side.nodes[node].pid, "valkey": side.valkey.pid}


async def one_after_another(side: Replay, node: int, ids: Sequence[str]) -> Replayed:
    """Give each of these to one joiner."""
    before, events = cpu_of(_pids(side, node)), 0
    for id in ids:
        events += await read_whole(side.nodes[node].port, id)
    return _all(Replayed(events, spent(before, cpu_of(_pids(side, node)))), len(ids))


async def all_at_once(side: Replay, node: int, id: str, joiners: int) -> Replayed:
    """Give one to many joiners."""
    before = cpu_of(_pids(side, node))
    crowd = Subscribers(_events_of(id), joiners)
    async with Load(side.nodes[node].port, [crowd], sample=0, target=LONG) as load:
        mark = await load.until("all to have all", lambda mark: mark.ended == joiners, _ENDS_S)
    return _all(Replayed(mark.events, spent(before, cpu_of(_pids(side, node)))), joiners)


def _all(run: Replayed, joiners: int) -> Replayed:
    if run.events != joiners * LONG:
        raise RuntimeError(f"expected {LONG} events for {joiners} joiners, got {run.events}")
    return run


async def late_joiners(size: Size) -> None:
    """A whole generation for who comes when it has ended."""
    names = ("in memory, one after another", "in memory, all at once", "read from Valkey, the first reader of each")
    runs: dict[str, list[Replayed]] = {name: [] for name in names}
    async with Replay(nodes=2) as side:
        for _ in range(size.repeats):
            ids = await recorded(side.api, size.cold, LONG)
            await read_whole(side.port, ids[0])  # it is in the node's memory, and has been framed before
            runs[names[0]].append(await one_after_another(side, 0, [ids[0]] * size.joiners))
            runs[names[1]].append(await all_at_once(side, 0, ids[0], size.joiners))
            runs[names[2]].append(await one_after_another(side, 1, ids))
    rows = [
        [name, f"{size.cold if name is names[2] else size.joiners}"]
        + [Figure([run.us(process) for run in measured]).show() for process in ("node", "valkey")]
        for name, measured in runs.items()
    ]
    print(f"A generation of {LONG:,} plain tokens that has ended, for late joiners, connecting included.")
    print("Marks: at most 0.3 µs an event from memory, at most 2 µs from Valkey, of the node's CPU\n")
    print(table(("where the log is", "joiners", "node, µs an event", "Valkey, µs an event"), rows), flush=True)


@dataclass(frozen=True)
class Windows:
    """The p99 of live subscribers in one run, in ms."""

    alone: float
    warm: float
    cold: float


async def _p99_ms(load: Load, seconds: float) -> float:
    await load.latency()
    await asyncio.sleep(seconds)
    return (await load.latency()).p99_us / 1000


async def disturbed(seconds: float) -> Windows:
    """How late 100 live subscribers get their events, alone and while others are given whole generations."""
    every_s = 0.1
    async with Replay(nodes=2) as side:
        # On the other node: the one that is measured has seen none of them, and then the first.
        warm, *cold = await recorded(side.nodes[1].api, 1 + int(seconds / every_s), LONG)
        await read_whole(side.port, warm)
        (request,) = await side.open(1, PER_SECOND, 3 * seconds + 10)
        async with Load(side.port, [Subscribers(request, 100)]) as load:
            await load.until("all to be answered", lambda mark: mark.answered == 100)
            await side.go()
            await asyncio.sleep(1)
            alone = await _p99_ms(load, seconds)
            with_joiners = []
            for ids in ([warm] * len(cold), cold):
                joiners = [Subscribers(_events_of(id), 1) for id in ids]
                async with Load(side.port, joiners, sample=0, connect_per_second=1 / every_s) as coming:
                    with_joiners.append(await _p99_ms(load, seconds))
                    await coming.until("all to have all", lambda mark: mark.events == len(cold) * LONG)
            end = await load.stop()
    if end.holes or end.doubles or end.reorders:
        raise RuntimeError(f"live subscribers: {end}")
    return Windows(alone, *with_joiners)


async def disturbance(size: Size) -> None:
    """What late joiners do to live subscribers."""
    runs = [await disturbed(size.window_s) for _ in range(size.repeats)]
    alone = statistics.median(run.alone for run in runs)
    rows = []
    for name, values in (
        ("nobody joins", [run.alone for run in runs]),
        ("a joiner each 100 ms, from memory", [run.warm for run in runs]),
        ("a joiner each 100 ms, from Valkey", [run.cold for run in runs]),
    ):
        figure = Figure(values)
        rows.append([name, figure.show("{:.1f}"), f"{figure.median / alone:.2f}"])
    print(f"100 live subscribers of another generation ({PER_SECOND} events/s), each joiner gets {LONG:,} events.")
    print("Mark: at most twice the p99 without joiners\n")
    print(table(("meanwhile", "p99 ms", "× alone"), rows), flush=True)


# Storms.


@dataclass(frozen=True)
class Storm:
    """All come back at once."""

    wall_s: float | None  # from before the first connect until all had everything; None if they never had
    complete: int
    failed: int
    cpu_s: dict[str, float]
    grown_bytes: float  # the most resident memory meanwhile, beyond what it was before
    asked: dict[str, int] = field(default_factory=dict)  # how often Valkey was asked to read a log


def _forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def storm(port: int, pids: Mapping[str, int], request: bytes, *, contiguous: bool) -> Storm:
    """Let all connect at once, and wait until each has its backlog; raises RuntimeError if an id is missing."""
    for pid in pids.values():
        _forget_peak(pid)
    resident, cpu, began_s = _resident(pids), cpu_of(pids), time.monotonic()

    def over(mark: LoadMark) -> bool:
        return mark.complete + _failed(mark) >= SUBSCRIBERS

    crowd = [Subscribers(request, SUBSCRIBERS)]
    async with Load(port, crowd, sample=20 if contiguous else 0, target=BACKLOG, contiguous=contiguous) as load:
        mark = await load.until("all to have all", over, _ENDS_S)
        end = await load.stop()
    if end.holes or end.doubles or end.reorders:
        raise RuntimeError(f"a storm: {end}")
    peaks = {name: float(peak_bytes(pid)) for name, pid in pids.items()}
    return Storm(
        wall_s=None if mark.complete_at_s is None else mark.complete_at_s - began_s,
        complete=mark.complete,
        failed=_failed(mark),
        cpu_s=spent(cpu, cpu_of(pids)),
        grown_bytes=sum(spent(resident, peaks).values()),
    )


async def _storm_here(side: Replay, node: int, id: str) -> Storm:
    before = await side.commands()
    measured = await storm(side.nodes[node].port, _pids(side, node), _events_of(id), contiguous=True)
    after = await side.commands()
    asked = {name: after.get(name, 0) - before.get(name, 0) for name in ("xrange", "xrevrange")}
    return replace(measured, asked=asked)


@asynccontextmanager
async def thinking(side: Replay, events: int) -> AsyncIterator[str]:
    """A live generation with so many events, or some more, whose model then says nothing; its id."""
    (id,) = await side.generate(1, paced(2000, 100 * events))
    await side.api.has(id, events)
    os.kill(side.upstream.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(0.2)  # what it has said is on its way
        yield id
    finally:
        await side.api.post(f"/generations/{id}/cancel")
        os.kill(side.upstream.pid, signal.SIGCONT)


async def _storms_here(size: Size) -> dict[str, list[Storm]]:
    runs: dict[str, list[Storm]] = {}
    async with Replay(nodes=2) as side:
        for _ in range(size.repeats):
            for node, where in ((0, "in memory"), (1, "from Valkey")):
                async with thinking(side, BACKLOG) as id:
                    runs.setdefault(f"**replay**, live, {where}", []).append(await _storm_here(side, node, id))
                (id,) = await recorded(side.api, 1, BACKLOG)
                runs.setdefault(f"**replay**, ended, {where}", []).append(await _storm_here(side, node, id))
    return runs


async def _storms_elsewhere(kind: type[Peer], size: Size) -> list[Storm]:
    runs = []
    await kind.install()
    async with kind() as peer:
        for number in range(size.repeats):
            await peer.open(f"s{number}")
            data = [b'{"type":"token","content":" tok","index":%d}' % place for place in range(BACKLOG)]  # as ours
            await peer.publish_many(f"s{number}", data)
            request = peer.request(f"s{number}", replay=True)
            runs.append(await storm(peer.port, peer.pids(), request, contiguous=False))
    return runs


def _cpu_us(runs: list[Storm]) -> Figure:
    return Figure([1e6 * sum(run.cpu_s.values()) / (SUBSCRIBERS * BACKLOG) for run in runs])


def _wall_s(runs: list[Storm]) -> float:
    return statistics.median(_ENDS_S if run.wall_s is None else run.wall_s for run in runs)


def _storm_row(name: str, runs: list[Storm], ours: list[Storm] | None) -> list[str]:
    walls = [run.wall_s for run in runs if run.wall_s is not None]
    asked = [f"{max(run.asked[name] for run in runs)}" if runs[0].asked else "" for name in ("xrange", "xrevrange")]
    return [
        name,
        Figure(walls).show() if len(walls) == len(runs) else f"never: {min(run.complete for run in runs)} had all",
        "" if ours is None or not walls else f"{_wall_s(ours) / _wall_s(runs):.2f}",
        _cpu_us(runs).show(),
        "" if ours is None or not walls else f"{_cpu_us(ours).median / _cpu_us(runs).median:.2f}",
        Figure([run.grown_bytes / (1 << 20) for run in runs]).show("{:.0f}"),
        f"{max(run.failed for run in runs)}",
        *asked,
    ]


async def storms(size: Size) -> None:
    """Everybody comes back at once."""
    here = await _storms_here(size)
    slowest = max(here.values(), key=_wall_s)
    rows = [_storm_row(name, runs, None) for name, runs in here.items()]
    for kind in size.storm_peers:
        try:
            rows.append(_storm_row(kind.name, await _storms_elsewhere(kind, size), slowest))
        except Missing as missing:
            rows.append([kind.name, f"missing: {missing}", *[""] * 7])
    head = ("side", "s until all have all", "replay / it", "µs CPU an event", "replay / it", "peak, MiB more", "failed")
    print(
        f"{SUBSCRIBERS:,} subscribers come back at once, each for {BACKLOG:,} events; "
        "beside the peers, replay's slowest."
    )
    print("Marks: at most a tenth of nchan's time; Valkey reads the log (XRANGE) as often as for one subscriber\n")
    print(table((*head, "XRANGE", "XREVRANGE, one entry"), rows), flush=True)


# The first token.


_PAUSE_S = 0.02  # the generation before has then been put away
_SAID = re.compile(rb'"content":"[^"]')
_LAST_CHUNK = b"0\r\n\r\n"


def _waited_ms(pids: Iterable[int]) -> float:
    """How long main threads that could have run have waited for a core, so far."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) for pid in pids) / 1e6


class Caller:
    """A kept-alive connection, and how long its answers took to say something, in ms."""

    def __init__(self, name: str, port: int, request: bytes, pids: Iterable[int]) -> None:
        self.name = name
        self.ms: list[float] = []
        self.unhindered_ms: list[float] = []  # without what these processes waited for a core
        self._port = port
        self._request = request
        self._pids = list(pids)

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def call(self) -> None:
        """Ask once, and read the answer to its end."""
        waited_ms, began, answer = _waited_ms(self._pids), time.perf_counter(), b""
        self._writer.write(self._request)
        while not _SAID.search(answer):
            answer += await self._more(answer)
        took_ms = 1000 * (time.perf_counter() - began)
        self.ms.append(took_ms)
        self.unhindered_ms.append(max(0.0, took_ms - (_waited_ms(self._pids) - waited_ms)))
        while not answer.endswith(_LAST_CHUNK):
            answer += await self._more(answer)

    async def _more(self, answer: bytes) -> bytes:
        piece = await asyncio.wait_for(self._reader.read(1 << 16), 10)
        if not piece:
            raise RuntimeError(f"{self.name}: the connection was closed after {answer[-500:]!r}")
        return piece

    def forget(self) -> None:
        """Begin to count anew."""
        self.ms.clear()
        self.unhindered_ms.clear()

    def close(self) -> None:
        self._writer.close()


async def first_tokens(size: Size) -> None:
    """What the service adds before the first token."""
    body: dict[str, Any] = {"model": paced(0, 3), "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    chat = post("/v1/chat/completions", body)
    events = post("/generations", body, {"Accept": "text/event-stream"})
    async with Replay() as side:
        pids = [os.getpid(), side.upstream.pid, *side.pids.values()]
        callers = [
            Caller("the model server itself", side.upstream.port, chat, pids[:2]),
            Caller("**replay**, `/v1/chat/completions`", side.port, chat, pids),
            Caller("**replay**, `/generations`", side.port, events, pids),
        ]
        for caller in callers:
            await caller.connect()
        for turn in range(-10, size.first_tokens):
            for caller in callers:
                if turn == 0:
                    caller.forget()
                await asyncio.sleep(_PAUSE_S)
                await caller.call()
        for caller in callers:
            caller.close()
    direct, rows = callers[0], []
    for caller in callers:
        more = [
            statistics.median(caller.ms) - statistics.median(direct.ms),
            statistics.median(caller.unhindered_ms) - statistics.median(direct.unhindered_ms),
        ]
        p99 = statistics.quantiles(caller.ms, n=100)[98]
        compared = ["", ""] if caller is direct else [f"{ms:.2f}" for ms in more]
        rows.append([caller.name, f"{statistics.median(caller.ms):.2f}", *compared, f"{p99:.2f}"])
    print(f"From a request on a kept-alive connection to its first token, {size.first_tokens} each, in turns.")
    print("Mark: at most 2 ms more than the model server itself takes\n")
    print(table(("who is asked", "p50 ms", "more, ms", "but for waiting for a core", "p99 ms"), rows), flush=True)


TABLES = (idle_memory, idle_cached, late_joiners, disturbance, storms, first_tokens)
_MEMORY_PEERS = tuple(map(_foreign, (Nchan, NchanRedis, AioHttp, Parked)))
FULL = Size(
    repeats=3,
    idle=10_000,
    idle_peers=_MEMORY_PEERS,
    cached=20_000,
    joiners=100,
    cold=10,
    window_s=4,
    storm_peers=(Nchan, NchanRedis, DurableStreams, ResumableStream),
    first_tokens=200,
)
QUICK = Size(
    repeats=1,
    idle=2000,
    idle_peers=_MEMORY_PEERS[:2],
    cached=20_000,
    joiners=30,
    cold=4,
    window_s=2,
    storm_peers=(Nchan, NchanRedis),
    first_tokens=100,
)
