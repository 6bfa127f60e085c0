"""What `/v1` has refused before its first byte leaves nothing behind; what has begun, stays."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from support.api import Api, assert_problem
from support.deadlines import eventually
from support.logs import expiries
from support.sse import streaming
from support.upstream import say
from support.v1 import CALLS, ERROR, id_of, streamed_or_whole


def refuse(call):
    return call.respond(429, ERROR)


def hang_up(call):
    return call.cut()


def say_nothing(call):
    return call.done()


@pytest.fixture
def generation_id() -> str:
    return f"chosen-{uuid.uuid4().hex}"


@streamed_or_whole
@pytest.mark.parametrize("refusal", [refuse, hang_up, say_nothing])
@pytest.mark.parametrize("name", CALLS)
async def test_a_refused_call_leaves_nothing(service, other_service, upstream, generation_id, name, refusal, stream):
    # given a call with an id of its own that the upstream refuses
    path, body = CALLS[name]
    upstream.script = refusal
    body = body | {"stream": stream, "replay": {"id": generation_id}}
    answer = await service.post(path, body)
    assert answer.status in (429, 502), answer
    assert not {"replay-generation-id", "link"} & answer.headers.keys()

    # then nobody finds anything of it, on either node
    for api in (service, other_service):
        assert_problem(await api.get(f"/generations/{generation_id}"), 404, "generation_not_found")
        assert generation_id.encode() not in (await api.get("/generations", limit=1000)).body
        await eventually(
            "the activity", lambda api=api: activity_of(api), lambda body: generation_id.encode() not in body
        )

    # and its id is free for the next try
    upstream.script = say("a")
    again = await other_service.post(path, body)
    assert (again.status, id_of(again)) == (200, generation_id)
    assert (await service.ended(generation_id))["status"] == "completed"


async def activity_of(api: Api) -> bytes:
    async with streaming(api.at("/feed", after="-1")) as stream:
        return await stream.until(b"event: live\n")


async def test_what_cannot_be_put_to_the_upstream_leaves_nothing(make_node, valkey, upstream, generation_id):
    # given an upstream that knows chat completions alone
    node = await make_node(upstream_responses="no")
    asked = {"tools": [{"type": "web_search"}], "tool_choice": "required"}
    body = {"model": "m", "input": "Hi", **asked, "replay": {"id": generation_id}}
    assert (await node.api.post("/v1/responses", body)).status == 400
    assert_problem(await node.api.get(f"/generations/{generation_id}"), 404)
    assert generation_id not in " ".join(await expiries(valkey))
    assert upstream.calls == []


@pytest.mark.parametrize("name", CALLS)
async def test_two_callers_with_one_key_are_both_told(service, other_service, upstream, name):
    # given two calls with the same key, before the upstream refuses
    path, body = CALLS[name]
    key = {"Idempotency-Key": uuid.uuid4().hex}
    calls = [asyncio.ensure_future(api.post(path, body, key)) for api in (service, other_service)]
    call = await upstream.called()
    await asyncio.sleep(0.2)
    await call.respond(429, ERROR)

    # then both know, and the key leads to a new one that all who come later share
    assert [answer.status for answer in await asyncio.gather(*calls)] == [429, 429]
    upstream.script = say("a")
    answers = [await api.post(path, body, key) for api in (service, other_service, service)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert len({id_of(answer) for answer in answers}) == 1
    assert len(upstream.calls) == 2


@pytest.mark.parametrize("name", ["chat", "a response"])
async def test_what_has_begun_stays(service, upstream, generation_id, name):
    path, body = CALLS[name]

    async def break_off(call):
        await call.say("a word")
        await call.cut()

    upstream.script = break_off
    await service.post(path, body | {"stream": False, "replay": {"id": generation_id}})
    generation = await service.ended(generation_id)
    assert (generation["status"], generation["error"]["code"]) == ("failed", "upstream_truncated")
    assert (await service.transcript(generation_id))["text"] == "a word"


async def test_what_was_started_at_generations_stays_though_it_is_refused(service, upstream, generation_id):
    upstream.script = refuse
    await service.start(id=generation_id)
    assert (await service.ended(generation_id))["error"]["code"] == "upstream_error"


async def test_who_is_told_late_takes_nothing_of_the_next_try_under_the_same_id(
    make_node, valkey, valkey_proxy, upstream, generation_id
):
    # given two calls with the same key and id, of which one is on a node that hears of the refusal late
    here, there = await make_node(valkey_url=valkey.url), await make_node(store_timeout_s=10)
    path, body = CALLS["chat"]
    body = body | {"stream": True, "replay": {"id": generation_id}}
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first = asyncio.create_task(here.api.post(path, body, key))
    call = await upstream.called()
    second = asyncio.create_task(there.api.post(path, body, key))
    await here.api.has_subscribers(generation_id, 2)
    valkey_proxy.hold_replies()
    await call.respond(429, ERROR)
    assert (await first).status == 429

    # when the first has been repeated, and is being answered
    again = asyncio.create_task(here.api.post(path, body, key))
    call = await upstream.called()
    await call.say("a")
    await here.api.has(generation_id, 2)
    valkey_proxy.release()
    assert (await second).status == 429

    # then that goes on to its end
    await call.finish()
    assert ((await again).status, (await again).clean) == (200, True)
    assert (await here.api.ended(generation_id))["status"] == "completed"


async def test_of_many_who_ask_again_all_get_one_answer(service, other_service, upstream):
    async def refuse_twice(call):
        await (refuse(call) if len(upstream.calls) % 3 else say("a", "b")(call))

    async def ask_until_answered(api: Api, body: dict[str, Any], key: dict[str, str]) -> str:
        while (answer := await api.post("/v1/chat/completions", body, key)).status != 200:
            assert answer.status in (429, 503), answer
        return id_of(answer)

    upstream.script = refuse_twice
    for attempt in range(20):
        body = CALLS["chat"][1] | {"stream": True}
        body |= {"replay": {"id": f"again-{uuid.uuid4().hex}"}} if attempt % 2 else {}
        key = {"Idempotency-Key": uuid.uuid4().hex}
        answers = await asyncio.gather(*(ask_until_answered(api, body, key) for api in (service, other_service) * 4))
        assert len(set(answers)) == 1
        assert len(upstream.calls) == 3 * (attempt + 1)
