"""Multiplexed streams while Valkey is away or cut off; and that more readers cost it no more."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence

import pytest
from support.api import assert_problem
from support.logs import calls_of
from support.multiplexed import NEVER_WAS, alone, closed_by_204, many, notices, read_many, recorded, shares
from support.running import begin
from support.sse import EventSourceClient, messages
from support.upstream import generate, say
from support.valkey import ValkeyServer


@pytest.mark.slow
async def test_valkey_is_cut_off_again_and_again_and_every_reader_has_everything_once(
    make_node, valkey_proxy, upstream
):
    here, there = await asyncio.gather(make_node(retry_ms=10), make_node(retry_ms=10))
    upstream.script = generate(300, per_second=150, text="wörd{} ")
    ids = [(await node.api.start())["id"] for node in (here, there, here)]
    async with many(here.api, [*ids, NEVER_WAS]) as first, many(there.api, [*ids, NEVER_WAS]) as second:
        for place in range(60, 600, 90):
            while len(first.received) < place:
                await first.next()
            valkey_proxy.cut()
        for source in (first, second):
            assert (await source.closed()).status == 204
            assert shares(source.events, ids) == await alone(here.api, ids)
            assert notices(source.events, "reset") == []
            assert set(notices(source.events, "expired")) <= {NEVER_WAS}


@pytest.mark.slow
async def test_valkey_is_killed_and_restarted_and_every_reader_has_everything_once(make_node, valkey, upstream):
    here, there = await asyncio.gather(make_node(retry_ms=10), make_node(retry_ms=10))
    upstream.script = generate(500, per_second=200, text="wörd{} ")
    ids = [(await node.api.start())["id"] for node in (here, there)]
    async with many(here.api, ids) as first, many(there.api, ids) as second:
        while len(first.received) < 200:
            await first.next()
        valkey.kill()
        await asyncio.to_thread(valkey.start)
        for source in (first, second):
            await closed_by_204(source, 20)
            assert notices(source.events, "expired") == notices(source.events, "reset") == []
            assert shares(source.events, ids) == await alone(here.api, ids)


async def test_while_valkey_is_away_readers_are_told_to_come_back(node, valkey_proxy, upstream):
    ids = await recorded(node.api, upstream, say("a"), say("b"))
    cursor = messages((await read_many(node.api, ids)).body)[1].last_event_id
    # when
    await valkey_proxy.refuse()
    valkey_proxy.cut()
    # then, whatever is asked for
    for wanted in ([NEVER_WAS], [ids[0], NEVER_WAS]):
        answer = await read_many(node.api, wanted)
        assert (answer.status, answer.body, answer.clean) == (200, b":k\n", False)
        assert answer.headers["content-type"].startswith("text/event-stream")
    answer = await read_many(node.api, ids, {"Last-Event-ID": cursor})
    assert (answer.status, answer.body, answer.clean) == (200, b":k\n", False)
    # and what is wrong with the request is told all the same
    assert_problem(await read_many(node.api, ids, {"Last-Event-ID": "nonsense"}), 400)
    # and a reader that waits has everything as soon as Valkey is back
    async with many(node.api, [*ids, NEVER_WAS]) as source:
        source.retry_ms = 20
        await source.connected(2)
        await valkey_proxy.accept()
        await closed_by_204(source)
        assert shares(source.events, ids) == await alone(node.api, ids)
        assert set(notices(source.events, "expired")) == {NEVER_WAS}


async def footprint(valkey: ValkeyServer) -> tuple[int, int]:
    """How many connections the nodes have to Valkey, and how many subscriptions."""
    async with valkey.client() as client:
        clients = [entry for entry in await client.client_list() if entry["name"].startswith("replay-")]
    return len(clients), sum(int(entry["ssub"]) for entry in clients)


@pytest.mark.slow
async def test_fifty_readers_of_the_same_twenty_cost_valkey_what_one_costs(make_node, valkey, upstream):
    # given twenty that run on one node, and are read on the other
    producing, reading = await asyncio.gather(make_node(), make_node())
    generations = [await begin(producing.api, upstream, "a") for _ in range(20)]
    ids = [running.id for running in generations]

    async def cost(sources: Sequence[EventSourceClient]) -> int:
        """What Valkey is asked in two seconds in which each generation says ten words."""
        before, begun = await calls_of(valkey), time.monotonic()
        for turn in range(10):
            await asyncio.gather(*(running.call.say(str(turn)) for running in generations))
            for source in sources:
                for _ in ids:
                    await source.event("token")
            await asyncio.sleep(max(0.0, begun + 0.2 * (turn + 1) - time.monotonic()))
        return await calls_of(valkey) - before

    async with contextlib.AsyncExitStack() as stack:
        # when there is one reader, and then fifty
        sources = [await stack.enter_async_context(many(reading.api, ids))]
        for _ in ids:
            await sources[0].event("live")
        one, one_costs = await footprint(valkey), await cost(sources)
        for _ in range(49):
            order = random.Random(len(sources)).sample(ids, len(ids))
            sources.append(await stack.enter_async_context(many(reading.api, order)))
        for source in sources[1:]:
            for _ in ids:
                await source.event("live")
        fifty, fifty_cost = await footprint(valkey), await cost(sources)

    # then Valkey sees no difference
    assert fifty == one
    assert fifty_cost < 1.25 * one_costs + 20, (one_costs, fifty_cost)
