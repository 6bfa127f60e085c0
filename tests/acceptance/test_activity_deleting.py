"""What is deleted leaves no trace in the activity, nor anywhere in Valkey, and those who follow are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.activity import (
    LIFE,
    PATIENT,
    WHOLE,
    by_generation,
    follow,
    happened,
    kept,
    leave_nothing_out,
    life_of,
    many_at_once,
    of,
    opened,
    settled,
    until_live,
    until_written,
    written,
)
from support.api import event_id
from support.logs import ids
from support.upstream import Call, say
from support.valkey import ValkeyServer
from support.valkey_wires import ValkeyWires


async def traces(valkey: ValkeyServer, id: str) -> list[str]:
    """Which keys hold anything of a generation, in their names or in what stands in them."""
    found, needle = [], id.encode()
    async with valkey.client() as client:
        async for key in client.scan_iter(count=1000):
            kind = (await client.type(key)).decode()
            if kind == "none":  # it has gone since it was listed
                continue
            value: Any = {
                "string": lambda key=key: client.get(key),
                "stream": lambda key=key: client.xrange(key),
                "hash": lambda key=key: client.hgetall(key),
                "zset": lambda key=key: client.zrange(key, 0, -1),
                "set": lambda key=key: client.smembers(key),
                "list": lambda key=key: client.lrange(key, 0, -1),
            }[kind]()
            if needle in key or needle in repr(await value).encode():
                found.append(key.decode())
    return found


@pytest.mark.parametrize("live", [False, True], ids=["ended", "live"])
async def test_deleted_generation_leaves_no_trace(make_node, valkey, upstream, live):
    # given generations on one node, and readers of the activity on both
    here, there = await asyncio.gather(make_node(), make_node())
    prefix = "to-be-deleted-"

    async def script(call: Call) -> None:
        await call.say("a")
        if not live:
            await call.finish()

    async with follow(here.api) as first, follow(there.api) as second:
        for source in (first, second):
            await source.event("live")
        upstream.script = say("a")
        others = [await here.api.run()]
        upstream.script = script
        doomed = [f"{prefix}{place}" for place in range(10)]
        await asyncio.gather(*(here.api.start(id=id) for id in doomed))
        for id in doomed:
            await until_written(valkey, id, ["created", "first_token"] if live else WHOLE)
        upstream.script = say("a")
        others.append(await there.api.run())

        # when they are deleted, here or elsewhere
        deleting = zip((here, there) * 5, doomed, strict=True)
        answers = await asyncio.gather(*(node.api.delete(f"/generations/{id}") for node, id in deleting))
        assert {answer.status for answer in answers} == {204}

        # then, once everything else that was under way is told, nothing names them
        others.append(await here.api.run())
        await settled(upstream, here.api, there.api)
        assert await traces(valkey, prefix) == []
        newcomer = await make_node()
        for node in (here, there, newcomer):
            events = await kept(node.api)
            assert [event for event in events if prefix in event.data] == []
            assert [happened(events)[id] for id in others] == [WHOLE] * 3
            assert ids(events) == ids(await written(valkey))

        # and readers were told, with a cursor that leaves nothing out, and of nothing more about them after that
        for source in (first, second):
            for name in LIFE:
                await of(source, others[-1], name)
            told = [event.json()["generation_id"] for event in source.events if event.event == "deleted"]
            assert sorted(told) == sorted(doomed)
            assert leave_nothing_out(source.events)
            for place, event in enumerate(source.events):
                if event.event == "deleted":
                    assert event.json().keys() == {"type", "generation_id"}
                    assert life_of(source.events[place:], event.json()["generation_id"]) == []


async def test_reader_whose_last_event_was_taken_out_goes_on(make_node, valkey, upstream):
    # given a reader whose cursor is an event of a generation that is deleted
    here, there = await asyncio.gather(make_node(), make_node())
    await opened(here.api)
    upstream.script = say("a")
    before, doomed, after = [await here.api.run() for _ in range(3)]
    await settled(upstream, here.api)
    cursors = [e.last_event_id for e in await kept(here.api) if e.json()["generation_id"] == doomed]
    assert (await here.api.delete(f"/generations/{doomed}")).status == 204
    log = await written(valkey)
    for api in (here.api, there.api):  # one that had it in memory, and one that has not
        for cursor in cursors:
            # when it comes back
            events = await until_live(api, after=cursor)
            # then it has what came after that, or begins anew and is told so: nothing is lost, nothing comes twice
            if events[0].event == "reset":
                assert events[1:] == log
            else:
                assert events == [event for event in log if event_id(event.last_event_id) > event_id(cursor)]
            assert happened(events)[after] == WHOLE
    assert happened(await kept(here.api))[before] == WHOLE


async def test_what_is_told_late_of_a_deleted_generation_leaves_no_trace(make_node, valkey, upstream, activity_wire):
    # given a node that has something to tell of its generation, and cannot just now
    producing = await make_node(valkey_url=activity_wire.url, **PATIENT)
    other = await make_node(**PATIENT)
    id = "told-too-late"
    await producing.api.start(id=id)
    call = await upstream.called()
    await until_written(valkey, id, ["created"])
    activity_wire.hold_next_append()
    await call.say("a")
    await activity_wire.request_held()
    await activity_wire.lose_what_is_held()
    async with follow(other.api) as source:
        await source.event("live")
        # when the generation is deleted elsewhere meanwhile
        assert (await other.api.delete(f"/generations/{id}")).status == 204
        await activity_wire.accept()
        # then
        await call.hung_up()
        await settled(upstream, producing.api, other.api)
        assert await traces(valkey, id) == []
        assert id not in by_generation(await kept(other.api))
        deleted = [event.event for event in source.events].index("deleted")
        assert life_of(source.events[deleted:], id) == []


async def test_deletion_that_a_node_has_not_heard_of_leaves_no_trace_there(make_node, valkey, upstream):
    # given a node that knows a generation's life, and hears nothing any more
    async with ValkeyWires(valkey.url) as wires:
        quick = await make_node()
        deaf = await make_node(valkey_url=wires.url, store_timeout_s=10, **PATIENT)
        upstream.script = say("a")
        async with follow(deaf.api) as source:
            await source.event("live")
            before, doomed, after = [await quick.api.run() for _ in range(3)]
            await of(source, after, "ended")
            wires.channels.hold_replies()
            # when the generation is deleted, and it hears again
            assert (await quick.api.delete(f"/generations/{doomed}")).status == 204
            await wires.channels.reply_held()
            wires.channels.cut()
            wires.channels.release()
            # then
            assert (await source.event("deleted")).json()["generation_id"] == doomed
            assert happened(await kept(deaf.api)) == {before: WHOLE, after: WHOLE}
            assert len(source.connections) == 1


async def test_deleting_works_while_a_lot_happens(service, upstream):
    # given a node on which generations come and go all the time
    upstream.script = say("a")
    doomed = await many_at_once([service.run] * 40)
    over = False

    async def keep_starting() -> list[str]:
        begun = []
        while not over:
            begun.append((await service.start())["id"])
        return begun

    starting = [asyncio.create_task(keep_starting()) for _ in range(12)]
    # when
    answers = await many_at_once([lambda id=id: service.delete(f"/generations/{id}") for id in doomed], limit=4)
    over = True
    begun = [id for some in await asyncio.gather(*starting) for id in some]
    # then
    assert {answer.status for answer in answers} == {204}
    await settled(upstream, service)
    events = await kept(service)
    assert set(doomed) & by_generation(events).keys() == set()
    await asyncio.gather(*(service.ended(id) for id in begun))
    await settled(upstream, service)
    told = happened(await kept(service))
    assert [told.get(id) for id in begun if told.get(id) != WHOLE] == []
