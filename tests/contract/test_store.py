"""The store port of `replay/store/__init__.py`, sentence by sentence, against every store there is.

A store is real, with a real server behind it; faults are done to the wire or to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import libvalkey
import pytest
from support.deadlines import eventually, within
from support.fault_proxy import FaultProxy
from support.ports import free_port
from support.valkey import ValkeyServer

from replay.errors import StoreRefused, StoreUnavailable
from replay.model.event import Event, EventId, number
from replay.store import BURIED_MS, Bounds, Claim, EventStore, Page, Refused, Row
from replay.store.valkey import ValkeyStore

PATIENT_S = 30.0  # the answer to a command that a test holds up for a while
QUICK_S = 0.4

StartStore = Callable[..., Awaitable[EventStore]]


@pytest.fixture
async def start_store(valkey: ValkeyServer) -> AsyncIterator[StartStore]:
    """Connect stores to the test's server, or to a URL."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(url: str | None = None, timeout_s: float = PATIENT_S) -> EventStore:
            store = ValkeyStore(valkey.url if url is None else url, timeout_s=timeout_s)
            await store.start(5.0)
            stack.push_async_callback(store.stop)
            return store

        yield start


@pytest.fixture
async def store(start_store: StartStore) -> EventStore:
    """A store."""
    return await start_store()


@pytest.fixture
async def other(start_store: StartStore) -> EventStore:
    """Another node's store, on the same server."""
    return await start_store()


@pytest.fixture
async def proxied(valkey_proxy: FaultProxy, start_store: StartStore) -> EventStore:  # the store stops before its proxy
    """A store whose connections can be held and cut."""
    return await start_store(valkey_proxy.url)


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


# Append.


async def test_log_is_what_was_appended(store):
    events = await grow(store, "g", "s{}", "tHel")
    more = batch("tlo", "d\\u0000\\n", "e{}", after=events[-1], ms=1234)
    assert await store.append("g", more, after=events[-1].id) is None
    assert await log_of(store, "g") == events + more


@pytest.mark.parametrize(
    "entry", [b"t", b"t caf\xc3\xa9 \xe2\x80\xa8", b"t\xff\xfe", b"D{\r\n}", b"t" + b"x" * 1_000_000]
)
async def test_entry_comes_back_byte_for_byte(store, entry):
    events = number([entry, b"t2"], after=None, now_ms=5)
    await store.append("g", events, after=None, ttl_ms=1000)
    assert await log_of(store, "g") == events
    assert await store.last("g") == events[-1]


async def test_append_is_done_only_where_the_log_ends_exactly_there(store):
    events = await grow(store, "g", "s", "ta", "tb")
    last = events[-1]
    stray = [None, events[0].id, events[1].id, EventId(999, 2), EventId(1001, 2), EventId(1000, 3), EventId(0, 0)]
    for after in stray:
        assert await store.append("g", batch("tc", after=last, ms=2000), after=after) == Refused(last), after
    assert await log_of(store, "g") == events
    assert await store.append("g", batch("tc", after=last), after=last.id) is None


async def test_append_to_a_log_that_is_not_there_is_refused(store):
    assert await store.append("g", batch("ta"), after=EventId(1, 0)) == Refused(None)
    assert await log_of(store, "g") == []


async def test_batch_is_appended_whole_or_not_at_all(store, other):
    # given a reader that looks all the time
    events = await grow(store, "g", "s")
    lengths: set[int] = set()

    async def look() -> None:
        while True:
            lengths.add(len(await log_of(other, "g")))

    looking = asyncio.create_task(look())
    # when
    for _ in range(10):
        more = batch(*["tx"] * 300, after=events[-1])
        assert await store.append("g", more, after=events[-1].id) is None
        assert await store.append("g", batch(*["ty"] * 300, after=events[-1], ms=2000), after=events[-1].id) is not None
        events += more
    looking.cancel()
    # then
    assert lengths <= {1 + 300 * batches for batches in range(11)}
    assert len(lengths) > 1
    assert await log_of(store, "g") == events


async def test_of_many_who_append_after_the_same_event_one_wins(start_store):
    stores = [await start_store() for _ in range(4)]
    await grow(stores[0], "g", "s")
    last = (await log_of(stores[0], "g"))[-1]
    for turn in range(20):
        tries = [batch(f"t{turn}-{writer}", after=last, ms=1000 + writer) for writer in range(4)]
        results = await asyncio.gather(
            *(store.append("g", events, after=last.id) for store, events in zip(stores, tries, strict=True))
        )
        (winner,) = [writer for writer, refused in enumerate(results) if refused is None]
        last = tries[winner][-1]
        assert all(refused is None or refused == Refused(last) for refused in results)
    assert len(await log_of(stores[0], "g")) == 21


async def test_of_many_who_create_a_log_one_wins(start_store):
    stores = [await start_store() for _ in range(4)]
    starts = [batch(f"s{node}") for node in range(4)]
    results = await asyncio.gather(
        *(store.append("g", events, after=None, ttl_ms=1000) for store, events in zip(stores, starts, strict=True))
    )
    (winner,) = [node for node, refused in enumerate(results) if refused is None]
    assert await log_of(stores[0], "g") == starts[winner]


async def test_append_without_events_only_compares(store):
    assert await store.append("g", [], after=None) is None
    events = await grow(store, "g", "s", "ta")
    assert await store.append("g", [], after=events[-1].id) is None
    assert await store.append("g", [], after=events[0].id) == Refused(events[-1])
    assert await store.append("g", [], after=None) == Refused(events[-1])
    assert await log_of(store, "g") == events


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


# Append, when nobody knows.


@pytest.mark.parametrize("size", [1, 3])
async def test_retry_after_a_lost_reply_is_already_there(proxied, valkey_proxy, size):
    # given an append that was executed, but whose reply was lost
    events = await grow(proxied, "g", "s")
    more = batch(*["tx"] * size, after=events[-1])
    valkey_proxy.hold_replies()
    append = asyncio.create_task(proxied.append("g", more, after=events[-1].id))
    await valkey_proxy.reply_held()
    valkey_proxy.cut()
    valkey_proxy.release()
    with pytest.raises(StoreUnavailable):
        await append
    # when
    again = await until_told(lambda: proxied.append("g", more, after=events[-1].id))
    # then
    assert again is None
    assert await log_of(proxied, "g") == events + more


async def test_start_whose_reply_was_lost_is_already_there(proxied, valkey_proxy):
    start = batch("s{run 1}")
    valkey_proxy.hold_replies()
    append = asyncio.create_task(proxied.append("g", start, after=None, ttl_ms=60_000))
    await valkey_proxy.reply_held()
    valkey_proxy.cut()
    valkey_proxy.release()
    with pytest.raises(StoreUnavailable):
        await append
    assert await until_told(lambda: proxied.append("g", start, after=None, ttl_ms=60_000)) is None
    assert await proxied.append("g", batch("s{run 2}"), after=None, ttl_ms=60_000) == Refused(start[0])
    assert await log_of(proxied, "g") == start


async def test_append_whose_request_was_lost_is_done_by_the_retry(proxied, valkey_proxy):
    events = await grow(proxied, "g", "s")
    more = batch("ta", "tb", after=events[-1])
    valkey_proxy.hold_requests()
    append = asyncio.create_task(proxied.append("g", more, after=events[-1].id))
    await valkey_proxy.request_held()
    valkey_proxy.cut()
    valkey_proxy.release()
    with pytest.raises(StoreUnavailable):
        await append
    assert await until_told(lambda: log_of(proxied, "g")) == events
    assert await until_told(lambda: proxied.append("g", more, after=events[-1].id)) is None
    assert await log_of(proxied, "g") == events + more


async def test_retry_is_refused_once_somebody_has_gone_on(store):
    events = await grow(store, "g", "s")
    more = batch("ta", after=events[-1])
    await store.append("g", more, after=events[-1].id)
    end = batch("e", after=more[-1])
    await store.append("g", end, after=more[-1].id)
    assert await store.append("g", more, after=events[-1].id) == Refused(end[-1])


async def test_somebody_elses_event_with_the_same_id_is_not_taken_for_ones_own(store):
    events = await grow(store, "g", "s")
    (theirs,) = batch("e{cancelled}", after=events[-1])
    assert await store.append("g", [theirs], after=events[-1].id) is None
    (ours,) = batch("ttext", after=events[-1])
    assert ours.id == theirs.id
    assert await store.append("g", [ours], after=events[-1].id) == Refused(theirs)
    assert await log_of(store, "g") == [*events, theirs]


async def test_somebody_elses_batch_that_ends_with_the_same_event_is_not_taken_for_ones_own(store):
    events = await grow(store, "g", "s")
    theirs = batch("ltheirs", "lsame", after=events[-1])
    assert await store.append("g", theirs, after=events[-1].id) is None
    ours = batch("lours", "lsame", after=events[-1])
    assert ours[-1] == theirs[-1]
    assert await store.append("g", ours, after=events[-1].id) == Refused(theirs[-1])
    assert await log_of(store, "g") == [*events, *theirs]


# Expiry.


async def ttl_of(store: EventStore, valkey: ValkeyServer, name: str) -> float:
    """Ms until a log expires."""
    ((bounds,),) = [await store.bounds([name])]
    assert bounds is not None
    assert bounds.expires_at_ms is not None
    async with valkey.client() as client:
        seconds, microseconds = await client.time()
    return bounds.expires_at_ms - seconds * 1000 - microseconds / 1000


async def test_ttl_is_set_by_the_append_that_says_so_and_left_alone_by_the_others(store, valkey):
    (start,) = await grow(store, "g", "s", ttl_ms=50_000)
    assert 45_000 < await ttl_of(store, valkey, "g") <= 50_000
    (token,) = batch("ta", after=start)
    await store.append("g", [token], after=start.id)
    assert 45_000 < await ttl_of(store, valkey, "g") <= 50_000
    (end,) = batch("e", after=token)
    await store.append("g", [end], after=token.id, ttl_ms=200_000)
    assert 195_000 < await ttl_of(store, valkey, "g") <= 200_000
    await store.expire("g", 90_000)
    assert 85_000 < await ttl_of(store, valkey, "g") <= 90_000


async def test_request_is_kept_with_the_log_and_expires_with_it(store, valkey):
    # given
    (start,) = batch("s")
    assert await store.request("g") is None
    assert await store.create("g", [start], node="node_1", ttl_ms=50_000, request=b'{"a":1}') is None
    # when others come too late, the same comes again, and the log grows and lives longer
    assert await store.create("g", batch("sx"), node="node_1", ttl_ms=50_000, request=b"{}") == Refused(start)
    assert await store.create("g", [start], node="node_1", ttl_ms=50_000, request=b'{"a":1}') is None
    (end,) = batch("e", after=start)
    assert await store.append("g", [end], after=start.id, ttl_ms=200_000) is None
    # then
    assert await store.request("g") == b'{"a":1}'
    async with valkey.client() as client:
        kept_for = await client.pttl("replay:{g}:request")
        assert abs(kept_for - await client.pttl("replay:{g}:events")) < 1000
        await store.expire("g", 90_000)
        assert 85_000 < await client.pttl("replay:{g}:request") <= 90_000


async def test_refused_append_sets_no_ttl(store, valkey):
    (start,) = await grow(store, "g", "s", ttl_ms=50_000)
    assert await store.append("g", batch("tx"), after=EventId(7, 7), ttl_ms=900_000) == Refused(start)
    assert await ttl_of(store, valkey, "g") <= 50_000


async def test_log_is_gone_when_its_ttl_has_passed(store):
    events = await grow(store, "g", "s", ttl_ms=30)

    async def last() -> Event | None:
        return await store.last("g")

    await eventually("the log to expire", last, lambda event: event is None)
    assert await store.bounds(["g"]) == [None]
    assert await store.append("g", batch("ta", after=events[-1]), after=events[-1].id) == Refused(None)


async def _keys_without_expiry(valkey: ValkeyServer) -> set[bytes]:
    async with valkey.client() as client:
        return {key async for key in client.scan_iter() if await client.pttl(key) <= 0}


def _ignore(*_: Any) -> None:
    pass


async def test_every_key_has_an_expiry_at_every_moment_of_a_life(store, valkey):
    (start,) = batch("s{}")
    tokens = batch("ta", "tb", after=start)
    end = batch("e{}", after=tokens[-1])
    life = [
        lambda: store.attend("node_1", notified=_ignore, deleted=_ignore),
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
        assert await _keys_without_expiry(valkey) == set(), f"step {place}"
    async with valkey.client() as client:
        assert await client.dbsize() >= 7  # there was something to look at


# Read.


async def test_read_is_a_slice_of_the_list(store):
    # given a log whose times have gaps, and batches that share a time
    chance = random.Random(1)
    events: list[Event] = []
    for place in range(40):
        events += batch(*[f"t{place}"] * chance.randint(1, 4), after=events[-1] if events else None, ms=100 + 3 * place)
    await store.append("g", events, after=None, ttl_ms=60_000)
    # when, then
    for _ in range(200):
        after = chance.choice([None, *(event.id for event in events), EventId(chance.randint(90, 230), 5)])
        limit = chance.randint(1, 60)
        behind = events if after is None else [event for event in events if event.id > after]
        assert await store.read("g", after=after, limit=limit) == behind[:limit]


async def test_log_that_is_not_there_has_nothing(store):
    assert await store.read("g", after=None, limit=10) == []
    assert await store.read("g", after=EventId(5, 5), limit=10) == []
    assert await store.last("g") is None
    assert not await store.was_buried("g", "1")


async def test_ends_are_told_in_the_order_asked(store):
    one = await grow(store, "one", "s", "ta", "e")
    two = await grow(store, "two", "s")
    first, missing, second, again = await store.bounds(["two", "no", "one", "two"])
    assert missing is None
    assert (first.first, first.last) == (two[0], two[0])
    assert (second.first, second.last) == (one[0], one[-1])
    assert again == first
    assert await store.bounds([]) == []


# Delete.


async def test_delete_leaves_no_key_that_names_the_generation(store, valkey):
    # given
    name = "gen_to_be_deleted"
    claim = claim_of(name)
    await store.claim("hash", claim, ttl_ms=60_000)
    await store.note_try("digest", name, created_ms=1000)
    await store.take_try(name, hold_ms=60_000)
    await store.create(name, batch("s", "ta", "e"), node="node_1", ttl_ms=60_000, request=b'{"id":"gen_to_be_deleted"}')
    # when
    assert await store.delete(name, run="1", idempotency="hash", claim=claim.token, digest="digest") is True
    # then
    async with valkey.client(decode_responses=True) as client:
        for key in await client.keys():
            assert name not in key
            kind = await client.type(key)
            read = {"string": client.get, "hash": client.hgetall, "stream": client.xrange}
            kept = await (client.zrange(key, 0, -1) if kind == "zset" else read[kind](key))
            assert name not in repr(kept), key
    assert await store.read(name, after=None, limit=10) == []
    assert await store.request(name) is None
    assert await store.claimed("hash") is None


async def test_log_of_a_run_that_is_over_is_told_from_a_lost_one(store, valkey):
    for name in ("deleted", "ended", "lost"):
        await grow(store, name, "s")
    await store.delete("deleted", run="1", idempotency=None)
    await store.bury("ended", "1", ttl_ms=1000)
    async with valkey.client() as client:
        assert await client.delete("replay:{ended}:events", "replay:{lost}:events") == 2
    assert await store.was_buried("deleted", "1")
    assert await store.was_buried("ended", "1")
    assert not await store.was_buried("lost", "1")


async def test_run_is_remembered_for_longer_than_its_log_is_kept(store, valkey):
    await store.bury("g", "1", ttl_ms=50_000)
    async with valkey.client() as client:
        (key,) = await client.keys()
        assert 50_000 + BURIED_MS - 5000 < await client.pttl(key) <= 50_000 + BURIED_MS


async def test_log_that_was_made_anew_and_then_lost_is_lost_not_deleted(store, valkey):
    await grow(store, "g", "s{run 1}")
    await store.delete("g", run="1", idempotency=None)
    await grow(store, "g", "s{run 2}")
    async with valkey.client() as client:
        assert await client.delete("replay:{g}:events") == 1
    assert not await store.was_buried("g", "2")
    assert await store.was_buried("g", "1")


async def test_every_run_that_was_deleted_stays_deleted(store):
    for run in ("1", "2"):
        await grow(store, "g", f"s{run}")
        await store.delete("g", run=run, idempotency=None)
    assert await store.was_buried("g", "2")
    assert await store.was_buried("g", "1")


async def test_delete_tells_whether_there_was_a_log(store):
    await grow(store, "g", "s")
    assert await store.delete("g", run="1", idempotency=None) is True
    assert await store.delete("g", run="1", idempotency=None) is False
    assert await store.delete("never", run="1", idempotency=None) is False


async def test_writer_that_comes_back_late_is_refused_and_finds_the_log_deleted(store, other):
    events = await grow(store, "g", "s", "ta")
    await other.delete("g", run="1", idempotency=None)
    assert await store.append("g", batch("tb", after=events[-1]), after=events[-1].id) == Refused(None)
    assert await store.was_buried("g", "1")


# Listen.


async def test_every_batch_is_heard_once_and_in_order(store, other):
    # given
    events = await grow(other, "g", "s")
    ear = Ear()
    await store.listen("g", ear)
    # when
    for place in range(50):
        writer = store if place % 5 == 0 else other
        more = batch(*[f"t{place} \\u0000 é"] * (1 + place % 3), after=events[-1])
        await writer.append("g", more, after=events[-1].id)
        events += more
    # then
    await ear.until("the last batch", lambda: ear.events[-1:] == events[-1:])
    assert ear.events == events[1:]
    assert ear.batches == 50


async def test_nothing_is_heard_of_what_was_not_done(store, other):
    events = await grow(other, "g", "s")
    ear = Ear()
    await store.listen("g", ear)
    more = batch("ta", after=events[-1])
    await other.append("g", more, after=None)  # refused
    await other.append("g", [], after=events[-1].id)  # only compares
    await other.append("g", more, after=events[-1].id)
    await other.append("g", more, after=events[-1].id)  # already there
    end = batch("e", after=more[-1])
    await other.append("g", end, after=more[-1].id)
    await ear.until("the end", lambda: end[0] in ear.events)
    assert ear.events == more + end


async def test_listen_returns_only_when_it_hears(proxied, other, valkey_proxy):
    # given
    events = await grow(other, "g", "s")
    ear = Ear()
    valkey_proxy.hold_replies()
    # when
    listening = asyncio.create_task(proxied.listen("g", ear))
    await valkey_proxy.reply_held()
    # then it is not yet confirmed
    assert not listening.done()
    valkey_proxy.release()
    await within("the confirmation", listening)
    more = batch("ta", after=events[-1])
    await other.append("g", more, after=events[-1].id)
    await ear.until("the batch", lambda: ear.events == more)


async def test_many_logs_are_heard_at_once_each_by_its_own_listener(store, other):
    names = [f"g{place}" for place in range(100)]
    ears = {name: Ear() for name in names}
    await asyncio.gather(*(store.listen(name, ear) for name, ear in ears.items()))
    await asyncio.gather(*(grow(other, name, "s" + name) for name in names))
    for name, ear in ears.items():
        await ear.until(name, lambda ear=ear: ear.events)
        assert [event.entry for event in ear.events] == [b"s" + name.encode()]


async def test_nothing_is_heard_after_unlisten(store, other):
    events = await grow(other, "g", "s")
    ear, barrier = Ear(), Ear()
    await store.listen("g", ear)
    store.unlisten("g")
    await store.listen("barrier", barrier)
    await other.append("g", batch("ta", after=events[-1]), after=events[-1].id)
    await grow(other, "barrier", "s")
    await barrier.until("the barrier", lambda: barrier.events)
    assert ear.events == []
    store.unlisten("g")  # a second time is nothing
    store.unlisten("never")


async def test_listening_again_after_unlisten_hears_again(store, other):
    events = await grow(other, "g", "s")
    for place in range(5):
        ear = Ear()
        await store.listen("g", ear)
        more = batch(f"t{place}", after=events[-1])
        await other.append("g", more, after=events[-1].id)
        events += more
        await ear.until("the batch", lambda ear=ear, more=more: ear.events == more)
        store.unlisten("g")


async def test_confirmation_of_an_earlier_listen_does_not_stand_for_a_later_one(proxied, other, valkey_proxy):
    # given a listen that is given up before it is confirmed
    events = await grow(other, "g", "s")
    valkey_proxy.hold_replies()
    earlier = asyncio.create_task(proxied.listen("g", Ear()))
    await valkey_proxy.reply_held()
    proxied.unlisten("g")
    # when another one is asked for, and has not reached the server yet
    ear = Ear()
    valkey_proxy.hold_requests()
    later = asyncio.create_task(proxied.listen("g", ear))
    await valkey_proxy.request_held()
    valkey_proxy.replies.release()
    await within("the confirmation", asyncio.wait([earlier]))
    # then
    assert not later.done()
    valkey_proxy.release()
    await within("the confirmation", later)
    more = batch("ta", after=events[-1])
    await other.append("g", more, after=events[-1].id)
    await ear.until("the batch", lambda: ear.events == more)


async def test_listen_outlasts_the_loss_of_its_connection(proxied, other, valkey_proxy):
    events = await grow(other, "g", "s")
    ear = Ear()
    valkey_proxy.hold_requests()
    listening = asyncio.create_task(proxied.listen("g", ear))
    await valkey_proxy.request_held()
    valkey_proxy.cut()
    valkey_proxy.release()
    await within("the confirmation", listening)
    more = batch("ta", after=events[-1])
    await other.append("g", more, after=events[-1].id)
    await ear.until("the batch", lambda: ear.events == more)


async def test_deletion_is_heard(store, other):
    await grow(other, "g", "s")
    ear = Ear()
    await store.listen("g", ear)
    await other.delete("g", run="1", idempotency=None)
    await ear.until("the deletion", lambda: ear.deletions)
    assert ear.events == []


async def test_every_node_is_told_of_a_deletion(store, other):
    told: list[asyncio.Queue[str]] = [asyncio.Queue(), asyncio.Queue()]
    await store.attend("node_1", notified=_ignore, deleted=told[0].put_nowait)
    await other.attend("node_2", notified=_ignore, deleted=told[1].put_nowait)
    await other.delete("gen_A-1", run="1", idempotency=None)
    assert [await within("the deletion", queue.get()) for queue in told] == ["gen_A-1"] * 2


async def test_listener_is_told_when_its_channel_is_back_and_hears_again(store, other, valkey):
    # given
    events = await grow(other, "g", "s")
    ear = Ear()
    await store.listen("g", ear)
    # when
    await kill_connection(valkey, "channels")
    await ear.until("reconnected", lambda: ear.reconnections)
    # then
    more = batch("ta", after=events[-1])
    await other.append("g", more, after=events[-1].id)
    await ear.until("the batch", lambda: ear.events == more)
    assert ear.reconnections == 1


async def test_only_who_still_listens_is_told_that_the_channel_is_back(store, valkey):
    stays, leaves = Ear(), Ear()
    await store.listen("stays", stays)
    await store.listen("leaves", leaves)
    store.unlisten("leaves")
    await kill_connection(valkey, "channels")
    await stays.until("reconnected", lambda: stays.reconnections)
    assert leaves.reconnections == 0


async def test_notifications_arrive_at_the_node_they_are_for(store, other):
    told: asyncio.Queue[tuple[str, list[Event]]] = asyncio.Queue()
    elsewhere: list[Any] = []
    await store.attend("node_1", notified=lambda name, events: told.put_nowait((name, events)), deleted=_ignore)
    await other.attend("node_2", notified=lambda name, events: elsewhere.append(name), deleted=_ignore)
    events = batch("ta é \\u0000", "e{}", ms=5)
    await other.notify("node_1", "gen_A-1", events)
    await other.notify("node_3", "gen_A-1", events)
    await store.notify("node_1", "gen_B", events[:1])
    assert await within("a notification", told.get()) == ("gen_A-1", events)
    assert await within("a notification", told.get()) == ("gen_B", events[:1])
    assert told.empty()
    assert elsewhere == []


async def test_node_is_told_when_it_may_have_missed_notifications(store, other, valkey):
    told: asyncio.Queue[str] = asyncio.Queue()
    missed = asyncio.Event()
    store.on_missed.append(missed.set)
    await store.attend("node_1", notified=lambda name, events: told.put_nowait(name), deleted=told.put_nowait)
    assert not missed.is_set()
    await kill_connection(valkey, "channels")
    await within("on_missed", missed.wait())
    await other.notify("node_1", "g", batch("ta"))
    assert await within("a notification", told.get()) == "g"
    await other.delete("h", run="1", idempotency=None)
    assert await within("a deletion", told.get()) == "h"


async def test_listener_whose_handling_fails_does_not_disturb_the_others(store, other, caplog):
    class Deaf(Ear):
        def heard(self, events: Sequence[Event]) -> None:
            raise ValueError("cannot handle this")

    ear = Ear()
    await store.listen("deaf", Deaf())
    await store.listen("g", ear)
    await grow(other, "deaf", "s")
    events = await grow(other, "g", "s")
    await ear.until("the batch", lambda: ear.events == events)
    assert store.connects == 3
    assert "cannot handle this" in caplog.text


async def test_reconnect_is_told_when_appends_are_possible_again(store, valkey):
    told = asyncio.Event()
    store.on_reconnect.append(told.set)
    connects = store.connects
    await kill_connection(valkey, "appends")
    await within("on_reconnect", told.wait())
    await grow(store, "g", "s")
    assert store.connects == connects + 1


async def test_store_that_was_never_away_is_steady_for_ever(store):
    assert store.steady_for == float("inf")
    assert store.hears


@pytest.mark.parametrize("which", ["appends", "reads", "channels"])
async def test_store_is_as_steady_as_its_connection_that_was_away_last(store, valkey, which):
    connects = store.connects
    await kill_connection(valkey, which)

    async def again() -> int:
        return store.connects

    await eventually("a new connection", again, lambda count: count == connects + 1)
    assert 0 <= store.steady_for < 5
    assert store.hears
    valkey.kill()

    async def state() -> tuple[float, bool]:
        return store.steady_for, store.hears

    await eventually("the store to know that it is away", state, lambda now: now == (0.0, False))


# The lists.


async def test_live_is_who_is_registered_and_on_which_node(store, other):
    await store.register("a", node="node_1", created_ms=1)
    await other.register("b", node="node_2", created_ms=2)
    await other.register("c", node="node_2", created_ms=3)
    assert await store.live() == {"a": "node_1", "b": "node_2", "c": "node_2"}
    await store.unregister("b")
    await store.register("c", node="node_1", created_ms=3)
    assert await other.live() == {"a": "node_1", "c": "node_1"}


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
async def test_pages_of_recent_hold_each_generation_once_in_order(store, size, oldest_first):
    # given many of the same ms, before and after others
    times = [5, 1000, *[2000] * 7, 2001, *[3000] * 4, 1_763_701_200_123, *[1_763_701_200_124] * 3]
    created = {f"g{place:02}-{'x' * (place % 3)}": ms for place, ms in enumerate(times)}
    for name, ms in random.Random(2).sample(list(created.items()), len(created)):
        await store.register(name, node="node_1", created_ms=ms)
    # when
    pages = await _all_pages(store, size, oldest_first)
    # then
    listed = [name for page in pages for name in page.generation_ids]
    assert listed == sorted(created, key=lambda name: (created[name], name), reverse=not oldest_first)
    assert [len(page.generation_ids) for page in pages[:-1]] == [size] * (len(pages) - 1)
    assert pages[-1].next is None


async def _all_pages(store: EventStore, size: int, oldest_first: bool) -> list[Page]:
    pages = [await store.recent(before=None, limit=size, oldest_first=oldest_first)]
    while pages[-1].next is not None:
        pages.append(await store.recent(before=pages[-1].next, limit=size, oldest_first=oldest_first))
        assert len(pages) < 100, "the pages go round in a circle"
    return pages


async def test_page_goes_on_from_its_row_when_generations_come_and_go(store):
    for name in "abcdef":
        await store.register(name, node="node_1", created_ms=7)
    first = await store.recent(before=None, limit=2)
    assert first.generation_ids == ["f", "e"]
    await store.register("z", node="node_1", created_ms=8)
    await store.forget([Row(7, "e"), Row(7, "d")])  # also the one that is gone on from
    assert (await store.recent(before=first.next, limit=9)).generation_ids == ["c", "b", "a"]


async def test_unregistered_generation_stays_recent_until_it_is_forgotten(store):
    await store.register("a", node="node_1", created_ms=1)
    await store.unregister("a")
    assert (await store.recent(before=None, limit=5)) == Page([Row(1, "a")], None)
    await store.forget([Row(1, "a"), Row(1, "nobody")])
    await store.forget([])
    assert (await store.recent(before=None, limit=5)) == Page([], None)


async def test_generation_that_was_listed_anew_is_not_forgotten(store):
    await store.register("a", node="node_1", created_ms=1)
    (row,) = (await store.recent(before=None, limit=5)).rows
    await store.register("a", node="node_1", created_ms=2)
    await store.forget([row])
    assert (await store.recent(before=None, limit=5)).rows == [Row(2, "a")]


@pytest.mark.parametrize("executed", [False, True], ids=["before it is forgotten", "after it is forgotten"])
async def test_generation_whose_log_is_put_back_meanwhile_is_not_forgotten(proxied, other, valkey_proxy, executed):
    # given a generation whose log is lost, and a node that takes it off the list for that
    row = Row(1, "g")
    await other.register("g", node="node_1", created_ms=1)
    forgetting = await _held(valkey_proxy, proxied.forget([row]), executed=executed)
    # when its producer puts back the log, and then what leads there
    await other.append("g", number([b"s{}"], after=None, now_ms=1), after=None, ttl_ms=60_000)
    await other.register("g", node="node_1", created_ms=1)
    valkey_proxy.release()
    await forgetting
    # then it is listed
    assert (await other.recent(before=None, limit=5)).rows == [row]


async def _held(proxy: FaultProxy, call: Awaitable[None], *, executed: bool) -> asyncio.Future[None]:
    """A call whose request, or whose reply, waits in the proxy."""
    hold, held = (proxy.hold_replies, proxy.reply_held) if executed else (proxy.hold_requests, proxy.request_held)
    hold()
    running = asyncio.ensure_future(call)
    await held()
    return running


async def test_recent_ones_can_be_had_from_a_time_on(store):
    for ms in (1, 2, 3, 4):
        await store.register(f"g{ms}", node="node_1", created_ms=ms)
    first = await store.recent(before=None, limit=2, since_ms=2)
    assert first == Page([Row(4, "g4"), Row(3, "g3")], Row(3, "g3"))
    assert await store.recent(before=first.next, limit=2, since_ms=2) == Page([Row(2, "g2")], None)


@pytest.mark.parametrize("count", [0, 1, 3, 1200])
async def test_live_rows_are_those_of_the_live_ones_in_order(store, other, count):
    # given live ones among others, and one that the list of recent ones has lost
    created = {f"g{place}": 1000 + place * 7 % 500 for place in range(count)}
    for name, ms in created.items():
        await store.register(name, node=f"node_{ms % 3}", created_ms=ms)
    for name in ("over", "lost"):
        await store.register(name, node="node_1", created_ms=5)
    await store.unregister("over")
    await store.forget([Row(5, "lost")])
    # then
    assert await other.live_rows() == [Row(0, "lost"), *sorted(Row(ms, name) for name, ms in created.items())]


async def test_ends_of_many_logs_hold_nobody_up(proxied, valkey, valkey_proxy):
    # given
    logs = {f"g{place}": await grow(proxied, f"g{place}", "s", "ta") for place in range(200)}

    async def executed() -> dict[str, int]:
        async with valkey.client() as client:
            statistics = await client.info("commandstats")
        return {name: statistics.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("xrange", "get")}

    before = await executed()
    valkey_proxy.hold_replies()
    # when several ask for many at once, and then somebody reads something else
    bulky = [asyncio.create_task(proxied.bounds([*logs, "nobody"])) for _ in range(5)]
    await valkey_proxy.reply_held()
    other_read = asyncio.create_task(proxied.request("g7"))
    # then few have been looked at before that is read
    now = await eventually("the other read", executed, lambda now: now["get"] > before["get"])
    assert 1 <= now["xrange"] - before["xrange"] <= 50
    valkey_proxy.release()
    assert await other_read is None
    for task in bulky:
        assert [bounds and (bounds.first, bounds.last) for bounds in await task] == [
            *((events[0], events[-1]) for events in logs.values()),
            None,
        ]


# Idempotency keys.


def claim_of(name: str, attempt: int = 0, after: Claim | None = None, *, fingerprint: str = "1") -> Claim:
    """A claim for the generation of that name, with a token of its own."""
    previous, token = (None, None) if after is None else (after.generation_id, after.token)
    return Claim(name, fingerprint, uuid.uuid4().hex, attempt, previous, token)


async def test_first_claim_binds_and_every_other_is_told_to_what(store, other):
    mine, theirs = claim_of("a"), claim_of("b", fingerprint="2")
    assert await store.claim("k", mine, ttl_ms=60_000) == mine
    assert await other.claim("k", theirs, ttl_ms=60_000) == mine
    assert await other.claimed("k") == mine
    assert await store.claim("k2", theirs, ttl_ms=60_000) == theirs
    await other.release("k", mine.token)
    assert await store.claimed("k") is None
    assert await other.claim("k", theirs, ttl_ms=60_000) == theirs


async def test_of_many_who_claim_one_wins(start_store):
    stores = [await start_store() for _ in range(4)]
    before = None
    for attempt in range(2):
        claims = [claim_of(f"{n}", attempt, before) for n in range(4)]
        answers = await asyncio.gather(
            *(store.claim("k", claim, ttl_ms=60_000) for store, claim in zip(stores, claims, strict=True))
        )
        assert len({claim.generation_id for claim in answers}) == 1
        assert {claim.attempt for claim in answers} == {attempt}
        before = answers[0]


@pytest.mark.parametrize("name", ["b", "a"], ids=["another id", "the same chosen id"])
async def test_attempt_takes_a_claim_over_from_no_claim_but_the_one_before_it(store, other, name):
    first = claim_of("a")
    await store.claim("k", first, ttl_ms=60_000)
    await store.release("k", first.token)
    anew = claim_of(name)
    await store.claim("k", anew, ttl_ms=60_000)
    assert await other.claim("k", claim_of("c", 1, first), ttl_ms=60_000) == anew


async def test_later_attempt_takes_a_claim_over_and_no_earlier_one_takes_it_back(store, other):
    first = claim_of("a")
    second = claim_of("b", 1, first)
    third = claim_of("c", 2, second)
    await store.claim("k", first, ttl_ms=60_000)
    assert await other.claim("k", second, ttl_ms=60_000) == second
    assert await store.claim("k", claim_of("x", 1, first), ttl_ms=60_000) == second
    assert await store.claim("k", third, ttl_ms=60_000) == third
    for late in (first, second):  # as whoever puts back what Valkey has lost does
        assert await other.claim("k", late, ttl_ms=60_000) == third
    assert await store.claimed("k") == third


async def test_claim_is_released_by_nobody_but_whom_it_leads_to(store, other):
    first, second = claim_of("a"), claim_of("a")  # a chosen id, twice
    await store.claim("k", second, ttl_ms=60_000)
    await other.release("k", first.token)
    await grow(store, "a", "s")
    await other.delete("a", run="1", idempotency="k", claim=first.token)
    assert await store.claimed("k") == second
    await grow(store, "a", "s")
    await other.delete("a", run="2", idempotency="k", claim=second.token)
    assert await store.claimed("k") is None


async def test_nothing_is_created_under_a_claim_that_is_over(store, other):
    first, second = claim_of("a"), claim_of("a")
    (start,) = batch("s")
    assert await store.create("a", [start], node="n", ttl_ms=60_000, claim=first.token) is None
    assert await other.create("a", [start], node="n", ttl_ms=60_000, claim=first.token) is None  # a lost answer
    await other.delete("a", run="1", claim=first.token)
    assert await store.create("a", [start], node="n", ttl_ms=60_000, claim=first.token) == Refused(None)
    assert await store.last("a") is None
    assert await store.create("a", [start], node="n", ttl_ms=60_000, claim=second.token) is None


async def test_claim_of_an_earlier_version_is_a_first_attempt(store, valkey):
    async with valkey.client() as client:
        await client.set("replay:idempotency:k", '{"id":"a","body":"1"}', ex=60)
    old = await store.claimed("k")
    assert old == Claim("a", "1", token="a")
    assert await store.claim("k", claim_of("b"), ttl_ms=60_000) == old
    taken_over = claim_of("b", 1, old)
    assert await store.claim("k", taken_over, ttl_ms=60_000) == taken_over
    await store.release("k", taken_over.token)
    async with valkey.client() as client:
        await client.set("replay:idempotency:k", '{"id":"a","body":"1"}', ex=60)
    await grow(store, "a", "s")
    await store.delete("a", run="1", idempotency="k")
    assert await store.claimed("k") is None


async def test_claim_keeps_the_ttl_of_the_first(store, valkey):
    await store.claim("k", claim_of("a"), ttl_ms=50_000)
    await store.claim("k", claim_of("b"), ttl_ms=5_000_000)
    async with valkey.client() as client:
        (key,) = await client.keys("*k")
        assert 0 < await client.ttl(key) <= 50


# First tries.


async def test_what_a_call_has_started_is_noted_until_it_is_forgotten(store, other):
    assert await store.tries("digest") == []
    await store.note_try("digest", "b", created_ms=2)
    await other.note_try("digest", "a", created_ms=1)
    await store.note_try("digest", "a", created_ms=1)  # as whoever puts back what Valkey has lost does
    await store.note_try("another", "c", created_ms=1)
    assert await other.tries("digest") == ["a", "b"]
    await other.forget_try("digest", "a")
    await other.forget_try("digest", "nobody")
    assert await store.tries("digest") == ["b"]


async def test_of_one_call_the_last_tries_are_noted(store):
    for count in range(40):
        await store.note_try("digest", f"g{count}", created_ms=count)
    assert await store.tries("digest") == [f"g{count}" for count in range(8, 40)]


async def test_of_many_who_take_a_generation_one_has_it_for_some_time(store, other):
    taken = await asyncio.gather(*(each.take_try("g", hold_ms=60_000) for each in (store, other) * 4))
    assert sorted(taken) == [False] * 7 + [True]
    assert await other.take_try("h", hold_ms=1)
    await eventually("the time to be over", lambda: store.take_try("h", hold_ms=60_000), bool)


# Nodes.


async def test_node_listens_as_long_as_it_is_there(start_store, other):
    heard: list[Any] = []
    node = await start_store()
    await node.attend("node_1", notified=lambda *told: heard.append(told), deleted=_ignore)
    assert await other.listens("node_1")
    assert not await other.listens("nobody")
    await node.stop()
    await eventually("the end", lambda: other.listens("node_1"), lambda listens: not listens)
    assert [told for told in heard if told[0]] == []  # nothing is said about a generation


async def test_node_is_alive_as_long_as_its_lease(store, other):
    async def alive() -> set[str]:
        return await store.alive(["node_1", "node_2", "nobody"])

    await store.renew_lease("node_1", 60_000)
    await other.renew_lease("node_2", 50)
    await eventually("node_2's lease to run out", alive, lambda nodes: nodes == {"node_1"})
    await other.renew_lease("node_2", 60_000)
    assert await alive() == {"node_1", "node_2"}
    await store.end_lease("node_1")
    assert await alive() == {"node_2"}
    await store.end_lease("node_1")
    assert await store.alive([]) == set()


async def test_lease_tells_what_of_the_node_still_stood(store, valkey):
    assert await store.renew_lease("node_1", 60_000) == (False, False)
    assert await store.renew_lease("node_1", 60_000) == (True, False)
    await store.report_subscribers("node_1", {"a": 1}, 60_000)
    assert await store.renew_lease("node_1", 60_000) == (True, True)
    async with valkey.client() as client:
        await client.flushall()
    assert await store.renew_lease("node_1", 60_000) == (False, False)


async def test_watchers_are_the_sum_over_the_other_nodes(store):
    for node in ("node_1", "node_2", "node_3"):
        await store.renew_lease(node, 60_000)
    await store.report_subscribers("node_1", {"a": 1, "b": 10}, 60_000)
    await store.report_subscribers("node_2", {"a": 2}, 60_000)
    await store.report_subscribers("node_3", {"a": 4, "b": 40}, 60_000)
    assert await store.subscribers(["a", "b", "c"], beside="node_1") == {"a": 6, "b": 40, "c": 0}
    assert await store.subscribers(["a", "b", "c"], beside="nobody") == {"a": 7, "b": 50, "c": 0}
    assert await store.subscribers([], beside="node_1") == {}


async def test_only_changes_of_the_watchers_are_told(store):
    await store.renew_lease("node_1", 60_000)
    await store.report_subscribers("node_1", {"a": 1, "b": 1}, 60_000)
    await store.report_subscribers("node_1", {"b": 0, "c": 3}, 60_000)
    assert await store.subscribers(["a", "b", "c"], beside="") == {"a": 1, "b": 0, "c": 3}


async def test_watchers_of_a_node_that_is_gone_do_not_count(store):
    for node, lease_ms in (("node_1", 60_000), ("node_2", 60_000), ("node_3", 50)):
        await store.renew_lease(node, lease_ms)
        await store.report_subscribers(node, {"a": 1}, lease_ms)
    await store.end_lease("node_2")

    async def subscribers() -> dict[str, int]:
        return await store.subscribers(["a"], beside="")

    await eventually("only node_1's to count", subscribers, lambda counts: counts == {"a": 1})
    await store.end_lease("node_1")
    assert await subscribers() == {"a": 0}


async def test_watchers_hold_as_long_as_the_lease_is_renewed(store, valkey):
    await store.renew_lease("node_1", 500)
    await store.report_subscribers("node_1", {"a": 1}, 500)
    await store.renew_lease("node_1", 60_000)
    async with valkey.client() as client:
        (key,) = await client.keys("*watching*")
        assert await client.pttl(key) > 500


# A server in trouble.


async def test_append_works_after_the_scripts_were_flushed(store, valkey):
    events = await grow(store, "g", "s")
    for place in range(3):
        async with valkey.client() as client:
            await client.script_flush()
        more = batch(f"t{place}", after=events[-1])
        assert await store.append("g", more, after=events[-1].id) is None
        events += more
        assert await store.append("g", more, after=EventId(1, 1)) is None  # already there
    assert await log_of(store, "g") == events


@pytest.mark.parametrize("stall", ["server", "network"])
async def test_stalled_server_is_unavailable_within_the_timeout(valkey, valkey_proxy, start_store, stall):
    # given
    store = await start_store(valkey_proxy.url, timeout_s=QUICK_S)
    events = await grow(store, "g", "s")
    (valkey.pause if stall == "server" else valkey_proxy.stall)()
    began = asyncio.get_running_loop().time()
    # when
    calls: tuple[Awaitable[Any], ...] = (
        store.append("g", batch("ta", after=events[-1]), after=events[-1].id),
        store.read("g", after=None, limit=5),
        store.bounds(["g"]),
        store.listen("g", Ear()),
        store.live(),
        store.renew_lease("node_1", 1000),
        store.delete("h", run="1", idempotency=None),
        store.probe(),
    )
    results = await asyncio.gather(*calls, return_exceptions=True)
    # then
    took = asyncio.get_running_loop().time() - began
    assert [type(result) for result in results] == [StoreUnavailable] * len(calls)
    assert took < 2 * QUICK_S + 1.5  # a second may be spent waiting for the connection to be made anew
    (valkey.resume if stall == "server" else valkey_proxy.release)()
    assert await store.wait_up(10)
    assert (await log_of(store, "g"))[0] == events[0]


async def test_server_that_went_away_is_unavailable_and_back_without_help(start_store, valkey):
    store = await start_store(timeout_s=QUICK_S)
    events = await grow(store, "g", "s")
    valkey.kill()
    with pytest.raises(StoreUnavailable):
        await store.append("g", batch("ta", after=events[-1]), after=events[-1].id)
    assert not await store.wait_up(0.05)
    valkey.start()
    assert await store.wait_up(10)
    more = batch("tb", after=events[-1])
    assert await store.append("g", more, after=events[-1].id) in (None, Refused(None))  # everysec may lose the start


async def test_call_just_after_a_connection_was_lost_waits_for_the_next(proxied, valkey_proxy):
    valkey_proxy.hold_replies()
    lost = asyncio.create_task(proxied.append("g", batch("s"), after=None, ttl_ms=1000))
    await valkey_proxy.reply_held()
    valkey_proxy.cut()
    valkey_proxy.release()
    with pytest.raises(StoreUnavailable):
        await lost
    assert await proxied.append("h", batch("s"), after=None, ttl_ms=1000) is None


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


# A server that answers, but will not do it.


async def test_full_server_refuses_and_nothing_is_half_done(store, valkey):
    # given a server with little room
    events = await grow(store, "g", "s")
    async with valkey.client() as client:
        used = (await client.info("memory"))["used_memory"]
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", used + 300_000)

    # when
    async def fill() -> list[Event]:
        while True:
            more = batch(*["t" + "x" * 1000] * 20, after=events[-1])
            try:
                await store.append("g", more, after=events[-1].id)
            except StoreRefused as refused:
                assert re.search(r"maxmemory.*--ttl-s.*OOM", refused.in_full)  # noqa: PT017 - the loop ends with it
                return more
            events.extend(more)

    more = await within("the server to be full", fill())
    # then
    assert await log_of(store, "g") == events
    async with valkey.client() as client:
        await client.config_set("maxmemory", 0)
    assert await store.append("g", more, after=events[-1].id) is None
    assert await log_of(store, "g") == events + more


async def test_primary_that_became_a_replica_refuses_until_it_is_the_primary_again(store, valkey):
    events = await grow(store, "g", "s")
    more = batch("ta", after=events[-1])

    async def refusal() -> str:
        try:
            await store.append("g", more, after=events[-1].id)
        except StoreRefused as refused:
            return str(refused)
        except StoreUnavailable:  # the connection is made anew: another server may be the primary now
            return ""
        return "appended"

    async with valkey.client() as client:
        await client.execute_command("REPLICAOF", "127.0.0.1", free_port())
        assert re.search(r"read-only replica.*--valkey-url", await refusal())
        await eventually("the new connection to be refused", refusal, lambda text: "names a read-only replica" in text)
        await client.execute_command("REPLICAOF", "NO", "ONE")
    assert await until_told(lambda: store.append("g", more, after=events[-1].id)) is None
    assert await log_of(store, "g") == events + more


async def test_replica_is_refused_at_the_start(start_store, valkey):
    async with valkey.client() as client:
        await client.execute_command("REPLICAOF", "127.0.0.1", free_port())
    with pytest.raises(StoreRefused, match=r"--valkey-url.*replica"):
        await start_store()


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ("", "asks for a password: put it into --valkey-url"),
        (":wrong@", "refuses the user or the password in --valkey-url"),
        ("nobody:secret@", "refuses the user or the password in --valkey-url"),
    ],
)
async def test_server_that_does_not_let_us_in_is_refused_at_the_start(start_store, tmp_path, user, says):
    server = ValkeyServer(tmp_path / "closed", requirepass="secret")
    server.start()
    try:
        with pytest.raises(StoreRefused, match=says):
            await start_store(f"valkey://{user}127.0.0.1:{server.port}/0")
        await start_store(server.url)
    finally:
        server.destroy()


async def limited_user(valkey: ValkeyServer, *rules: str) -> str:
    """The URL of a user with these rights."""
    async with valkey.client() as client:
        await client.execute_command("ACL", "SETUSER", "limited", "on", ">secret", *rules)
    return f"valkey://limited:secret@127.0.0.1:{valkey.port}/0"


async def test_user_without_the_rights_is_refused(start_store, valkey):
    store = await start_store(await limited_user(valkey, "+@all", "~elsewhere:*", "&*"))
    with pytest.raises(StoreRefused, match=r"ACL|permission"):
        await store.append("g", batch("s"), after=None, ttl_ms=1000)
    with pytest.raises(StoreRefused, match=r"ACL .*--valkey-url"):
        await store.last("g")


async def test_user_without_channels_is_refused(start_store, valkey):
    # No channels is what a new user has, unless somebody says &*.
    store = await start_store(await limited_user(valkey, "+@all", "~*"), timeout_s=1.0)
    with pytest.raises(StoreRefused, match=r"ACL .*--valkey-url"):
        await store.listen("g", Ear())
    with pytest.raises(StoreRefused, match=r"ACL .*--valkey-url"):
        await store.attend("node_1", notified=_ignore, deleted=_ignore)


class FakeServer:
    """A server that says it is something else, or refuses whatever it is asked."""

    def __init__(self, info: str = "valkey_version:9.1.0\r\nrole:master", refusal: str = "") -> None:
        self._info = info
        self._refusal = refusal
        self.port = free_port()

    async def __aenter__(self) -> FakeServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = libvalkey.Reader()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                commands.feed(data)
                while (command := commands.gets()) is not False:
                    writer.write(self._answer(command[0]))
        writer.close()

    def _answer(self, command: bytes) -> bytes:
        if command == b"INFO":
            return f"${len(self._info)}\r\n{self._info}\r\n".encode()
        greeting = command in (b"CLIENT", b"SCRIPT", b"PING", b"SELECT")
        return b"+OK\r\n" if greeting or not self._refusal else f"-{self._refusal}\r\n".encode()


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ("redis_version:7.2.4\r\nvalkey_version:7.2.0\r\nrole:master", r"--valkey-url names Valkey 7\.2\.0: .*8\.0"),
        ("redis_version:7.4.1\r\nrole:master", r"--valkey-url names Redis 7\.4\.1: expected Valkey 8\.0"),
        ("role:master", "--valkey-url names Redis"),
        ("valkey_version:8.0.0\r\nrole:slave", "--valkey-url names a read-only replica"),
    ],
)
async def test_server_that_cannot_keep_logs_is_refused_at_the_start(start_store, info, says):
    async with FakeServer(info) as server:
        with pytest.raises(StoreRefused, match=says):
            await within("a refusal", start_store(server.url))


@pytest.mark.parametrize("version", ["8.0.0", "8.1.3", "9.1.0", "10.0.0", "255.255.255"])
async def test_server_of_a_new_enough_version_is_taken(start_store, version):
    async with FakeServer(f"valkey_version:{version}\r\nrole:master") as server:
        assert (await start_store(server.url)).connections == 3


@pytest.mark.parametrize(
    ("refusal", "kind", "says"),
    [
        ("OOM command not allowed", StoreRefused, r"maxmemory.*--ttl-s"),
        ("MISCONF Valkey is configured to save", StoreRefused, r"disk.*--data-dir"),
        ("READONLY You can't write", StoreRefused, r"--valkey-url has to name the primary"),
        ("NOAUTH Authentication required.", StoreRefused, r"password.*--valkey-url"),
        ("NOPERM this user has no permissions", StoreRefused, r"ACL.*--valkey-url"),
        ("MOVED 1234 127.0.0.1:7001", StoreRefused, r"--valkey-url has to name a server that holds all slots"),
        ("ERR something nobody has thought of", StoreRefused, r"log says why"),
        ("LOADING Valkey is loading the dataset in memory", StoreUnavailable, "still reading its file"),
        ("CLUSTERDOWN The cluster is down", StoreUnavailable, "cluster is down"),
        ("BUSY Valkey is busy running a script", StoreUnavailable, "busy with a script"),
    ],
)
async def test_refusal_of_a_server_says_what_to_do(start_store, refusal, kind, says):
    async with FakeServer(refusal=refusal) as server:
        store = await start_store(server.url)
        for ask in (lambda: store.append("g", batch("s"), after=None), lambda: store.last("g")):
            with pytest.raises(kind, match=says) as caught:
                await ask()
            assert isinstance(caught.value, StoreRefused) == (kind is StoreRefused)
            # and what it says itself is for the operator alone: it may name a user, a key or an address
            assert refusal not in str(caught.value)
            assert caught.value.in_full.endswith(f"({refusal})")


@pytest.mark.parametrize(
    "nonsense",
    [
        b":1\r\n",
        b"$-1\r\n",
        b"*0\r\n",
        b"*1\r\n*1\r\n:1\r\n",
        b"$3\r\n\xff\xfe\xfd\r\n",
        b"HTTP/1.1 400 No\r\n\r\n",
        b"+OK\r\n" * 20,
    ],
    ids=["a number", "nothing", "an empty list", "a nested list", "no UTF-8", "HTTP", "more replies than commands"],
)
async def test_what_answers_nonsense_in_a_servers_place_is_asked_again(start_store, valkey, nonsense):
    # given a store whose server is replaced by something else for a while
    async with FaultProxy(valkey.url) as proxy:
        store = await start_store(proxy.url)
        await grow(store, "g", "s")
        proxy.nonsense = nonsense
        proxy.cut()
        with pytest.raises(StoreUnavailable):
            await within("a refusal", _refused(store))

        # when it is back, then so is the store
        proxy.nonsense = None
        proxy.cut()
        await within("the store", _answering(store))


async def _refused(store: ValkeyStore) -> None:
    while True:
        await store.last("g")
        await asyncio.sleep(0.02)


async def _answering(store: ValkeyStore) -> None:
    while True:
        with contextlib.suppress(StoreUnavailable):
            if await store.last("g") is not None and await store.wait_up(0):
                return
        await asyncio.sleep(0.02)


async def test_server_that_is_not_there_is_unavailable_and_named():
    port = free_port()
    store = ValkeyStore(f"valkey://user:secret@127.0.0.1:{port}/0", timeout_s=QUICK_S)
    with pytest.raises(StoreUnavailable) as caught:
        await store.start(0.2)
    assert f"--valkey-url, at 127.0.0.1:{port}: " in caught.value.in_full
    assert str(port) not in str(caught.value)
    assert "secret" not in caught.value.in_full


def test_every_store_has_every_call_of_the_port():
    ports = [port for port in EventStore.__mro__ if port.__module__ == EventStore.__module__]
    calls = {name for port in ports for name in (*vars(port), *port.__annotations__) if not name.startswith("_")}
    store = ValkeyStore("valkey://127.0.0.1:1/0", timeout_s=1)
    assert calls <= set(dir(store))
    assert Bounds._fields == ("first", "last", "expires_at_ms")


# Logs that lose their beginning, or something in between.


async def length_of(valkey: ValkeyServer, name: str) -> int:
    async with valkey.client() as client:
        length: int = await client.xlen(f"replay:{{{name}}}:events")
    return length


@pytest.mark.parametrize("keep", [1, 100, 950, 1000, 5000])
async def test_trim_leaves_the_last_of_a_log_and_about_as_many_as_are_to_be_kept(store, keep):
    events = await grow(store, "g", "s", *(f"t{place}" for place in range(999)))
    await store.trim("g", keep)
    left = await log_of(store, "g")
    assert left == events[len(events) - len(left) :]
    assert min(keep, 1000) <= len(left) <= keep + 200


async def test_trimmed_log_goes_on_where_it_ended(store, other):
    # given
    events = await grow(store, "g", "s", *["tx"] * 999)
    await store.trim("g", 10)
    # when
    assert await store.last("g") == events[-1]
    (bounds,) = await store.bounds(["g"])
    more = batch("ty", after=events[-1])
    assert await other.append("g", more, after=events[-1].id) is None
    # then
    left = await log_of(store, "g")
    assert left[-2:] == [events[-1], *more]
    assert bounds is not None
    assert (bounds.first, bounds.last) == (left[0], events[-1])


async def test_read_behind_what_was_trimmed_begins_with_what_is_left(store):
    events = await grow(store, "g", "s", *["tx"] * 999)
    await store.trim("g", 100)
    left = await log_of(store, "g")
    assert left[0].id.seq > 500
    assert await store.read("g", after=events[3].id, limit=10) == left[:10]


async def test_trim_touches_no_ttl_and_makes_no_log(store, valkey):
    await grow(store, "g", "s", *["tx"] * 500, ttl_ms=50_000)
    await store.trim("g", 10)
    assert 40_000 < await ttl_of(store, valkey, "g") <= 50_000
    await store.trim("nobody", 10)
    assert await _keys_without_expiry(valkey) == set()
    assert await log_of(store, "nobody") == []


async def test_log_that_is_trimmed_now_and_then_stays_small_while_it_grows(store, valkey):
    events = await grow(store, "g", "s")
    for _ in range(30):
        events = batch(*["tx"] * 100, after=events[-1])
        assert await store.append("g", events, after=EventId(1000, events[0].id.seq - 1)) is None
        await store.trim("g", 200)
        assert await length_of(valkey, "g") <= 400
    assert (await log_of(store, "g"))[-100:] == events


@pytest.mark.parametrize("places", [[0], [1], [0, 1, 2], [1, 3, 5], range(6), []])
async def test_what_was_erased_is_gone_and_the_rest_is_as_it_was(store, other, places):
    events = await grow(store, "g", "s", "ta", "tb", "tc", "td", "te", "tf")
    await store.erase("g", [events[place].id for place in places])
    left = [event for place, event in enumerate(events) if place not in places]
    for reader in (store, other):
        assert await log_of(reader, "g") == left
        assert await reader.last("g") == events[-1]
        assert await reader.bounds(["g"]) == [
            Bounds(left[0], events[-1], (await reader.bounds(["g"]))[0].expires_at_ms)
        ]


async def test_log_of_which_something_was_erased_goes_on(store):
    events = await grow(store, "g", "s", "ta", "tb")
    await store.erase("g", [events[1].id])
    more = batch("tc", after=events[-1])
    assert await store.append("g", more, after=events[-1].id) is None
    assert await store.append("g", more, after=events[-1].id) is None  # the retry of a lost reply
    assert await log_of(store, "g") == [events[0], events[2], *more]


async def test_erase_never_takes_the_last_event(store):
    # else the next append would find the log shorter than its writer left it, and could not have the same id again
    events = await grow(store, "g", "s", "ta", "tb")
    await store.erase("g", [event.id for event in events])
    assert await log_of(store, "g") == [events[-1]]
    more = batch("tc", after=events[-1])
    assert await store.append("g", more, after=events[-1].id) is None


async def test_erasing_what_is_not_there_does_nothing(store, valkey):
    events = await grow(store, "g", "s", "ta", ttl_ms=50_000)
    await store.erase("g", [EventId(1, 1), EventId(1000, 7)])
    await store.erase("nobody", [EventId(1, 1)])
    assert await log_of(store, "g") == events
    assert 40_000 < await ttl_of(store, valkey, "g") <= 50_000
    async with valkey.client() as client:
        assert [key async for key in client.scan_iter()] == [b"replay:{g}:events"]


async def test_many_events_are_erased_at_once(store):
    events = await grow(store, "g", "s", *(f"t{place}" for place in range(2999)))
    await store.erase("g", [event.id for event in events[:-1] if event.id.seq % 3])
    assert await log_of(store, "g") == [event for event in events if not event.id.seq % 3 or event is events[-1]]


# What is told and not kept.


async def test_what_is_published_is_heard_by_all_who_listen_and_kept_nowhere(store, other, start_store, valkey):
    # given two who listen, one of them on the node that tells, and one who listens to something else
    third = await start_store()
    here, there, elsewhere = Ear(), Ear(), Ear()
    await store.listen("g", here)
    await other.listen("g", there)
    await third.listen("h", elsewhere)
    # when
    told = batch("s{}", "t\\u0000 caf\u00e9", ms=5)
    assert await store.publish("g", told) == 2
    assert await third.publish("g", told[:1]) == 2
    # then
    for ear in (here, there):
        await ear.until("both", lambda ear=ear: ear.batches == 2)
        assert ear.events == told + told[:1]
    assert (elsewhere.events, here.deletions, there.deletions) == ([], 0, 0)
    assert await store.last("g") is None
    async with valkey.client() as client:
        assert await client.dbsize() == 0


async def test_publishing_to_nobody_reaches_nobody(store, other):
    assert await store.publish("g", batch("s")) == 0
    ear = Ear()
    await other.listen("g", ear)
    assert await store.publish("g", batch("s")) == 1
    other.unlisten("g")
    await eventually("nobody listens", lambda: store.publish("g", batch("s")), lambda heard: heard == 0)


async def test_publishing_nothing_tells_how_many_listen(store, other):
    assert await store.publish("g", []) == 0
    ear = Ear()
    await other.listen("g", ear)
    assert await store.publish("g", []) == 1
    await store.publish("g", batch("s"))
    await ear.until("what was told after it", lambda: ear.events)
    assert ear.events == batch("s")


async def test_what_is_published_is_heard_in_order(store, other):
    ear = Ear()
    await other.listen("g", ear)
    told = batch(*(f"t{place}" for place in range(300)))
    await asyncio.gather(*(store.publish("g", [event]) for event in told))
    await ear.until("all of it", lambda: len(ear.events) >= len(told))
    assert ear.events == told


async def test_what_is_published_is_heard_again_after_the_channels_were_cut(store, other, valkey):
    ear = Ear()
    await other.listen("g", ear)
    await kill_connection(valkey, "channels")
    await ear.until("the channels are back", lambda: ear.reconnections)
    assert await store.publish("g", batch("s")) == 1
    await ear.until("what was told", lambda: ear.events)


async def test_large_message_is_heard_whole(store, other):
    ear = Ear()
    await other.listen("g", ear)
    (large,) = batch("t" + "x" * 3_000_000)
    assert await store.publish("g", [large]) == 1
    await ear.until("it", lambda: ear.events)
    assert ear.events == [large]


@pytest.mark.parametrize("call", ["trim", "erase", "publish"])
async def test_stalled_server_takes_no_trim_no_erasure_and_no_message(valkey_proxy, start_store, call):
    store = await start_store(valkey_proxy.url, QUICK_S)
    events = await grow(store, "g", "s", "ta")
    calls = {
        "trim": lambda: store.trim("g", 1),
        "erase": lambda: store.erase("g", [events[0].id]),
        "publish": lambda: store.publish("g", events),
    }
    valkey_proxy.stall()
    with pytest.raises(StoreUnavailable):
        await within("an answer", calls[call]())
