"""What a token costs with what else a chunk may carry; run by `storage.py`, in this build and in an earlier one.

    python -m tests.benchmarks.kinds <Valkey's URL> <its process>

Prints JSON: for each kind of chunk, by name, the median over several generations of what a token takes.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import valkey.asyncio

from replay.store.valkey import ValkeyStore
from tests.benchmarks.measuring import cpu_s
from tests.benchmarks.storage import Generation, Store, recorded_by

_TOKENS = 1000
_REPEATS = 3

Chunk = dict[str, Any]
Change = Callable[[Chunk, int], None]  # makes the chunk with the n-th token one of a kind

_chance = random.Random(1)


def _delta(chunk: Chunk) -> dict[str, Any]:
    found: dict[str, Any] = chunk["choices"][0]["delta"]
    return found


def _obfuscated(chunk: Chunk, place: int) -> None:
    letters = string.ascii_letters + string.digits
    chunk["obfuscation"] = "".join(_chance.choices(letters, k=15 - len(_delta(chunk)["content"])))


def _counted(chunk: Chunk, place: int) -> None:
    chunk["usage"] = {"prompt_tokens": 25, "completion_tokens": place + 1, "total_tokens": place + 26}


def _under_two_names(chunk: Chunk, place: int) -> None:
    text = _delta(chunk).pop("content")
    _delta(chunk).update(reasoning=text, reasoning_content=text)


def _detailed(chunk: Chunk, place: int) -> None:
    text = _delta(chunk)["content"]
    _delta(chunk).update(
        content="", reasoning=text, reasoning_details=[{"type": "reasoning.text", "text": text, "format": "unknown"}]
    )


def _dated(chunk: Chunk, place: int) -> None:
    chunk["created"] += place


def _with_message() -> Change:
    so_far = ""

    def change(chunk: Chunk, place: int) -> None:
        nonlocal so_far
        so_far = _delta(chunk)["content"] if place == 0 else so_far + _delta(chunk)["content"]
        chunk["choices"][0]["message"] = {"role": "assistant", "content": so_far}

    return change


KINDS: dict[str, Change] = {
    "plain": lambda chunk, place: None,
    "obfuscation": _obfuscated,
    "usage": _counted,
    "two names": _under_two_names,
    "reasoning_details": _detailed,
    "another created": _dated,
    "message so far": _with_message(),
}


def _generation(kind: str) -> Generation:
    generation = Generation(_TOKENS)
    chunks = [json.loads(raw) for raw in generation.text_chunks[1:]]
    for place, chunk in enumerate(chunks):
        KINDS[kind](chunk, place)
    raws = [json.dumps(chunk, separators=(",", ":")).encode() for chunk in chunks]
    generation.chunks[1 : 1 + _TOKENS] = raws
    return generation


async def _measured(client: valkey.asyncio.Valkey, record: Store, kind: str, server: int) -> dict[str, float]:
    generation = _generation(kind)
    before, server_before = time.process_time(), cpu_s(server)
    key = await record(generation)
    cpu, server_cpu = time.process_time() - before, cpu_s(server) - server_before
    return {
        "chunk": sum(map(len, generation.chunks[1 : 1 + _TOKENS])) / _TOKENS,
        "entry": sum(len(event.entry) for event in generation.events()[2:-3]) / _TOKENS,
        "memory": await client.memory_usage(key, samples=0) / _TOKENS,
        "cpu": cpu / _TOKENS * 1e6,
        "server": server_cpu / _TOKENS * 1e6,
    }


async def main(url: str, server: int) -> None:
    """Measure all kinds, in turns."""
    store = ValkeyStore(url, timeout_s=5.0)
    await store.start(5.0)
    try:
        async with valkey.asyncio.Valkey.from_url(url) as client:
            record = recorded_by(store, 16)
            await _measured(client, record, "plain", server)  # loads the script, and the code
            runs = [{kind: await _measured(client, record, kind, server) for kind in KINDS} for _ in range(_REPEATS)]
    finally:
        await store.stop()
    medians = {kind: {name: median(run[kind][name] for run in runs) for name in runs[0][kind]} for kind in KINDS}
    print(json.dumps(medians))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
