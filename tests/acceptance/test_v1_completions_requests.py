"""Requests for a completion: those that cannot be, what they say to us, and the `Idempotency-Key`."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from support.deadlines import stays_silent
from support.http1 import request
from support.upstream import USAGE, say
from support.v1 import (
    CHAT,
    CHAT_PATH,
    ERROR,
    LEGACY,
    PROMPT_S,
    ask,
    asking,
    assert_refused,
    data_of,
    id_of,
    new_id,
    opened,
    opening,
    streamed_or_whole,
    texts_of,
)

# Requests that cannot be.


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/nowhere"), ("POST", "/v1/nowhere"), ("GET", "/v1/"), ("POST", "/v1/chat/completions/x/y/z")],
)
async def test_an_unknown_path_is_a_404(service, method, path):
    assert_refused(await request(method, service.at(path)), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", CHAT_PATH, {"GET", "POST"}),
        ("DELETE", CHAT_PATH, {"GET", "POST"}),
        ("GET", "/v1/completions", {"POST"}),
        ("POST", "/v1/models", {"GET"}),
        ("PUT", f"{CHAT_PATH}/gen_x", {"GET", "DELETE"}),
    ],
)
async def test_a_wrong_method_is_a_405_that_says_the_right_ones(service, method, path, allowed):
    answer = await request(method, service.at(path), body=b"{}" if method != "GET" else None)
    assert_refused(answer, 405)
    assert allowed <= set(answer.headers["allow"].split(", "))


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/completions"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'"x"', b"null", b"\xff{}", b"{}", b'{"a":NaN}', b"[" * 5000])
async def test_a_body_that_is_no_request_is_a_400(service, upstream, path, body):
    answer = await service.post(path, headers={"Content-Type": "application/json"}, body=body)
    assert_refused(answer, 400, "invalid_request")
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert upstream.calls == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": "x"},
        {"messages": []},
        {"messages": ["x"]},
        {"model": 7},
        {"model": ""},
        {"stream": "true"},
        {"stream": 1},
        {"replay": 7},
        {"replay": {"id": "a b"}},
        {"replay": {"id": ""}},
        {"replay": {"id": "x" * 129}},
        {"replay": {"ttl": "x"}},
        {"replay": {"ttl": -1}},
        {"replay": {"ttl": True}},
        {"replay": {"abandon_after": "x"}},
        {"replay": {"metadata": 7}},
        {"replay": {"metadata": {"x": "x" * 20_000}}},
        {"replay": {"unheard_of": 1}},
    ],
    ids=lambda wrong: json.dumps(wrong)[:40],
)
async def test_members_of_the_wrong_kind_are_a_400(service, upstream, wrong):
    answer = await service.post(CHAT_PATH, CHAT | wrong)
    assert_refused(answer, 400, "invalid_request")
    said = answer.json()["error"]["message"]
    assert next(iter(wrong)) in said or "generation id" in said
    assert upstream.calls == []


@pytest.mark.parametrize("prompt", [None, 7, {}])
async def test_a_legacy_prompt_of_the_wrong_kind_is_a_400(service, upstream, prompt):
    assert_refused(await service.post("/v1/completions", {"model": "m", "prompt": prompt}), 400, "invalid_request")
    assert upstream.calls == []


@pytest.mark.parametrize("prompt", ["Hi", ["Hi", "Ho"], [1, 2, 3], [[1], [2]]])
async def test_a_legacy_prompt_is_passed_on_as_it_is(service, upstream, prompt):
    upstream.script = say("a")
    assert (await ask(service, {"model": "test-model", "prompt": prompt, "echo": False})).status == 200
    (call,) = upstream.calls
    assert call.legacy
    assert (call.request["prompt"], call.request["echo"]) == (prompt, False)


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/completions"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_a_413(service, upstream, path, chunked):
    body = json.dumps(CHAT | LEGACY | {"user": "x" * (8 << 20)}).encode()
    headers = {"Content-Type": "application/json"}
    if chunked:
        headers["Transfer-Encoding"] = "chunked"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    assert_refused(await service.post(path, headers=headers, body=body), 413, "body_too_large")
    assert upstream.calls == []


async def test_a_page_of_another_site_may_not_start_anything(service, upstream):
    answer = await service.post(CHAT_PATH, CHAT, {"Sec-Fetch-Site": "cross-site"})
    assert_refused(answer, 403, "cross_site_request")
    assert upstream.calls == []


# What the body says to us.


async def test_replay_options_are_ours_and_all_else_is_the_upstreams(service, upstream):
    # given a request with parameters of every kind, and our own
    id = new_id()
    parameters = {
        "temperature": 0.5,
        "stop": ["a", "b"],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "store": True,
        "logit_bias": {"1": -100},
        "x_vendor": {"nested": [1, None, "é", 12345678901234567890123]},
    }
    waiting = asking(service, CHAT | parameters | {"replay": {"id": id, "ttl": 600, "metadata": {"k": ["v"]}}})

    # then the upstream gets its own
    call = await upstream.called()
    assert "replay" not in call.request
    assert {name: call.request[name] for name in CHAT | parameters} == CHAT | parameters
    assert "metadata" not in call.request

    # and the generation has ours
    await call.say("a")
    await call.finish()
    assert id_of(await waiting) == id
    generation = await service.generation(id)
    assert generation["metadata"] == {"k": ["v"]}
    assert generation["expires_at"] == pytest.approx(generation["ended"] + 600, abs=2)


@streamed_or_whole
async def test_abandon_after_is_obeyed_once_its_client_has_left(service, upstream, stream):
    id = new_id()
    body = CHAT | {"replay": {"id": id, "abandon_after": 0.3}}
    waiting = opening(service, body) if stream else asking(service, body)
    call = await upstream.called()
    await call.say("a")
    if stream:
        (await waiting).hang_up()
    else:
        waiting.cancel()
    generation = await service.ended(id)
    assert (generation["status"], generation["error"]["code"]) == ("cancelled", "abandoned")
    await call.hung_up()


@streamed_or_whole
async def test_a_taken_id_is_a_409_for_good(service, other_service, upstream, stream):
    upstream.script = say("a")
    id = await service.run()
    for api in (service, other_service):
        answer = await ask(api, CHAT | {"replay": {"id": id}}, stream=stream)
        assert_refused(answer, 409, "generation_exists")
        assert answer.headers["x-should-retry"] == "false"
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("body", [CHAT, LEGACY], ids=["chat", "legacy"])
async def test_openais_metadata_goes_upstream_and_is_the_generations(service, upstream, body):
    upstream.script = say("a")
    answer = await ask(service, body | {"metadata": {"user": "u1"}})
    assert upstream.calls[0].request["metadata"] == {"user": "u1"}
    assert (await service.generation(id_of(answer)))["metadata"] == {"user": "u1"}


async def test_our_metadata_stands_before_openais(service, upstream):
    upstream.script = say("a")
    answer = await ask(service, CHAT | {"metadata": {"a": "1"}, "replay": {"metadata": {"b": 2}}})
    assert upstream.calls[0].request["metadata"] == {"a": "1"}
    assert (await service.generation(id_of(answer)))["metadata"] == {"b": 2}


async def test_without_a_model_the_first_of_the_upstream_is_taken(service, upstream):
    upstream.script = say("a")
    answer = await ask(service, {"messages": CHAT["messages"]})
    assert upstream.calls[0].request["model"] == answer.json()["model"] == "test-model"


# Idempotency-Key.


@streamed_or_whole
async def test_the_same_key_gives_the_same_answer_when_it_is_over(service, other_service, upstream, key, stream):
    upstream.script = say("Hel", "lo", usage=USAGE)
    first = await ask(service, CHAT, key, stream=stream)
    for api in (service, other_service):
        again = await ask(api, CHAT, key, stream=stream)
        assert (again.status, again.clean, id_of(again)) == (200, True, id_of(first))
        assert again.body == first.body
    assert len(upstream.calls) == 1


async def test_the_same_key_streams_from_the_first_byte_while_it_runs(service, other_service, upstream, key):
    # given a streamed call that has said something
    starting = opening(service, CHAT, key)
    call = await upstream.called()
    await call.say("Hel")
    streams = [await starting]
    await streams[0].until(b"Hel")

    # when it is made again, here and elsewhere, and goes on
    streams += [await opened(api, CHAT, key) for api in (service, other_service)]
    for stream in streams:
        await stream.until(b"Hel")
    await call.say("lo")
    await call.finish()

    # then all of them get all of it
    answers = [await stream.to_end() for stream in streams]
    assert len({id_of(answer) for answer in answers}) == 1
    for answer in answers:
        assert answer.clean
        assert texts_of(data_of(answer)) == ["Hel", "lo"]
        assert data_of(answer) == data_of(answers[0])
    assert len(upstream.calls) == 1


async def test_the_same_key_waits_for_the_same_whole_while_it_runs(service, other_service, upstream, key):
    waiting = [asking(service, CHAT, key)]
    call = await upstream.called()
    await call.say("Hel")
    waiting += [asking(api, CHAT, key) for api in (service, other_service)]
    assert await stays_silent(waiting[1])
    assert not waiting[2].done()
    await call.say("lo")
    await call.finish()
    answers = [await task for task in waiting]
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].json()["choices"][0]["message"]["content"] == "Hello"
    assert len(upstream.calls) == 1


@streamed_or_whole
async def test_of_racing_calls_one_starts_and_all_get_its_answer(service, other_service, upstream, key, stream):
    upstream.script = say("a", "b")
    racing = [ask(api, CHAT, key, stream=stream) for api in [service, other_service] * 4]
    answers = await asyncio.gather(*racing)
    assert {answer.status for answer in answers} == {200}
    assert len({id_of(answer) for answer in answers}) == 1
    assert len({json.dumps(data_of(answer) if stream else answer.json()) for answer in answers}) == 1
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("other", [CHAT | {"temperature": 1}, CHAT | {"replay": {"ttl": 60}}, LEGACY])
async def test_the_same_key_with_another_body_is_a_422(service, other_service, upstream, key, other):
    upstream.script = say("a")
    await ask(service, CHAT, key)
    for api in (service, other_service):
        assert_refused(await ask(api, other, key), 422, "idempotency_key_reused")
        assert_refused(await ask(api, other, key, stream=True), 422, "idempotency_key_reused")
    assert (await ask(service, CHAT, key)).status == 200
    assert len(upstream.calls) == 1


@streamed_or_whole
@pytest.mark.parametrize("refusal", ["429", "500", "empty", "hang up"])
async def test_a_call_that_was_refused_does_not_bind_its_key(service, other_service, upstream, key, refusal, stream):
    # given an upstream that refuses every other call
    async def by_turns(call):
        streamed = [other for other in upstream.calls if other.request["stream"]]
        if refusal == "empty" and (len(streamed) % 2 or call is not streamed[-1]):
            await call.done()
        elif len(streamed) % 2 == 0:
            await say("a")(call)
        elif refusal == "hang up":
            await call.cut()
        else:
            await call.respond(int(refusal), ERROR)

    upstream.script = by_turns
    for attempt, api in enumerate([service, other_service, service, other_service]):
        # when the client that was told so tries again with its key, at once
        named = {"Idempotency-Key": f"{key['Idempotency-Key']}-{attempt}"}
        refused = await ask(service, CHAT, named, stream=stream, seconds=PROMPT_S)
        assert refused.status >= 400
        assert refused.headers.get("x-should-retry") is None
        again = await ask(api, CHAT, named, stream=stream)

        # then that starts anew
        assert again.status == 200, again


async def test_a_request_that_cannot_be_does_not_use_up_its_key(service, upstream, key):
    upstream.script = say("a")
    assert_refused(await ask(service, {"model": "test-model"}, key), 400)
    assert (await ask(service, CHAT, key)).status == 200


# One log behind all.


@streamed_or_whole
async def test_what_starts_here_is_a_generation_like_any_other(service, other_service, upstream, stream):
    # given a call that is under way
    id = new_id()
    body = CHAT | {"replay": {"id": id}}
    waiting = opening(service, body) if stream else asking(service, body)
    call = await upstream.called()
    await call.say("Hel")
    await service.has(id, 2)

    # then it is listed, watched, and transcribed, on every node
    for api in (service, other_service):
        listed = (await api.get("/generations", limit=50)).json()["generations"]
        assert id in [generation["id"] for generation in listed]
        assert (await api.transcript(id))["text"] == "Hel"
        async with api.source(id) as source:
            assert (await source.event("token")).json()["content"] == "Hel"

    # and cancelled
    assert (await other_service.post(f"/generations/{id}/cancel")).status == 200
    await call.hung_up()
    assert (await service.ended(id))["status"] == "cancelled"
    with contextlib.suppress(asyncio.CancelledError):
        (await waiting).hang_up() if stream else await waiting


async def test_what_started_at_generations_is_attached_to_by_no_other_call(service, upstream, key):
    # the same key, and the same body, but another call
    upstream.script = say("a")
    await service.start(CHAT, headers=key)
    assert_refused(await ask(service, CHAT, key), 422, "idempotency_key_reused")
