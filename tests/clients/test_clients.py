"""Other people's libraries read a generation through cuts, with the lines that replay/http/README.md gives for each.

Every library meets the same things: cuts in a silence, when the last thing that it saw was `live`; ends in the middle
of an event; a past that is cut while it comes; resets; texts with everything that ends a line somewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest
from libraries import LIBRARIES, Language
from support.deadlines import DeadlineMissed, eventually
from support.fault_proxy import FaultProxy
from support.node import Node

pytestmark = pytest.mark.clients

PATIENCE_S = 60  # some wait ten seconds before they come back
TEXTS = ("one ", "👩‍👩‍👧‍👦 ", "\u2028\u2029\r\n\x85 ", "  four", "\n\n: five", "[DONE]")
OF_THE_LOG = {"start", "token", "delta", "end"}


class Program:
    """A client that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.events: list[list[str]] = []  # id, name and data of what it showed
        self._process = process
        self._reading = asyncio.create_task(self._read())

    @property
    def log(self) -> list[tuple[str, str, Any]]:
        """What it showed of the log."""
        return [(id, name, json.loads(data)) for id, name, data in self.events if name in OF_THE_LOG]

    async def has(self, count: int) -> None:
        """Wait until it has shown so much of the log."""

        async def shown() -> int:
            assert not self._reading.done(), "it has ended"
            return len(self.log)

        await eventually(f"{count} events", shown, lambda have: have >= count, PATIENCE_S)

    async def ended(self) -> int:
        """Wait until it is through; its exit code."""
        async with asyncio.timeout(PATIENCE_S):
            await self._reading
            return await self._process.wait()

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.events.append(json.loads(line))


@contextlib.asynccontextmanager
async def running(language: Language, library: str, url: str) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        *language.command, library, url, cwd=language.folder, stdout=subprocess.PIPE, limit=1 << 24
    )
    program = Program(process)
    try:
        yield program
    finally:
        await program.stop()


@pytest.fixture
async def node(make_node) -> Node:
    return await make_node(keepalive_s=0.2, retry_ms=100)


@pytest.fixture
async def network(node: Node) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(node.url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def built() -> set[Language]:
    """What has been built already."""
    return set()


@pytest.mark.parametrize(
    ("language", "library"),
    [
        pytest.param(
            *(language, library),
            id=f"{language.name}: {library}",
            marks=pytest.mark.xdist_group(language.name),  # which is built once
        )
        for language, libraries in LIBRARIES.items()
        for library in libraries
    ],
)
async def test_library_is_cut_and_shows_the_exact_log(language, library, built, network, node, upstream):
    if language.missing:
        pytest.skip(f"{language.missing} is not installed")
    if language.build and language not in built:
        await asyncio.to_thread(subprocess.run, language.build, cwd=language.folder, check=True)
        built.add(language)
    chance = random.Random(library)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    said = 1  # events of the log: `start`

    async def say(text: str) -> None:
        nonlocal said
        await call.say(text)
        said += 1

    async def come_back(cut: int) -> None:
        """Wait until it has connected once more, and something is on its way to it again."""
        before = network.replies.bytes

        async def returned() -> bool:
            return network.accepted > cut and network.replies.bytes > before + 500

        await eventually("it to come back", returned, seconds=PATIENCE_S)

    async with running(language, library, f"{network.url}/generations/{id}/events") as program:
        for text in TEXTS:
            await say(text)
        await program.has(said)

        # when it is reset twice in a silence
        for _ in range(2):
            connections = network.accepted
            network.cut()
            await come_back(connections)
        await say("behind the silence ")
        await program.has(said)

        # and its connections end in the middle of an event, again and again
        for _ in range(6):
            network.cut_replies_after(chance.randrange(1, 600))
            while network.will_cut:
                await say(f"{said} ")
                with contextlib.suppress(DeadlineMissed):  # then it lets more through
                    await network.reply_cut(0.02)
            await program.has(said)

        # and in the middle of a past that comes at once
        network.hold_replies()
        for _ in range(200):
            await say(f"{said}, ")
        network.cut()
        network.release()
        network.cut_replies_after(chance.randrange(1000, 12_000))
        await network.reply_cut(PATIENCE_S)
        await call.finish()

        # then it has shown everything once and in order, and is through
        assert await program.ended() == 0
        log = [(event.last_event_id, event.event, json.loads(event.data)) for event in await node.api.log(id)]
        assert program.log == log
        assert "reset" not in {name for _, name, _ in program.events}
