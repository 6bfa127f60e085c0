"""What a generation costs in Valkey, in memory and in the append-only file.

    python -m tests.benchmarks.storage

Generations of plain text tokens of 4 to 5 bytes, each in an upstream's chunk of some 280 bytes, are recorded as the
service records them (Recorder, ValkeyStore, the shipped settings of the server), and stand beside the least that a
stream can take (the same text alone, by plain XADD) and beside the chunks as they came. Figures are bytes a token,
medians over several generations, everything included: key, `start`, role, finish, usage, `end`. Then what a token costs
whose chunk carries more than its text, beside a plain one, and in the last build that stored such chunks whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import string
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import valkey.asyncio
from support.valkey import ValkeyServer

from replay.model.event import Event, EventId, number
from replay.model.generation import End, Start, Status, new_generation_id
from replay.store.valkey import ValkeyStore
from replay.wire.events import encode_end, encode_start
from replay.wire.recorder import Recorder
from replay.wire.sse import Message

GENERATIONS = 9
LONG, SHORT = 1000, 20  # tokens
TTL_MS = 86_400_000
STARTED_MS = 1_763_701_200_123
EARLIER = "8c55c32"  # the commit of the build that the kinds of chunks are measured with too

_chance = random.Random(1)

Store = Callable[["Generation"], Awaitable[str]]  # returns the key


class Generation:
    """One answer of an upstream, with the time of each chunk."""

    def __init__(self, tokens: int) -> None:
        self.id = new_generation_id()
        self.texts = [
            " " + "".join(_chance.choices(string.ascii_lowercase, k=_chance.choice((3, 4)))) for _ in range(tokens)
        ]
        usage = {"prompt_tokens": 25, "completion_tokens": tokens, "total_tokens": tokens + 25}
        self._usage = {**usage, "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0}}
        self._upstream_id = "chatcmpl-" + "".join(_chance.choices(string.ascii_letters + string.digits, k=29))
        said = [{"role": "assistant", "content": "", "refusal": None}, *({"content": text} for text in self.texts)]
        self.text_chunks = [self._chunk([_choice(delta)]) for delta in said]
        self.chunks = [
            *self.text_chunks,
            self._chunk([_choice({}, "stop")]),
            self._chunk([], usage=self._usage),
        ]
        self.times = [STARTED_MS]
        for _ in self.chunks:
            self.times.append(self.times[-1] + _chance.randint(8, 30))

    def _chunk(self, choices: list[Any], **further: Any) -> bytes:
        chunk = {
            "id": self._upstream_id,
            "object": "chat.completion.chunk",
            "created": 1763701200,
            "model": "gpt-4o-2024-08-06",
            "service_tier": "default",
            "system_fingerprint": "fp_a7d06e42a7",
            "choices": choices,
        }
        return json.dumps(chunk | further, separators=(",", ":")).encode()

    def events(self) -> list[Event]:
        """The generation as the service records it."""
        recorder = Recorder()
        start = Start(
            generation_id=self.id,
            model="gpt-4o",
            node="node_0123456789abcdef",
            run="0123456789abcdef",
            ttl_ms=TTL_MS,
        )
        recorded = [recorder.record(Message(b"", raw)) for raw in self.chunks]
        assert recorder.verdict() is None
        end = End(
            status=Status.COMPLETED,
            finish_reason=recorder.finish_reason,
            usage=recorder.usage,
            total_tokens=len(self.texts),
            ttft_ms=self.times[2] - self.times[0],
            duration_ms=self.times[-1] - self.times[0],
        )
        entries = [encode_start(start), *(entry for entry in recorded if entry is not None), encode_end(end)]
        events: list[Event] = []
        for entry, ms in zip(entries, [*self.times, self.times[-1]], strict=True):
            events += number([entry], after=events[-1].id if events else None, now_ms=ms)
        return events


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


# Three ways to store one.


def recorded_by(store: ValkeyStore, batch: int) -> Store:
    """As the service does it, so many events in one append."""

    async def record(generation: Generation) -> str:
        events = generation.events()
        after: EventId | None = None
        batches = [events[:1], *(events[place : place + batch] for place in range(1, len(events), batch))]
        for part in batches:
            ends = after is None or part is batches[-1]
            refused = await store.append(generation.id, part, after=after, ttl_ms=TTL_MS if ends else 0)
            assert refused is None
            after = part[-1].id
        return f"replay:{{{generation.id}}}:events"

    return record


def added_to(client: valkey.asyncio.Valkey, what: Callable[[Generation], list[bytes]]) -> Store:
    """By plain XADD, under ids of the same sort."""

    async def add(generation: Generation) -> str:
        key = f"replay:{{{generation.id}}}:events"
        pipeline = client.pipeline(transaction=False)
        for seq, (ms, entry) in enumerate(zip(generation.times, what(generation), strict=False)):
            pipeline.xadd(key, {"e": entry}, id=f"{ms}-{seq}")
        pipeline.pexpire(key, TTL_MS)
        await pipeline.execute()
        return key

    return add


# Measuring.


async def memory(client: valkey.asyncio.Valkey, store: Store, tokens: int) -> float:
    """The median of what one generation takes, in bytes."""
    keys = [await store(Generation(tokens)) for _ in range(GENERATIONS)]
    return median([await client.memory_usage(key, samples=0) for key in keys])


async def file_bytes(client: valkey.asyncio.Valkey, store: Store, tokens: int) -> float:
    """The median of what one generation adds to the append-only file, in bytes."""
    grown = []
    for _ in range(GENERATIONS):
        before = (await client.info("persistence"))["aof_current_size"]
        await store(Generation(tokens))
        grown.append((await client.info("persistence"))["aof_current_size"] - before)
    return median(grown)


def shipped_settings() -> dict[str, str]:
    """How the server that comes with the package is told to store streams."""
    conf = resources.files("replay.store").joinpath("embedded.conf").read_text()
    return dict(re.findall(r"^(stream-node-\S+) (\S+)$", conf, re.MULTILINE))


async def measure(client: valkey.asyncio.Valkey, store: ValkeyStore) -> None:
    """Print the tables."""
    one, sixteen = recorded_by(store, 1), recorded_by(store, 16)
    text = added_to(client, lambda generation: [text.encode() for text in generation.texts])
    chunks = added_to(client, lambda generation: generation.chunks)
    sample = Generation(LONG)
    sizes = [len(each) for each in sample.texts], [len(each) for each in sample.text_chunks[1:]]
    version = (await client.info("server"))["valkey_version"]
    settings = shipped_settings()
    print(f"Valkey {version}, {', '.join(f'{name} {value}' for name, value in settings.items())}")
    print(f"{GENERATIONS} generations a figure; a token has {min(sizes[0])} to {max(sizes[0])} bytes", end="")
    print(f", its chunk {round(median(sizes[1]))}\n")

    _row("memory", f"{LONG} tokens", f"{SHORT} tokens", "in all")
    _row("", "a token", "a token", f"{SHORT} tokens")
    for name, kind in (("text alone (the floor)", text), ("replay", sixteen), ("the chunks as they came", chunks)):
        await _memory_row(client, name, kind)
    for name, value in {"stream-node-max-bytes": "4096", "stream-node-max-entries": "100"}.items():
        await client.config_set(name, value)
    await _memory_row(client, "replay, at Valkey's defaults", sixteen)
    for name, value in settings.items():
        await client.config_set(name, value)

    print()
    _row("append-only file", f"{LONG} tokens", f"{SHORT} tokens", "in all")
    _row("", "a token", "a token", f"{SHORT} tokens")
    rows = (
        ("text alone, by XADD", text),
        ("replay, 16 events an append", sixteen),
        ("replay, an append for each", one),
        ("the chunks, by XADD", chunks),
    )
    for name, kind in rows:
        long, short = await file_bytes(client, kind, LONG), await file_bytes(client, kind, SHORT)
        _row(name, f"{long / LONG:.1f}", f"{short / SHORT:.1f}", f"{short:.0f}")


async def _memory_row(client: valkey.asyncio.Valkey, name: str, kind: Store) -> None:
    long, short = await memory(client, kind, LONG), await memory(client, kind, SHORT)
    _row(name, f"{long / LONG:.1f}", f"{short / SHORT:.1f}", f"{short:.0f}")


async def compare_kinds(server: ValkeyServer) -> None:
    """Print what each kind of chunk costs, here and in the earlier build."""
    with tempfile.TemporaryDirectory() as directory:
        now = await _kinds(server, ())
        before = await _kinds(server, (directory,)) if _unpack_earlier(directory) else None
    print(f"\nkinds of chunks; {EARLIER} beside this build; the CPU of recording and appending, and Valkey's")
    _row("", *("chunk", "entry", EARLIER, "memory", EARLIER, "µs", EARLIER))
    for kind, cost in now.items():
        figures = [f"{cost['chunk']:.0f}"]
        for name, form in (("entry", ".1f"), ("memory", ".1f"), ("cpu", ".2f")):
            figures += [_figure(each, kind, name, form) for each in (now, before)]
        _row(kind, *figures)


def _figure(costs: dict[str, dict[str, float]] | None, kind: str, name: str, form: str) -> str:
    if costs is None:
        return "—"
    if name == "cpu":
        return f"{costs[kind]['cpu']:{form}} + {costs[kind]['server']:{form}}"
    return f"{costs[kind][name]:{form}}"


def _unpack_earlier(directory: str) -> bool:
    """Whether the earlier build could be had of the repository."""
    archive = subprocess.run(["git", "archive", EARLIER, "replay"], capture_output=True, check=False)
    if archive.returncode == 0:
        subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
    return archive.returncode == 0


async def _kinds(server: ValkeyServer, packages: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """What `kinds.py` measures, with the package of a directory, or this one."""
    command = [sys.executable, "-P", "-m", "tests.benchmarks.kinds", server.url, str(server.pid)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((*packages, str(Path.cwd())))}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE)
    told, _ = await process.communicate()
    costs: dict[str, dict[str, float]] = json.loads(told)
    return costs


def _row(name: str, *figures: str) -> None:
    print(f"{name:<30}" + "".join(f"{figure:>14}" for figure in figures))


async def main() -> None:
    """Measure on a server of our own."""
    with tempfile.TemporaryDirectory() as directory:
        options = {name.replace("-", "_"): value for name, value in shipped_settings().items()}
        # A rewrite of the file would shrink it while it is measured.
        server = ValkeyServer(Path(directory) / "valkey", auto_aof_rewrite_percentage=0, **options)
        server.start()
        store = ValkeyStore(server.url, timeout_s=5.0)
        try:
            await store.start(5.0)
            async with server.client() as client:
                await measure(client, store)
            await compare_kinds(server)
        finally:
            await store.stop()
            server.destroy()


if __name__ == "__main__":
    asyncio.run(main())
