"""Requests for a response: those that cannot be, the `Idempotency-Key`, and what is asked of this service alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from support.both_ways import BEGUN, PART, TEXT
from support.http1 import open_stream, request
from support.responses import BACKGROUND, FORMS, TOOL, becomes, begin, heard, run, shows, text_in, types
from support.scripts import chunks, delta, finish
from support.upstream import said, say
from support.v1 import (
    ERROR,
    INPUT,
    PROMPT_S,
    RESPONSES_PATH,
    ask,
    asking,
    assert_refused,
    id_of,
    new_id,
    opened,
    opening,
    streamed_or_whole,
)

UNSAYABLE: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": {"id": "pmpt_1"}},
    "conversation": {"conversation": "conv_1"},
    "conversation object": {"conversation": {"id": "conv_1"}},
    "context_management": {"context_management": [{"type": "compaction"}]},
    "item_reference": {"input": [{"type": "item_reference", "id": "msg_1"}]},
    "computer_call_output": {"input": [{"type": "computer_call_output", "call_id": "c", "output": {}}]},
    "uploaded image": {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}]},
    "tool_choice": {"tools": [TOOL], "tool_choice": {"type": "web_search"}},
}


@streamed_or_whole
@pytest.mark.parametrize("asked", UNSAYABLE.values(), ids=UNSAYABLE)
async def test_what_no_chat_can_be_asked_is_a_400(service, upstream, asked, stream):
    upstream.script = say("a")
    answer = await ask(service, INPUT | asked, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 400, "invalid_request", next(name for name in reversed(asked)))
    assert upstream.calls == []


async def test_why_nothing_is_streamed_is_asked_without_a_stream_where_none_is_wanted(world):
    # given a server that refuses a prompt, but in a stream just says nothing
    async def too_long(call):
        await (call.done() if call.request["stream"] else call.respond(400, ERROR))

    world.upstream.script = too_long
    answer = await ask(world.here, INPUT)
    assert (answer.status, answer.json()) == (400, ERROR)
    assert [call.request["stream"] for call in world.upstream.calls] == [True, False]

    # when the client wants events, then its one call is all
    assert_refused(await ask(world.here, INPUT, stream=True), 502, "upstream_truncated")
    await becomes(world.here, await begin(world.here), "failed")
    assert [call.request["stream"] for call in world.upstream.calls[2:]] == [True, True]


async def test_what_no_chat_can_be_asked_fails_in_the_background(service, upstream):
    upstream.script = say("a")
    for form in ({}, {"stream": True}):
        answer = await ask(service, BACKGROUND | UNSAYABLE["tool_choice"] | form)
        if answer.status == 200:  # it may as well be refused at once
            found = await becomes(service, id_of(answer), "failed")
            assert found["error"]["code"] == "invalid_request"
            assert "tool_choice" in found["error"]["message"]
        else:
            assert_refused(answer, 400, "invalid_request", "tool_choice")
    assert upstream.calls == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"input"', b"null", b"\xff", b"{}", b'{"input": "Hi"', b"[" * 5000], ids=repr
)
async def test_a_body_that_is_no_request_is_a_400(service, upstream, body):
    stream = await open_stream(
        service.at(RESPONSES_PATH), method="POST", headers={"Content-Type": "application/json"}, body=body
    )
    assert_refused(await stream.to_end(), 400, "invalid_request")
    assert upstream.calls == []


WRONG: list[dict[str, Any]] = [
    *({"input": value} for value in (None, 5, {}, True)),
    *({"stream": value} for value in ("yes", 1, [])),
    *({"background": value} for value in ("yes", 0, {})),
    *({"previous_response_id": value} for value in (5, [], {}, "", "not an id")),
    *({"model": value} for value in ("", 5, [], "m" * 1000)),
    *({"replay": value} for value in (5, [], {"id": "not an id"}, {"ttl": 0}, {"ttl": "1"}, {"unknown": 1})),
]
WRONG_IN_A_CHAT: list[dict[str, Any]] = [
    *(
        {"input": value}
        for value in ([], "", [5], [None], [{}], [{"role": "bard", "content": "x"}], [{"role": "user"}])
    ),
    *({"input": [{"role": "user", "content": value}]} for value in (5, [], [5], [{"type": "x"}], None)),
    *(
        {"input": [{"type": "function_call", **value}]}
        for value in ({}, {"call_id": 5, "name": "f", "arguments": "{}"})
    ),
    *({"tools": value} for value in ("x", [5], [{}], [{"type": "function"}], {"type": "function"})),
    *({"tool_choice": value, "tools": [TOOL]} for value in (5, [], {})),
    *(
        {"text": value}
        for value in (5, [], {"format": 5}, {"format": {"type": "x"}}, {"format": {"type": "json_schema"}})
    ),
    *({"reasoning": value} for value in ("high", 5, [])),
    *({"include": value} for value in ("x", {})),
    *({"instructions": value} for value in (5, ["x"])),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: json.dumps(wrong)[:60])
async def test_members_of_the_wrong_kind_are_a_400(service, upstream, wrong):
    body = {key: value for key, value in (INPUT | wrong).items() if value is not None}
    assert_refused(await service.post(RESPONSES_PATH, body), 400, "invalid_request")
    assert upstream.calls == []


@pytest.mark.parametrize("wrong", WRONG_IN_A_CHAT, ids=lambda wrong: json.dumps(wrong)[:60])
async def test_members_that_no_chat_can_be_made_of_are_a_400(service, upstream, wrong):
    answer = await ask(service, INPUT | wrong)
    assert_refused(answer, 400, "invalid_request", next(iter(wrong)))
    assert upstream.calls == []


async def test_half_a_character_in_a_request_is_no_failure_of_the_upstream(world):
    # half a surrogate pair is valid JSON, and what JavaScript sends where a text was cut
    world.upstream.script = world.says("a")
    answer = await ask(world.here, INPUT | {"input": "Hi \ud83d"})
    if answer.status == 200:
        asked = world.upstream.calls[0].request
        assert (asked["input"] if world.passes else asked["messages"][0]["content"]) == "Hi \ud83d"
    else:
        assert_refused(answer, 400, "invalid_request")


async def test_half_a_character_in_an_answer_can_be_continued(world):
    cut = chunks(delta(content="Val\ud83d"), finish("stop"))
    world.upstream.script = world.says("Val\ud83d") if world.passes else cut
    id = id_of(await ask(world.here, INPUT))
    world.upstream.script = world.says("key")
    answer = await ask(world.here, INPUT | {"input": "Go on", "previous_response_id": id})
    assert answer.status == 200, answer
    assert heard(world.upstream.calls[1])[1] == ("assistant", "Val\ud83d")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", RESPONSES_PATH, "POST"),
        ("DELETE", RESPONSES_PATH, "GET, POST"),
        ("POST", f"{RESPONSES_PATH}/gen_x", "DELETE, GET, HEAD"),
        ("GET", f"{RESPONSES_PATH}/gen_x/cancel", "POST"),
        ("POST", f"{RESPONSES_PATH}/gen_x/input_items", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_a_405_that_says_the_right_ones(service, method, path, allowed):
    answer = await request(method, service.at(path))
    assert_refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


async def test_a_page_of_another_site_may_not_start_or_end_anything(service, upstream):
    upstream.script = say("a")
    id = await run(service)
    foreign = {"Sec-Fetch-Site": "cross-site"}
    for answer in (
        await ask(service, INPUT, foreign),
        await ask(service, INPUT, foreign, stream=True),
        await service.post(f"{RESPONSES_PATH}/{id}/cancel", headers=foreign),
    ):
        assert_refused(answer, 403, "cross_site_request")
    assert len(upstream.calls) == 1


# Idempotency-Key.


@FORMS
async def test_the_same_key_gives_the_same_response_when_it_is_over(world, key, form):
    world.upstream.script = world.says("Val", "key")
    first = await ask(world.here, INPUT | form, key)
    found = await becomes(world.here, id_of(first), "completed")
    for api in (world.here, world.there):
        again = await ask(api, INPUT | form, key)
        assert (again.status, again.clean, id_of(again)) == (200, True, id_of(first))
        if form.get("stream"):
            assert again.body == first.body
        else:
            assert again.json() == found
    assert len(world.upstream.calls) == 1


async def test_the_same_key_streams_from_the_first_event_while_it_runs(world, key):
    starting = opening(world.here, INPUT, key)
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await shows(await starting, 5)
    streams = [await starting, *[await opened(api, INPUT, key) for api in (world.here, world.there)]]
    for stream in streams:
        assert types(await shows(stream, 5)) == [*BEGUN, *PART, *TEXT]
    await (call.done() if world.passes else call.finish())
    answers = [await stream.to_end() for stream in streams]
    assert len({answer.body for answer in answers}) == 1
    assert len({id_of(answer) for answer in answers}) == 1
    assert len(world.upstream.calls) == 1


@FORMS
async def test_of_racing_calls_one_starts_and_all_get_its_response(world, key, form):
    world.upstream.script = world.says("a", "b")
    racing = [ask(api, INPUT | form, key) for api in [world.here, world.there] * 4]
    answers = await asyncio.gather(*racing)
    assert {answer.status for answer in answers} == {200}
    (id,) = {id_of(answer) for answer in answers}
    assert text_in(await becomes(world.there, id, "completed")) == "ab"
    if form.get("stream"):
        assert len({answer.body for answer in answers}) == 1
    assert {answer.json()["id"] for answer in answers if not form.get("stream")} <= {id}
    assert len(world.upstream.calls) == 1


@pytest.mark.parametrize(
    "other", [{"temperature": 1}, {"input": "Ho"}, {"replay": {"ttl": 60}}, {"instructions": "x"}], ids=json.dumps
)
async def test_the_same_key_with_another_body_is_a_422(world, key, other):
    world.upstream.script = world.says("a")
    await ask(world.here, INPUT, key)
    for api in (world.here, world.there):
        for form in ({"stream": True}, {"stream": False}, {"background": True}):
            assert_refused(await ask(api, INPUT | other | form, key), 422, "idempotency_key_reused")
    assert (await ask(world.here, INPUT, key)).status == 200
    assert len(world.upstream.calls) == 1


@streamed_or_whole
async def test_a_call_that_was_refused_does_not_bind_its_key(world, key, stream):
    world.upstream.script = lambda call: call.respond(429, ERROR)
    refused = await ask(world.here, INPUT, key, stream=stream, seconds=PROMPT_S)
    assert (refused.status, refused.headers.get("x-should-retry")) == (429, None)
    world.upstream.script = world.says("a")
    again = await ask(world.there, INPUT, key, stream=stream)
    assert again.status == 200


async def test_the_same_key_leads_to_the_answer_though_what_it_continues_is_gone(world, key):
    # given a second turn that was made with a key, and a first one that is deleted
    world.upstream.script = world.says("a")
    first = id_of(await ask(world.here, INPUT))
    body = INPUT | {"previous_response_id": first}
    second = await ask(world.here, body, key)
    await world.here.delete(f"{RESPONSES_PATH}/{first}")

    # when the second is asked for again with its key, then it is there
    for api in (world.here, world.there):
        again = await ask(api, body, key)
        assert (again.status, again.json()["id"]) == (200, id_of(second)), again
    assert len(world.upstream.calls) == 2


# What is asked of this service alone.


@FORMS
async def test_replay_options_are_ours_and_all_else_is_the_upstreams(world, form):
    id = new_id()
    world.upstream.script = world.says("a")
    options = {"id": id, "ttl": 600, "metadata": {"k": ["v"]}}
    answer = await ask(world.here, INPUT | {"metadata": {"user": "u1"}, "replay": options} | form)
    assert (answer.status, id_of(answer)) == (200, id)
    found = await becomes(world.there, id, "completed")
    assert (found["id"], found["metadata"]) == (id, {"user": "u1"})
    (call,) = world.upstream.calls
    assert "replay" not in call.request
    generation = await world.here.generation(id)
    assert generation["metadata"] == {"k": ["v"]}
    assert generation["expires_at"] == pytest.approx(generation["ended"] + 600, abs=2)


async def test_openais_metadata_is_the_generations_too(world):
    world.upstream.script = world.says("a")
    id = await run(world.here, INPUT | {"metadata": {"user": "u1"}})
    assert (await world.here.generation(id))["metadata"] == {"user": "u1"}


@FORMS
async def test_a_taken_id_is_a_409_for_good(world, form):
    world.upstream.script = world.says("a")
    id = await run(world.here)
    for api in (world.here, world.there):
        answer = await ask(api, INPUT | {"replay": {"id": id}} | form)
        assert_refused(answer, 409, "generation_exists")
        assert answer.headers["x-should-retry"] == "false"
    assert len(world.upstream.calls) == 1


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_hangs_up_cancels_nothing(world, stream):
    # given a client that leaves while its response is made
    id = new_id()
    body = INPUT | {"replay": {"id": id}}
    starting = opening(world.here, body) if stream else asking(world.here, body)
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await world.began(id)
    if stream:
        (await starting).hang_up()
    else:
        starting.cancel()
    await world.here.has_subscribers(id, 0)

    # then it is made all the same
    if world.passes:
        for event in said("Val")[5:]:
            await call.send_event(event)
        await call.done()
    else:
        await call.finish()
    assert text_in(await becomes(world.there, id, "completed")) == "Val"
