"""Logs on Valkey Streams: all commands. `keys.py` has their keys.

Every key is written together with its expiry. Three connections serve a node, whatever it does: one for
appends, one for everything else, one for the channels; so a long read never delays an append.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from replay.errors import StoreRefused
from replay.model.event import Event, EventId
from replay.store import BURIED_MS, Bounds, Listener, Refused, keys
from replay.store.channels import ValkeyChannels
from replay.store.claims import ValkeyClaims
from replay.store.connection import Address, Link
from replay.store.keys import Keys
from replay.store.leases import ValkeyLeases
from replay.store.lists import ValkeyLists
from replay.store.resp import UnknownScript

logger = logging.getLogger(__name__)

_SCRIPTS = resources.files("replay.store")
_APPEND = _SCRIPTS.joinpath("append.lua").read_text()
_APPEND_SHA = hashlib.sha1(_APPEND.encode(), usedforsecurity=False).hexdigest()
_ERASE = _SCRIPTS.joinpath("erase.lua").read_text()  # seldom wanted: sent along with each call
_PROBE_MS = 60_000
_BITE = 50  # logs whose ends are read in one round trip: some 0.7 ms for whoever reads after it


class ValkeyStore(ValkeyLists, ValkeyClaims, ValkeyLeases):
    """An EventStore on one Valkey primary, 8.0 or newer."""

    def __init__(self, url: str, *, timeout_s: float, key_prefix: str = "replay:") -> None:
        address = Address.parse(url)
        self._keys = Keys(key_prefix, address.database)
        self.on_reconnect: list[Callable[[], None]] = []
        self._appends = Link(
            address, name="appends", timeout_s=timeout_s, greet=self._load_script, on_up=self._appends_up
        )
        self._reads = Link(address, name="reads", timeout_s=timeout_s)
        self._channels = ValkeyChannels(address, self._keys, timeout_s=timeout_s)
        self.on_missed = self._channels.on_missed
        self._links = (self._appends, self._reads, self._channels.link)
        self._bites = asyncio.Lock()  # however many lists are read, one bite is in front of everybody else's read
        self._tasks: list[asyncio.Task[None]] = []

    # Its life.

    async def start(self, timeout: float) -> None:
        """Connect; raises StoreUnavailable when that takes too long, StoreRefused at once."""
        self._tasks = [asyncio.create_task(link.run(), name=f"valkey {link.name}") for link in self._links]
        deadline = time.monotonic() + timeout
        for link in self._links:
            while not await link.wait_up(0.05):
                if isinstance(link.problem, StoreRefused) or time.monotonic() > deadline:
                    await self.stop()
                    raise link.problem

    async def stop(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many connections to the server there are now."""
        return sum(link.up for link in self._links)

    @property
    def connects(self) -> int:
        """How many connections were made so far."""
        return sum(link.connects for link in self._links)

    @property
    def hears(self) -> bool:
        """Whether there is a connection for the channels."""
        return self._channels.link.up

    @property
    def steady_for(self) -> float:
        """Seconds since a connection was last away; infinite when none ever was."""
        return min(link.steady_for for link in self._links)

    async def wait_up(self, timeout: float) -> bool:
        """Wait until appends are possible; whether they are."""
        return await self._appends.wait_up(timeout)

    async def probe(self) -> None:
        """Return if it takes what is written on the connection that appends."""
        await self._appends.call("SET", self._keys.probe, "1", "PX", _PROBE_MS)

    async def _load_script(self, call: Callable[..., asyncio.Future[Any]]) -> None:
        await call("SCRIPT", "LOAD", _APPEND)

    def _appends_up(self) -> None:
        if self._appends.connects > 1:
            for callback in self.on_reconnect:
                callback()

    # The log.

    async def create(
        self,
        generation_id: str,
        events: Sequence[Event],
        *,
        node: str,
        ttl_ms: int,
        request: bytes = b"",
        claim: str | None = None,
    ) -> Refused | None:
        """List a generation and create its log; see Logs."""
        # One connection carries them out in this order.
        _, refused = await asyncio.gather(
            self.register(generation_id, node=node, created_ms=events[0].id.ms),
            self._append(generation_id, events, after=None, ttl_ms=ttl_ms, request=request, claim=claim),
        )
        return refused

    async def append(
        self, generation_id: str, events: Sequence[Event], *, after: EventId | None, ttl_ms: int = 0
    ) -> Refused | None:
        """Append all events or none; see Logs."""
        return await self._append(generation_id, events, after=after, ttl_ms=ttl_ms)

    async def _append(
        self,
        generation_id: str,
        events: Sequence[Event],
        *,
        after: EventId | None,
        ttl_ms: int,
        request: bytes = b"",
        claim: str | None = None,
    ) -> Refused | None:
        log_keys = [self._keys.events(generation_id), self._keys.request(generation_id)][: 2 if ttl_ms else 1]
        if claim is not None:
            log_keys.append(self._keys.over(generation_id, claim))
        args: list[str | bytes | int] = [
            len(log_keys),
            *log_keys,
            "" if after is None else str(after),
            ttl_ms,
            self._keys.channel(generation_id),
            request,
        ]
        for event_id, entry in events:
            args += b"%d-%d" % event_id, entry
        if not self._appends.up:
            await self._appends.ready()
        try:
            answer = await self._appends.start_call("EVALSHA", _APPEND_SHA, *args)
        except UnknownScript:  # somebody flushed the scripts; this one is loaded again
            answer = await self._appends.start_call("EVAL", _APPEND, *args)
        if answer == 1:
            return None
        return Refused(Event(keys.parse_event_id(answer[0]), answer[1]) if answer else None)

    async def request(self, generation_id: str) -> bytes | None:
        """Return what was kept when the log was created."""
        body: bytes | None = await self._reads.ask("GET", self._keys.request(generation_id))
        return body

    async def last(self, generation_id: str) -> Event | None:
        """Return the last event; None when there is no log."""
        entries = await self._reads.ask("XREVRANGE", self._keys.events(generation_id), "+", "-", "COUNT", 1)
        return keys.parse_event(entries[0]) if entries else None

    async def read(self, generation_id: str, *, after: EventId | None, limit: int) -> list[Event]:
        """Return at most ``limit`` events after ``after``."""
        start = "-" if after is None else f"({after}"
        entries = await self._reads.ask("XRANGE", self._keys.events(generation_id), start, "+", "COUNT", limit)
        return keys.parse_events(entries)

    async def trim(self, generation_id: str, keep: int) -> None:
        """Forget the beginning of a log."""
        await self._appends.call("XTRIM", self._keys.events(generation_id), "MAXLEN", "~", keep)

    async def erase(self, generation_id: str, event_ids: Sequence[EventId]) -> None:
        """Take events out of a log, but not its last one."""
        await self._appends.call("EVAL", _ERASE, 1, self._keys.events(generation_id), *map(str, event_ids))

    async def bounds(self, generation_ids: Sequence[str]) -> list[Bounds | None]:
        """Return both ends of each log, read a bite at a time; those who want several take turns."""
        if len(generation_ids) == 1:
            return await self._read_bounds(generation_ids)
        bounds: list[Bounds | None] = []
        for start in range(0, len(generation_ids), _BITE):
            async with self._bites:
                bounds += await self._read_bounds(generation_ids[start : start + _BITE])
        return bounds

    async def _read_bounds(self, generation_ids: Sequence[str]) -> list[Bounds | None]:
        commands: list[tuple[str | int, ...]] = []
        for key in map(self._keys.events, generation_ids):
            commands.append(("XRANGE", key, "-", "+", "COUNT", 1))
            commands.append(("XREVRANGE", key, "+", "-", "COUNT", 1))
            commands.append(("PEXPIRETIME", key))
        answers = iter(await self._reads.ask_all(commands))
        return [
            Bounds(keys.parse_event(first[0]), keys.parse_event(last[0]), at if at > 0 else None)
            if first and last
            else None
            for first, last, at in zip(answers, answers, answers, strict=True)
        ]

    async def expire(self, generation_id: str, ttl_ms: int) -> None:
        """Let the log expire that long from now."""
        await self._appends.ready()
        call = self._appends.start_call
        await asyncio.gather(
            call("PEXPIRE", self._keys.events(generation_id), ttl_ms),
            call("PEXPIRE", self._keys.request(generation_id), ttl_ms),
        )

    async def delete(
        self,
        generation_id: str,
        *,
        run: str,
        idempotency: str | None = None,
        claim: str | None = None,
        digest: str | None = None,
    ) -> bool:
        """Remove every trace of a generation but the notes that its run and its claim are over."""
        await self._appends.ready()
        call = self._appends.start_call
        answers = [
            call("SET", self._keys.over(generation_id, mark), "1", "PX", BURIED_MS)
            for mark in (run, claim)
            if mark is not None
        ]
        removed = call("DEL", self._keys.events(generation_id))
        answers += [
            call("DEL", self._keys.request(generation_id)),
            call("SPUBLISH", self._keys.channel(generation_id), ""),
            call("SPUBLISH", self._keys.deleted, generation_id),
            call("ZREM", self._keys.recent, generation_id),
            call("HDEL", self._keys.live, generation_id),
        ]
        if idempotency is not None:  # after the log: whoever binds the key next must not find that
            answers.append(call(*self._releasing(idempotency, claim or generation_id)))
        if digest is not None:
            answers.append(call("ZREM", self._keys.tries(digest), generation_id))
        await asyncio.gather(removed, *answers)
        return bool(removed.result())

    async def bury(self, generation_id: str, run: str, *, ttl_ms: int) -> None:
        """Note that a run is over."""
        await self._appends.call("SET", self._keys.over(generation_id, run), "1", "PX", ttl_ms + BURIED_MS)

    async def was_buried(self, generation_id: str, run: str) -> bool:
        """Whether a missing log is that of a run that is over; another run of the same id may be."""
        return bool(await self._reads.ask("EXISTS", self._keys.over(generation_id, run)))

    # The channels.

    async def listen(self, generation_id: str, listener: Listener) -> None:
        """Hear of every append from now on; returns when Valkey has confirmed it."""
        await self._channels.listen(generation_id, listener)

    def unlisten(self, generation_id: str) -> None:
        """Hear no more of it."""
        self._channels.unlisten(generation_id)

    async def publish(self, channel: str, events: Sequence[Event]) -> int:
        """Tell whoever listens under that name."""
        heard: int = await self._appends.call("SPUBLISH", self._keys.channel(channel), keys.pack(events))
        return heard

    async def notify(self, node: str, generation_id: str, events: Sequence[Event]) -> None:
        """Tell a node of an append by somebody else."""
        message = keys.NUL.join((generation_id.encode(), keys.pack(events)))
        await self._appends.call("SPUBLISH", self._keys.node_channel(node), message)

    async def attend(
        self, node: str, *, notified: Callable[[str, list[Event]], None], deleted: Callable[[str], None]
    ) -> None:
        """Receive a node's notifications, and hear of deletions."""
        await self._channels.attend(node, notified=notified, deleted=deleted)
