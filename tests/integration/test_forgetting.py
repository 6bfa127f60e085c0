"""A log that is deleted, has expired, or is not wanted any more is gone at once, without the garbage collector.

Two nodes run in this process, where it can be seen what is in memory.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NamedTuple

import pytest
from support.api import Api
from support.crowd import read
from support.deadlines import eventually
from support.http1 import open_stream
from support.upstream import ScriptedUpstream, generate
from support.v1 import ask, id_of
from support.valkey import ValkeyServer

from replay.app import App
from replay.config import Settings
from replay.live.feed import Feed
from replay.model.log import Log
from replay.store import ACTIVITY_LOG


class World(NamedTuple):
    """Where things are produced, where they are watched, and what stands behind both."""

    producing: Api
    watching: Api
    upstream: ScriptedUpstream
    valkey: ValkeyServer


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what is there already is not looked at: aiohttp keeps the handlers of nodes that have stopped
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.fixture
async def world(valkey, upstream) -> AsyncIterator[World]:
    # As it is shipped, but for a lease that makes the test quick: an ended log is kept for repair for ten seconds.
    settings = Settings(port=0, valkey_url=valkey.url, upstream_url=upstream.url, lease_s=1.0)
    apps = [App(settings), App(settings)]
    producing, watching = [Api(await app.start()) for app in apps]
    yield World(producing, watching, upstream, valkey)
    for app in apps:
        await app.stop()


def in_memory() -> list[object]:
    """The feeds of generations, and the logs, that there are."""
    feeds = [thing for thing in gc.get_objects() if type(thing) is Feed and thing.generation_id != ACTIVITY_LOG]
    return feeds + [thing for thing in gc.get_objects() if type(thing) is Log]


async def gone() -> None:
    async def left() -> int:
        return len(in_memory())

    await eventually("nothing of it to be left", left, lambda count: not count, seconds=4)


# How a generation is read before it is deleted.


async def not_at_all(world: World, id: str) -> None:
    """Nobody asks for it."""


async def here_and_there(world: World, id: str) -> None:
    for api in (world.producing, world.watching):
        assert (await api.read(id)).status == 200
        assert (await api.get(f"/generations/{id}/transcript")).status == 200


async def many_at_once(world: World, id: str) -> None:
    for query in ("", "&mode=snapshot"):
        stream = await open_stream(world.watching.at(f"/events?generation={id}{query}"))
        assert (await stream.to_end()).clean


async def as_a_response(world: World, id: str) -> None:
    assert (await world.producing.get(f"/v1/responses/{id}")).status == 200


async def by_somebody_who_hangs_up(world: World, id: str) -> None:
    for api in (world.producing, world.watching):
        reader = await read(api.events_url(id))
        await reader.has(b"event: start")
        reader.transport.abort()


async def in_vain(world: World, id: str) -> None:
    assert (await world.watching.get(f"/generations/{id}x")).status == 404
    assert (await world.watching.get(f"/generations/{id}/events", {"Last-Event-ID": "nonsense"})).status == 400


@pytest.mark.parametrize(
    "reading", [not_at_all, here_and_there, many_at_once, as_a_response, by_somebody_who_hangs_up, in_vain]
)
async def test_a_log_that_is_deleted_is_gone_at_once(world, reading: Callable[[World, str], Awaitable[None]]):
    world.upstream.script = generate(50)
    if reading is as_a_response:
        answer = await world.producing.post("/v1/responses", {"model": "test-model", "input": "Hi"})
        id = answer.json()["id"]
    else:
        id = await world.producing.run()
    await reading(world, id)
    assert in_memory()

    assert (await world.producing.delete(f"/generations/{id}")).status == 204

    await gone()


async def test_a_log_that_is_deleted_while_it_is_written_and_read_is_gone_at_once(world):
    id = (await world.producing.start())["id"]
    call = await world.upstream.called()
    async with world.producing.source(id) as here, world.watching.source(id) as there:
        await call.say("x")
        for source in (here, there):
            await source.event("token")
        assert (await world.watching.delete(f"/generations/{id}")).status == 204
        for source in (here, there):
            await source.event("end")
    await gone()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_completion_that_is_deleted_is_gone_at_once(world, stream):
    world.upstream.script = generate(50)
    id = id_of(await ask(world.producing, stream=stream))
    assert in_memory()
    assert (await world.producing.delete(f"/generations/{id}")).status == 204
    await gone()


async def test_a_log_whose_upstream_was_cut_and_that_is_deleted_is_gone_at_once(world):
    id = (await world.producing.start())["id"]
    call = await world.upstream.called()
    await call.say("x")
    await call.cut()
    assert (await world.producing.ended(id))["status"] == "failed"
    assert (await world.producing.delete(f"/generations/{id}")).status == 204
    await gone()


async def test_a_log_that_has_expired_is_gone_at_once(world):
    world.upstream.script = generate(50)
    id = (await world.producing.start({"prompt": "Hi", "replay": {"ttl": 1}}))["id"]
    await world.producing.ended(id)
    await world.watching.read(id)
    assert in_memory()
    await gone()


async def test_a_log_that_could_not_be_followed_for_a_while_and_is_deleted_is_gone_at_once(world):
    # given readers of a generation whose Valkey goes away, and others who come meanwhile in vain
    id = (await world.producing.start())["id"]
    call = await world.upstream.called()
    await call.say("x")
    readers = [await read(api.events_url(id)) for api in (world.producing, world.watching)]
    for reader in readers:
        await reader.has(b"event: token")
    world.valkey.kill()
    for api in (world.producing, world.watching):
        assert (await api.get(f"/generations/{id}")).status == 503
    world.valkey.start()

    # when it goes on, ends and is deleted
    await call.finish()
    for reader in readers:
        await reader.ended()
    await world.producing.ended(id)

    async def deleted() -> int:
        return (await world.producing.delete(f"/generations/{id}")).status

    await eventually("the deletion", deleted, lambda status: status in (204, 404))
    await gone()


async def test_a_live_log_that_nobody_here_watches_any_more_is_gone_soon(world):
    id = (await world.producing.start())["id"]
    call = await world.upstream.called()
    await call.say("x")
    reader = await read(world.watching.events_url(id))
    await reader.has(b"event: token")
    both = len(in_memory())
    reader.transport.abort()

    async def left() -> int:
        return len(in_memory())

    await eventually("one node to be without it", left, lambda count: count == both // 2)
    await call.finish()
    await world.producing.ended(id)
