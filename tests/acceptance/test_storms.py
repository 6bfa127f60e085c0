"""Everything at once: many readers that are cut again and again, while Valkey and nodes die."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time

import pytest
from support.api import text_of
from support.deadlines import eventually
from support.logs import assert_whole, ids, stored_ids
from support.sse import EventSourceClient
from support.upstream import Call

TOKENS = 2000
READERS = 50
CUTS = 20
EXPECTED = "".join(f"wörd{index} " for index in range(TOKENS))


async def until_received(source: EventSourceClient, events: int) -> None:
    async def received() -> int:
        return len(source.received)

    await eventually(f"{events} events", received, lambda count: count >= events, seconds=60)


async def lose_connections(source: EventSourceClient, places: list[int]) -> None:
    """Lose the connection whenever so many events have come."""
    taken = 0
    for place in places:
        while taken < place:
            await source.next(60)
            taken += 1
        tries = len(source.connections)
        source.cut()
        await source.connected(tries + 1, 60)
        await source.opened(60)


@pytest.mark.slow
async def test_a_generation_arrives_identical_at_fifty_readers_through_cuts_and_crashes_of_valkey(
    make_node, valkey, upstream
):
    # given a generation that is read on two nodes, and has no end before all of this has happened
    producing, following = await asyncio.gather(make_node(retry_ms=10), make_node(retry_ms=10))
    over = asyncio.Event()

    async def talk(call: Call) -> None:
        for index in range(TOKENS):
            await call.say(f"wörd{index} ")
            await asyncio.sleep(0.004)  # a model's pace
        await over.wait()
        await call.finish()

    upstream.script = talk
    begun = time.monotonic()
    id = (await producing.api.start())["id"]
    chance = random.Random(1)
    async with contextlib.AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context((producing, following)[n % 2].api.source(id)) for n in range(READERS)
        ]

        # when each is cut twenty times, and Valkey is killed twice, coming back shorter the second time
        cutting = [
            asyncio.create_task(lose_connections(source, sorted(chance.sample(range(1, TOKENS - 400), CUTS))))
            for source in readers
        ]

        async def kill_valkey() -> None:
            leader = readers[0]
            for place, shorter in ((TOKENS // 3, False), (2 * TOKENS // 3, True)):
                await until_received(leader, place)
                snapshot = valkey.snapshot()
                await asyncio.sleep(0.2)  # what is lost by coming back shorter
                if shorter:
                    await asyncio.to_thread(valkey.restore, snapshot)
                else:
                    valkey.kill()
                    await asyncio.sleep(0.5)  # the outage
                    await asyncio.to_thread(valkey.start)

        await asyncio.gather(kill_valkey(), *cutting)
        over.set()
        for source in readers:
            await source.event("end", 60)
        seconds = time.monotonic() - begun

        # then every one of them has the same as Valkey, once and in order
        first = readers[0].received
        assert_whole(first)
        assert text_of(first) == EXPECTED
        for source in readers:
            assert source.received == first
            assert [event for event in source.events if event.event == "reset"] == []
        assert ids(first) == await stored_ids(valkey, id)
        connections = [len(source.connections) for source in readers]
        assert min(connections) > CUTS
    newcomer = await make_node()
    assert await newcomer.api.log(id) == first
    print(f"storm: {seconds:.1f} s, {sum(connections)} connections of {READERS} readers")


@pytest.mark.slow
async def test_a_generation_arrives_identical_while_the_nodes_that_serve_it_die_and_come_back(make_node, upstream):
    # given one node that produces, and two that serve readers
    producing = await make_node()
    serving = await asyncio.gather(*(make_node(retry_ms=10) for _ in range(2)))
    over = asyncio.Event()

    async def talk(call: Call) -> None:
        for index in itertools.count():
            await call.say(f"wörd{index} ")
            await asyncio.sleep(0.005)  # a fast model's pace
            if over.is_set():
                break
        await call.finish()

    upstream.script = talk
    id = (await producing.api.start())["id"]
    async with contextlib.AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(serving[n % 2].api.source(id)) for n in range(20)]

        # when these are killed, paused, drained, and started again, in turns
        for round_, how in enumerate(("kill", "stop", "pause", "kill")):
            node = serving[round_ % 2]
            leader = readers[round_ % 2]
            await until_received(leader, len(leader.received) + 60)
            if how == "pause":
                node.pause()
                await asyncio.sleep(1.5)  # longer than its lease, and than the timeout of its connections
                node.resume()
            elif how == "stop":
                assert await node.stop() == 0
                await node.start()
            else:
                await node.restart()

        # then every reader has everything, once and in order
        over.set()
        for source in readers:
            await source.event("end", 30)
        log = await producing.api.log(id)
        assert_whole(log)
        assert log[-1].json()["status"] == "completed"
        for source in readers:
            assert source.received == log
