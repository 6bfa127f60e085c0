"""The lists: which generations are live and on which node, and which there were of late."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable

import pytest
from support.deadlines import eventually
from support.fault_proxy import FaultProxy
from support.stores import grow

from replay.model.event import number
from replay.store import EventStore, Page, Row


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
