"""What stands in Valkey, asked past the service: the log is what decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from support.sse import Message
from support.valkey import ValkeyServer


async def stored(valkey: ValkeyServer, id: str) -> list[tuple[str, bytes]]:
    """The entries of a generation, as (event id, entry)."""
    async with valkey.client() as client:
        entries = await client.xrange(f"replay:{{{id}}}:events")
    return [(name.decode(), fields[b"e"]) for name, fields in entries]


async def stored_ids(valkey: ValkeyServer, id: str) -> list[str]:
    """The event ids of a generation."""
    return [name for name, _ in await stored(valkey, id)]


def ids(events: Iterable[Message]) -> list[str]:
    """Their event ids."""
    return [event.last_event_id for event in events]


def assert_whole(events: Sequence[Message]) -> None:
    """One `start`, then every seq once and in order, then one `end`; times never go back."""
    places = [tuple(map(int, event.last_event_id.split("-"))) for event in events]
    assert [seq for _, seq in places] == list(range(len(events)))
    assert [ms for ms, _ in places] == sorted(ms for ms, _ in places)
    kinds = [event.event for event in events]
    assert (kinds[0], kinds[-1]) == ("start", "end")
    assert (kinds.count("start"), kinds.count("end")) == (1, 1)


async def expiries(valkey: ValkeyServer) -> dict[str, int]:
    """Every key, and in how many ms it expires; -1 is never."""
    async with valkey.client() as client:
        found: dict[str, int] = {}
        async for key in client.scan_iter(count=1000):
            left = await client.pttl(key)
            if left != -2:  # gone meanwhile
                found[key.decode()] = left
    return found


async def commands(valkey: ValkeyServer) -> dict[str, dict[str, Any]]:
    """How often each command was called so far."""
    async with valkey.client() as client:
        found: dict[str, dict[str, Any]] = await client.info("commandstats")
    return found


async def calls_of(valkey: ValkeyServer) -> int:
    """How many commands Valkey has carried out, without those of the test."""
    stats = await commands(valkey)
    own = ("info", "client", "hello", "auth", "select", "ping", "config")
    return sum(stat["calls"] for name, stat in stats.items() if not name.removeprefix("cmdstat_").startswith(own))
