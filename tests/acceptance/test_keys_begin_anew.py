"""A key whose generation failed or was interrupted leads to a new one with the next call; any other stays."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from support.api import Api, assert_problem, text_of
from support.http1 import Answer
from support.upstream import generate, say
from support.v1 import CALLS, CHAT, CHAT_PATH, id_of

EVERYWHERE = {
    "generations": ("/generations", CHAT),
    "a streamed chat": (CHAT_PATH, CHAT | {"stream": True}),
    **CALLS,
}


async def break_off(call):
    await call.say("a word")
    await call.cut()


def previous_of(answer: Answer) -> str | None:
    return answer.headers.get("replay-previous-generation-id")


async def fail(api: Api, upstream, key, path="/generations", body=CHAT) -> str:
    """The id of what the key leads to, when it has failed."""
    upstream.script = break_off
    id = id_of(await api.post(path, body, key))
    assert (await api.ended(id))["status"] == "failed"
    upstream.script = None
    return id


@pytest.mark.parametrize("name", EVERYWHERE)
async def test_a_key_whose_generation_failed_begins_anew(service, other_service, upstream, key, name):
    # given a key whose generation has failed after its first word
    path, body = EVERYWHERE[name]
    failed = await fail(service, upstream, key, path, body)

    # when it is used again, on any node
    upstream.script = say("all ", "of it")
    again = await other_service.post(path, body, key)

    # then that is a new generation, the old one is named, and is still what it was
    assert again.status in (200, 201)
    assert id_of(again) != failed
    assert previous_of(again) == failed
    assert (await service.ended(id_of(again)))["status"] == "completed"
    assert text_of(await service.log(id_of(again))) == "all of it"
    assert text_of(await other_service.log(failed)) == "a word"
    assert (await service.generation(failed))["status"] == "failed"

    # and that one, which has completed, stays
    for api in (service, other_service):
        answer = await api.post(path, body, key)
        assert (answer.status, id_of(answer), previous_of(answer)) == (200, id_of(again), failed)
    assert len(upstream.calls) == 2


async def test_a_key_begins_anew_as_often_as_it_fails(service, upstream, key):
    ids = [await fail(service, upstream, key) for _ in range(3)]
    upstream.script = say("a")
    last = await service.post("/generations", CHAT, key)
    assert last.status == 201
    assert previous_of(last) == ids[-1]
    assert len({*ids, id_of(last)}) == 4


async def test_of_many_callers_one_starts_anew_and_all_get_it(service, other_service, upstream, key):
    failed = await fail(service, upstream, key)
    upstream.script = generate(20, per_second=100)
    answers = await asyncio.gather(*(api.post("/generations", CHAT, key) for api in [service, other_service] * 8))
    assert sorted(answer.status for answer in answers) == [200] * 15 + [201]
    assert {previous_of(answer) for answer in answers} == {failed}
    (id,) = {answer.json()["id"] for answer in answers}
    assert (await service.ended(id))["status"] == "completed"
    assert len(upstream.calls) == 2


async def test_a_key_whose_node_died_begins_anew(make_node, upstream, key):
    # given a generation whose node is killed
    here, there = await make_node(), await make_node()
    lost = id_of(await here.api.post("/generations", CHAT, key))
    call = await upstream.called()
    await call.say("a")
    await here.api.has(lost, 2)
    here.kill()

    # when another node has noticed, then the key starts another one there
    assert (await there.api.ended(lost))["status"] == "interrupted"
    upstream.script = say("b")
    again = await there.api.post("/generations", CHAT, key)
    assert (again.status, previous_of(again)) == (201, lost)
    await there.api.ended(id_of(again))
    assert text_of(await there.api.log(id_of(again))) == "b"


async def test_a_key_whose_generation_was_cancelled_stays(service, other_service, upstream, key):
    first = id_of(await service.post("/generations", CHAT, key))
    await upstream.called()
    await service.post(f"/generations/{first}/cancel")
    for api in (service, other_service):
        again = await api.post("/generations", CHAT, key)
        assert (again.status, again.json()["id"], previous_of(again)) == (200, first, None)
    assert len(upstream.calls) == 1


async def test_another_body_has_no_part_in_a_key_that_failed(service, upstream, key):
    failed = await fail(service, upstream, key)
    assert_problem(await service.post("/generations", CHAT | {"seed": 1}, key), 422, "idempotency_key_reused")
    upstream.script = say("a")
    assert previous_of(await service.post("/generations", CHAT, key)) == failed


async def test_a_chosen_id_stays_that_of_the_first(service, upstream, key):
    # given a failed generation with an id that its caller chose
    chosen = f"chosen-{uuid.uuid4()}"
    body = CHAT | {"replay": {"id": chosen}}
    assert await fail(service, upstream, key, body=body) == chosen

    # then the next one has another
    upstream.script = say("a")
    again = await service.post("/generations", body, key)
    assert (again.status, previous_of(again)) == (201, chosen)
    assert id_of(again) != chosen
    assert (await service.generation(chosen))["status"] == "failed"


async def test_deleting_the_failed_one_leaves_the_key_where_it_leads(service, other_service, upstream, key):
    failed = await fail(service, upstream, key)
    upstream.script = say("a")
    again = await service.post("/generations", CHAT, key)
    assert (await other_service.delete(f"/generations/{failed}")).status == 204
    assert id_of(await other_service.post("/generations", CHAT, key)) == id_of(again)

    # and deleting the one where it leads makes it new
    await service.ended(id_of(again))
    assert (await other_service.delete(f"/generations/{id_of(again)}")).status == 204
    new = await service.post("/generations", CHAT, key)
    assert (new.status, previous_of(new)) == (201, None)


async def test_a_whole_answer_that_failed_may_be_asked_for_again_with_its_key(service, upstream, key):
    # given a client that asks again after a 5xx, unless it is told not to
    upstream.script = break_off
    refused = await service.post(CHAT_PATH, CHAT, key)
    assert (refused.status, refused.json()["error"]["code"]) == (502, "upstream_truncated")
    assert "x-should-retry" not in refused.headers
    assert (await service.generation(id_of(refused)))["status"] == "failed"
