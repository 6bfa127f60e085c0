"""Leases: which nodes are alive, and how many subscribers they have."""

from __future__ import annotations

from typing import Any

from support.deadlines import eventually
from support.stores import ignore


async def test_node_listens_as_long_as_it_is_there(start_store, other):
    heard: list[Any] = []
    node = await start_store()
    await node.attend("node_1", notified=lambda *told: heard.append(told), deleted=ignore)
    assert await other.listens("node_1")
    assert not await other.listens("nobody")
    await node.stop()
    await eventually("the end", lambda: other.listens("node_1"), lambda listens: not listens)
    assert [told for told in heard if told[0]] == []  # nothing is said about a generation


async def test_node_is_alive_as_long_as_its_lease(store, other):
    async def alive() -> set[str]:
        return await store.alive(["node_1", "node_2", "nobody"])

    await store.renew_lease("node_1", 60_000)
    await other.renew_lease("node_2", 50)
    await eventually("node_2's lease to run out", alive, lambda nodes: nodes == {"node_1"})
    await other.renew_lease("node_2", 60_000)
    assert await alive() == {"node_1", "node_2"}
    await store.end_lease("node_1")
    assert await alive() == {"node_2"}
    await store.end_lease("node_1")
    assert await store.alive([]) == set()


async def test_lease_tells_what_of_the_node_still_stood(store, valkey):
    assert await store.renew_lease("node_1", 60_000) == (False, False)
    assert await store.renew_lease("node_1", 60_000) == (True, False)
    await store.report_subscribers("node_1", {"a": 1}, 60_000)
    assert await store.renew_lease("node_1", 60_000) == (True, True)
    async with valkey.client() as client:
        await client.flushall()
    assert await store.renew_lease("node_1", 60_000) == (False, False)


async def test_subscribers_are_the_sum_over_the_other_nodes(store):
    for node in ("node_1", "node_2", "node_3"):
        await store.renew_lease(node, 60_000)
    await store.report_subscribers("node_1", {"a": 1, "b": 10}, 60_000)
    await store.report_subscribers("node_2", {"a": 2}, 60_000)
    await store.report_subscribers("node_3", {"a": 4, "b": 40}, 60_000)
    assert await store.subscribers(["a", "b", "c"], beside="node_1") == {"a": 6, "b": 40, "c": 0}
    assert await store.subscribers(["a", "b", "c"], beside="nobody") == {"a": 7, "b": 50, "c": 0}
    assert await store.subscribers([], beside="node_1") == {}


async def test_only_changes_of_the_subscribers_are_told(store):
    await store.renew_lease("node_1", 60_000)
    await store.report_subscribers("node_1", {"a": 1, "b": 1}, 60_000)
    await store.report_subscribers("node_1", {"b": 0, "c": 3}, 60_000)
    assert await store.subscribers(["a", "b", "c"], beside="") == {"a": 1, "b": 0, "c": 3}


async def test_subscribers_of_a_node_that_is_gone_do_not_count(store):
    for node, lease_ms in (("node_1", 60_000), ("node_2", 60_000), ("node_3", 50)):
        await store.renew_lease(node, lease_ms)
        await store.report_subscribers(node, {"a": 1}, lease_ms)
    await store.end_lease("node_2")

    async def subscribers() -> dict[str, int]:
        return await store.subscribers(["a"], beside="")

    await eventually("only node_1's to count", subscribers, lambda counts: counts == {"a": 1})
    await store.end_lease("node_1")
    assert await subscribers() == {"a": 0}


async def test_subscribers_hold_as_long_as_the_lease_is_renewed(store, valkey):
    await store.renew_lease("node_1", 500)
    await store.report_subscribers("node_1", {"a": 1}, 500)
    await store.renew_lease("node_1", 60_000)
    async with valkey.client() as client:
        (key,) = await client.keys("*watching*")
        assert await client.pttl(key) > 500
