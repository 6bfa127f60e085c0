"""What tests of stores need again and again: events, logs, and listeners that remember."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from replay.errors import StoreUnavailable
from replay.model.event import Event, number
from replay.store import Claim, EventStore
from support.deadlines import eventually, within
from support.valkey import ValkeyServer

PATIENT_S = 30.0  # the answer to a command that a test holds up for a while
QUICK_S = 0.4

StartStore = Callable[..., Awaitable[EventStore]]


class Ear:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.batches = 0
        self.deletions = 0
        self.reconnections = 0
        self._changed = asyncio.Event()

    def heard(self, events: Sequence[Event]) -> None:
        self.events += events
        self.batches += 1
        self._changed.set()

    def deleted(self) -> None:
        self.deletions += 1
        self._changed.set()

    def reconnected(self) -> None:
        self.reconnections += 1
        self._changed.set()

    async def until(self, what: str, met: Callable[[], Any]) -> None:
        async def wait() -> None:
            while not met():
                await self._changed.wait()
                self._changed.clear()

        await within(what, wait())


def batch(*entries: str, after: Event | None = None, ms: int = 1000) -> list[Event]:
    """Events with these entries."""
    return number([entry.encode() for entry in entries], after=after and after.id, now_ms=ms)


async def grow(store: EventStore, name: str, *entries: str, ttl_ms: int = 60_000, ms: int = 1000) -> list[Event]:
    """A new log with these entries."""
    events = batch(*entries, ms=ms)
    assert await store.append(name, events, after=None, ttl_ms=ttl_ms) is None
    return events


async def log_of(store: EventStore, name: str) -> list[Event]:
    """All events of a log."""
    return await store.read(name, after=None, limit=10_000)


async def kill_connection(valkey: ValkeyServer, which: str) -> None:
    """Cut the stores' connections of one sort, at the server."""
    async with valkey.client() as client:
        for connection in await client.client_list():
            if connection["name"] == f"replay-{which}":
                await client.client_kill_filter(_id=connection["id"])


async def until_told(call: Callable[[], Awaitable[Any]]) -> Any:
    """Make a call again until its outcome is known, as every caller has to."""

    async def attempt() -> tuple[Any, ...]:
        try:
            return (await call(),)
        except StoreUnavailable:
            return ()

    return (await eventually("an answer", attempt))[0]


async def keys_without_expiry(valkey: ValkeyServer) -> set[bytes]:
    """The keys that would stay for ever."""
    async with valkey.client() as client:
        return {key async for key in client.scan_iter() if await client.pttl(key) <= 0}


def ignore(*_: Any) -> None:
    """Be a callback that does nothing."""


def claim_of(name: str, attempt: int = 0, after: Claim | None = None, *, fingerprint: str = "1") -> Claim:
    """A claim for the generation of that name, with a mark of its own."""
    previous, mark = (None, None) if after is None else (after.generation_id, after.mark)
    return Claim(name, fingerprint, uuid.uuid4().hex, attempt, previous, mark)
