"""The activity of all generations: as a reader of `/feed` has it, as it stands in Valkey, and on the wire between."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from support.api import Api, event_id
from support.deadlines import DEADLINE_S, T, eventually
from support.fault_proxy import FaultProxy
from support.sse import EventSourceClient, Message, messages, streaming
from support.upstream import ScriptedUpstream, say
from support.valkey import ValkeyServer
from support.valkey_wires import command

LIFE = ("created", "first_token", "ended")  # what is told of a generation that says something
WHOLE = sorted(LIFE)
KEY = "replay:{:feed}:events"
KEPT = 10_000  # events; of what is older there may be nothing
PATIENT = {"lease_s": 10}  # a node that is off Valkey for a moment is not dead


def follow(api: Api, *, last_event_id: str = "", **query: Any) -> EventSourceClient:
    """An EventSource on the activity."""
    return EventSourceClient(api.at("/feed", **query), last_event_id=last_event_id)


async def until_live(api: Api, headers: Mapping[str, str] | None = None, **query: Any) -> list[Message]:
    """What one connection is told until it has caught up."""
    async with streaming(api.at("/feed", **query), headers) as stream:
        assert stream.status == 200
        body = await stream.until(b"event: live\n")
    return messages(body[: body.rfind(b"event: live\n")])


def leave_nothing_out(events: Iterable[Message]) -> bool:
    """Whether who comes back with the id of any of them, be it one of the log or not, gets all that came after it."""
    last = (-1, -1)
    for event in events:
        before = last
        last = event_id(event.last_event_id) if event.last_event_id != "-1" else before
        if last < before or (event.event in LIFE and last == before):
            return False
    return True


async def kept(api: Api) -> list[Message]:
    """All events of the activity that there are."""
    return await until_live(api, after="-1")


def by_generation(events: Iterable[Message]) -> dict[str, list[str]]:
    """What has happened to each generation, in order."""
    found: dict[str, list[str]] = {}
    for event in events:
        if event.event in LIFE:
            found.setdefault(event.json()["generation_id"], []).append(event.event)
    return found


def happened(events: Iterable[Message]) -> dict[str, list[str]]:
    """What has happened to each generation, in whatever order: each that has lived and ended has `WHOLE`."""
    return {id: sorted(names) for id, names in by_generation(events).items()}


def life_of(events: Iterable[Message], id: str) -> list[dict[str, Any]]:
    """The data of what has happened to one generation."""
    return [event.json() for event in events if event.event in LIFE and event.json()["generation_id"] == id]


async def of(source: EventSourceClient, id: str, name: str, seconds: float = DEADLINE_S) -> dict[str, Any]:
    """The event of that name about a generation, as soon as it has come."""
    while True:
        for event in source.events:
            if event.event == name:
                data: dict[str, Any] = event.json()
                if data["generation_id"] == id:
                    return data
        await source.next(seconds)


async def written(valkey: ValkeyServer) -> list[Message]:
    """The activity as it stands in Valkey, without what was taken out."""
    async with valkey.client() as client:
        entries = await client.xrange(KEY)
    found = []
    for id, fields in entries:
        name, _, data = fields[b"e"][1:].partition(b" ")
        if name:
            found.append(Message(name.decode(), data.decode(), id.decode()))
    return found


async def until_written(valkey: ValkeyServer, id: str, names: Sequence[str]) -> None:
    """Wait until so much about a generation stands in Valkey."""
    await eventually(
        f"{names} of {id}", lambda: written(valkey), lambda events: set(names) <= set(by_generation(events).get(id, []))
    )


async def settled(upstream: ScriptedUpstream, *apis: Api) -> None:
    """Return when everything that has happened so far on these nodes stands in the activity: a node tells in order."""
    script, upstream.script = upstream.script, say()
    for api in apis:
        await _something_told(api)
    upstream.script = script


async def _something_told(api: Api) -> None:
    async with follow(api) as source:
        await source.event("live")
        id = await eventually("a start", lambda: start_if_possible(api), lambda id: id is not None)
        assert id is not None
        await of(source, id, "ended")


async def opened(*apis: Api) -> None:
    """Let nodes begin to follow the activity while nothing happens: opening it is the subject of a test of its own."""
    for api in apis:
        await kept(api)


def contiguous(events: Sequence[Message]) -> bool:
    """Whether every seq follows the one before, and times never go back."""
    places = [event_id(event.last_event_id) for event in events]
    return all(seq == before + 1 and ms >= earlier for (earlier, before), (ms, seq) in itertools.pairwise(places))


async def many_at_once(calls: Iterable[Callable[[], Awaitable[Any]]], limit: int = 16) -> list[Any]:
    """Make many calls, so many at a time."""
    gate = asyncio.Semaphore(limit)

    async def one(call: Callable[[], Awaitable[Any]]) -> Any:
        async with gate:
            return await call()

    return await asyncio.gather(*map(one, calls))


async def start_if_possible(api: Api) -> str | None:
    """The id of a generation that was started; None where the node cannot now."""
    answer = await api.post("/generations", {"model": "test-model", "prompt": "Hi"})
    id: str | None = answer.json()["id"] if answer.status == 201 else None
    return id


async def as_it_is(value: T) -> T:
    """A value that nobody needs to be asked for, as `eventually` wants it."""
    return value


class ActivityWire(FaultProxy):
    """A node's wire to Valkey that knows an append to the activity when it sees one."""

    _APPEND = command(KEY, "replay:{:feed}:request")
    _PUBLISHED = re.compile(rb"\r\nreplay:\{:progress\}\r\n\$(\d+)\r\n")

    def __init__(self, target_url: str) -> None:
        super().__init__(target_url)
        self.appends = 0  # to the activity
        self.published: list[int] = []  # the sizes of what was told of progress
        self._strike: Callable[[], None] | None = None

    def hold_reply_of_next_append(self) -> None:
        """Let the next append to the activity through, and no reply after that."""
        self._strike = self.hold_replies

    def hold_next_append(self) -> None:
        """Hold the next append to the activity, and what comes after it."""
        self._strike = self.hold_requests

    async def lose_what_is_held(self) -> None:
        """End all connections and take no new ones."""
        await self.refuse()
        self.cut()
        self.release()

    def _see(self, data: bytes, way: object) -> None:
        if way is not self.requests:
            return
        appends = data.count(self._APPEND)
        self.appends += appends
        self.published += [int(size) for size in self._PUBLISHED.findall(data)]
        if appends and self._strike is not None:
            self._strike()
            self._strike = None
