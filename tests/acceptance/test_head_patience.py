"""A streaming call is answered after `--head-patience-s`, whether or not the upstream has said a word by then."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest
from support.api import assert_problem
from support.upstream import say
from support.v1 import CALLS, CHAT, CHAT_PATH, ERROR, id_of

STREAMED = {name: (path, body | {"stream": True}) for name, (path, body) in CALLS.items()}
KEEPALIVE = b":k\n"


@pytest.fixture
async def impatient(make_node):
    return await make_node(head_patience_s=0.2, keepalive_s=0.2)


@pytest.mark.parametrize("name", STREAMED)
async def test_head_and_keepalives_come_though_the_upstream_is_silent(impatient, upstream, name):
    # given an upstream that has not even accepted
    stream = await impatient.api.open(*STREAMED[name])
    assert stream.status == 200
    assert stream.headers["content-type"].startswith("text/event-stream")
    call = await upstream.called()
    await stream.until(KEEPALIVE)
    await stream.until(KEEPALIVE)

    # when it speaks at last
    await call.say("Hello")
    await call.finish()

    # then it is an answer like any other
    answer = await stream.to_end()
    assert answer.clean
    assert b"Hello" in answer.body
    assert (await impatient.api.ended(id_of(answer)))["status"] == "completed"


@pytest.mark.parametrize("name", STREAMED)
async def test_a_refusal_that_comes_later_stands_in_the_stream(impatient, upstream, name):
    stream = await impatient.api.open(*STREAMED[name])
    call = await upstream.called()
    await call.respond(429, ERROR)
    answer = await stream.to_end()
    if name == "a response":
        assert answer.clean
        assert b"event: response.failed\n" in answer.body
    else:
        told = json.loads(answer.body.rpartition(b"data: ")[2].partition(b"\n")[0])
        assert told == {"error": ERROR["error"] | {"message": "HTTP 429: slow down"}}
        assert answer.clean == (name == "a prompt")  # which has an id to come back with
    assert b"slow down" in answer.body

    # and who was told of it finds it
    generation = await impatient.api.generation(id_of(answer))
    assert (generation["status"], generation["error"]["code"]) == ("failed", "upstream_error")


@pytest.mark.parametrize("name", STREAMED)
async def test_a_refusal_in_time_keeps_its_status(service, upstream, name):
    upstream.script = lambda call: call.respond(429, ERROR)
    answer = await service.post(*STREAMED[name])
    assert (answer.status, answer.json()) == (429, ERROR)


async def test_what_one_caller_was_told_of_is_not_removed_for_another(impatient, upstream):
    # given a call that has its head, and one with the same key that waits for the whole
    path, body = STREAMED["chat"]
    key = {"Idempotency-Key": uuid.uuid4().hex}
    stream = await impatient.api.open(path, body, key)
    call = await upstream.called()
    whole = asyncio.ensure_future(impatient.api.post(path, CHAT, key))
    id = id_of(stream)
    await impatient.api.has_subscribers(id, 2)

    # when the upstream refuses
    await call.respond(429, ERROR)
    assert (await whole).status == 429
    assert b"slow down" in (await stream.to_end()).body
    assert (await impatient.api.generation(id))["status"] == "failed"


async def test_a_whole_answer_that_is_refused_late_leaves_nothing_all_the_same(impatient, upstream):
    id = f"chosen-{uuid.uuid4().hex}"
    body = CHAT | {"replay": {"id": id}}
    whole = asyncio.ensure_future(impatient.api.post(CHAT_PATH, body))
    call = await upstream.called()
    await asyncio.sleep(0.3)  # longer than anybody waits for a head
    await call.respond(429, ERROR)
    assert (await whole).status == 429
    assert_problem(await impatient.api.get(f"/generations/{id}"), 404)
    upstream.script = say("a")
    assert (await impatient.api.post(CHAT_PATH, body)).status == 200


async def test_without_patience_the_head_comes_at_once(make_node, upstream):
    node = await make_node(head_patience_s=0, keepalive_s=60)
    stream = await node.api.open(*STREAMED["chat"])
    call = await upstream.called()
    await call.say("a")
    await stream.until(b'"a"')
    await call.finish()
    assert (await stream.to_end()).clean


@pytest.mark.slow
async def test_the_default_is_shorter_than_what_clients_wait(make_node, upstream):
    node = await make_node(keepalive_s=60)
    asking = asyncio.ensure_future(node.api.open(*STREAMED["chat"], seconds=20))
    call = await upstream.called()
    stream = await asking
    assert stream.status == 200
    await call.finish()
    await stream.to_end()
