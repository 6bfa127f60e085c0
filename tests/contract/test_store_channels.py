"""Channels: what is appended, deleted, published or sent to a node is heard, and who may have missed it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from support.deadlines import eventually, within
from support.stores import Ear, batch, grow, ignore, kill_connection

from replay.model.event import Event

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
    await store.attend("node_1", notified=ignore, deleted=told[0].put_nowait)
    await other.attend("node_2", notified=ignore, deleted=told[1].put_nowait)
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
    await store.attend("node_1", notified=lambda name, events: told.put_nowait((name, events)), deleted=ignore)
    await other.attend("node_2", notified=lambda name, events: elsewhere.append(name), deleted=ignore)
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
