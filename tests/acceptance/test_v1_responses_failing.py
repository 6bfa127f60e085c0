"""Responses that fail: refused by the upstream, broken off in mid-stream, or bereft of their node."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from support.both_ways import BEGUN, PART, TEXT, TEXT_DONE, World, events_under
from support.ports import free_port
from support.responses import (
    BACKGROUND,
    becomes,
    begin,
    events_after,
    events_of,
    following,
    response,
    shows,
    text_in,
    types,
)
from support.samples import SAMPLES
from support.scripts import delta, finish
from support.upstream import Call, ScriptedUpstream, respond, said
from support.v1 import (
    ERROR,
    INPUT,
    PROMPT_S,
    ask,
    asking,
    assert_refused,
    id_of,
    new_id,
    opened,
    opening,
    streamed_or_whole,
)

REFUSALS = {
    "429": (429, json.dumps(ERROR).encode(), {"content-type": "application/json", "retry-after": "7"}),
    "recorded": (400, SAMPLES["28-400-openai-error"].body, SAMPLES["28-400-openai-error"].headers),
}


@streamed_or_whole
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_of_the_upstream_is_answered_as_it_came(world, refusal, stream):
    status, body, headers = refusal
    world.upstream.script = lambda call: call.respond(status, body, headers)
    answer = await ask(world.here, INPUT, stream=stream, seconds=PROMPT_S)
    assert (answer.status, answer.body, answer.clean) == (status, body, True)
    assert answer.headers["content-type"] == headers["content-type"]
    assert answer.headers.get("retry-after") == headers.get("retry-after")
    assert len(world.upstream.calls) == 1


@streamed_or_whole
async def test_a_refusal_that_is_no_json_becomes_an_error_object(world, stream):
    world.upstream.script = lambda call: call.respond(503, b"overloaded \xe9", {"content-type": "text/plain"})
    answer = await ask(world.here, INPUT, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 503, "upstream_error", "overloaded é")


async def test_an_upgrade_to_a_websocket_is_answered_so_that_clients_go_on_without(service):
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x"}
    answer = await service.get("/v1/responses", upgrade)
    assert_refused(answer, 426, "upgrade_required")
    assert answer.headers["upgrade"]
    assert_refused(await service.get("/v1/responses"), 405)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "asked for"])
async def test_in_the_background_a_refusal_makes_a_failed_response(world, stream):
    # given a call in the background, which is answered before the upstream refuses
    started = await opened(world.here, BACKGROUND) if stream else await ask(world.here, BACKGROUND)
    assert started.status == 200
    id = id_of(started)
    call = await world.upstream.called()
    await call.respond(429, ERROR)

    # then the response says that it failed, and why
    for api in (world.here, world.there):
        found = await becomes(api, id, "failed")
        assert (found["error"]["code"], found["output"], found["background"]) == ("upstream_error", [], True)
        assert "slow down" in found["error"]["message"]
    streams = [started] if stream else [await following(api, id) for api in (world.here, world.there)]
    for each in streams:
        events = events_of(await each.to_end())
        assert types(events)[0] == "created"
        assert types(events)[-1] == "failed"
        assert events[-1]["response"] == found


@streamed_or_whole
@pytest.mark.parametrize("fault", ["nothing", "a page", "a hang-up"])
async def test_an_upstream_that_answers_with_no_stream_is_a_502(world, fault, stream):
    async def script(call):
        if fault == "nothing":
            await call.done()
        elif fault == "a page":
            await call.respond(200, b"<html>", {"content-type": "text/html"})
        else:
            await call.cut()

    world.upstream.script = script
    answer = await ask(world.here, INPUT, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 502)


async def test_an_upstream_that_cannot_be_reached_is_a_502(make_node):
    node = await make_node(upstream_url=f"http://127.0.0.1:{free_port()}/v1")
    for stream in (True, False):
        assert_refused(await ask(node.api, INPUT, stream=stream, seconds=PROMPT_S), 502, "upstream_unreachable")


FAULTS = {
    "cut": ("", "upstream_truncated"),
    "clean end": ("finish reason", "upstream_truncated"),
    "error": ("on fire", "upstream_error"),
    "no JSON": ("JSON", "upstream_invalid"),
}


async def break_off(world: World, call: Call, fault: str) -> None:
    """Say something, and fail."""
    await world.speak(call, "Val")
    if fault == "cut":
        await world.began(world.here.started[-1])  # what is in flight would be lost
        await call.cut()
    elif fault == "clean end":
        await call.done()
    elif fault == "no JSON":
        await call.send_raw(b"data: {oops\n\n")
    elif world.passes:
        error = {"type": "error", "code": "server_error", "message": "on fire", "param": None, "sequence_number": 5}
        await call.send_event(error)
    else:
        await call.send({"error": {"message": "on fire", "type": "server_error", "param": None, "code": None}})
    if not call.disconnected.is_set() and fault not in ("cut", "clean end"):
        await call.done()


@pytest.mark.parametrize("background", [False, True], ids=["", "background"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_what_fails_in_mid_stream_ends_with_a_failed_response(world, fault, background):
    # given a streamed response, whose upstream fails after its first word
    message, code = FAULTS[fault]
    id = new_id()
    starting = opening(world.here, INPUT | {"background": background, "replay": {"id": id}})
    call = await world.upstream.called()
    world.here.started.append(id)
    with contextlib.suppress(ConnectionError):  # it need not be listened to any longer
        await break_off(world, call, fault)

    # then its stream ends cleanly, with an event that says so, and nothing that had begun is called done
    events = events_of(await (await starting).to_end())
    assert types(events[:5]) == [*BEGUN, *PART, *TEXT]
    assert types(events[-1:]) == ["failed"]
    assert not any(event["type"].endswith((".done", ".completed")) for event in events)
    final = events[-1]["response"]
    assert (final["id"], final["status"], final["error"]["code"]) == (id, "failed", code)
    assert message in final["error"]["message"]

    # and so it is everywhere
    for api in (world.here, world.there):
        assert await events_after(api, id) == events
        assert await events_after(api, id, len(events) - 2) == events[-1:]
        assert await response(api, id) == final
        generation = await api.generation(id)
        assert (generation["status"], generation["error"]["code"]) == ("failed", code)


async def test_a_cut_after_the_last_event_is_no_failure(world):
    # given an upstream whose connection is lost when it has said everything
    id = await begin(world.here)
    call = await world.upstream.called()
    payloads = said("Val") if world.passes else [delta(content="Val"), finish("stop")]
    for payload in payloads:
        await world.send(call, payload)
    await world.here.has(id, 1 + len(payloads))
    await call.cut()
    assert text_in(await becomes(world.there, id, "completed")) == "Val"
    assert types(await events_after(world.there, id)) == [*BEGUN, *PART, *TEXT, *TEXT_DONE, "completed"]


async def test_a_failure_that_the_upstream_tells_is_passed_through(speaking, other_speaking, upstream):
    # given an upstream that says itself that it failed
    events = said("Val")[:5]
    error = {"code": "rate_limit_exceeded", "message": "too many words"}
    failed = said("Val")[-1]["response"] | {"status": "failed", "error": error, "output": [], "usage": None}
    events.append({"type": "response.failed", "response": failed, "sequence_number": 5})
    upstream.script = respond(events)
    live = await ask(speaking, INPUT, stream=True)
    id = id_of(live)
    assert events_of(live) == events_under(id, events)
    for api in (speaking, other_speaking):
        found = await response(api, id)
        assert (found["status"], found["error"]) == ("failed", error)
        generation = await api.generation(id)
        assert (generation["status"], generation["error"]["code"]) == ("failed", "upstream_error")
        assert "too many words" in generation["error"]["message"]


@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
async def test_an_error_event_is_a_failure_with_its_message(speaking, upstream, named):
    error = {"type": "error", "code": "server_error", "message": "on fire", "param": None, "sequence_number": 5}

    async def script(call):
        for event in said("Val")[:5]:
            await call.send_event(event)
        await (call.send_event(error) if named else call.send(error))
        await call.done()

    upstream.script = script
    events = events_of(await ask(speaking, INPUT, stream=True))
    assert types(events[-1:]) in (["error"], ["failed"])
    assert "on fire" in json.dumps(events[-1])
    found = await response(speaking, events[0]["response"]["id"])
    assert found["status"] == "failed"
    assert "on fire" in found["error"]["message"]
    generation = await speaking.generation(found["id"])
    assert (generation["status"], generation["error"]["code"]) == ("failed", "upstream_error")


@pytest.mark.parametrize("fault", ["cut", "error"])
async def test_a_whole_answer_that_fails_half_way_is_a_failed_response(world, fault):
    id = new_id()
    waiting = asking(world.here, INPUT | {"replay": {"id": id}})
    call = await world.upstream.called()
    world.here.started.append(id)
    with contextlib.suppress(ConnectionError):
        await break_off(world, call, fault)
    answer = await waiting
    assert (answer.status, answer.json()["status"]) == (200, "failed")
    assert answer.json()["error"]["code"] == FAULTS[fault][1]
    assert answer.json() == await response(world.there, id)


async def test_responses_outlive_their_node(make_node, upstream):
    # given a node with two upstreams, of which one speaks the Responses API, and a second node
    async with ScriptedUpstream() as chatting, ScriptedUpstream() as speaking:
        speaking.speaks_responses = True
        rows = f"chats {chatting.url}; speaks {speaking.url}"
        doomed, other = await asyncio.gather(*(make_node(upstreams=rows) for _ in range(2)))
        worlds = {
            "chats": World("translated", doomed.api, other.api, chatting),
            "speaks": World("passed", doomed.api, other.api, speaking),
        }

        # and of each a response that has ended, and one that has begun
        ended, begun = {}, {}
        for model, world in worlds.items():
            world.upstream.script = world.everything
            live = await ask(doomed.api, INPUT | {"model": model}, stream=True)
            ended[id_of(live)] = (events_of(live), await response(doomed.api, id_of(live)))
            world.upstream.script = None
            reader = await opened(doomed.api, BACKGROUND | {"model": model})
            await world.speak(await world.upstream.called(), "Val")
            begun[id_of(reader)] = (await shows(reader, 5), reader, await following(other.api, id_of(reader)))

        # when the node is killed
        doomed.kill()

        # then the second one ends what had begun, and tells so whoever goes on there
        for id, (seen, reader, watching) in begun.items():
            assert events_of(await reader.to_end(), clean=False) == seen
            resumed = await following(other.api, id, seen[-1]["sequence_number"])
            (failed,) = events_of(await resumed.to_end(), after=4)
            assert failed["type"] == "response.failed"
            assert (failed["response"]["status"], failed["response"]["error"]["code"]) == ("failed", "node_lost")
            assert events_of(await watching.to_end()) == [*seen, failed]
            assert (await other.api.generation(id))["status"] == "interrupted"
            ended[id] = ([*seen, failed], failed["response"])

        # and shows all of them as they were, as does the first one when it is back
        await doomed.restart()
        for id, (events, found) in ended.items():
            for api in (other.api, doomed.api):
                assert await response(api, id) == found
                assert await events_after(api, id) == events
                for after in (0, 2, len(events) - 2):
                    assert await events_after(api, id, after) == events[after + 1 :]


async def test_a_node_that_is_stopped_leaves_no_reader_in_doubt(make_node, upstream):
    # given a reader of a response that has begun
    node = await make_node()
    stream = await opened(node.api, BACKGROUND)
    id = id_of(stream)
    call = await upstream.called()
    await call.say("Val")
    seen = await shows(stream, 5)

    # when the node is stopped, then the reader is told that it failed, or is cut off so that it comes back
    assert await node.stop() == 0
    answer = await stream.to_end()
    events = events_of(answer, clean=answer.clean)
    assert events[:5] == seen
    assert types(events[5:]) == (["failed"] if answer.clean else [])

    # and when it comes back, it is told
    await node.restart()
    (failed,) = await events_after(node.api, id, 4)
    assert (failed["type"], failed["response"]["error"]["code"]) == ("response.failed", "shutdown")
    assert await response(node.api, id) == failed["response"]
