"""What a second core brings: `replay serve --workers N`.

    python -m tests.benchmarks [--quick] deliveries recordings

The rate is raised until what is due does not come in time any more. The load generator, the model server and Valkey run
on the same machine and need their parts of its cores, and so does whatever else runs there, which is said beside each
figure: what N workers bring is seen only where there are cores left for them. A worker that gets its core late writes
more events at once, which costs less each: events by CPU are no measure of what it would carry with a core of its own.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measuring import cpu_of, spent, table
from tests.benchmarks.programs import Load, Subscribers, paced
from tests.benchmarks.sides import Replay

SUBSCRIBERS = 1000
TOKENS_PER_SECOND = 25  # of each generation that is recorded
_KEPT_UP = 0.95  # of what is due has to come
_LATEST_US = 50_000  # p99
_SETTLING_S = 1.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    workers: Sequence[int]
    seconds: float
    rates: Sequence[int]  # events a second of the generation that all subscribers follow
    generations: Sequence[int]  # that are recorded at once


FULL = Size((1, 2), 4, (200, 1000, 4000), (200, 400, 800, 1200))
QUICK = Size((1, 2), 2, (200, 400), (400, 800))


class Working(Replay):
    """The service on several processes."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers=workers)

    @property
    def pids(self) -> dict[str, int]:
        """Without the parent, which serves nobody."""
        parent = self.node.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        workers = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        nodes = {f"worker {number}": pid for number, pid in enumerate(workers or [parent], start=1)}
        return {**nodes, "valkey": self.valkey.pid, "model server": self.upstream.pid}


class Cores:
    """Which part of the machine's cores each process has had since this was made."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._began_s, self._cpu, self._idle = time.monotonic(), cpu_of(pids), _idle_s()

    def busy(self) -> dict[str, float]:
        """By process; `strangers` is everybody else on the machine."""
        took, idle = time.monotonic() - self._began_s, _idle_s() - self._idle
        cores = {name: cpu_s / took for name, cpu_s in spent(self._cpu, cpu_of(self._pids)).items()}
        strangers = (os.cpu_count() or 1) - idle / took - sum(cores.values())
        return {**cores, "strangers": max(0.0, strangers)}


def _idle_s() -> float:
    idle, iowait = Path("/proc/stat").read_text().split("\n", 1)[0].split()[4:6]
    return (int(idle) + int(iowait)) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Step:
    """One rate."""

    due: float  # events a second
    came: float
    busy: dict[str, float]  # cores, by process
    p99_us: float | None = None

    @property
    def by_workers(self) -> float:
        """Cores that the workers were busy with it."""
        return sum(cores for name, cores in self.busy.items() if name.startswith("worker"))

    @property
    def kept_up(self) -> bool:
        """Whether it was not too much."""
        return self.came >= _KEPT_UP * self.due

    @property
    def in_time(self) -> bool:
        """Whether it also came soon."""
        return self.kept_up and (self.p99_us or 0) <= _LATEST_US


async def delivering(workers: int, per_second: int, seconds: float) -> Step:
    """Let all subscribers follow one generation."""
    async with Working(workers) as side:
        (request,) = await side.open(1, per_second, _SETTLING_S + seconds + 1.5)
        crowd = Subscribers(request, SUBSCRIBERS)
        async with Load(side.port, [crowd], sample=100, connect_per_second=2000) as load:
            await load.until("all to be answered", lambda mark: mark.answered == SUBSCRIBERS)
            await side.go()
            await asyncio.sleep(_SETTLING_S)
            await load.latency()
            before, cores = await load.mark(), Cores({**side.pids, "load generator": load.pid})
            await asyncio.sleep(seconds)
            after, busy = await load.mark(), cores.busy()
            latency, end = await load.latency(), await load.stop()
    if end.holes or end.doubles or end.reorders:
        raise RuntimeError(f"{workers} workers: {end}")
    came = (after.events - before.events) / (after.at_s - before.at_s)
    return Step(SUBSCRIBERS * per_second, came, busy, latency.p99_us)


async def recording(workers: int, generations: int, seconds: float) -> Step:
    """Let so many generations be recorded at once; nobody reads them."""
    async with Working(workers) as side:
        await side.upstream.hold()
        await side.generate(generations, paced(TOKENS_PER_SECOND, int(TOKENS_PER_SECOND * (seconds + 60))))
        await side.upstream.until("all to be held", lambda mark: mark.held == generations)
        await side.go()
        await asyncio.sleep(2 * _SETTLING_S)
        began_s, before, cores = time.monotonic(), await side.commands(), Cores(side.pids)
        await asyncio.sleep(seconds)
        after, took, busy = await side.commands(), time.monotonic() - began_s, cores.busy()
    return Step(generations * TOKENS_PER_SECOND, (after["xadd"] - before["xadd"]) / took, busy)


def _row(workers: int, step: Step) -> list[str]:
    others = ", ".join(f"{name} {cores:.2f}" for name, cores in step.busy.items() if not name.startswith("worker"))
    return [
        f"{workers}",
        f"{step.due:,.0f}",
        f"{step.came:,.0f}",
        "" if step.p99_us is None else f"{step.p99_us / 1000:.1f}",
        "yes" if step.in_time else "**no**",
        f"{step.by_workers:.2f}",
        f"{step.came / step.by_workers:,.0f}",
        others,
    ]


_HEAD = (
    "workers",
    "due a second",
    "came",
    "p99 ms",
    "in time",
    "cores",
    "events by CPU second",
    "cores of others",
)


async def deliveries(size: Size) -> None:
    """One generation, many subscribers."""
    rows = []
    for workers in size.workers:
        for rate in size.rates:
            step = await delivering(workers, rate, size.seconds)
            rows.append(_row(workers, step))
            if not step.kept_up:
                break
    print(
        f"Deliveries of one generation to {SUBSCRIBERS:,} subscribers, by workers, up to the first rate of which less"
    )
    print(f"than {100 * _KEPT_UP:.0f} % came; in time: with a p99 of at most {_LATEST_US / 1000:.0f} ms.", end=" ")
    print(f"All of it on {os.cpu_count()} cores\n")
    print(table(_HEAD, rows), flush=True)


async def recordings(size: Size) -> None:
    """Many generations, no subscribers."""
    rows = []
    for workers in size.workers:
        for generations in size.generations:
            step = await recording(workers, generations, size.seconds)
            rows.append(_row(workers, step))
            if not step.kept_up:
                break
    print(
        f"Tokens recorded, of generations at {TOKENS_PER_SECOND} tokens/s each, by workers, up to the first number of"
    )
    print(f"them that was too much. All of it on {os.cpu_count()} cores\n")
    print(table(_HEAD, rows), flush=True)


TABLES = (deliveries, recordings)
