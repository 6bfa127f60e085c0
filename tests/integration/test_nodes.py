"""Two nodes on one Valkey: what is done on one is done on the other."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest
from support.api import Api, text_of
from support.logs import assert_whole, ids, stored_ids
from support.node import Node
from support.sse import messages
from support.upstream import Call, generate, say
from support.v1 import CHAT
from support.valkey_wires import ValkeyWires


@pytest.fixture
async def pair(make_node) -> tuple[Node, Node]:
    """Where things are produced, and where they are watched."""
    producing, watching = await asyncio.gather(make_node(), make_node())
    return producing, watching


@pytest.fixture
async def apis(service: Api, other_service: Api) -> tuple[Api, Api]:
    """The same on nodes that tests share, for what does no harm to a node."""
    return service, other_service


# Readers and ends.


async def test_readers_on_both_nodes_get_the_same_while_it_happens(apis, upstream):
    producing, watching = apis
    id = (await producing.start())["id"]
    call = await upstream.called()
    async with producing.source(id) as here, watching.source(id) as there:
        for word in ("one ", "two ", "three "):
            await call.say(word)
            assert [(await source.event("token")).json()["content"] for source in (here, there)] == [word, word]
        await call.finish()
        for source in (here, there):
            await source.event("end")
        assert here.received == there.received
        assert_whole(here.received)


async def test_cancel_on_one_node_stops_what_runs_on_the_other(apis, upstream):
    # given readers on both nodes
    producing, watching = apis
    id = (await producing.start())["id"]
    call = await upstream.called()
    async with producing.source(id) as here, watching.source(id) as there:
        await call.say("a")
        await there.event("token")

        # when it is cancelled where it does not run
        answer = await watching.post(f"/generations/{id}/cancel")

        # then the upstream is let go, and all readers have one and the same end
        assert (answer.status, answer.json()["status"]) == (200, "cancelled")
        await call.hung_up()
        for source in (here, there):
            end = (await source.event("end")).json()
            assert (end["status"], end["error"]) == ("cancelled", None)
            assert_whole(source.received)
        assert here.received == there.received
    again = await producing.post(f"/generations/{id}/cancel")
    assert (again.status, again.json()["status"]) == (200, "cancelled")


async def test_cancel_in_the_middle_of_a_fast_stream_leaves_one_end(apis, upstream):
    # given a producer that appends all the time
    producing, watching = apis
    upstream.script = generate(5000, per_second=1500)
    id = (await producing.start())["id"]
    async with producing.source(id) as here, watching.source(id) as there:
        for _ in range(50):
            await there.event("token")

        # when both nodes are asked to cancel it, several times at once
        answers = await asyncio.gather(*(api.post(f"/generations/{id}/cancel") for api in (watching, producing) * 3))

        # then there is one end, and everybody has it
        assert {(answer.status, answer.json()["status"]) for answer in answers} == {(200, "cancelled")}
        for source in (here, there):
            await source.event("end")
            assert_whole(source.received)
        assert here.received == there.received


async def test_delete_on_one_node_removes_what_runs_on_the_other(pair, valkey, upstream):
    producing, watching = pair
    id = (await producing.api.start())["id"]
    call = await upstream.called()
    async with producing.api.source(id) as here, watching.api.source(id) as there:
        await call.say("a")
        for source in (here, there):
            await source.event("token")
        assert (await watching.api.delete(f"/generations/{id}")).status == 204
        for source in (here, there):
            assert (await source.event("end")).json()["status"] == "cancelled"
            assert text_of(source.received) == "a"
        await call.hung_up()
    for node in pair:
        assert (await node.api.get(f"/generations/{id}")).status == 404
        assert (await node.api.read(id)).status == 404
        assert (await node.api.delete(f"/generations/{id}")).status == 404
        assert (await node.api.get("/generations")).json()["generations"] == []
    async with valkey.client() as client:
        keys = [key.decode() async for key in client.scan_iter()]
    assert [key for key in keys if id in key] == []


async def test_delete_in_the_middle_of_a_fast_stream_gives_every_reader_its_end(apis, upstream):
    # given readers on both nodes, of a producer that appends all the time
    producing, watching = apis
    for _ in range(5):
        upstream.script = generate(5000, per_second=1500)
        id = (await producing.start())["id"]
        async with producing.source(id) as here, watching.source(id) as there:
            for _ in range(30):
                await there.event("token")

            # when it is deleted where it does not run
            assert (await watching.delete(f"/generations/{id}")).status == 204

            # then nobody is cut off without an end
            for source in (here, there):
                assert (await source.event("end")).json()["status"] == "cancelled"
                assert_whole(source.received)
        assert (await producing.get(f"/generations/{id}")).status == 404


async def test_delete_of_an_ended_generation_is_seen_on_a_node_that_keeps_it_in_memory(apis, upstream):
    producing, watching = apis
    upstream.script = say("a")
    id = await producing.run()
    assert await watching.log(id) == await producing.log(id)  # both have it in memory now
    assert (await producing.delete(f"/generations/{id}")).status == 204
    assert (await watching.read(id)).status == 404
    assert (await watching.get(f"/generations/{id}/transcript")).status == 404


# What a node is told of its own generations.


@pytest.mark.parametrize("fault", ["its channel connection is cut", "its channel connection is silent"])
async def test_a_cancel_that_its_producer_was_not_told_of_takes_effect_while_the_model_is_silent(
    make_node, valkey, upstream, fault
):
    # given a model that says nothing for now, and a reader at its producer
    async with ValkeyWires(valkey.url) as wires:
        producing, other = await asyncio.gather(make_node(valkey_url=wires.url), make_node())
        id = (await producing.api.start())["id"]
        call = await upstream.called()
        await call.say("a")
        async with producing.api.source(id) as here:
            await here.event("live")

            # when another node ends it, and the message about that is lost
            wires.channels.hold_replies()
            assert (await other.api.post(f"/generations/{id}/cancel")).status == 200
            await wires.channels.reply_held()
            if fault == "its channel connection is cut":
                wires.channels.cut()
                wires.channels.release()

            # then its reader is told nevertheless, and the upstream is let go
            assert (await here.event("end", seconds=5)).json()["status"] == "cancelled"
            await call.hung_up()
            assert ids(here.received) == await stored_ids(valkey, id)


async def test_reader_has_the_end_though_its_producer_sees_the_deletion_first(make_node, valkey, upstream):
    # given a producer that is told by another connection than the one it appends with
    async with ValkeyWires(valkey.url) as wires:
        producing, other = await asyncio.gather(make_node(valkey_url=wires.url), make_node())
        id = (await producing.api.start())["id"]
        call = await upstream.called()
        await call.say("a")
        async with producing.api.source(id) as here:
            await here.event("live")

            # when its log is deleted, and an append finds that out before the news of the end has come
            wires.channels.hold_replies()
            assert (await other.api.delete(f"/generations/{id}")).status == 204
            await call.say("late")
            await call.hung_up()
            wires.channels.release()

            # then its reader is told the end, as every reader of a generation that is deleted
            assert (await here.event("end")).json()["status"] == "cancelled"
            assert text_of(here.received) == "a"
            assert_whole(here.received)


async def test_a_node_that_is_cut_off_for_longer_than_its_lease_adopts_the_end(make_node, valkey, upstream):
    # given a node that loses its way to Valkey, with a reader and a talking model
    async with ValkeyWires(valkey.url) as wires:
        producing, other = await asyncio.gather(make_node(valkey_url=wires.url, store_outage_s=60), make_node())
        id = (await producing.api.start())["id"]
        call = await upstream.called()
        async with producing.api.source(id) as here, other.api.source(id) as there:
            await call.say("a")
            await here.event("token")
            for proxy in wires.kinds.values():
                await proxy.refuse()
                proxy.cut()
            await call.say("never acknowledged")

            # when another node ends its generation, and the way is open again
            end = (await there.event("end")).json()
            assert (end["status"], end["error"]["code"]) == ("interrupted", "node_lost")
            assert [event.event for event in here.received] == ["start", "token"]
            for proxy in wires.kinds.values():
                await proxy.accept()

            # then it writes nothing after that end, and its own reader gets exactly that
            await here.event("end")
            await call.hung_up()
            assert here.received == there.received
            assert ids(here.received) == await stored_ids(valkey, id)
            assert text_of(here.received) == "a"


# Abandoned.


async def test_reader_on_another_node_keeps_a_generation_from_being_abandoned(pair, upstream):
    # given a generation that may be unwatched for a second, and a reader where it does not run
    producing, watching = pair
    id = (await producing.api.start(abandon_after=1))["id"]
    call = await upstream.called()
    async with watching.api.source(id) as there:
        await there.event("live")
        await asyncio.sleep(2.5)  # a span that has to pass: nothing must happen in it
        await call.say("still here")
        assert (await there.event("token")).json()["content"] == "still here"
        left = time.monotonic()

    # when that reader leaves, then it is abandoned a second later
    generation = await producing.api.ended(id)
    assert (generation["status"], generation["error"]["code"]) == ("cancelled", "abandoned")
    assert 0.9 <= time.monotonic() - left < 4
    await call.hung_up()


async def test_reader_keeps_a_generation_alive_after_its_node_was_paused(make_node, upstream):
    # given a reader on a node that is paused for longer than its lease, and not long enough to lose its connections
    producing, watching = await asyncio.gather(make_node(), make_node(store_timeout_s=30))
    id = (await producing.api.start(abandon_after=4))["id"]
    await upstream.called()
    async with watching.api.source(id) as there:
        await there.event("live")
        await producing.api.has_subscribers(id, 1)
        watching.pause()
        await producing.api.has_subscribers(id, 0)

        # when it wakes up, then the reader counts again
        watching.resume()
        await producing.api.has_subscribers(id, 1)


async def test_reader_whose_node_died_does_not_keep_a_generation_alive(pair, upstream):
    producing, watching = pair
    id = (await producing.api.start(abandon_after=2))["id"]
    call = await upstream.called()
    async with watching.api.source(id) as there:
        await there.event("live")
        await producing.api.has_subscribers(id, 1)
        watching.kill()
        generation = await producing.api.ended(id)
        assert (generation["status"], generation["error"]["code"]) == ("cancelled", "abandoned")
        await call.hung_up()


# Idempotency.


async def test_of_calls_with_one_key_that_race_on_two_nodes_one_calls_the_upstream(apis, upstream):
    # given the same call, made many times on both nodes at once, for the object and for the stream
    upstream.script = say("Hi", "there")
    key = f"key-{uuid.uuid4()}"

    async def start(api: Api) -> tuple[int, str]:
        answer = await api.post("/generations", CHAT, {"Idempotency-Key": key})
        return answer.status, answer.json()["id"]

    async def start_and_read(api: Api) -> list[str]:
        stream = await api.open("/generations", CHAT, {"Idempotency-Key": key, "Accept": "text/event-stream"})
        answer = await stream.to_end()
        assert (answer.status, answer.clean) == (200, True)
        return [event.last_event_id for event in messages(answer.body) if event.event != "live"]

    objects, streams = await asyncio.gather(
        asyncio.gather(*(start(api) for api in apis * 8)),
        asyncio.gather(*(start_and_read(api) for api in apis * 8)),
    )

    # then there is one generation, one upstream call, and everybody has all of it
    (id,) = {id for _, id in objects}
    assert sorted(status for status, _ in objects)[:-1] == [200] * 15
    assert len(upstream.calls) == 1
    expected = ids(await apis[0].log(id))
    assert all(lines == expected for lines in streams)


# Lists and counts.


async def test_list_and_reader_counts_are_the_same_on_all_nodes(apis, upstream):
    # given generations on both nodes, one of them with readers on both
    started: list[str] = []
    calls: list[Call] = []
    for n in range(4):
        started.append((await apis[n % 2].start())["id"])
        calls.append(await upstream.called())
    async with (
        apis[0].source(started[0]) as first,
        apis[1].source(started[0]) as second,
        apis[1].source(started[0]) as third,
    ):
        for source in (first, second, third):
            await source.event("live")

        # then both nodes list all of them, newest first, with all their readers
        for api in apis:
            await api.has_subscribers(started[0], 3)
            everything = (await api.get("/generations")).json()["generations"]
            listed = [generation for generation in everything if generation["id"] in started]
            assert [generation["id"] for generation in listed] == started[::-1]
            assert [generation["subscribers"] for generation in listed] == [0, 0, 0, 3]
            assert {generation["status"] for generation in listed} == {"queued"}

    # and when the readers have left, and one has ended, that is known everywhere too
    await calls[1].finish()
    for api in apis:
        await api.has_subscribers(started[0], 0)
        assert (await api.ended(started[1]))["status"] == "completed"
        done = (await api.get("/generations", status="completed")).json()["generations"]
        assert [generation["id"] for generation in done if generation["id"] in started] == [started[1]]
