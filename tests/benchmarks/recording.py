"""Many generations: what recording a token costs, and what its subscribers add, here and on another node.

    python -m tests.benchmarks [--quick] recording few_each parts following commands

The whole service, as in `fanout.py`: a model server is read, a real Valkey keeps everything. "A token" is a chunk of
the model server's. CPU is that of the named process, by its scheduler's clock; a mark is what the figure should keep.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import libvalkey
from support.valkey import ValkeyServer

from tests.benchmarks.measuring import Figure, cpu_of, cpu_s, per, spent, table
from tests.benchmarks.programs import Latency, Load, LoadEnd, Subscribers, get
from tests.benchmarks.sides import Replay

PER_SECOND = 50
_SETTLING_S = 1.5
_CONNECTS_PER_SECOND = 1000
_LARGE_PIPELINE = 100  # commands


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    repeats: int
    seconds: float  # of each measurement
    alone: Sequence[int]  # generations without subscribers
    read: Sequence[tuple[int, int]]  # generations, and subscribers of each
    followed: Sequence[int]  # generations that are read on another node
    followed_per_second: int  # tokens of all of them
    profile_s: float


FULL = Size(
    repeats=3, seconds=4, alone=(400, 100, 10), read=((300, 1), (100, 10)), followed=(10, 100, 1000, 5000),
    followed_per_second=500, profile_s=8,
)  # fmt: skip
QUICK = Size(
    repeats=1, seconds=3, alone=(400, 100, 10), read=((300, 1), (100, 10)), followed=(10, 1000),
    followed_per_second=500, profile_s=4,
)  # fmt: skip


# Counters, and what they grow by.


@dataclass(frozen=True)
class Window:
    """What was done between two moments."""

    seconds: float
    tokens: int  # that the model server has said
    cpu_s: dict[str, float]  # by process: node, valkey, and follower where there is one
    waited_s: dict[str, float]  # likewise, for a core that others used; a busy machine makes larger, cheaper batches
    counts: dict[str, float]  # see `counted`

    def us(self, process: str) -> float:
        """CPU microseconds a token."""
        return 1e6 * self.cpu_s[process] / max(1, self.tokens)

    def ms_a_second(self, process: str) -> float:
        """CPU milliseconds a second: 1,000 are one core."""
        return 1000 * self.cpu_s[process] / self.seconds

    def a_token(self, count: str) -> float:
        """How often something was counted for each token that was recorded."""
        return self.counts[count] / max(1, self.counts["recorded"])

    def a_second(self, count: str) -> float:
        """How often something was counted in a second."""
        return self.counts[count] / self.counts["at_s"]


async def counted(side: Replay) -> dict[str, float]:
    """What the nodes and Valkey have counted up to now.

    Valkey counts what a script runs like what a client sends. Ours compares, adds, and publishes, so that can be told
    apart: nothing else adds to a stream, and each append that adds publishes once.
    """
    calls = await side.commands()
    appends, added = calls.get("evalsha", 0) + calls.get("eval", 0), calls.get("xadd", 0)
    in_scripts = appends + added + min(appends, calls.get("spublish", 0))
    own = sum(calls.get(name, 0) for name in _OUR_QUESTIONS)
    async with side.valkey.client() as client:
        stats = await client.info("stats")
    counts: Counter[str] = Counter(
        at_s=time.monotonic(),
        sent=sum(calls.values()) - own - in_scripts,
        in_scripts=in_scripts,
        evalsha=appends,
        reads=stats["total_reads_processed"],
    )
    for node in side.nodes:
        text = (await node.api.get("/metrics")).body.decode()
        for name, metric in _METRICS.items():
            counts[name] += float(re.findall(rf"^{metric} (\S+)$", text, re.MULTILINE)[0])
    return dict(counts)


_OUR_QUESTIONS = ("info", "client|setinfo")
_METRICS = {
    "recorded": "replay_tokens_recorded_total",
    "append_s": "replay_append_seconds_sum",
    "appends": "replay_append_seconds_count",
}


async def window(side: Replay, seconds: float) -> Window:
    """Look on for a while; what is asked for the counters is outside of the time whose CPU counts."""
    pids = side.pids | ({"follower": side.nodes[1].pid} if len(side.nodes) > 1 else {})
    counts = await counted(side)
    before, cpu_before, waited_before = await side.upstream.mark(), cpu_of(pids), _waited(pids)
    await asyncio.sleep(seconds)
    after, cpu_after, waited_after = await side.upstream.mark(), cpu_of(pids), _waited(pids)
    return Window(
        after.at_s - before.at_s,
        after.chunks - before.chunks,
        spent(cpu_before, cpu_after),
        spent(waited_before, waited_after),
        spent(counts, await counted(side)),
    )


def _waited(pids: Mapping[str, int]) -> dict[str, float]:
    """How long the main threads were ready to run and had no core, in seconds."""
    return {name: int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9 for name, pid in pids.items()}


async def alone(side: Replay, generations: int, size: Size) -> Window:
    """Record, with nobody reading."""
    await side.open(generations, PER_SECOND, _SETTLING_S + size.seconds + 1)
    await side.go()
    await asyncio.sleep(_SETTLING_S)
    return await window(side, size.seconds)


def shown(heading: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, and how busy the machine was."""
    print(f"{heading} (load average {os.getloadavg()[0]:.1f})\n")
    print(table(head, rows), flush=True)


def median(form: str, values: Iterable[float]) -> str:
    """A figure and its spread, as text."""
    return Figure(list(values)).show(form)


def least(shares: Iterable[float]) -> str:
    """The worst of several shares, in percent."""
    return f"{100 * min(shares):.0f} %"


# Recording alone.


async def recording(size: Size) -> None:
    """What it costs to record, beside the same entries added to as many streams by plain XADD."""
    rows = []
    for generations in size.alone:
        runs: list[Window] = []
        as_many: list[float] = []
        large: list[float] = []
        for _ in range(size.repeats):
            async with Replay() as side:
                ours = await alone(side, generations, size)
                await side.upstream.until("the end of all", lambda mark: mark.streams == 0)
                entries = await _entries(side.valkey)
                a_read = max(1, round(ours.counts["recorded"] / ours.counts["reads"]))
                as_many.append(await bare_us(side.valkey, generations, a_read, size.seconds, entries))
                large.append(await bare_us(side.valkey, generations, _LARGE_PIPELINE, size.seconds, entries))
                runs.append(ours)
        valkey = Figure([run.us("valkey") for run in runs]).median
        rows.append([
            f"{generations} × {PER_SECOND}/s",
            least(run.a_second("recorded") / (generations * PER_SECOND) for run in runs),
            median("{:.1f}", (run.us("node") for run in runs)),
            median("{:.1f}", (run.us("valkey") for run in runs)),
            median("{:.2f}", (run.counts["recorded"] / run.counts["appends"] for run in runs)),
            median("{:.1f}", (1000 * run.counts["append_s"] / run.counts["appends"] for run in runs)),
            median("{:.0f} %", (100 * run.waited_s["node"] / run.seconds for run in runs)),
            median("{:.1f}", (run.counts["recorded"] / run.counts["reads"] for run in runs)),
            median("{:.1f}", as_many),
            per("{:.2f}", valkey, Figure(as_many).median),
            median("{:.1f}", large),
            per("{:.2f}", valkey, Figure(large).median),
        ])  # fmt: skip
    head = (
        "generations", "recorded in time", "node, µs a token", "Valkey, µs a token", "tokens an append", "append, ms",
        "node waited for a core",
        "tokens a read of Valkey's", "XADD, as many a read: Valkey, µs", "replay / it",
        f"XADD, {_LARGE_PIPELINE} a pipeline: Valkey, µs", "replay / it",
    )  # fmt: skip
    shown("Recording alone, nobody reads; marks: the node's ≤ 45 µs a token at 400, Valkey's ≤ 2 × XADD's", head, rows)


async def _entries(valkey: ValkeyServer) -> list[bytes]:
    """What one of the recorded generations has said, as it is stored."""
    async with valkey.client() as client:
        _, found = await client.scan(match="replay:{gen_*}:events", count=10_000)
        stored = await client.xrange(found[0])
    return [next(iter(fields.values())) for _, fields in stored[2:-2]]


async def bare_us(valkey: ValkeyServer, streams: int, pipeline: int, seconds: float, entries: Sequence[bytes]) -> float:
    """What the same server needs for the same entries at the same pace by plain XADD; CPU microseconds an entry."""
    pipelines = _pipelines(f"bare:{time.monotonic_ns()}", streams, pipeline, entries)
    per_second = streams * PER_SECOND
    await asyncio.to_thread(_add, valkey.port, pipelines, pipeline, per_second, 0.5)
    began = cpu_s(valkey.pid)
    added = await asyncio.to_thread(_add, valkey.port, pipelines, pipeline, per_second, seconds)
    return 1e6 * (cpu_s(valkey.pid) - began) / added


def _pipelines(prefix: str, streams: int, length: int, entries: Sequence[bytes]) -> Iterator[bytes]:
    """Without end: the streams have an entry each in turn, under ids of the same sort as ours."""
    commands, seq, now_ms = [], 0, time.time_ns() // 1_000_000
    while True:
        seq += 1
        for stream in range(streams):
            entry = entries[seq % len(entries)]
            key = f"{prefix}:{{{stream:028x}}}:events"  # as long as ours
            commands.append(libvalkey.pack_command(("XADD", key, f"{now_ms + 20 * seq}-{seq}", "e", entry)))
            if len(commands) == length:
                yield b"".join(commands)
                commands.clear()


def _add(port: int, pipelines: Iterator[bytes], length: int, per_second: float, seconds: float) -> int:
    """Send pipelines at a pace, each when the one before is answered; how many entries. Blocks."""
    began, added = time.monotonic(), 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while (now := time.monotonic()) < began + seconds:
            if added > (now - began) * per_second:
                time.sleep((added / per_second) - (now - began))
            connection.sendall(next(pipelines))
            replies = libvalkey.Reader()
            for _ in range(length):
                while (reply := replies.gets()) is False:
                    replies.feed(connection.recv(65536))
                if isinstance(reply, Exception):
                    raise reply
            added += length
    return added


# Many generations, few subscribers.


@dataclass(frozen=True)
class Read:
    """Generations with their subscribers."""

    window: Window
    events: int  # that arrived meanwhile
    expected: float
    latency: Latency


async def read(side: Replay, generations: int, subscribers: int, size: Size, *, profile: Path | None = None) -> Read:
    """Record and deliver to the end; raises RuntimeError when anybody lacks anything.

    With `profile` py-spy looks on after that was measured, and writes it there.
    """
    seconds = _SETTLING_S + size.seconds + (size.profile_s + 2 if profile is not None else 0) + 1
    requests = await side.open(generations, PER_SECOND, seconds)
    crowd = [Subscribers(request, subscribers) for request in requests]
    connections = generations * subscribers
    async with Load(side.port, crowd, sample=connections, connect_per_second=_CONNECTS_PER_SECOND) as load:
        await load.until("all to be answered", lambda mark: mark.answered == connections, 120)
        await side.go()
        await asyncio.sleep(_SETTLING_S)
        await load.latency()
        before = await load.mark()
        measured = await window(side, size.seconds)
        after, latency = await load.mark(), await load.latency()
        if profile is not None:
            await _profile(side.node.pid, size.profile_s, profile)
        await load.until("the end of all", lambda mark: mark.ended == connections, 60 + seconds)
        _check(await load.stop(), tokens=int(PER_SECOND * seconds))
    expected = connections * PER_SECOND * (after.at_s - before.at_s)
    return Read(measured, after.events - before.events, expected, latency)


def _check(end: LoadEnd, *, tokens: int) -> None:
    if end.holes or end.doubles or end.reorders or end.least != end.most or end.least < tokens:
        raise RuntimeError(
            f"{end.holes} holes, {end.doubles} doubles, {end.reorders} reorders in {end.ids} ids; "
            f"{end.least} to {end.most} events a subscriber, expected {tokens} tokens and more"
        )


async def few_each(size: Size) -> None:
    """What it costs to record and to deliver, all included."""
    rows = []
    for generations, subscribers in size.read:
        runs = []
        for _ in range(size.repeats):
            async with Replay() as side:
                runs.append(await read(side, generations, subscribers, size))
        rate = generations * PER_SECOND
        rows.append([
            f"{generations} × {subscribers}",
            least(run.window.a_second("recorded") / rate for run in runs),
            least(run.events / run.expected for run in runs),
            median("{:.0f} %", (run.window.ms_a_second("node") / 10 for run in runs)),
            median("{:.0f} %", (100 * run.window.waited_s["node"] / run.window.seconds for run in runs)),
            median("{:.1f}", (run.window.us("node") for run in runs)),
            median("{:.1f}", (run.window.us("node") * run.window.tokens / max(1, run.events) for run in runs)),
            median("{:.1f}", (run.window.us("valkey") for run in runs)),
            median("{:.1f}", (run.latency.p50_us / 1000 for run in runs)),
            median("{:.1f}", (run.latency.p99_us / 1000 for run in runs)),
        ])  # fmt: skip
    head = (
        "generations × subscribers", "recorded in time", "arrived in time", "node, of a core", "waited for one",
        "node, µs a token",
        "node, µs a delivered event", "Valkey, µs a token", "p50 ms", "p99 ms",
    )  # fmt: skip
    shown(
        f"Many generations at {PER_SECOND} events/s, few subscribers: read from the model, recorded and delivered; "
        "every subscriber had every event once and in order; mark: 100 % in time on one core",
        head,
        rows,
    )


# Where the node's time goes.

# The innermost frame that one of these fits says whose it is; what helps all of them (`model`, `wire/json.py`) is
# its caller's.
PARTS = {
    "read the upstream": r"\(replay/upstream/|\(aiohttp/(client|streams|helpers|base_protocol)|\((httpx|openai)",
    "decode and record": r"^Decoder\.|\(replay/wire/(openai|responses)\.py|\(replay/live/producer\.py",
    "append": r"\(replay/live/(writer|repair)\.py|\(replay/store/",
    "write": r"^Feed\._broadcast |\(replay/live/(subscriber|stream_connection)\.py",
    "frame": r"\(replay/wire/(events|sse|framing|openai_formats|responses_format)\.py|"
    r"\(replay/live/(feed|encoding)\.py",
}
_LOOP = "the event loop: epoll, recv, calling what is due"
_OTHER = "other"


def part_of(stack: Sequence[str]) -> str | None:
    """Which part a stack belongs to, outermost frame first; None where the thread only waits for work."""
    if any("concurrent/futures/thread.py" in frame for frame in stack):
        return None
    for frame in reversed(stack):
        for part, pattern in PARTS.items():
            if re.search(pattern, frame):
                return part
    return _LOOP if "asyncio/runners.py" in stack[-1] else _OTHER


class Unseen(Exception):
    """py-spy could not look."""


async def _profile(pid: int, seconds: float, path: Path) -> None:
    program = Path(sys.executable).with_name("py-spy")
    arguments = ["record", "--rate", "200", "--format", "raw", "--duration", f"{seconds:.0f}", "--output", path]
    try:
        spy = await asyncio.create_subprocess_exec(
            program, *arguments, "--pid", f"{pid}",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
    except FileNotFoundError:
        raise Unseen(f"there is no {program}") from None
    said, _ = await spy.communicate()
    if spy.returncode:
        raise Unseen(said.decode(errors="replace").strip().replace("\n", " ").replace("|", "/")[:200])


def parts_in(profile: str) -> Counter[str]:
    """Samples by part."""
    counts: Counter[str] = Counter()
    for line in profile.splitlines():
        frames, _, count = line.rpartition(" ")
        part = part_of(frames.split(";"))
        if part is not None:
            counts[part] += int(count)
    return counts


async def parts(size: Size) -> None:
    """Where the node's time goes, by sampling; the samples are taken after the cost was."""
    head = ["part"]
    rows = [[part] for part in (*PARTS, _LOOP, _OTHER, "in all")]
    for generations, subscribers in size.read:
        head += [f"{generations} × {subscribers}", "µs a token"]
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "raw"
            try:
                async with Replay() as side:
                    run = await read(side, generations, subscribers, size, profile=path)
            except Unseen as unseen:
                print(f"{generations} × {subscribers}: py-spy could not look: {unseen}\n")
                for row in rows:
                    row += ["", ""]
                continue
            samples = parts_in(path.read_text())
        cost_us = run.window.us("node")
        for row in rows[:-1]:
            share = samples[row[0]] / max(1, samples.total())
            row += [f"{100 * share:.0f} %", f"{share * cost_us:.1f}"]
        rows[-1] += [f"{samples.total()} samples", f"{cost_us:.1f}"]
    shown(
        f"The same by part, for generations × subscribers: py-spy at 200 Hz for {size.profile_s:g} s; no mark",
        head,
        rows,
    )


# A second node.


@dataclass(frozen=True)
class Followed:
    """The same generations without subscribers, and then with one each on the other node."""

    without: Window
    with_subscribers: Window
    p99_us: float  # from the model server's write to the subscriber
    arrived: float  # share

    def extra_us(self, process: str) -> float:
        """What the subscribers add to a token, in CPU microseconds."""
        return self.with_subscribers.us(process) - self.without.us(process)

    def extra_a_second(self, count: str) -> float:
        """What the subscribers add in a second."""
        return self.with_subscribers.a_second(count) - self.without.a_second(count)


_CONNECTING_S = 60.0  # the most that may take
_MARGIN_S = 10.0
_FOLLOWS_PER_SECOND = 250  # each is a log to be read, and a channel
_REQUESTS = 4000  # different ones that a load generator takes
_PERIODIC_S = 6.0  # what nodes do by the clock, they do at least so often


async def followed(generations: int, size: Size) -> Followed:
    """Produce on one node, read on the other."""
    per_second = size.followed_per_second / generations
    size = replace(size, seconds=max(size.seconds, _PERIODIC_S))
    async with Replay(nodes=2) as side:
        told_s = _SETTLING_S + 1.2 / per_second  # the first token of each is told to all nodes
        life_s = told_s + _SETTLING_S + 2 * size.seconds + generations / _FOLLOWS_PER_SECOND + _CONNECTING_S + _MARGIN_S
        requests = await side.open(generations, per_second, life_s)
        await side.go()
        await asyncio.sleep(told_s)
        without = await window(side, size.seconds)
        async with contextlib.AsyncExitStack() as stack:
            loads = []
            for start in range(0, generations, _REQUESTS):
                load = await stack.enter_async_context(_following_load(side, requests[start : start + _REQUESTS]))
                await load.until("all to be answered", lambda mark: mark.answered == mark.connections, _CONNECTING_S)
                loads.append(load)
            await asyncio.sleep(_SETTLING_S)
            await asyncio.gather(*(load.latency() for load in loads))
            before = await asyncio.gather(*(load.mark() for load in loads))
            measured = await window(side, size.seconds)
            after = await asyncio.gather(*(load.mark() for load in loads))
            latencies = await asyncio.gather(*(load.latency() for load in loads))
            ends = await asyncio.gather(*(load.stop() for load in loads))
        if any(end.holes or end.doubles or end.reorders or end.closed or end.reset for end in ends):
            raise RuntimeError(f"a subscriber on the other node lacks something, or was cut: {ends}")
        arrived = sum(mark.events for mark in after) - sum(mark.events for mark in before)
        expected = size.followed_per_second * (after[0].at_s - before[0].at_s)
        return Followed(without, measured, max(each.p99_us for each in latencies), arrived / expected)


def _following_load(side: Replay, requests: Sequence[bytes]) -> Load:
    crowd = [Subscribers(request, 1) for request in requests]
    rate = _FOLLOWS_PER_SECOND
    return Load(side.nodes[1].port, crowd, sample=len(crowd), connect_per_second=rate)


async def following(size: Size) -> None:
    """What a subscriber on another node costs, by how many generations are followed at the same total rate."""
    tokens, seconds = [], []
    for generations in size.followed:
        runs = [await followed(generations, size)]  # once: half a minute each
        tokens.append([
            f"{generations}",
            f"{size.followed_per_second / generations:g}",
            least(run.arrived for run in runs),
            median("{:.1f}", (run.without.us("valkey") for run in runs)),
            median("{:+.1f}", (run.extra_us("valkey") for run in runs)),
            median("{:+.1f}", (run.extra_us("follower") for run in runs)),
            median("{:.1f}", (run.without.us("node") for run in runs)),
            median("{:+.1f}", (run.extra_us("node") for run in runs)),
            median("{:.1f}", (run.p99_us / 1000 for run in runs)),
        ])  # fmt: skip
        seconds.append([
            f"{generations}",
            *(
                median("{:.1f}", (getattr(run, when).ms_a_second(process) for run in runs))
                for process in ("valkey", "node", "follower")
                for when in ("without", "with_subscribers")
            ),
            median("{:.0f}", (run.without.a_second("sent") - run.without.a_second("recorded") for run in runs)),
            median("{:+.0f}", (run.extra_a_second("sent") for run in runs)),
        ])  # fmt: skip
    what = f"Following on a second node: one subscriber there for each generation, {size.followed_per_second} tokens/s"
    head = (
        "generations", "events/s of each", "arrived in time", "Valkey without subscribers, µs a token", "they add",
        "follower: they add, µs a token", "producer without subscribers, µs a token", "they add", "p99 ms",
    )  # fmt: skip
    shown(f"{what} in all; mark: what subscribers add to a token does not grow with the generations", head, tokens)
    head = (
        "generations", "Valkey, ms a second", "with them", "producer", "with them", "follower", "with them",
        "commands/s beside one a token", "they add",
    )  # fmt: skip
    shown(f"{what} in all, by the second: what is done whether or not a token comes; no mark", head, seconds)


# Valkey, by who watches.


async def watched(generations: int, subscribers: int, per_second: float, size: Size) -> tuple[Window, int]:
    """What Valkey is asked, and over how many connections."""
    async with Replay() as side:
        requests = await side.open(generations, per_second, _SETTLING_S + size.seconds + 2)
        connections = generations * subscribers
        crowd = [Subscribers(request, subscribers) for request in requests] if subscribers else []
        crowd = crowd or [Subscribers(get("/healthz"), 1)]
        async with Load(side.port, crowd, connect_per_second=_CONNECTS_PER_SECOND) as load:
            await load.until("all to be answered", lambda mark: mark.answered >= (connections or 1), 120)
            await side.go()
            await asyncio.sleep(_SETTLING_S)
            measured = await window(side, size.seconds)
            return measured, await side.connections() - 1


async def commands(size: Size) -> None:
    """What Valkey is asked for a token, and over how many connections."""
    shapes = [(1, 1, 50), (1, 1000, 50), (100, 1, 50), (100, 10, 50), (400, 0, 50), (4, 1, 2000)]
    rows = []
    for generations, subscribers, per_second in shapes:
        run, connections = await watched(generations, subscribers, per_second, size)
        beside = run.a_second("sent") - run.a_second("evalsha")
        rows.append([
            f"{generations} × {subscribers}",
            f"{per_second}",
            f"{run.a_second('recorded') / (generations * per_second):.0%}",
            f"{connections}",
            f"{run.a_token('sent'):.2f}",
            f"{run.a_token('evalsha'):.2f}",
            f"{run.a_token('in_scripts'):.2f}",
            f"{beside:.1f}",
            f"{run.us('valkey'):.1f}",
        ])  # fmt: skip
    head = (
        "generations × subscribers", "events/s", "recorded in time", "connections", "commands sent a token",
        "of them appends", "run inside of scripts a token", "sent beside appends, a second", "Valkey, µs a token",
    )  # fmt: skip
    shown(
        "What Valkey is asked; marks: as many connections whoever watches, at most one command a token and what is "
        "done by the second, fewer under load",
        head,
        rows,
    )


TABLES = (recording, few_each, parts, following, commands)
