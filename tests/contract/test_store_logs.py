"""Logs: appended to exactly where they end or not at all, read, kept for a time, deleted, trimmed."""

from __future__ import annotations

import asyncio
import random

import pytest
from support.deadlines import eventually
from support.stores import batch, claim_of, grow, keys_without_expiry, log_of, until_told
from support.valkey import ValkeyServer

from replay.errors import StoreUnavailable
from replay.model.event import Event, EventId, number
from replay.store import BURIED_MS, Bounds, EventStore, Refused

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
        rest = events if after is None else [event for event in events if event.id > after]
        assert await store.read("g", after=after, limit=limit) == rest[:limit]


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
    assert await store.delete(name, run="1", idempotency="hash", claim=claim.mark, digest="digest") is True
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
    assert await keys_without_expiry(valkey) == set()
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
