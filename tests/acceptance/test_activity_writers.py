"""Many nodes write the activity, some lose what they said or the answer to it: everything stands there once."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from support.activity import (
    PATIENT,
    WHOLE,
    contiguous,
    follow,
    happened,
    kept,
    many_at_once,
    opened,
    settled,
    until_written,
    written,
)
from support.api import event_id
from support.deadlines import eventually
from support.logs import ids
from support.upstream import Call, generate, say

# Many writers.


async def test_two_nodes_under_load_write_one_log_in_which_everything_stands_once(make_node, valkey, upstream):
    here, there = nodes = await asyncio.gather(make_node(), make_node())
    upstream.script = generate(3)
    async with follow(here.api) as first, follow(there.api) as second:
        for source in (first, second):
            await source.event("live")
        # when
        begun = time.monotonic()
        started = await many_at_once([nodes[place % 2].api.start for place in range(200)], limit=20)
        started_ids = [generation["id"] for generation in started]
        for source in (first, second):
            left = set(started_ids)
            while left:
                left.discard((await source.event("ended")).json()["generation_id"])
        print(f"200 generations in {time.monotonic() - begun:.1f} s")
    # then
    await settled(upstream, here.api, there.api)
    log = await written(valkey)
    assert {id: happened(log)[id] for id in started_ids} == dict.fromkeys(started_ids, WHOLE)
    assert contiguous(log)
    assert event_id(log[0].last_event_id)[1] == 0
    for node in nodes:
        assert await kept(node.api) == log
    for source in (first, second):
        assert source.received == log[: len(source.received)]
        assert len(source.received) >= 600


async def test_generations_that_are_cancelled_and_deleted_under_load_take_nothing_of_the_others_along(
    make_node, valkey, upstream
):
    # given two nodes that start generations, cancel some, and delete others, all at once
    nodes = await asyncio.gather(make_node(), make_node())
    fate: dict[str, str] = {}

    async def live_and_die(place: int) -> None:
        api, other = (node.api for node in (nodes if place % 2 else nodes[::-1]))
        id = (await api.start({"model": "test-model", "prompt": str(place)}))["id"]
        if place % 3 == 0:
            fate[id] = "kept"
            await api.ended(id)
        elif place % 3 == 1:
            fate[id] = "deleted here" if place % 2 else "deleted elsewhere"
            await api.ended(id)
            answer = await (api if place % 2 else other).delete(f"/generations/{id}")
            assert answer.status == 204, answer
        else:
            fate[id] = "cancelled"
            answer = await other.post(f"/generations/{id}/cancel")
            assert answer.status == 200, answer

    async def script(call: Call) -> None:
        await call.say("a")
        if int(call.request["messages"][0]["content"]) % 3 != 2:
            await call.finish()

    upstream.script = script
    # when
    await many_at_once([lambda place=place: live_and_die(place) for place in range(300)], limit=40)
    # then
    await settled(upstream, *(node.api for node in nodes))
    told = happened(await written(valkey))
    wrong = {}
    for id, what in fate.items():
        life = [name for name in told.get(id, []) if what != "cancelled" or name != "first_token"]
        if life != {"kept": WHOLE, "cancelled": ["created", "ended"]}.get(what, []):
            wrong[id] = (what, life)
    assert wrong == {}


# Lost replies.


@pytest.mark.parametrize(
    ("lost", "begun", "others"),
    [("reply", False, True), ("reply", True, False), ("request", True, True)],
    ids=["reply to its first, others go on", "reply", "request, others go on"],
)
async def test_event_whose_append_is_lost_or_whose_reply_is_told_once(
    make_node, valkey, upstream, activity_wire, lost, begun, others
):
    # given a node that has told something before, or has not
    faulty, other = await asyncio.gather(make_node(valkey_url=activity_wire.url, **PATIENT), make_node(**PATIENT))
    await opened(faulty.api, other.api)
    upstream.script = say("a")
    if begun:
        await faulty.api.run()
        await settled(upstream, faulty.api)
    # when what it tells next is lost on its way there, or back
    (activity_wire.hold_reply_of_next_append if lost == "reply" else activity_wire.hold_next_append)()
    id = "watched"
    starting = asyncio.create_task(
        faulty.api.post("/generations", {"model": "test-model", "prompt": "Hi", "replay": {"id": id}})
    )
    if lost == "reply":
        await until_written(valkey, id, ["created"])
    else:
        await activity_wire.request_held()
    await activity_wire.lose_what_is_held()
    between = [await other.api.run() for _ in range(2)] if others else []
    for each in between:
        await until_written(valkey, each, WHOLE)
    await activity_wire.accept()
    # then all of it is told, once
    assert (await starting).status in (201, 503)
    await other.api.ended(id)
    await until_written(valkey, id, ["created"])
    await settled(upstream, faulty.api, other.api)
    log = await written(valkey)
    assert {each: happened(log)[each] for each in (id, *between)} == dict.fromkeys((id, *between), WHOLE)
    assert contiguous(log)
    assert await kept(faulty.api) == await kept(other.api) == log


@pytest.mark.slow
async def test_connection_that_is_lost_again_and_again_doubles_nothing_and_loses_nothing(
    make_node, valkey, valkey_proxy, upstream
):
    # given a node whose connections to Valkey end after any number of bytes, and one that is left alone
    faulty = await make_node(**PATIENT)
    steady = await make_node(valkey_url=valkey.url, **PATIENT)
    upstream.script = say("a", "b")
    chance = random.Random(4)

    async def start(place: int) -> str:
        """Ask until it has been started, and has ended."""
        api, id = (faulty, steady)[place % 2].api, f"storm-{place}"
        body = {"model": "test-model", "prompt": "Hi", "replay": {"id": id}}

        async def attempt() -> bool:
            # A start that nobody could confirm may stand for a moment, and be taken back.
            if (await steady.api.get(f"/generations/{id}")).status == 404:
                await api.post("/generations", body)
            answer = await steady.api.get(f"/generations/{id}")
            return answer.status == 200 and answer.json()["status"] == "completed"

        await eventually(f"the end of {id}", attempt, seconds=60)
        return id

    async with follow(faulty.api) as first, follow(steady.api) as second:
        await first.event("live")
        await second.event("live")
        # when
        starting = asyncio.create_task(many_at_once([lambda n=n: start(n) for n in range(120)], limit=4))
        cuts = 0
        while not starting.done():
            # To connect takes over 3 kB of them: often it goes no further, and often enough it does.
            valkey_proxy.cut_replies_after(chance.randrange(1, 12_000))
            cut = asyncio.create_task(valkey_proxy.reply_cut(30))
            await asyncio.wait((cut, starting), return_when=asyncio.FIRST_COMPLETED)
            cuts += cut.done()
            cut.cancel()
            await asyncio.gather(cut, return_exceptions=True)
        valkey_proxy.cut_replies_after(1 << 40)
        started = await starting
        await settled(upstream, faulty.api, steady.api)
        # then
        log = await written(valkey)
        assert {id: happened(log).get(id) for id in started} == dict.fromkeys(started, WHOLE)
        assert contiguous(log)
        assert cuts > 30
        for source in (first, second):
            while ids(source.received)[-1:] != ids(log)[-1:]:
                await source.next()
            assert source.received == log
