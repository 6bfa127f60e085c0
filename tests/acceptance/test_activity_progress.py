"""`GET /feed?progress=1`: how far the live generations of all nodes are, and how many read them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from support.activity import LIFE, as_it_is, by_generation, follow, leave_nothing_out, many_at_once, of
from support.deadlines import DEADLINE_S, eventually
from support.logs import calls_of, ids
from support.sse import EventSourceClient


def progress_of(source: EventSourceClient, id: str) -> list[dict[str, Any]]:
    """What was told of one live generation."""
    told = [event.json()["generations"] for event in source.events if event.event == "progress"]
    return [generations[id] for generations in told if id in generations]


async def progressed(source: EventSourceClient, id: str, accept: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The next that is told of a live generation and is acceptable."""
    while True:
        data = (await source.event("progress")).json()
        if id in data["generations"] and accept(data["generations"][id]):
            return data


async def until_subscribers(source: EventSourceClient, counts: Mapping[str, int]) -> None:
    """Wait until all nodes together have told of so many readers."""
    nodes: dict[str, dict[str, int]] = {}

    async def count() -> dict[str, int]:
        for event in source.events:
            if event.event == "progress":
                nodes[event.json()["node"]] = event.json()["watching"]
        return {id: sum(node.get(id, 0) for node in nodes.values()) for id in counts}

    await eventually(f"{counts} readers", count, lambda found: found == counts)


@pytest.mark.slow
async def test_progress_of_all_nodes_is_told_to_who_asks_for_it(service, other_service, upstream):
    async with (
        follow(service) as plain,
        follow(service, progress="1") as asking,
        follow(other_service, progress="1") as b,
    ):
        for source in (plain, asking, b):
            await source.event("live")
        # given a generation on each node, one of them with a reader on each
        one, two = [(await api.start())["id"] for api in (service, other_service)]
        calls = [await upstream.called() for _ in range(2)]
        by_id = dict(zip((one, two), calls, strict=True))
        for source in (asking, b):
            # when nothing is said yet
            for id in (one, two):
                told = await progressed(source, id, lambda data: True)
                assert told["type"] == "progress"
                assert told["generations"][id] == {"tokens": 0, "ttft_ms": None}
                assert told.keys() == {"type", "node", "generations", "watching"}
        # when words are said, then their number grows
        for call in calls:
            for _ in range(5):
                await call.say("x")
        for source in (asking, b):
            for id in (one, two):
                told = await progressed(source, id, lambda data: data["tokens"] == 5)
                assert told["generations"][id]["ttft_ms"] >= 0
        for source in (asking, b):
            for id in (one, two):
                tokens = [data["tokens"] for data in progress_of(source, id)]
                assert tokens == sorted(tokens)
        # when somebody reads them, alone or among others, then that is told
        async with (
            service.source(one) as r1,
            EventSourceClient(other_service.at("/events", generation=[one, two])) as r2,
        ):
            await r1.event("live")
            await r2.event("live")
            for source in (asking, b):
                await until_subscribers(source, {one: 2, two: 1})
        # when one has ended, then only the other is told of
        await by_id[one].finish()
        for source in (asking, b):
            await of(source, one, "ended")
            await progressed(source, two, lambda data: True)  # what comes next was told after the end
            told = await progressed(source, two, lambda data: True)
            assert one not in told["generations"]
        # and nobody was told who did not ask, and no cursor was moved beyond what was told
        assert [event for event in plain.events if event.event == "progress"] == []
        for source in (asking, b):
            assert source.received[-1].last_event_id == ids(e for e in source.events if e.event in LIFE)[-1]
            assert leave_nothing_out(source.events)
            assert by_generation(source.events) == by_generation(plain.events)


@pytest.mark.slow
async def test_progress_is_published_only_while_somebody_wants_it(make_node, valkey, upstream, activity_wire):
    # given a node with a live generation, and activity that nobody reads with progress
    node = await make_node(valkey_url=activity_wire.url)
    await node.api.start()
    call = await upstream.called()
    async with follow(node.api) as plain:
        await plain.event("live")
        for _ in range(5):
            await call.say("x")
        begun, since = time.monotonic(), len(activity_wire.published)
        await eventually("some seconds", lambda: as_it_is(len(activity_wire.published)), lambda told: told >= since + 2)
        # then nothing is told, only asked whether anybody listens, once a second
        assert set(activity_wire.published) == {0}
        assert 0.8 < time.monotonic() - begun < 6
        # when somebody does
        async with follow(node.api, progress="1") as source:
            told = await source.event("progress")
            assert activity_wire.published[-1] > 0
        # then, when they have left, that stops too
        since = len(activity_wire.published)
        await eventually("some seconds", lambda: as_it_is(len(activity_wire.published)), lambda told: told >= since + 2)
        assert activity_wire.published[-1] == 0
        assert told.json()["generations"] != {}
        assert [event for event in plain.events if event.event == "progress"] == []


@pytest.mark.slow
async def test_twenty_dashboards_on_fifty_live_generations_cost_valkey_no_more_than_one(make_node, valkey, upstream):
    # given fifty generations that speak on one node, and dashboards on another
    producing, showing = await asyncio.gather(make_node(), make_node())
    started = await many_at_once([producing.api.start] * 50)
    generations = [generation["id"] for generation in started]
    calls = [await upstream.called() for _ in generations]

    async def cost() -> int:
        before, begun = await calls_of(valkey), time.monotonic()
        for turn in range(6):
            await asyncio.gather(*(call.say(str(turn)) for call in calls))
            await asyncio.sleep(max(0.0, begun + 0.5 * (turn + 1) - time.monotonic()))
        return await calls_of(valkey) - before

    async with contextlib.AsyncExitStack() as stack:

        async def open_dashboard() -> None:
            activity = await stack.enter_async_context(follow(showing.api, progress="1"))
            tiles = EventSourceClient(showing.api.at("/events", generation=generations))
            await stack.enter_async_context(tiles)
            for _ in generations:
                await tiles.event("live", 2 * DEADLINE_S)
            await activity.event("progress")

        # when there is one, and then twenty
        await open_dashboard()
        one = await cost()
        await asyncio.gather(*(open_dashboard() for _ in range(19)))
        twenty = await cost()
    # then Valkey sees no difference
    assert twenty < 1.25 * one + 30, (one, twenty)
