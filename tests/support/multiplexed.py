"""Multiplexed streams, `GET /events`: several generations on one connection, and what each of them has said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from support.api import Api
from support.deadlines import DEADLINE_S
from support.http1 import Answer
from support.sse import EventSourceClient, Message, read_stream
from support.upstream import Script, ScriptedUpstream

KINDS = ("start", "token", "delta", "end")
NEVER_WAS = "gen_that_never_was"

Told = tuple[str, dict[str, Any]]  # an event's name and data

# Nothing but whole blocks, `retry` in the first of them at most.
WHOLE_BODY = re.compile(rb"(?::k\n|(?:retry: \d+\n)?event: [a-z]+\ndata: \{[^\r\n\0]*\}\n(?:id: [0-9a-z.,:-]+\n)?\n)*")


def many(api: Api, ids: Iterable[str], *, last_event_id: str = "", **query: Any) -> EventSourceClient:
    """An EventSource on several generations."""
    return EventSourceClient(url_of(api, ids, **query), last_event_id=last_event_id)


def url_of(api: Api, ids: Iterable[str], **query: Any) -> str:
    """Where several generations are read on one connection."""
    return api.at("/events", generation=list(ids), **query)


def path_of(api: Api, ids: Iterable[str], **query: Any) -> str:
    """The same without the node."""
    return url_of(api, ids, **query).removeprefix(api.url)


async def read_many(api: Api, ids: Iterable[str], headers: Mapping[str, str] | None = None, **query: Any) -> Answer:
    """One request, read to its end."""
    return await read_stream(url_of(api, ids, **query), headers)


def shares(events: Sequence[Message], ids: Iterable[str]) -> dict[str, list[Told]]:
    """What each generation has said, in the order in which it came."""
    found: dict[str, list[Told]] = {id: [] for id in ids}
    for event in events:
        if event.event in KINDS:
            data = event.json()
            found[data["generation_id"]].append((event.event, data))
    return found


def labelled(id: str, events: Sequence[Message]) -> list[Told]:
    """The events of a connection of its own, as they have to come among others."""
    return [(event.event, {**event.json(), "generation_id": id}) for event in events]


async def alone(api: Api, ids: Iterable[str]) -> dict[str, list[Told]]:
    """What `/generations/{id}/events` gives for each of some generations that have ended."""
    return {id: labelled(id, await api.log(id)) for id in ids}


def notices(events: Sequence[Message], kind: str) -> list[str]:
    """Which generations a notice of that kind was about."""
    return [event.json()["generation_id"] for event in events if event.event == kind]


async def recorded(api: Api, upstream: ScriptedUpstream, *scripts: Script) -> list[str]:
    """Generations that have ended, one of each script."""
    ids = []
    for script in scripts:
        upstream.script = script
        ids.append(await api.run())
    upstream.script = None
    return ids


async def closed_by_204(source: EventSourceClient, seconds: float = DEADLINE_S) -> None:
    """Wait until the source has stopped by itself, after a clean end."""
    source.retry_ms = 1
    last = await source.closed(seconds)
    assert last.status == 204, source.connections
    assert source.connections[-2].clean, source.connections
