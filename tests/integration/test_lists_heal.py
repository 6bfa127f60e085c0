"""What leads to a log comes back as the log does: the claim of its key, the list of live ones, the list of all."""

from __future__ import annotations

import asyncio

import pytest
from support.api import assert_problem, text_of
from support.deadlines import eventually
from support.logs import assert_whole
from support.upstream import say

BODY = {"model": "m", "prompt": "Hi"}
KEY = {"Idempotency-Key": "k"}


async def start_again(api, body=BODY):
    """The answer to the same call, as soon as there is one."""
    return await eventually(
        "an answer", lambda: api.post("/generations", body, KEY), lambda answer: answer.status != 503
    )


@pytest.mark.parametrize("ended", [False, True])
async def test_a_key_is_used_once_also_when_valkey_forgets_the_last_second(make_node, valkey, upstream, ended):
    # given a generation that was started with a key in the second that a crash takes away
    here, there = await make_node(), await make_node()
    snapshot = valkey.snapshot()
    first = await here.api.post("/generations", BODY, KEY)
    assert first.status == 201
    call = await upstream.called()
    await call.say("a ")
    if ended:
        await call.finish()
        await here.api.ended(first.json()["id"])

    # when its caller tries again at once, on either node
    valkey.restore(snapshot)
    for node in (there, here):
        again = await start_again(node.api)
        assert (again.status, again.json()["id"]) == (200, first.json()["id"])

    # then the upstream was called once, and the key is still that of this request
    assert_problem(await start_again(there.api, {"model": "m", "prompt": "Something else"}), 422)
    if not ended:
        await call.say("b")
        await call.finish()
    await there.api.ended(first.json()["id"])
    log = await there.api.log(first.json()["id"])
    assert text_of(log) == ("a " if ended else "a b")
    assert_whole(log)
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("lost", ["all of it", "the second start"])
async def test_a_key_that_began_anew_leads_to_the_same_when_valkey_forgets_the_last_second(
    make_node, valkey, upstream, lost
):
    # given a key that began anew in the second that a crash takes away
    here, there = await make_node(), await make_node()
    snapshot = valkey.snapshot()

    async def break_off(call):
        await call.say("a word")
        await call.cut()

    upstream.script = break_off
    failed = (await here.api.post("/generations", BODY, KEY)).json()["id"]
    await here.api.ended(failed)
    if lost == "the second start":
        snapshot = valkey.snapshot()
    upstream.script = None
    again = (await here.api.post("/generations", BODY, KEY)).json()["id"]
    call = await upstream.called()
    await call.say("a ")

    # when its caller tries once more, on either node
    valkey.restore(snapshot)
    for node in (there, here):
        answer = await start_again(node.api)
        assert (answer.status, answer.json()["id"]) == (200, again)
    await call.finish()
    assert (await there.api.ended(again))["status"] == "completed"
    assert len(upstream.calls) == 2


async def test_new_keys_work_again_a_moment_after_valkey_was_away(make_node, valkey, upstream):
    upstream.script = say("a")
    node = await make_node()
    valkey.restart()
    answer = await start_again(node.api)
    assert answer.status == 201


LOSSES = {
    "everything": ("FLUSHALL",),
    "the list of live ones": ("DEL", "replay:live"),
    "both lists": ("DEL", "replay:live", "replay:recent"),
    "the lists, and the nodes": ("DEL", "replay:live", "replay:recent", "replay:nodes"),
}


@pytest.mark.parametrize(
    "loss", ["everything", *(pytest.param(loss, marks=pytest.mark.slow) for loss in list(LOSSES)[1:])]
)
@pytest.mark.parametrize("speaks", [True, False], ids=["it speaks on", "it is silent"])
async def test_nobody_waits_for_ever_for_a_node_that_died_after_the_lists_were_lost(
    make_node, valkey, upstream, loss, speaks
):
    # given a reader on one node of what another produces
    here, there = await make_node(), await make_node()
    id = (await here.api.start())["id"]
    call = await upstream.called()
    await call.say("a ")
    async with there.api.source(id) as source:
        await source.event("token")

        # when Valkey loses what leads there, and then the producing node dies
        async with valkey.client() as client:
            await client.execute_command(*LOSSES[loss])
            if loss == "everything":  # which its node repairs
                if speaks:
                    await call.say("b ")
                await eventually("the log", lambda: client.exists(f"replay:{{{id}}}:events"), bool)
                await eventually("the list", lambda: client.hexists("replay:live", id), bool)
        here.kill()

        # then its reader is told
        end = (await source.event("end")).json()
        assert (end["status"], end["error"]["code"]) == ("interrupted", "node_lost")
        assert_whole(source.received)
    assert (await there.api.generation(id))["status"] == "interrupted"


async def test_a_generation_is_listed_again_when_its_log_is_put_back(make_node, valkey, upstream):
    node = await make_node()
    id = (await node.api.start(headers=KEY))["id"]
    call = await upstream.called()
    await call.say("a ")
    await node.api.has(id, 2)
    async with valkey.client() as client:
        await client.flushall()
    await call.say("b")

    async def listed():
        return [generation["id"] for generation in (await node.api.get("/generations")).json()["generations"]]

    await eventually("the list", listed, lambda ids: ids == [id])
    await eventually(
        "the live ones", lambda: node.api.get("/generations", status="streaming"), lambda a: id in a.body.decode()
    )
    again = await node.api.post("/generations", {"prompt": "Hi", "model": "test-model"}, KEY)
    assert (again.status, again.json()["id"]) == (200, id)
    await call.finish()
    await node.api.ended(id)
    assert len(upstream.calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["FLUSHALL", "DEL"])
async def test_a_node_that_lives_is_not_taken_for_dead_when_valkey_loses_all_leases(make_node, valkey, upstream, loss):
    # given a generation on one node, read on another, with leases that are looked at more often than they are renewed
    here, there = await make_node(lease_s=6), await make_node(lease_s=6)
    await asyncio.sleep(6)  # both are trusted to know who lives
    id = (await here.api.start())["id"]
    call = await upstream.called()
    async with there.api.source(id) as source:
        await call.say("a ")
        await source.event("token")

        # when all leases are lost without a connection being cut, again and again
        async with valkey.client() as client:

            async def leases() -> list[bytes]:
                return [key async for key in client.scan_iter("replay:node:*")]

            for turn in range(3):
                written = await eventually("the leases", leases, lambda keys: len(keys) == 2)
                await client.execute_command(*(["FLUSHALL"] if loss == "FLUSHALL" else ["DEL", *written]))
                await call.say(f"{turn} ")
            await eventually("the leases", leases, lambda keys: len(keys) == 2)

        # then nothing is ended for it
        await call.finish()
        assert (await source.event("end")).json()["status"] == "completed"
        assert text_of(source.received) == "a 0 1 2 "
        assert_whole(source.received)


@pytest.mark.parametrize("link", ["channels", "appends"])
async def test_a_connection_that_comes_and_goes_keeps_no_dead_node_alive(make_node, valkey, upstream, link):
    here, there = await make_node(), await make_node()
    id = (await here.api.start())["id"]
    await upstream.called()
    here.kill()

    async def cut_again() -> None:
        async with valkey.client() as client:
            while True:
                for connection in await client.client_list():
                    if connection["name"] == f"replay-{link}":
                        await client.client_kill_filter(_id=connection["id"])
                await asyncio.sleep(0.7)

    cutting = asyncio.create_task(cut_again())
    try:
        assert (await there.api.ended(id))["status"] == "interrupted"
    finally:
        cutting.cancel()
