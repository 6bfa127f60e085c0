"""What the gateway costs: the CPU time of a node for one chunk of OpenAI's API, beside that of the official SDK.

    python -m tests.benchmarks.gateway [--quick] [--obfuscated]

A hundred streams run through a node at once, each at 25 chunks a second, with a reader each and Valkey behind it. What
the node's process and Valkey's used while all of them ran (user and system, from /proc) is divided by the chunks that
the readers were given meanwhile. The SDK then reads the very same bytes from the model server itself, in a process of
its own:

    at the same pace     as the node had them, a hundred streams at once
    as fast as it comes  one stream after the other, read in large pieces: next to no network, so this is its parsing

and, beside each, what the SDK reads its bytes with does the same without parsing them. Speed is measured, not
asserted; but a chunk that is lost, doubled or altered ends the run with an error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import re
import string
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from math import isnan, nan
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from support.node import Node
from support.valkey import ValkeyServer

from tests.benchmarks.measuring import processor, valkey_version
from tests.benchmarks.model_server import Answer, ModelServer
from tests.benchmarks.storage import Generation, shipped_settings
from tests.benchmarks.stream_readers import (
    Load,
    Steady,
    bytes_aiohttp,
    bytes_async,
    bytes_sync,
    drain,
    follow,
    load,
    openai_aiohttp,
    openai_async,
    openai_sync,
)

STREAMS, PER_SECOND = 100, 25
PACE = f"{STREAMS} streams at {PER_SECOND} chunks/s"
FAST = "as fast as it comes"
# What is compared with the node: name, the SDK, the transport alone, how it is run.
SDK = (
    (f"`AsyncOpenAI`, {PACE}", openai_async, bytes_async, follow),
    (f"`AsyncOpenAI` over aiohttp, {PACE}", openai_aiohttp, bytes_aiohttp, follow),
    (f"`OpenAI`, {FAST}", openai_sync, bytes_sync, drain),
    (f"`AsyncOpenAI`, {FAST}", openai_async, bytes_async, drain),
    (f"`AsyncOpenAI` over aiohttp, {FAST}", openai_aiohttp, bytes_aiohttp, drain),
)
_ID = re.compile(rb'"id":"[^"]*"')
_chance = random.Random(2)

T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    passes: int
    tokens: int  # in each stream
    drained: int  # streams that the SDK reads as fast as they come
    rounds: int  # of those, of which the median counts


FULL = Size(passes=3, tokens=500, drained=40, rounds=5)
QUICK = Size(passes=1, tokens=125, drained=20, rounds=3)


def answers(tokens: int, *, obfuscated: bool) -> list[Answer]:
    """What the model says, as events."""
    said = [Generation(tokens).chunks for _ in range(STREAMS)]
    if obfuscated:
        said = [[_obfuscated(chunk) for chunk in chunks] for chunks in said]
    return [[b"data: %b\n\n" % data for data in (*chunks, b"[DONE]")] for chunks in said]


def _obfuscated(chunk: bytes) -> bytes:
    """With the noise that OpenAI adds unless it is told not to, so that all chunks are of one length."""
    noise = "".join(_chance.choices(string.ascii_letters + string.digits, k=_chance.randint(1, 16)))
    return b'%b,"obfuscation":"%b"}' % (chunk[:-1], noise.encode())


# One pass.


@dataclass
class Pass:
    """CPU microseconds a chunk."""

    node: float
    valkey: float
    sdk: list[float]  # by row of SDK
    transport: list[float]
    notes: list[str]  # how it went


async def measure(size: Size, said: list[Answer]) -> Pass:
    """All figures once."""
    events = len(said[0])
    with ModelServer(said, PER_SECOND) as model:
        loaded = await through_the_node(model, said)
        node, valkey = (1e6 * cpu_s for cpu_s in loaded.steady.cpu_s)
        a_read = f"all {loaded.events} delivered, {loaded.events / loaded.reads:.2f} a read"
        measured = Pass(node, valkey, [], [], [f"node: {pace_of(loaded.steady)}; {a_read}"])
        for name, sdk, transport, how in SDK:
            for kind, column in ((sdk, measured.sdk), (transport, measured.transport)):
                if how is follow:
                    steady = await in_a_process(follow, kind, model.paced_url, STREAMS, events, deadline_s(events))
                    column.append(1e6 * steady.cpu_s[0])
                    measured.notes.append(f"{name}{'' if kind is sdk else ', transport'}: {pace_of(steady)}")
                else:
                    spent = await in_a_process(drain, kind, model.fast_url, size.drained, events, size.rounds)
                    column.append(1e6 * spent)
    return measured


def pace_of(steady: Steady) -> str:
    """Whether the pace was kept: where the machine was too busy, chunks come in heaps, which are cheaper."""
    return f"{steady.per_second:.0f} chunks/s over {steady.seconds:.1f} s"


def deadline_s(events: int) -> float:
    """What no pass should take."""
    return 60 + 5 * events / PER_SECOND


async def through_the_node(model: ModelServer, said: list[Answer]) -> Load:
    """The streams as a client of the gateway has them; the clocks are the node's and Valkey's."""
    events = len(said[0])
    with tempfile.TemporaryDirectory() as directory:
        options = {name.replace("-", "_"): value for name, value in shipped_settings().items()}
        valkey = ValkeyServer(Path(directory) / "valkey", **options)
        node = Node(Path(directory) / "node", valkey_url=valkey.url, upstream_url=model.paced_url)
        try:
            valkey.start()
            await node.start()
            pids = [node.pid, valkey.pid]
            loaded = await in_a_process(load, f"{node.url}/v1", STREAMS, events, pids, deadline_s(events))
            check(loaded, said)
        except Exception:
            print(node.stderr, file=sys.stderr)  # which goes with the directory
            raise
        else:
            return loaded
        finally:
            node.destroy()
            valkey.destroy()


async def in_a_process(function: Callable[..., T], *args: Any) -> T:
    """Call it where nothing else uses the CPU time that is measured."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *args)


# Whether what was delivered is what was said.


def check(loaded: Load, said: list[Answer]) -> None:
    """Byte by byte, for the streams that were kept (all were counted as they came); raises RuntimeError."""
    for number, raw in loaded.kept.items():
        head, _, body = raw.partition(b"\r\n\r\n")
        named = re.search(rb"\r\nReplay-Generation-Id: (\S+)", head)
        if named is None:
            raise RuntimeError(f"stream {number}: expected a generation's id, got {head!r}")
        renamed = b"".join(_ID.sub(b'"id":"%b"' % named[1], event, 1) for event in said[number])
        if _dechunked(body) != renamed:
            raise RuntimeError(f"stream {number}: what came is not what was sent, but for the id")


def _dechunked(body: bytes) -> bytes:
    pieces, place = [], 0
    while size := int(body[place : (begin := body.index(b"\r\n", place) + 2)], 16):
        pieces.append(body[begin : begin + size])
        place = begin + size + 2
    return b"".join(pieces)


# The table.


def show(passes: list[Pass]) -> None:
    """Medians over the passes, with the least and the most where there are several."""
    nodes = [each.node for each in passes]
    print("| µs of CPU a chunk | in all | transport alone | so its parsing | replay / in all | replay / its parsing |")
    print("|---|---:|---:|---:|---:|---:|")
    print(f"| **replay: the node**, {PACE} | **{_shown(nodes)}** | | | | |")
    print(f"| Valkey behind it | {_shown([each.valkey for each in passes])} | | | | |")
    for row, (name, *_) in enumerate(SDK):
        sdk, transport = [each.sdk[row] for each in passes], [each.transport[row] for each in passes]
        parsing = [whole - part for whole, part in zip(sdk, transport, strict=True)]
        figures = [_shown(column) for column in (sdk, transport, parsing)]
        ratios = [f"{_middle(nodes) / _middle(column):.2f}" for column in (sdk, parsing)]
        print(f"| {name} | {' | '.join(figures + ratios)} |")


def _measured(figures: list[float]) -> list[float]:
    return [figure for figure in figures if not isnan(figure)] or [nan]


def _middle(figures: list[float]) -> float:
    return median(_measured(figures))


def _shown(figures: list[float]) -> str:
    least, most = min(_measured(figures)), max(_measured(figures))
    return f"{_middle(figures):.0f}" + (f" ({least:.0f} to {most:.0f})" if least < most else "")


async def main() -> None:
    """Measure on servers of our own."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gateway")
    parser.add_argument("--quick", action="store_true", help="one short pass")
    parser.add_argument("--obfuscated", action="store_true", help="chunks with OpenAI's noise in each")
    options = parser.parse_args()
    size, began = QUICK if options.quick else FULL, time.monotonic()
    said = answers(size.tokens, obfuscated=options.obfuscated)
    passes = [await measure(size, said) for _ in range(size.passes)]
    libraries = ("openai", "httpx2", "aiohttp", "uvloop")
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in libraries)}", end="")
    print(f", Valkey {valkey_version()}; {processor()}; {time.strftime('%d %B %Y')}")
    sizes = [len(event) for answer in said for event in answer]
    print(f"{STREAMS} streams of {len(said[0])} chunks of {median(sizes):.0f} bytes; passes: {size.passes}, ", end="")
    print(f"in {time.monotonic() - began:.0f} s; load average {os.getloadavg()[0]:.1f}\n")
    show(passes)
    print("\n" + "\n".join(note for each in passes for note in each.notes))


if __name__ == "__main__":
    asyncio.run(main())
