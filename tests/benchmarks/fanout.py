"""One generation, many subscribers: what a delivered event costs, how late it is, and how many a core delivers.

    python -m tests.benchmarks [--quick] crowd room growth ceilings

Each side is started, gets its subscribers (the load generator's, over loopback), and then events at a steady pace.
What its processes used meanwhile is divided by the events that arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.benchmarks.measuring import Figure, cpu_of, per, spent, table
from tests.benchmarks.peers import PEERS, AioHttp, Missing, Nchan, NchanRedis, SseStarlette
from tests.benchmarks.programs import Load, LoadEnd, LoadMark, Subscribers, get
from tests.benchmarks.sides import CHUNKED_EVENT, Foreign, Replay, Sending, Side

PER_SECOND = 50
_SETTLING_S = 1.0
_CONNECTS_PER_SECOND = 2000


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    repeats: int
    seconds: float
    crowds: Sequence[int]
    rates: Sequence[int]  # events a second to 1,000 subscribers, for the most deliveries


FULL = Size(repeats=3, seconds=4, crowds=(1, 10, 100, 1000, 5000), rates=(100, 200, 300, 400, 500, 600))
QUICK = Size(repeats=1, seconds=2, crowds=(100, 1000), rates=(200,))


@dataclass(frozen=True)
class Run:
    """One side with one crowd."""

    events: int  # that arrived while it was measured
    expected: float
    cpu_s: dict[str, float]  # by process
    p50_us: float
    p99_us: float
    reads: int
    greeted: int | None = None  # connections that were made and answered meanwhile

    def us(self, process: str | None = None) -> float:
        """CPU microseconds an event: of one process, or of all."""
        return 1e6 * (sum(self.cpu_s.values()) if process is None else self.cpu_s[process]) / max(1, self.events)

    @property
    def sustained(self) -> float:
        """Which part of what should have come did."""
        return self.events / self.expected


async def run(
    side: Side, subscribers: int, per_second: float, seconds: float, *, flowing: bool = False, newcomers: int = 0
) -> Run:
    """Measure a side once; raises RuntimeError when what arrived is not what was sent.

    ``flowing``: the subscribers come while events flow already.
    """
    connecting_s = 3 + 5 * subscribers / _CONNECTS_PER_SECOND if flowing else 0.0
    requests = await side.open(1, per_second, connecting_s + _SETTLING_S + seconds + 1.5)
    if flowing:
        await side.go()
    crowd = Subscribers(requests[0], subscribers)
    load = Load(
        side.port, [crowd], sample=min(100, subscribers), contiguous=side.counts_ids,
        connect_per_second=_CONNECTS_PER_SECOND,
    )  # fmt: skip
    async with load:
        await load.until("all to be answered", lambda mark: mark.answered == subscribers, connecting_s or 120)
        if not flowing:
            await side.go()
        await asyncio.sleep(_SETTLING_S)
        await load.latency()
        before, cpu_before = await load.mark(), cpu_of(side.pids)
        greeting = asyncio.create_task(_greeted(side, newcomers, seconds)) if newcomers else None
        await asyncio.sleep(seconds)
        after, cpu_after = await load.mark(), cpu_of(side.pids)
        latency = await load.latency()
        greeted = None if greeting is None else await greeting
        end = await load.stop()
    _check(side, end)
    return Run(
        events=after.events - before.events,
        expected=subscribers * per_second * (after.at_s - before.at_s),
        cpu_s=spent(cpu_before, cpu_after),
        p50_us=latency.p50_us,
        p99_us=latency.p99_us,
        reads=after.reads - before.reads,
        greeted=greeted,
    )


async def _greeted(side: Side, newcomers: int, seconds: float) -> int:
    """How many of some clients that come while tokens flow are answered in time."""
    assert isinstance(side, Replay)
    async with Load(
        side.port, [Subscribers(get("/healthz"), newcomers)], sample=0, connect_per_second=newcomers
    ) as load:
        await asyncio.sleep(seconds)
        return (await load.mark()).answered


def _check(side: Side, end: LoadEnd | LoadMark) -> None:
    if not isinstance(end, LoadEnd) or not side.counts_ids:
        return
    if end.holes or end.doubles or end.reorders or (not end.ids and isinstance(side, Replay)):
        raise RuntimeError(
            f"{side.name}: {end.holes} holes, {end.doubles} doubles, {end.reorders} reorders in {end.ids}"
        )


# The tables.


async def repeated(make: Callable[[], Side], subscribers: int, size: Size, *, flowing: bool = False) -> list[Run]:
    """The side measured some times, each time started anew."""
    runs = []
    for _ in range(size.repeats):
        async with make() as side:
            runs.append(await run(side, subscribers, PER_SECOND, size.seconds, flowing=flowing))
    return runs


def _row(name: str, runs: list[Run], floor: float | None, ours: float | None) -> list[str]:
    cost = Figure([each.us() for each in runs])
    parts = ", ".join(f"{part} {Figure([each.us(part) for each in runs]).median:.2f}" for part in runs[0].cpu_s)
    return [
        name,
        cost.show(),
        parts if len(runs[0].cpu_s) > 1 else "",
        "" if floor is None else per("{:.2f}", cost.median, floor),
        "" if ours is None else per("{:.2f}", ours, cost.median),
        Figure([each.p50_us / 1000 for each in runs]).show("{:.1f}"),
        Figure([each.p99_us / 1000 for each in runs]).show("{:.1f}"),
        f"{100 * min(each.sustained for each in runs):.0f} %",
    ]


async def side_by_side(size: Size, subscribers: int, kinds: Sequence[type]) -> None:
    """Everybody with the same crowd."""
    head = ("side", "µs CPU an event", "of that", "× send()", "replay / it", "p50 ms", "p99 ms", "arrived in time")
    floors = await repeated(lambda: Sending(CHUNKED_EVENT), subscribers, size)
    floor = Figure([each.us() for each in floors]).median
    own = await repeated(Replay, subscribers, size)
    ours = Figure([each.us() for each in own]).median
    rows = [_row("**replay**", own, floor, None), _row(Sending.name, floors, None, ours)]
    for kind in kinds:
        try:
            rows.append(
                _row(kind.name, await repeated(lambda kind=kind: Foreign(kind), subscribers, size), floor, ours)
            )
        except Missing as missing:
            rows.append([kind.name, f"missing: {missing}", *[""] * 6])
    print(f"{subscribers} subscribers of one stream, {PER_SECOND} events/s each\n")
    print(table(head, rows), flush=True)


async def crowd(size: Size) -> None:
    """The nearest peers with a crowd."""
    await side_by_side(size, 1000, (Nchan, NchanRedis))


async def room(size: Size) -> None:
    """All peers with as many as those can serve that are designed as tutorials have it."""
    await side_by_side(size, 100, (NchanRedis, AioHttp, SseStarlette) if size is QUICK else PEERS)


async def growth(size: Size) -> None:
    """This service with crowds of all sizes."""
    rows = []
    for subscribers in size.crowds:
        runs = await repeated(Replay, subscribers, size, flowing=True)
        rows.append([
            f"{subscribers}",
            Figure([each.us() for each in runs]).show(),
            Figure([each.us("node") for each in runs]).show(),
            Figure([1000 * each.cpu_s["valkey"] / size.seconds for each in runs]).show("{:.1f}"),
            Figure([each.p99_us / 1000 for each in runs]).show("{:.1f}"),
            f"{100 * min(each.sustained for each in runs):.0f} %",
        ])  # fmt: skip
    head = ("subscribers", "µs CPU an event", "node's", "Valkey, ms a second", "p99 ms", "arrived in time")
    print(f"replay: one generation at {PER_SECOND} events/s, by how many read it, all of whom come while it flows\n")
    print(table(head, rows), flush=True)


async def ceiling(size: Size, make: Callable[[], Side]) -> list[str] | None:
    """The highest rate to 1,000 subscribers with a p99 under 50 ms."""
    best = None
    for rate in size.rates:
        async with make() as side:
            newcomers = 20 if isinstance(side, Replay) else 0
            measured = await run(side, 1000, rate, size.seconds, newcomers=newcomers)
        if measured.sustained < 0.95 or measured.p99_us > 50_000:
            break
        best = [
            side.name,
            f"{measured.events / size.seconds:,.0f}",
            f"{rate}",
            f"{measured.us():.2f}",
            f"{measured.p99_us / 1000:.1f}",
            f"{measured.events / max(1, measured.reads):.1f}",
            "" if measured.greeted is None else f"{measured.greeted}",
        ]
    return best


async def ceilings(size: Size) -> None:
    """Everybody as fast as it goes."""
    makes: list[Callable[[], Side]] = [Replay, lambda: Foreign(Nchan), lambda: Foreign(NchanRedis)]
    rows = []
    for make in makes:
        try:
            rows.append(await ceiling(size, make) or [make().name, "none of the rates", *[""] * 5])
        except Missing as missing:
            rows.append([make().name, f"missing: {missing}", *[""] * 5])
    head = ("side", "deliveries a second", "events/s", "µs CPU an event", "p99 ms", "events a read", "newcomers")
    print("1,000 subscribers of one stream: the highest rate with a p99 under 50 ms\n")
    print(table(head, rows), flush=True)


TABLES = (crowd, room, growth, ceilings)
