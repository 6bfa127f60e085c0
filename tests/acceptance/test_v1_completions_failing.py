"""Completions that fail: an upstream that refuses, breaks off or is not there, and a service that cannot."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from support.ports import free_port
from support.upstream import say
from support.v1 import (
    CHAT,
    LEGACY,
    PROMPT_S,
    ask,
    asking,
    assert_broken_off,
    assert_refused,
    data_of,
    id_of,
    new_id,
    opening,
    streamed_or_whole,
    texts_of,
)

REFUSAL = {"error": {"message": "no", "type": "some_error", "param": None, "code": "some_code", "further": [1]}}
REFUSALS = {
    "json": ("application/json", json.dumps(REFUSAL).encode()),
    "another json": ("application/json; charset=utf-8", b'{ "detail" : "n\xc3\xb6" }\n'),
    "problem": ("application/problem+json", b'{"title": "no", "status": 400}'),
}
# What is no JSON would be a page of the service's own origin: its content type, its body, and what is said of it.
NO_JSON = {
    "html": ("text/html; charset=utf-8", "<h1>nö</h1>".encode(), "the upstream answered with text/html"),
    "json that is none": ("application/json", b"{no", "the upstream answered with application/json"),
    "more than is kept": ("application/json", b'"%b"' % (b"x" * (64 << 10)), "the upstream answered with application/"),
    "plain": ("text/plain", b"no\r\nthanks", "no thanks"),
    "latin": ("text/plain; charset=iso-8859-1", "nö".encode("iso-8859-1"), "nö"),
    "stream": ("text/event-stream", b'event: error\ndata: {"error": "no"}\n\ndata: [DONE]\n\n', "no"),
    "image": ("image/svg+xml", b"<svg onload='alert(1)'/>", "the upstream answered with image/svg+xml"),
    "empty": ("text/plain", b"", "the upstream answered without a word"),
}


@streamed_or_whole
@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_refusal_of_the_upstream_is_answered_as_it_came(service, upstream, kind, stream):
    content_type, body = REFUSALS[kind]
    headers = {"content-type": content_type, "retry-after": "7", "set-cookie": "a=b"}
    for status in (400, 401, 404, 409, 429, 500, 503):
        # given an upstream that refuses
        del upstream.calls[:]
        upstream.script = lambda call, status=status: call.respond(status, body, headers)

        # when it is called, then its client sees just that
        answer = await ask(service, stream=stream, seconds=PROMPT_S)
        assert (answer.status, answer.body, answer.clean) == (status, body, True)
        assert (answer.headers["content-type"], answer.headers["retry-after"]) == (content_type, "7")
        assert answer.headers["x-request-id"]
        assert "set-cookie" not in answer.headers

        assert len(upstream.calls) == 1


@streamed_or_whole
@pytest.mark.parametrize("kind", NO_JSON)
async def test_a_refusal_that_is_no_json_becomes_an_error_object(service, upstream, kind, stream):
    content_type, body, message = NO_JSON[kind]
    headers = {"content-type": content_type, "retry-after": "7"}
    for status, type in ((400, "invalid_request_error"), (429, "rate_limit_error"), (503, "server_error")):
        upstream.script = lambda call, status=status: call.respond(status, body, headers)
        answer = await ask(service, stream=stream, seconds=PROMPT_S)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
        assert answer.headers["retry-after"] == "7"
        error = answer.json()["error"]
        assert (error["type"], error["param"], error["code"]) == (type, None, "upstream_error")
        assert error["message"].startswith(message)


@streamed_or_whole
async def test_an_endless_refusal_is_read_no_further_than_it_is_kept(service, upstream, stream):
    # given an upstream whose error never ends
    async def endless(call):
        await call.answer(500, {"content-type": "application/json"})
        while True:
            await call.send_raw(b"x" * 10_000)

    upstream.script = endless

    # when it is called, then there is an answer, and it is let go
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 500, "upstream_error")
    await upstream.calls[0].hung_up()


@streamed_or_whole
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(service, upstream, stream, status):
    upstream.script = lambda call: call.respond(status, b"", {"location": call.path})
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 502, "upstream_error")
    assert f"HTTP {status}, a redirect" in answer.json()["error"]["message"]
    assert len(upstream.calls) == 1


async def test_the_service_does_not_try_again_since_the_clients_do(make_node, upstream):
    node = await make_node(upstream_retries=2)
    calls = itertools.product((408, 409, 429, 500, 503), (CHAT, LEGACY), (True, False))
    for status, body, stream in calls:
        del upstream.calls[:]
        upstream.script = lambda call, status=status: call.respond(status, REFUSAL)
        assert (await ask(node.api, body, stream=stream, seconds=PROMPT_S)).status == status
        assert len(upstream.calls) == 1


async def test_an_upstream_that_cannot_be_reached_is_a_502(make_node):
    node = await make_node(upstream_url=f"http://127.0.0.1:{free_port()}/v1", upstream_retries=2)
    for stream in (True, False):
        answer = await ask(node.api, stream=stream, seconds=PROMPT_S)
        assert_refused(answer, 502, "upstream_unreachable")
    assert_refused(await node.api.get("/v1/models"), 502, "upstream_unreachable")


@streamed_or_whole
async def test_an_upstream_that_hangs_up_before_it_answers_is_an_error(service, upstream, stream):
    upstream.script = lambda call: call.cut()
    assert_refused(await ask(service, stream=stream, seconds=PROMPT_S), 502)


@streamed_or_whole
async def test_a_page_instead_of_a_stream_is_a_502(service, upstream, stream):
    upstream.script = lambda call: call.respond(200, b"<html>Welcome</html>", {"content-type": "text/html"})
    assert_refused(await ask(service, stream=stream, seconds=PROMPT_S), 502, "upstream_invalid")


@streamed_or_whole
@pytest.mark.parametrize("error", [REFUSAL["error"], "no"], ids=["object", "string"])
async def test_an_error_that_is_all_of_a_stream_is_a_502(service, upstream, error, stream):
    async def script(call):
        await call.send({"error": error})
        await call.done()

    upstream.script = script
    answer = await ask(service, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 502)
    assert answer.json()["error"]["message"] == "no"


@pytest.mark.parametrize("error", [REFUSAL["error"], "no", {"message": "no", "type": None, "code": 500}])
async def test_an_error_in_mid_stream_is_brought_to_openais_shape(service, upstream, error):
    async def script(call):
        await call.say("partial")
        await call.send({"error": error})
        await call.send_raw(b"data: [DONE]\n\n")
        await call.done()

    upstream.script = script
    answer = await ask(service, stream=True)
    assert texts_of(assert_broken_off(answer, "no")) == ["partial"]
    told = data_of(answer)[-1]["error"]
    if isinstance(error, dict):
        assert (told["message"], told["code"]) == (error["message"], error["code"])


async def test_a_cancel_in_mid_stream_is_an_error_object_and_a_cut(service, other_service, upstream):
    # given a streamed call
    starting = opening(service)
    call = await upstream.called()
    await call.say("partial")
    stream = await starting
    await stream.until(b"partial")

    # when somebody cancels it elsewhere
    await other_service.post(f"/generations/{id_of(stream)}/cancel")

    # then its client is told in a way that it cannot take for the end
    assert texts_of(assert_broken_off(await stream.to_end(), code="cancelled")) == ["partial"]
    await call.hung_up()


async def test_a_cancel_before_the_first_word_is_a_409_for_good(service, upstream):
    id = new_id()
    starting = asyncio.create_task(ask(service, CHAT | {"replay": {"id": id}}, stream=True, seconds=PROMPT_S))
    await upstream.called()
    await service.post(f"/generations/{id}/cancel")
    answer = await starting
    assert_refused(answer, 409, "cancelled")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_list_of_models_that_is_refused_is_answered_as_it_came(service, upstream):
    upstream.models_refusal = (401, REFUSAL)
    for answer in (await service.get("/v1/models"), await service.get("/v1/models/test-model")):
        assert (answer.status, answer.json()) == (401, REFUSAL)


@streamed_or_whole
async def test_a_call_whose_model_has_to_be_asked_for_is_refused_as_that_is(make_node, upstream, stream):
    # given an upstream that does not know who asks
    node = await make_node()
    upstream.models_refusal = (401, REFUSAL)
    body = {"messages": CHAT["messages"]}

    # when no model is named, then its client sees the upstream's answer, and may ask again
    answer = await ask(node.api, body, stream=stream)
    assert (answer.status, answer.json()) == (401, REFUSAL)
    upstream.models_refusal = None
    upstream.script = say("a")
    assert (await ask(node.api, body, stream=stream)).status == 200


# The service fails, or has to refuse.


@pytest.mark.parametrize("wait", ["streamed", "before the first word", "whole"])
async def test_a_node_that_goes_away_says_that_it_was_not_the_end(make_node, upstream, wait):
    # given a call that is under way on a node
    node = await make_node()
    waiting = asking(node.api) if wait == "whole" else opening(node.api)
    call = await upstream.called()
    if wait == "streamed":
        await call.say("partial")
        stream = await waiting
        await stream.until(b"partial")

    # when that node is shut down, then its client is told, and may try elsewhere
    assert await node.stop() == 0
    if wait == "streamed":
        assert texts_of(assert_broken_off(await stream.to_end(), code="shutdown")) == ["partial"]
    else:
        answer = await waiting if wait == "whole" else await (await waiting).to_end()
        assert_refused(answer, 503)
        assert answer.headers.get("x-should-retry") != "false"


@streamed_or_whole
async def test_a_client_on_another_node_is_told_that_the_producing_one_is_lost(make_node, upstream, key, stream):
    # given a call that was made on two nodes, of which the first is killed
    producing, other = await make_node(), await make_node()
    starting = opening(producing.api, CHAT, key)
    call = await upstream.called()
    await call.say("partial")
    await starting
    waiting = opening(other.api, CHAT, key) if stream else asking(other.api, CHAT, key)
    if stream:
        await (await waiting).until(b"partial")
    producing.kill()

    # then the client of the second is told
    if stream:
        assert texts_of(assert_broken_off(await (await waiting).to_end(), code="node_lost")) == ["partial"]
    else:
        answer = await waiting
        assert_refused(answer, 503, "node_lost")
        assert "x-should-retry" not in answer.headers  # its key begins anew


async def test_a_call_while_valkey_is_away_is_a_503(node, valkey, upstream):
    valkey.kill()
    for stream in (True, False):
        answer = await ask(node.api, stream=stream)
        assert_refused(answer, 503, "store_unavailable")
        assert answer.headers["retry-after"]
    assert upstream.calls == []


async def test_a_node_with_too_many_generations_answers_429(make_node, upstream):
    node = await make_node(max_generations=1)
    waiting = asking(node.api)
    call = await upstream.called()
    for stream in (True, False):
        assert_refused(await ask(node.api, stream=stream), 429, "too_many_generations")
    await call.finish()
    assert (await waiting).status == 200


async def test_an_answer_that_is_too_long_is_not_worth_another_try(make_node, upstream):
    node = await make_node(max_generation_bytes=4000)
    upstream.script = say(*["x" * 500] * 20)
    answer = await ask(node.api)
    assert_refused(answer, 507, "limit_exceeded")
    assert answer.headers["x-should-retry"] == "false"
