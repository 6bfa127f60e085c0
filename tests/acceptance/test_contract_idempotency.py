"""The contract's `Idempotency-Key`: whoever asks again gets what the first call started."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from support.api import assert_problem
from support.sse import messages
from support.upstream import say
from support.v1 import CHAT


@pytest.mark.parametrize("ended", [False, True])
async def test_the_same_key_attaches_to_the_generation_on_any_node(service, other_service, upstream, key, ended):
    # given a generation that was started with a key, and runs or has ended
    first = await service.post("/generations", CHAT, key)
    assert first.status == 201
    id = first.json()["id"]
    service.started.append(id)
    call = await upstream.called()
    if ended:
        await call.finish()
        await service.ended(id)

    # when the call is made again, here and elsewhere, then it is answered with the same generation
    for api in (service, other_service, service):
        again = await api.post("/generations", CHAT, key)
        assert (again.status, again.json()["id"]) == (200, id)
    assert len(upstream.calls) == 1


async def test_the_same_key_attaches_from_the_beginning(service, other_service, upstream, key):
    # given a running generation that has spoken
    id = (await service.start(CHAT, headers=key))["id"]
    call = await upstream.called()
    await call.say("Hel")
    await service.has(id, 2)

    # when the call is made again for its events
    headers = {"Accept": "text/event-stream", **key}
    streams = [await api.open("/generations", CHAT, headers) for api in (service, other_service)]
    await call.say("lo")
    await call.finish()

    # then they come from the start to the end
    for stream in streams:
        answer = await stream.to_end()
        assert (answer.status, answer.clean) == (200, True)
        events = [event for event in messages(answer.body) if event.event != "live"]
        assert events == await service.log(id)
    assert len(upstream.calls) == 1


async def test_of_racing_calls_one_starts_and_all_get_it(service, other_service, upstream, key):
    upstream.script = say("Hi")
    answers = await asyncio.gather(*(api.post("/generations", CHAT, key) for api in [service, other_service] * 6))
    assert sorted(answer.status for answer in answers) == [200] * 11 + [201]
    (id,) = {answer.json()["id"] for answer in answers}
    await service.ended(id)
    assert len(upstream.calls) == 1


@pytest.mark.parametrize(
    "other",
    [CHAT | {"temperature": 1}, CHAT | {"model": "other-model"}, {"prompt": "Hi"}, CHAT | {"replay": {"ttl": 60}}],
)
async def test_the_same_key_with_another_body_is_a_422_problem(service, other_service, upstream, key, other):
    upstream.script = say("Hi")
    await service.ended((await service.start(CHAT, headers=key))["id"])
    for api in (service, other_service):
        assert_problem(await api.post("/generations", other, key), 422, "idempotency_key_reused")
    assert (await service.post("/generations", CHAT, key)).status == 200
    assert len(upstream.calls) == 1


async def test_another_key_and_no_key_start_another_generation(service, upstream, key):
    upstream.script = say("Hi")
    answers = [
        await service.post("/generations", CHAT, headers)
        for headers in (key, {"Idempotency-Key": f"{key['Idempotency-Key']}x"}, {}, {})
    ]
    assert [answer.status for answer in answers] == [201] * 4
    assert len({answer.json()["id"] for answer in answers}) == 4


async def test_a_chosen_id_is_no_conflict_for_the_same_key(service, upstream, key):
    upstream.script = say("Hi")
    body = CHAT | {"replay": {"id": f"chosen-{uuid.uuid4()}"}}
    assert (await service.post("/generations", body, key)).status == 201
    assert (await service.post("/generations", body, key)).status == 200
    assert (await service.post("/generations", body)).status == 409


async def test_a_key_is_remembered_for_its_retention(make_node, upstream, key):
    upstream.script = say("Hi")
    node = await make_node(idempotency_ttl_s=1)
    first = await node.api.post("/generations", CHAT, key)
    await asyncio.sleep(1.3)
    second = await node.api.post("/generations", CHAT, key)
    assert (first.status, second.status) == (201, 201)
    assert first.json()["id"] != second.json()["id"]


async def test_a_refused_request_does_not_use_up_the_key(service, upstream, key):
    upstream.script = say("Hi")
    assert_problem(await service.post("/generations", {"model": "test-model"}, key), 400)
    assert (await service.post("/generations", CHAT, key)).status == 201
