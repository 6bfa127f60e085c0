"""The store port of `replay/store/__init__.py` as a whole, against every store there is: what holds for all its parts.

Each part has a file of its own, sentence by sentence. A store is real, with a real server behind it; faults are
done to the wire or to the server.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest
from support.deadlines import eventually, within
from support.stores import Ear, batch, claim_of, grow, ignore, keys_without_expiry, log_of

from replay.errors import StoreUnavailable
from replay.store import Bounds, EventStore, Row
from replay.store.valkey import ValkeyStore


async def test_calls_of_one_store_are_carried_out_in_the_order_in_which_they_were_made(store):
    events = batch("s", *(f"t{place}" for place in range(200)))
    results = await asyncio.gather(
        *(
            store.append("g", [event], after=before and before.id, ttl_ms=1000)
            for before, event in itertools.pairwise([None, *events])
        )
    )
    assert results == [None] * len(events)
    assert await log_of(store, "g") == events


async def test_every_key_has_an_expiry_at_every_moment_of_a_life(store, valkey):
    (start,) = batch("s{}")
    tokens = batch("ta", "tb", after=start)
    end = batch("e{}", after=tokens[-1])
    life = [
        lambda: store.attend("node_1", notified=ignore, deleted=ignore),
        lambda: store.renew_lease("node_1", 60_000),
        lambda: store.claim("hash", claim_of("g"), ttl_ms=60_000),
        lambda: store.register("g", node="node_1", created_ms=1000),
        lambda: store.append("g", [start], after=None, ttl_ms=60_000),
        lambda: store.listen("g", Ear()),
        lambda: store.report_subscribers("node_1", {"g": 2, "h": 1}, 60_000),
        lambda: store.append("g", tokens, after=start.id),
        lambda: store.append("g", [], after=tokens[-1].id),
        lambda: store.notify("node_1", "g", tokens),
        lambda: store.report_subscribers("node_1", {"h": 0}, 60_000),
        lambda: store.register("g", node="node_2", created_ms=1000),
        lambda: store.renew_lease("node_1", 60_000),
        lambda: store.append("g", end, after=tokens[-1].id, ttl_ms=60_000),
        lambda: store.bury("g", "1", ttl_ms=60_000),
        lambda: store.unregister("g"),
        lambda: store.register("g2", node="node_1", created_ms=1000),
        lambda: store.create("g2", [start], node="node_1", ttl_ms=60_000, request=b"{}"),
        lambda: store.delete("g2", run="1", idempotency=None),
        lambda: store.expire("g", 60_000),
        lambda: store.expire("nobody", 60_000),
        lambda: store.forget([Row(1000, "g2")]),
        lambda: store.forget([Row(1000, "g")]),
        lambda: store.alive(["node_1", "node_2"]),
        lambda: store.recent(before=None, limit=10),
        lambda: store.unregister("nobody"),
        lambda: store.release("nothing", "nobody"),
        lambda: store.note_try("digest", "g", created_ms=1),
        lambda: store.take_try("g", hold_ms=60_000),
        lambda: store.forget_try("nothing", "nobody"),
        lambda: store.report_subscribers("node_2", {"h": 0}, 60_000),
    ]
    for place, step in enumerate(life):
        await step()
        assert await keys_without_expiry(valkey) == set(), f"step {place}"
    async with valkey.client() as client:
        assert await client.dbsize() >= 7  # there was something to look at


async def test_stopped_store_is_unavailable_and_holds_no_connection(start_store, valkey):
    store = await start_store()
    assert store.connections == 3
    await store.stop()
    assert store.connections == 0
    with pytest.raises(StoreUnavailable):
        await within("a refusal", store.last("g"))

    async def ours() -> int:
        async with valkey.client() as client:
            return sum(client["name"].startswith("replay-") for client in await client.client_list())

    await eventually("no connection to be left", ours, lambda count: count == 0)


async def test_three_connections_serve_whatever_there_is_to_do(store, other, valkey):
    async def work(name: str) -> None:
        events = await grow(store, name, "s")
        await store.listen(name, Ear())
        await store.register(name, node="node_1", created_ms=1)
        await asyncio.gather(*(store.read(name, after=None, limit=10) for _ in range(5)))
        await store.append(name, batch("e", after=events[-1]), after=events[-1].id)

    await asyncio.gather(*(work(f"g{place}") for place in range(200)))
    assert store.connections == store.connects == 3
    async with valkey.client() as client:
        names = [connection["name"] for connection in await client.client_list()]
    assert sorted(name for name in names if name.startswith("replay-")) == sorted(
        ["replay-appends", "replay-channels", "replay-reads"] * 2
    )


async def test_unix_socket_serves_as_well(start_store, valkey):
    store = await start_store(valkey.unix_url)
    assert await log_of(store, "g") == []
    events = await grow(store, "g", "s")
    assert await log_of(store, "g") == events


def test_every_store_has_every_call_of_the_port():
    ports = [port for port in EventStore.__mro__ if port.__module__ == EventStore.__module__]
    calls = {name for port in ports for name in (*vars(port), *port.__annotations__) if not name.startswith("_")}
    store = ValkeyStore("valkey://127.0.0.1:1/0", timeout_s=1)
    assert calls <= set(dir(store))
    assert Bounds._fields == ("first", "last", "expires_at_ms")
