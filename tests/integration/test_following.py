"""A node that follows what another writes: messages that its channel connection loses are found in the log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from support.api import Api, text_of
from support.deadlines import eventually
from support.logs import assert_whole, commands, ids, stored, stored_ids
from support.sse import messages
from support.upstream import generate
from support.valkey import ValkeyServer
from support.valkey_wires import ValkeyWires


class World(NamedTuple):
    """A node that produces, one that follows, and the latter's wires to Valkey."""

    producing: Api
    following: Api
    wires: ValkeyWires


@pytest.fixture
async def world(valkey, make_node) -> AsyncIterator[World]:
    async with ValkeyWires(valkey.url) as wires:
        producing, following = await asyncio.gather(make_node(), make_node(valkey_url=wires.url))
        yield World(producing.api, following.api, wires)


async def subscriptions(valkey: ValkeyServer, id: str) -> int:
    """How many connections listen to a generation's channel."""
    async with valkey.client() as client:
        answer = await client.execute_command("PUBSUB", "SHARDNUMSUB", f"replay:{{{id}}}")
    return int(answer[1])


async def lose_what_is_held(world: World) -> None:
    """Cut the channel connection while messages wait on it."""
    await world.wires.channels.reply_held()
    world.wires.channels.cut()
    world.wires.channels.release()


async def test_message_lost_in_the_middle_is_found_in_the_log(world, valkey, upstream):
    id = (await world.producing.start())["id"]
    call = await upstream.called()
    async with world.following.source(id) as there:
        await there.event("live")

        # when messages are lost with the connection, and later ones come through the next
        world.wires.channels.hold_replies()
        await call.say("lost ")
        await call.say("too ")
        await lose_what_is_held(world)
        await call.say("heard ")
        await call.finish()

        # then nothing is missing, and the reader has noticed nothing
        await there.event("end")
        assert text_of(there.received) == "lost too heard "
        assert_whole(there.received)
        assert ids(there.received) == await stored_ids(valkey, id)
        assert len(there.connections) == 1


@pytest.mark.parametrize("fault", ["cut", "silent"])
async def test_last_message_that_is_lost_is_found_in_the_log(world, valkey, upstream, fault):
    # given a follower who is about to be told the end
    id = (await world.producing.start())["id"]
    call = await upstream.called()
    async with world.following.source(id) as there:
        await call.say("a")
        await there.event("token")

        # when just that message is lost, so that no other will show the hole
        world.wires.channels.hold_replies()
        await call.finish()
        await eventually("the end in Valkey", lambda: stored(valkey, id), lambda log: log[-1][1][:1] == b"e")
        if fault == "cut":
            await lose_what_is_held(world)

        # then it is found within seconds, whether the connection was cut or only stays silent
        await there.event("end", seconds=4)
        assert ids(there.received) == await stored_ids(valkey, id)


async def test_a_token_that_is_lost_before_a_long_silence_is_shown_soon(world, upstream):
    id = (await world.producing.start())["id"]
    call = await upstream.called()
    async with world.following.source(id) as there:
        await there.event("live")
        world.wires.channels.hold_replies()
        await call.say("lost")
        await lose_what_is_held(world)
        assert (await there.event("token", seconds=4)).json()["content"] == "lost"
        await call.finish()
        await there.event("end")


async def test_messages_between_the_subscription_and_the_read_are_shown_once(world, valkey, upstream):
    # given a reader for whom the follower has subscribed, and has not read yet
    id = (await world.producing.start())["id"]
    call = await upstream.called()
    await call.say("before ")
    await world.producing.has(id, 2)
    world.wires.channels.hold_replies()
    reading = asyncio.create_task(world.following.read(id))
    await eventually("the subscription", lambda: subscriptions(valkey, id))

    # when the model goes on meanwhile, so that the same event comes by the log and by the channel
    await call.say("meanwhile ")
    await world.producing.has(id, 3)
    world.wires.channels.release()
    await call.say("after")
    await call.finish()

    # then it is shown once
    received = [event for event in messages((await reading).body) if event.event != "live"]
    assert text_of(received) == "before meanwhile after"
    assert_whole(received)


async def test_a_stream_is_followed_exactly_while_its_channel_is_cut_again_and_again(world, valkey, upstream):
    # given a fast generation, read where it is followed
    upstream.script = generate(900, per_second=400)
    id = (await world.producing.start())["id"]
    chance = random.Random(3)
    async with world.following.source(id) as there:
        # when only the channel connection is cut, at any moment, and sometimes with messages held back
        while there.events[-1:] == [] or there.events[-1].event != "end":
            for _ in range(chance.randrange(1, 60)):
                if (await there.next()).event == "end":
                    break
            if chance.random() < 0.5:
                world.wires.channels.hold_replies()
                await asyncio.sleep(chance.random() / 50)  # how much is lost with the connection is left to chance
            world.wires.channels.cut()
            world.wires.channels.release()

        # then the reader has every event once and in order
        assert_whole(there.received)
        assert text_of(there.received) == "".join(f"word{index} " for index in range(900))
        assert ids(there.received) == await stored_ids(valkey, id)
        assert there.connections[0].clean  # a second one asks what comes after the end
        assert all(each.asked_after == ids(there.received)[-1] for each in there.connections[1:])
    assert world.wires.channels.accepted > 10
    assert world.wires.appends.accepted == 1  # nothing else was cut


async def test_a_delete_that_the_follower_was_not_told_of_ends_its_readers(world, upstream):
    # given a follower's reader
    id = (await world.producing.start())["id"]
    call = await upstream.called()
    async with world.following.source(id) as there:
        await call.say("a")
        await there.event("token")

        # when the generation is deleted, and neither its end nor its deletion is heard of
        world.wires.channels.hold_replies()
        assert (await world.producing.delete(f"/generations/{id}")).status == 204
        await lose_what_is_held(world)

        # then the reader is not left waiting for an end that cannot come
        assert (await there.closed()).status == 404


async def test_an_end_that_comes_while_the_log_is_being_read_is_shown_though_the_log_is_gone(world, valkey, upstream):
    # given a follower whose channel was cut and is back, so that it reads the log, slowly
    id = (await world.producing.start())["id"]
    call = await upstream.called()
    async with world.following.source(id) as there:
        await call.say("a")
        await there.event("token")
        asked = (await commands(valkey))["cmdstat_xrange"]["calls"]
        world.wires.reads.hold_replies()
        world.wires.channels.cut()
        await eventually(
            "the log to be read", lambda: commands(valkey), lambda stats: stats["cmdstat_xrange"]["calls"] > asked
        )

        # when meanwhile the generation is deleted, and both the end and the deletion are heard
        assert (await world.producing.delete(f"/generations/{id}")).status == 204
        assert (await world.following.get("/healthz")).status == 200
        world.wires.reads.release()

        # then its reader has the end, as every reader of a generation that is deleted
        assert (await there.event("end")).json()["status"] == "cancelled"
        assert_whole(there.received)


async def test_followers_of_one_generation_cost_one_subscription_and_give_it_back(world, valkey, upstream):
    # given many readers of one generation on the node that follows it
    id = (await world.producing.start())["id"]
    call = await upstream.called()
    sources = [world.following.source(id) for _ in range(10)]
    for source in sources:
        await source.__aenter__()
    for source in sources:
        await source.event("live")
    assert await subscriptions(valkey, id) == 1

    # when it has ended, then nothing is followed any more
    await call.finish()
    for source in sources:
        await source.event("end")
        await source.close()
    await eventually("no subscription", lambda: subscriptions(valkey, id), lambda count: count == 0)


@pytest.mark.parametrize("path", ["/events", "/transcript", ""])
async def test_a_read_whose_connection_is_cut_under_it_is_made_again(world, upstream, path):
    # given a generation that this node has yet to read from Valkey
    upstream.script = generate(20)
    id = await world.producing.run()

    # when the connection is cut while the answer is on its way
    world.wires.reads.hold_replies()
    reading = asyncio.create_task(world.following.get(f"/generations/{id}{path}"))
    await world.wires.reads.reply_held()
    world.wires.reads.cut()
    world.wires.reads.release()

    # then its reader has noticed nothing
    answer = await reading
    assert (answer.status, answer.clean) == (200, True)
    assert answer.body == (await world.producing.get(f"/generations/{id}{path}")).body
