"""The activity while Valkey is away, comes back with less, or is not heard: nothing of it is passed over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.activity import (
    LIFE,
    WHOLE,
    as_it_is,
    contiguous,
    follow,
    happened,
    kept,
    of,
    opened,
    settled,
    start_if_possible,
    until_written,
    written,
)
from support.api import assert_problem
from support.deadlines import eventually
from support.sse import EventSourceClient, Message, read_stream
from support.upstream import say
from support.valkey_wires import ValkeyWires


async def follow_through(source: EventSourceClient, log: Callable[[], Awaitable[list[Message]]]) -> None:
    """Wait until a reader's view, from the last reset on, is what a new reader would see."""

    async def view() -> tuple[list[Message], list[Message]]:
        names = [event.event for event in source.events]
        since = len(names) - names[::-1].index("reset") if "reset" in names else 0
        return [event for event in source.events[since:] if event.event in LIFE], await log()

    await eventually("the reader to have it all", view, lambda both: both[0] == both[1])


async def test_valkey_is_killed_and_restarted_and_readers_go_on(make_node, valkey, upstream):
    nodes = await asyncio.gather(make_node(retry_ms=20), make_node(retry_ms=20))
    upstream.script = say("a")
    async with follow(nodes[0].api, after="-1") as first, follow(nodes[1].api, after="-1") as second:
        for _ in range(2):
            for node in nodes:
                await node.api.run()
            # when
            valkey.kill()
            await asyncio.to_thread(valkey.start)
            # then both readers go on
            after = [
                await eventually("a start", lambda node=node: start_if_possible(node.api), lambda id: id is not None)
                for node in nodes
            ]
            for id in after:
                for source in (first, second):
                    assert (await of(source, id, "ended"))["status"] == "completed"
        await settled(upstream, *(node.api for node in nodes))
        for source, node in zip((first, second), nodes, strict=True):
            await follow_through(source, lambda node=node: kept(node.api))
        assert await kept(nodes[0].api) == await kept(nodes[1].api) == await written(valkey)


@pytest.mark.parametrize("how", ["shorter", "empty"])
async def test_valkey_comes_back_with_less_and_readers_are_told(make_node, valkey, upstream, how):
    # given readers that have more than Valkey will have
    nodes = await asyncio.gather(make_node(retry_ms=20), make_node(retry_ms=20))
    await opened(*(node.api for node in nodes))
    upstream.script = say("a")
    await nodes[0].api.run()
    await settled(upstream, nodes[0].api)
    async with valkey.client() as client:
        await client.execute_command("WAITAOF", 1, 0, 5000)
    snapshot = valkey.snapshot()
    lost = [await node.api.run() for node in nodes]
    await settled(upstream, *(node.api for node in nodes))
    before = await kept(nodes[0].api)
    async with follow(nodes[0].api, after="-1") as first, follow(nodes[1].api, after="-1") as second:
        for source in (first, second):
            while source.last_event_id != before[-1].last_event_id:
                await source.next()
        # when
        if how == "shorter":
            await asyncio.to_thread(valkey.restore, snapshot)
        else:
            async with valkey.client() as client:
                await client.flushall()
        new = await eventually("a start", lambda: start_if_possible(nodes[0].api), lambda id: id is not None)
        # then they are told, and see what comes
        for source in (first, second):
            assert (await source.event("reset")).json()["asked"] == before[-1].last_event_id
            await of(source, new, "ended")
        await settled(upstream, *(node.api for node in nodes))
        for source, node in zip((first, second), nodes, strict=True):
            await follow_through(source, lambda node=node: kept(node.api))
        assert await kept(nodes[0].api) == await kept(nodes[1].api) == await written(valkey)
        # and what had just happened is told again, as its log is written again
        if how == "shorter":
            for id in lost:
                await until_written(valkey, id, LIFE)
            assert [happened(await written(valkey))[id] for id in lost] == [WHOLE] * 2


async def test_feed_that_cannot_be_opened_sends_its_reader_back(node, valkey_proxy, upstream):
    await valkey_proxy.refuse()
    valkey_proxy.cut()
    for headers in ({}, {"Last-Event-ID": "1-1"}):
        answer = await read_stream(node.api.at("/feed"), headers)
        assert (answer.status, answer.body, answer.clean) == (200, b":k\n", False)
    assert_problem(await read_stream(node.api.at("/feed", after="x")), 400)
    async with follow(node.api) as source:
        source.retry_ms = 20
        await source.connected(2)
        await valkey_proxy.accept()
        await source.event("live")
        upstream.script = say("a")
        id = await eventually("a start", lambda: start_if_possible(node.api), lambda id: id is not None)
        await of(source, id, "ended")


@pytest.mark.slow
async def test_what_the_channels_have_swallowed_is_read(make_node, valkey, upstream):
    async with ValkeyWires(valkey.url) as wires:
        telling = await make_node()
        following = await make_node(valkey_url=wires.url, store_timeout_s=10)
        upstream.script = say("a")
        async with follow(following.api) as source:
            await source.event("live")
            # when what is published is not heard
            wires.channels.hold_replies()
            id = await telling.api.run()
            # then it is seen all the same, and once
            for name in LIFE:
                await of(source, id, name)
            wires.channels.cut()
            wires.channels.release()
            again = await telling.api.run()
            for name in LIFE:
                await of(source, again, name)
            assert happened(source.received) == {id: WHOLE, again: WHOLE}
            assert contiguous(source.received)
            assert len(source.connections) == 1


@pytest.mark.parametrize("heard", ["before it is read", "while it is read"])
async def test_feed_that_is_opened_while_something_happens_is_there_whole(make_node, valkey, upstream, heard):
    # given some activity, and a node that has not followed it yet
    async with ValkeyWires(valkey.url) as wires:
        telling = await make_node()
        opening = await make_node(valkey_url=wires.url, store_timeout_s=10)
        upstream.script = say("a")
        first = await telling.api.run()
        await until_written(valkey, first, WHOLE)

        async def listeners() -> int:
            async with valkey.client() as client:
                _, count = await client.execute_command("PUBSUB", "SHARDNUMSUB", "replay:{:feed}")
            return int(count)

        # when it listens, and something happens before it has read what there is
        wire = wires.channels if heard == "before it is read" else wires.reads
        wire.hold_replies()
        async with follow(opening.api, after="-1") as source:
            await eventually("the node to listen", listeners)
            if wire is wires.reads:
                await wire.reply_held()
                before = wires.channels.replies.bytes
            second = await telling.api.run()
            await until_written(valkey, second, WHOLE)
            if wire is wires.reads:
                size = sum(len(event.data) for event in (await written(valkey))[-3:])
                await eventually(
                    "it to be heard", lambda: as_it_is(wires.channels.replies.bytes), lambda n: n > before + size
                )
            wire.release()
            # then its reader has everything, in order, and was not sent away
            for name in LIFE:
                await of(source, second, name)
            assert happened(source.received) == {first: WHOLE, second: WHOLE}
            assert source.received == await written(valkey)
            assert len(source.connections) == 1
        # and so has everybody who comes later
        assert await kept(opening.api) == await written(valkey)
