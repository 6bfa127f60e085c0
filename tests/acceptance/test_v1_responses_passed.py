"""Responses of an upstream that speaks the API itself: how that is learned, and that its events come back equal."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest
from support.api import text_of
from support.both_ways import events_under, rich
from support.responses import (
    BACKGROUND,
    FORMS,
    becomes,
    begin,
    events_after,
    events_of,
    response,
    shows,
    text_in,
    types,
)
from support.samples import SAMPLES
from support.upstream import Call, Script, ScriptedUpstream, play, respond, said, say
from support.v1 import INPUT, NASTY, RESPONSES_PATH, ask, assert_refused, id_of, opened

LLAMA = SAMPLES["15-responses-event-lines"].payloads


PASSED = {"llama.cpp": LLAMA, "openai": rich()}
passed_through = pytest.mark.parametrize("events", PASSED.values(), ids=PASSED)


def as_written(events: list[dict[str, Any]], piece: int | None = None) -> Script:
    """Send these events in pieces of that size, or in one."""

    async def script(call: Call) -> None:
        blocks = (f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events)
        data = "".join(blocks).encode()
        size = piece or len(data)
        for start in range(0, len(data), size):
            await call.send_raw(data[start : start + size])
        await call.done()

    return script


# What the upstream speaks is learned, or set.


async def test_that_the_upstream_speaks_responses_is_learned_and_its_refusals_are_its_own(make_node, upstream):
    # given a node that knows nothing of its upstream, which speaks the Responses API and not this model
    unknown = {"error": {"message": "The model `m` does not exist", "type": "invalid_request_error", "param": "model"}}
    unknown["error"]["code"] = "model_not_found"
    upstream.speaks_responses = True
    node = await make_node()
    upstream.script = lambda call: call.respond(404, unknown)

    # when it is asked for one, then its answer is the client's, and it is not taken for a server without that API
    for _ in range(2):
        answer = await ask(node.api, INPUT)
        assert (answer.status, answer.json()) == (404, unknown)
    assert [call.path for call in upstream.calls] == [RESPONSES_PATH] * 2

    # and when it knows the model, it is passed through
    upstream.script = respond(said("Val", "key"))
    assert text_in((await ask(node.api, INPUT)).json()) == "Valkey"

    # and from then on whatever it refuses, however it says so
    upstream.script = lambda call: call.respond(404, b"404 page not found", {"content-type": "text/plain"})
    answer = await ask(node.api, INPUT)
    assert_refused(answer, 404, "upstream_error", "404 page not found")
    assert {call.path for call in upstream.calls} == {RESPONSES_PATH}


async def test_that_the_upstream_speaks_no_responses_can_be_set(make_node, upstream):
    upstream.speaks_responses = True
    upstream.script = say("a")
    node = await make_node(upstream_responses="no")
    for stream in (True, False):
        answer = await ask(node.api, INPUT, stream=stream)
        assert text_in(events_of(answer)[-1]["response"] if stream else answer.json()) == "a"
    assert [call.path for call in upstream.calls] == ["/v1/chat/completions"] * 2


async def test_that_the_upstream_speaks_responses_can_be_set(speaking, upstream):
    upstream.script = respond(said("a"))
    assert text_in((await ask(speaking, INPUT)).json()) == "a"
    upstream.speaks_responses = False
    answer = await ask(speaking, INPUT)
    assert (answer.status, answer.json()) == (404, {"detail": "Not Found"})
    assert (len(upstream.calls), upstream.asked_in_vain) == (1, 1)
    assert {call.path for call in upstream.calls} == {RESPONSES_PATH}


async def test_that_an_upstream_only_knows_chats_is_learned_once_however_it_says_so(make_node, upstream):
    # given four servers without a Responses API
    refusals = [
        (404, b"404 page not found", "text/plain"),
        (404, b'{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}', "application/json"),
        (405, b'{"detail":"Method Not Allowed"}', "application/json"),
        (501, b"", "text/html"),
    ]
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(ScriptedUpstream()) for _ in refusals]
        for server, refusal in zip(servers, refusals, strict=True):
            server.speaks_responses = True
            server.script = _without_responses(*refusal)
        rows = ";".join(f"m{place} {server.url}" for place, server in enumerate(servers))
        node = await make_node(upstreams=rows, upstream_url=None)

        # when each is asked in all forms, then it answers as a chat completions server, and is asked in vain once
        forms = ({"stream": True}, {"stream": False}, {"background": True}, {"stream": True, "background": True})
        for place, server in enumerate(servers):
            for form in forms:
                id = id_of(await ask(node.api, INPUT | {"model": f"m{place}"} | form))
                assert text_in(await becomes(node.api, id, "completed")) == "a"
            assert [call.path for call in server.calls] == [RESPONSES_PATH, *["/v1/chat/completions"] * 4]


def _without_responses(status: int, body: bytes, content_type: str) -> Script:
    async def script(call: Call) -> None:
        if call.path == RESPONSES_PATH:
            await call.respond(status, body, {"content-type": content_type})
        else:
            await say("a")(call)

    return script


# Passed through.


@pytest.mark.parametrize("piece", [None, 7], ids=["at once", "in pieces"])
@passed_through
async def test_events_of_an_upstream_that_speaks_responses_come_back_equal(
    speaking, other_speaking, upstream, key, events, piece
):
    # given an upstream that answers with these events, cut anywhere
    upstream.script = play(SAMPLES["15-responses-event-lines"], piece) if events is LLAMA else as_written(events, piece)

    # when they are streamed, read from the log, and asked for again with the key
    live = await ask(speaking, INPUT, key, stream=True)
    id = id_of(live)
    again = await ask(other_speaking, INPUT, key, stream=True)

    # then they are the same, as JSON, but for what is ours
    for found in (
        events_of(live),
        await events_after(speaking, id),
        await events_after(other_speaking, id),
        events_of(again),
    ):
        assert found == events_under(id, events)
    (call,) = upstream.calls
    assert call.path == RESPONSES_PATH

    # and the whole is what the last of them says
    for api in (speaking, other_speaking):
        assert (await response(api, id)).items() >= events_under(id, events)[-1]["response"].items()
        assert (await api.generation(id))["status"] == "completed"


@passed_through
async def test_without_streaming_the_last_event_says_the_whole(speaking, upstream, events):
    upstream.script = respond(events)
    answer = await ask(speaking, INPUT)
    assert answer.status == 200
    found = answer.json()
    assert found.items() >= events_under(id_of(answer), events)[-1]["response"].items()
    assert await response(speaking, found["id"]) == found


@FORMS
async def test_an_upstream_that_speaks_responses_is_asked_what_the_client_asks(speaking, upstream, form):
    # given a request with things that no chat could be asked
    body = INPUT | {
        "instructions": "Be brief.",
        "tools": [{"type": "web_search"}, {"type": "mcp", "server_label": "l", "server_url": "https://a"}],
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "low", "summary": "auto"},
        "prompt": {"id": "pmpt_1"},
        "max_output_tokens": 50,
        "store": True,
        "metadata": {"user": "u1"},
        "x_vendor": {"nested": [1, None, "é", 12345678901234567890123]},
    }
    upstream.script = respond(said("a"))
    answer = await ask(speaking, body | form | {"replay": {"metadata": {"ours": 1}}})
    assert answer.status == 200

    # then its upstream is asked just that, and always for a stream; running in the background is our part
    await speaking.ended(id_of(answer))
    (call,) = upstream.calls
    assert call.request == body | {"stream": True}

    # and the response says what its client asked for
    found = await response(speaking, id_of(answer))
    assert found["background"] is form.get("background", False)
    assert found["metadata"] == {"user": "u1"}


async def test_in_the_background_what_the_upstream_says_follows_the_created_that_was_told_at_once(
    speaking, other_speaking, upstream
):
    # given a streamed call in the background, whose upstream has not answered
    stream = await opened(speaking, BACKGROUND)
    id = id_of(stream)
    (created,) = await shows(stream, 1)
    assert (created["type"], created["response"]["status"]) == ("response.created", "queued")
    assert created["response"]["id"] == id

    # when it answers
    call = await upstream.called()
    assert (await response(speaking, id))["status"] == "queued"
    events = rich()
    for event in events[:6]:
        await call.send_event(event)
    assert (await becomes(other_speaking, id, "in_progress"))["background"] is True
    for event in events[6:]:
        await call.send_event(event)
    await call.done()

    # then there is one `created`, and all that follows is the upstream's
    answer = await stream.to_end()
    assert events_of(answer) == [created, *events_under(id, events, background=True)[1:]]
    assert await events_after(other_speaking, id) == events_of(answer)
    found = await becomes(other_speaking, id, "completed")
    assert found.items() >= events_under(id, events, background=True)[-1]["response"].items()


async def test_what_is_passed_through_is_a_generation_like_any_other(speaking, other_speaking, upstream):
    # given a response that has everything
    upstream.script = respond(rich())
    id = id_of(await ask(speaking, INPUT, stream=True))
    final = rich()[-1]["response"]
    text = text_in(final)
    assert len(text) > 20

    for api in (speaking, other_speaking):
        # then its log has tokens with the text, one of them for each delta
        log = await api.log(id)
        assert (log[0].event, log[-1].event) == ("start", "end")
        assert text_of(log) == text
        deltas = [event["delta"] for event in rich() if event["type"] == "response.output_text.delta"]
        assert [event.json()["content"] for event in log if event.event == "token"] == deltas
        assert all(
            event.json()["index"] == int(event.last_event_id.partition("-")[2])
            for event in log[1:-1]
            if event.event == "token"
        )
        assert (log[-1].json()["status"], log[-1].json()["usage"]) == ("completed", final["usage"])

        # and its transcript all that was said
        transcript = await api.transcript(id)
        assert (transcript["status"], transcript["text"], transcript["usage"]) == ("completed", text, final["usage"])
        message = transcript["message"]
        assert (message["content"], message["reasoning_content"]) == (text, "Hm, so")
        functions = [
            {"id": f"call_{name}", "type": "function", "function": {"name": f"get_{name}"}}
            for name in ("weather", "time")
        ]
        for function in functions:
            function["function"]["arguments"] = '{"city": "Paris"}'
        custom = {"id": "call_c", "type": "custom", "custom": {"name": "run", "input": "ls -l"}}
        assert message["tool_calls"] == [*functions, custom]


async def test_readers_of_the_log_see_what_is_passed_through_as_it_comes(speaking, other_speaking, upstream):
    # given readers of a response that has just begun
    id = await begin(speaking)
    call = await upstream.called()
    events = said("Val", "key")
    async with speaking.source(id) as here, other_speaking.source(id) as there:
        for event in events[:5]:
            await call.send_event(event)

        # then they see each token before the next one is said
        for source in (here, there):
            assert (await source.event("token")).json()["content"] == "Val"
        assert (await other_speaking.transcript(id))["text"] == "Val"
        for event in events[5:]:
            await call.send_event(event)
        await call.done()
        for source in (here, there):
            assert (await source.event("token")).json()["content"] == "key"
            assert (await source.event("end")).json()["status"] == "completed"


TEXTS = (*NASTY, '"}', '"sequence_number": 5', ',"sequence_number":5', '"delta":"x"')
KINDS = (
    *("output_text.delta", "refusal.delta", "reasoning_text.delta", "reasoning_summary_text.delta"),
    *("function_call_arguments.delta", "custom_tool_call_input.delta", "mcp_call_arguments.delta", "audio.delta"),
    *("output_text.done", "output_item.added", "output_item.done", "in_progress", "something.new", "queued"),
)


def nasty_event(chance: random.Random, number: int) -> dict[str, Any]:
    """An event of any of the shapes that servers send, with its members in any order, and any text."""
    text = chance.choice(TEXTS)
    kind = chance.choice(KINDS)
    members: dict[str, Any] = {"type": f"response.{kind}", "sequence_number": number}
    members |= chance.choice(({}, {"item_id": "i"}, {"item_id": "i", "output_index": 1, "content_index": 0}))
    if kind.endswith(".delta"):
        members["delta"] = text
    if kind == "output_text.delta":
        members |= chance.choice(({}, {"logprobs": []}, {"logprobs": [{"token": text, "logprob": -1e-7}]}))
    if kind in ("output_item.added", "output_item.done"):
        members["item"] = {"id": text, "type": "function_call", "name": text, "call_id": "c", "arguments": text}
    if kind in ("in_progress", "queued"):
        members["response"] = {"id": text, "status": kind, "metadata": {"sequence_number": "1"}, "output": []}
    members |= chance.choice(
        (
            *({}, {}, {"obfuscation": text}, {"obfuscation": "aB3"}, {"x": [1.5, -0.0, 1e300, 2**70, None]}),
            *({"x": {"delta": text}}, {"choices": []}, {"response_id": text}),
        )
    )
    names = list(members)
    chance.shuffle(names)
    return {name: members[name] for name in names}


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_events_look_like_they_come_back_equal(speaking, upstream, key, seed):
    # given events of many shapes in any order, written in several ways, numbered or not
    chance = random.Random(seed)
    events = [said()[0], *(nasty_event(chance, number) for number in range(1, 120)), said("x")[-1]]
    styles: list[dict[str, Any]] = [{}, {"separators": (",", ":")}, {"ensure_ascii": False}]
    if seed % 3 == 0:
        events = [{name: event[name] for name in event if name != "sequence_number"} for event in events]

    async def script(call):
        for event in events:
            name = chance.choice((f"event: {event['type']}\n", ""))
            style = chance.choice(styles)
            with contextlib.suppress(UnicodeEncodeError):  # half a surrogate pair can only be sent as an escape
                await call.send_raw(f"{name}data: {json.dumps(event, **style)}\n\n".encode())
                continue
            await call.send_raw(f"{name}data: {json.dumps(event)}\n\n".encode())
        await call.done()

    upstream.script = script

    # when they are streamed, read again, and asked for again, then they are the same, as JSON
    live = await ask(speaking, INPUT, key, stream=True)
    for found in (
        events_of(live),
        await events_after(speaking, id_of(live)),
        events_of(await ask(speaking, INPUT, key, stream=True)),
    ):
        assert found == events_under(id_of(live), events)


@pytest.mark.parametrize("numbered", [True, False], ids=["numbered", "not numbered"])
async def test_a_number_of_that_name_inside_an_event_is_the_clients_own(speaking, upstream, numbered):
    # given a tool whose schema has an example, and a delta with more beside it
    events = said("Val", "key", "!")
    example = {"type": "object", "examples": [{"sequence_number": 7}, {"before": 1, "sequence_number": 8}]}
    for event in events:
        if "response" in event:
            event["response"]["tools"] = [{"type": "function", "name": "f", "strict": True, "parameters": example}]
    events = [
        {"x": {"sequence_number": 1, "y": [{"sequence_number": 2}]}, **event, "z": {"sequence_number": 3}}
        for event in events
    ]
    if not numbered:
        events = [{name: value for name, value in event.items() if name != "sequence_number"} for event in events]
    upstream.script = respond(events)

    # then all of that comes back
    live = await ask(speaking, INPUT, stream=True)
    for found in (events_of(live), await events_after(speaking, id_of(live))):
        assert found == events_under(id_of(live), events)


async def test_a_fraction_of_that_name_inside_an_event_breaks_nothing(speaking, upstream):
    events = said("Val", "key")
    events[4] = {"x": {"a": 0, "sequence_number": 1.5}, **events[4]}
    upstream.script = respond(events)
    live = await ask(speaking, INPUT, stream=True)
    assert events_of(live) == events_under(id_of(live), events)


async def test_events_of_no_response_leave_no_hole_in_the_numbers(speaking, upstream):
    # given a server that keeps its stream alive with events of their own, which it counts
    events = said("Val", "key")
    for place in (6, 3, 0):
        events.insert(place, {"type": "keepalive"})

    async def script(call):
        for number, event in enumerate(events):
            await call.send_event(event | {"sequence_number": number})
        await call.send_raw(b": bye\n\ndata: [DONE]\n\n")
        await call.done()

    # then they need not be told, but what is told is numbered without a hole, and the rest is there
    upstream.script = script
    answer = await ask(speaking, INPUT, stream=True)
    assert b"[DONE]" not in answer.body
    assert [kind for kind in types(events_of(answer)) if kind != "keepalive"] == types(said("Val", "key"))
    assert (await speaking.generation(id_of(answer)))["status"] == "completed"


@pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter"])
async def test_an_incomplete_response_is_passed_through(speaking, upstream, reason):
    events = said("Val")
    events[-1]["type"] = "response.incomplete"
    events[-1]["response"] |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
    upstream.script = respond(events)
    answer = await ask(speaking, INPUT, stream=True)
    assert events_of(answer) == events_under(id_of(answer), events)
    found = await response(speaking, id_of(answer))
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": reason})
    generation = await speaking.generation(id_of(answer))
    assert generation["finish_reason"] == {"max_output_tokens": "length"}.get(reason, reason)
