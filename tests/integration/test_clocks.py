"""Clocks that are wrong, or are set while a node runs: nothing waits, ends or costs more for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.api import text_of
from support.clock import Clock
from support.logs import assert_whole, stored
from support.upstream import say
from support.valkey import ValkeyServer

DAY = 86_400
ACTIVITY_EVENTS = "replay:{:feed}:events"
KEPT = 10_000


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


async def sent_by(valkey: ValkeyServer, act: Callable[[], object]) -> int:
    """How many bytes Valkey sends meanwhile."""
    async with valkey.client() as client:
        before = (await client.info("stats"))["total_net_output_bytes"]
        await act()  # type: ignore[misc]
        return (await client.info("stats"))["total_net_output_bytes"] - before


async def told_of(valkey: ValkeyServer, id: str) -> list[bytes]:
    async with valkey.client() as client:
        entries = [fields[b"e"] for _, fields in await client.xrange(ACTIVITY_EVENTS)]
    return [entry.split(b" ")[0] for entry in entries if id.encode() in entry]


async def test_a_node_that_is_days_ahead_makes_nothing_dearer_for_the_others(make_node, valkey, upstream, clock):
    # given a feed that is full of what was told since a node was there that is 400 days ahead
    upstream.script = say("a")
    ahead = await make_node(env=clock.env)
    async with valkey.client() as client:
        pipeline = client.pipeline()
        for seq in range(KEPT):
            pipeline.xadd(
                ACTIVITY_EVENTS,
                {"e": b'lcreated {"generation_id":"gen_%d","padding":"%b"}' % (seq, b"x" * 150)},
                id=f"{int(time.time() + 400 * DAY) * 1000}-{seq}",
            )
        await pipeline.execute()
    clock.set(400 * DAY)
    await ahead.api.run()

    # when others start generations
    node = await make_node()
    first = await node.api.run()

    async def run() -> None:
        for _ in range(10):
            await node.api.run()

    sent = await sent_by(valkey, run)

    # then each costs some kilobytes, and is told once
    assert sent < 10 * 200_000
    assert await told_of(valkey, first) == [b"lcreated", b"lfirst_token", b"lended"]


async def test_a_life_that_two_nodes_tell_is_told_once_whatever_their_clocks_say(make_node, valkey, upstream, clock):
    # given a node that is ahead, and one that is not, on which a generation runs
    upstream.script = say("a")
    ahead = await make_node(env=clock.env)
    clock.set(400 * DAY)
    for _ in range(3):
        await ahead.api.run()
    upstream.script = None
    node = await make_node()
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.say("b")
    await node.api.has(id, 2)

    # when it dies, then the other ends and tells it
    await asyncio.sleep(0.3)
    node.kill()
    await ahead.api.ended(id)
    for _ in range(50):
        if len(await told_of(valkey, id)) == 3:
            break
        await asyncio.sleep(0.1)
    assert await told_of(valkey, id) == [b"lcreated", b"lfirst_token", b"lended"]


@pytest.mark.parametrize("ahead_s", [400 * DAY, -400 * DAY, 7200, -7200])
async def test_a_clock_that_is_set_while_a_generation_runs_moves_nothing(make_node, valkey, upstream, clock, ahead_s):
    # given a generation that is watched on another node, and is given up where nobody watches for some seconds
    here, there = await make_node(env=clock.env), await make_node()
    id = (await here.api.start(abandon_after=3))["id"]
    call = await upstream.called()
    async with there.api.source(id) as source:
        await call.say("before ")
        await source.event("token")

        # when the clock of its node is set
        clock.set(ahead_s)
        await asyncio.sleep(1.5)  # longer than a lease
        await call.say("after")
        await asyncio.sleep(0.5)
        await call.finish()

        # then it is neither abandoned nor lost, and took as long as it took
        end = (await source.event("end")).json()
        assert (end["status"], text_of(source.received)) == ("completed", "before after")
        assert 1_900 < end["duration_ms"] < 30_000
        assert end["ttft_ms"] < 10_000
        assert_whole(source.received)
        times = [int(name.split("-")[0]) for name, _ in await stored(valkey, id)]
        assert times[-1] - times[0] < 30_000

    # and it can be read on both, and is kept no shorter
    for node in (here, there):
        assert text_of(await node.api.log(id)) == "before after"
    async with valkey.client() as client:
        assert await client.pttl(f"replay:{{{id}}}:events") > 80_000_000


async def test_a_node_that_is_days_ahead_knows_who_reads_elsewhere(make_node, upstream, clock):
    # given a generation on one node, whose only reader is on another, and a third that is days ahead
    clock.set(400 * DAY)
    here, there, _ = await make_node(), await make_node(), await make_node(env=clock.env)
    id = (await here.api.start(abandon_after=1.5))["id"]
    call = await upstream.called()
    async with there.api.source(id) as source:
        await call.say("a")
        await source.event("token")
        await here.api.has_subscribers(id, 1)

        # when time goes by, then the reader is known all the time, and it is not given up
        for _ in range(100):
            assert (await here.api.generation(id))["subscribers"] == 1
            await asyncio.sleep(0.03)
        await call.finish()
        assert (await source.event("end")).json()["status"] == "completed"
