"""Responses of an upstream that only knows chats: what the events are, and what it is asked."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.both_ways import (
    ALL_TYPES,
    ARGUMENTS,
    ARGUMENTS_DONE,
    BEGUN,
    EVERYTHING,
    ITEM,
    OUTPUT,
    PART,
    REASONING,
    REASONING_DONE,
    REFUSAL,
    REFUSAL_DONE,
    STEPS,
    TEXT,
    TEXT_DONE,
)
from support.deadlines import stays_silent
from support.responses import (
    BACKGROUND,
    FORMS,
    becomes,
    events_of,
    following,
    output_of,
    response,
    shows,
    text_in,
    types,
)
from support.samples import SAMPLES
from support.scripts import chunks, delta, finish
from support.upstream import USAGE, play, say
from support.v1 import INPUT, ask, asking, id_of, opened, opening, streamed_or_whole

UNDERSTOOD_USAGE = {
    "input_tokens": 5,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 12,
}


EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


# Translated: what the events are.


@pytest.mark.parametrize("piece", [None, 7], ids=["at once", "in pieces"])
async def test_a_translated_stream_has_the_events_that_openais_clients_need(service, upstream, piece):
    # given a chat completion that thinks, speaks and calls twice at once
    async def script(call):
        data = b"".join(b"data: %b\n\n" % json.dumps(call.chunk() | payload).encode() for payload, _ in STEPS)
        size = piece or len(data)
        for start in range(0, len(data), size):
            await call.send_raw(data[start : start + size])
        await call.done()

    upstream.script = script
    answer = await ask(service, INPUT, stream=True)
    id = id_of(answer)

    # then these are the events, each under its name, with nothing else on the wire
    events = events_of(answer)
    assert types(events) == ALL_TYPES
    assert re.fullmatch(rb"(?:event: response\.[a-z_.]+\ndata: [^\r\n]+\n\n)+", answer.body)

    # and they are what the official client takes for such events
    for event in events:
        assert type(EVENT.validate_python(event)).model_validate(event, strict=True).type == event["type"]

    # and the response is the generation
    assert {event["response"]["id"] for event in events if "response" in event} == {id}
    final = events[-1]["response"]
    assert (final["status"], final["error"], final["incomplete_details"]) == ("completed", None, None)
    assert output_of(final) == OUTPUT
    assert final["usage"] == UNDERSTOOD_USAGE
    assert await response(service, id) == final
    assert (await service.generation(id))["status"] == "completed"


async def test_the_events_of_an_item_build_it(service, upstream):
    # given the events of a response that has everything
    upstream.script = EVERYTHING
    events = events_of(await ask(service, INPUT, stream=True))
    items: dict[int, dict[str, Any]] = {}

    # when a client puts it together from them alone
    for event in events:
        kind, index = event["type"].removeprefix("response."), event.get("output_index")
        if kind == "output_item.added":
            assert index == len(items)
            items[index] = copy.deepcopy(event["item"])
            assert items[index]["status"] == "in_progress"
        elif kind == "content_part.added":
            assert event["content_index"] == len(items[index]["content"])
            items[index]["content"].append(copy.deepcopy(event["part"]))
        elif kind.endswith("_text.delta"):
            items[index]["content"][event["content_index"]]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            items[index]["arguments"] += event["delta"]
        elif kind == "output_item.done":
            items[index]["status"] = event["item"]["status"]
            assert items[index] == event["item"]
        if "item_id" in event:
            assert event["item_id"] == items[index]["id"]

    # then it has what the response has
    assert list(items.values()) == events[-1]["response"]["output"]
    assert len({item["id"] for item in items.values()}) == len(items)


@streamed_or_whole
async def test_the_head_of_a_response_names_its_generation(service, upstream, stream):
    upstream.script = say("a")
    answer = await ask(service, INPUT, {"Accept-Encoding": "gzip, br"}, stream=stream)
    id = id_of(answer)
    assert answer.headers["link"] == f'</generations/{id}/events>; rel="monitor"'
    assert answer.headers["x-request-id"]
    assert "content-encoding" not in answer.headers
    read = await following(service, id)
    for streamed in (read, *([answer] if stream else [])):
        assert id_of(streamed) == id
        assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert streamed.headers["cache-control"] == "no-cache, no-transform"
        assert streamed.headers["x-accel-buffering"] == "no"
        assert streamed.headers["x-request-id"]
        assert streamed.headers["link"] == f'</generations/{id}/events>; rel="monitor"'
    assert (await read.to_end()).clean


@pytest.mark.parametrize("flag", [None, False])
async def test_without_streaming_the_answer_is_the_whole_response(service, other_service, upstream, flag):
    # given a call that waits
    waiting = asking(service, INPUT | ({} if flag is None else {"stream": flag, "background": flag}))
    call = await upstream.called()
    await call.say("Val")
    assert await stays_silent(waiting)

    # when the upstream is through with it, then there is an answer that OpenAI's client understands
    await call.say("key")
    await call.finish(usage=USAGE)
    answer = await waiting
    assert (answer.status, answer.media_type) == (200, "application/json")
    found = answer.json()
    Response.model_validate(found, strict=True)
    assert (found["id"], found["object"], found["status"]) == (id_of(answer), "response", "completed")
    assert (text_in(found), found["usage"], found["model"]) == ("Valkey", UNDERSTOOD_USAGE, "test-model")
    assert found["background"] is False
    assert found["created_at"] <= found["completed_at"]
    assert [type(found[name]) for name in ("created_at", "completed_at")] == [int, int]

    # and everywhere the same
    for api in (service, other_service):
        assert await response(api, found["id"]) == found


@FORMS
async def test_the_request_is_repeated_in_the_response(service, upstream, form):
    upstream.script = say("a")
    tool = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    asked = {
        "instructions": "Be brief.",
        "max_output_tokens": 50,
        "metadata": {"user": "u1"},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_p": 0.9,
        "tool_choice": "auto",
        "tools": [tool],
        "truncation": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "low"},
    }
    answer = await ask(service, INPUT | asked | form)
    assert answer.status == 200
    found = await becomes(service, id_of(answer), "completed")
    assert {name: found[name] for name in asked} == asked
    assert found["background"] is form.get("background", False)
    if form.get("stream"):
        for event in events_of(answer):
            assert "response" not in event or {name: event["response"][name] for name in asked} == asked


async def test_in_the_background_the_answer_is_there_before_the_upstreams(service, other_service, upstream):
    # given a call in the background
    answer = await ask(service, BACKGROUND)
    found = answer.json()
    Response.model_validate(found, strict=True)
    assert (answer.status, found["status"], found["background"], found["output"]) == (200, "queued", True, [])
    id = found["id"]
    assert id == id_of(answer)

    # when the upstream accepts, speaks and ends, then whoever asks is told how far it is
    call = await upstream.called()
    for api in (service, other_service):
        assert (await response(api, id))["status"] == "queued"
    await call.say("Val")
    for api in (service, other_service):
        found = await becomes(api, id, "in_progress")
        assert (text_in(found), found["completed_at"], found["usage"]) == ("Val", None, None)
    await call.say("key")
    await call.finish(usage=USAGE)
    for api in (service, other_service):
        found = await becomes(api, id, "completed")
        assert (text_in(found), found["usage"], found["background"]) == ("Valkey", UNDERSTOOD_USAGE, True)
    Response.model_validate(found, strict=True)


async def test_in_the_background_a_stream_tells_at_once_that_it_is_created(service, other_service, upstream):
    # given a streamed call in the background, whose upstream has not answered
    stream = await opened(service, BACKGROUND)
    id = id_of(stream)
    (created,) = await shows(stream, 1)
    assert (created["type"], created["sequence_number"]) == ("response.created", 0)
    assert (created["response"]["id"], created["response"]["status"]) == (id, "queued")
    assert created["response"]["background"] is True
    call = await upstream.called()

    # then others are told the same
    others = [await following(api, id) for api in (service, other_service)]
    for other in others:
        assert await shows(other, 1) == [created]

    # and all of them what follows
    await call.say("a")
    await shows(stream, 5)
    await call.finish()
    events = events_of(await stream.to_end())
    assert types(events) == [*BEGUN, *PART, *TEXT, *TEXT_DONE, "completed"]
    assert {event["response"]["background"] for event in events if "response" in event} == {True}
    for event in events:
        EVENT.validate_python(event)
    for other in others:
        assert events_of(await other.to_end()) == events


async def test_without_background_the_head_waits_for_the_upstreams_first_word(service, upstream):
    starting = opening(service, INPUT)
    call = await upstream.called()
    assert await stays_silent(starting)
    await call.answer()
    assert await stays_silent(starting)
    await call.say("a")
    stream = await starting
    assert types(await shows(stream, 5)) == [*BEGUN, *PART, *TEXT]
    await call.finish()
    assert events_of(await stream.to_end())[-1]["type"] == "response.completed"


async def test_what_a_stream_tells_arrives_before_the_next_is_produced(service, upstream):
    starting = opening(service, INPUT)
    call = await upstream.called()
    await call.say("word0")
    stream = await starting
    for number in range(1, 20):
        await stream.until(b'"word%d"' % (number - 1))
        await call.say(f"word{number}")
    await stream.until(b'"word19"')
    await call.finish()
    events = events_of(await stream.to_end())
    assert [event["delta"] for event in events if "delta" in event] == [f"word{number}" for number in range(20)]


async def test_pauses_are_kept_alive_by_bare_comment_lines(make_node, upstream):
    # given an upstream that thinks before its first word and after it
    node = await make_node(keepalive_s=0.2)
    behind = await opened(node.api, BACKGROUND)
    first = await upstream.called()
    starting = opening(node.api, INPUT)
    second = await upstream.called()
    for call in (first, second):
        await call.answer()
    streams = [behind, await starting]
    for stream, call in zip(streams, (first, second), strict=True):
        await stream.until(b":k\n:k\n")
        await call.say("a")
        shown = len(await stream.until(b"output_text.delta"))
        await stream.until(b":k\n:k\n", shown)
        await call.finish()

    # then nothing on the wire is a block of its own but the events
    for stream in streams:
        answer = await stream.to_end()
        assert re.fullmatch(rb"(?::k\n)*(?:event: response\.[a-z_.]+\ndata: [^\r\n]+\n\n(?::k\n)*)+", answer.body)
        assert types(events_of(answer)) == [*BEGUN, *PART, *TEXT, *TEXT_DONE, "completed"]


@pytest.mark.parametrize(
    ("script", "expected", "output"),
    [
        (chunks(finish("stop")), [], []),
        (
            play(SAMPLES["08-tool_calls"]),
            [*ITEM, *ARGUMENTS * 4, *ARGUMENTS_DONE],
            [("function_call", "ciZ4iQvGw94UgyET1rnHM1gfXGGeQRTO", "get_weather", '{"city": "Paris é"}')],
        ),
        (
            play(SAMPLES["09-tool_calls-parallel"]),
            [*ITEM, *ARGUMENTS * 3, *ITEM, *ARGUMENTS * 2, *ARGUMENTS_DONE, *ARGUMENTS_DONE],
            [
                ("function_call", "call__Jpw_dlnOgeM7c9t", "get_weather", '{"city":"Paris"}'),
                ("function_call", "call_H4UY_by5qR7nOFIY", "get_time", '{"tz":"CET"}'),
            ],
        ),
        (
            chunks(delta(refusal="No"), delta(refusal="."), finish("stop")),
            [*PART, *REFUSAL * 2, *REFUSAL_DONE],
            [("message", [{"type": "refusal", "refusal": "No."}])],
        ),
        (
            chunks(delta(reasoning="a"), delta(content="b"), finish("stop")),
            [*PART, *REASONING, *REASONING_DONE, *PART, *TEXT, *TEXT_DONE],
            [
                ("reasoning", [{"type": "reasoning_text", "text": "a"}]),
                ("message", [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}]),
            ],
        ),
    ],
    ids=["nothing", "a call", "parallel calls", "a refusal", "reasoning under its other name"],
)
async def test_what_a_chat_completion_may_say_is_translated(service, upstream, script, expected, output):
    upstream.script = script
    events = events_of(await ask(service, INPUT, stream=True))
    assert types(events) == [*BEGUN, *expected, "completed"]
    assert output_of(events[-1]["response"]) == output
    whole = (await ask(service, INPUT)).json()
    assert output_of(whole) == output
    Response.model_validate(whole, strict=True)


@pytest.mark.parametrize(
    ("finish_reason", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
async def test_an_answer_that_was_cut_short_is_incomplete(service, upstream, finish_reason, reason):
    upstream.script = chunks(delta(content="Val"), finish(finish_reason), {"choices": [], "usage": USAGE})
    events = events_of(await ask(service, INPUT, stream=True))
    assert types(events) == [*BEGUN, *PART, *TEXT, *TEXT_DONE, "incomplete"]
    whole = (await ask(service, INPUT)).json()
    for found in (events[-1]["response"], whole, await response(service, whole["id"])):
        assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": reason})
        assert (text_in(found), found["usage"], found["error"]) == ("Val", UNDERSTOOD_USAGE, None)
        assert found["output"][0]["status"] == "incomplete"
        Response.model_validate(found, strict=True)


async def test_usage_is_told_in_detail_where_the_upstream_counts_in_detail(service, upstream):
    usage = USAGE | {
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    upstream.script = say("a", usage=usage)
    expected = UNDERSTOOD_USAGE | {
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 3},
    }
    whole = (await ask(service, INPUT)).json()
    assert whole["usage"] == expected
    assert (await service.generation(whole["id"]))["usage"] == usage  # as the upstream said it


async def test_log_probabilities_are_told_with_the_text(service, upstream):
    upstream.script = play(SAMPLES["12-logprobs"])
    sent = [choice.get("logprobs") for chunk in SAMPLES["12-logprobs"].chunks for choice in chunk["choices"]]
    probable = [(token["token"], token["logprob"]) for each in sent if each for token in each["content"]]
    events = events_of(await ask(service, INPUT | {"include": ["message.output_text.logprobs"]}, stream=True))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [(each["token"], each["logprob"]) for event in deltas for each in event["logprobs"]] == probable
    (item,) = events[-1]["response"]["output"]
    assert [(each["token"], each["logprob"]) for each in item["content"][0]["logprobs"]] == probable


# Translated: what the upstream is asked.


@FORMS
async def test_the_upstream_is_asked_in_the_form_of_a_chat(service, upstream, form):
    # given a request that has everything
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "name": "f", "description": "d", "parameters": schema, "strict": True}
    image = {"type": "input_image", "image_url": "https://a/b.png", "detail": "low"}
    upstream.script = say("a")
    answer = await ask(
        service,
        {
            "model": "test-model",
            "instructions": "Be brief.",
            "input": [
                {"role": "developer", "content": "In French."},
                {"role": "user", "content": [{"type": "input_text", "text": "What is this?"}, image]},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"city": "Paris"}'},
                {"type": "function_call", "call_id": "c2", "name": "f", "arguments": '{"city": "Rome"}', "id": "fc_2"},
                {"type": "function_call_output", "call_id": "c1", "output": "rain"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Sure?"}]},
            ],
            "tools": [tool],
            "tool_choice": {"type": "function", "name": "f"},
            "max_output_tokens": 50,
            "temperature": 0.5,
            "reasoning": {"effort": "low"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
            "top_logprobs": 2,
            "metadata": {"user": "u1"},
            "store": True,
            "include": ["message.output_text.logprobs"],
            "seed": 7,  # a parameter of the upstream's own
            **form,
        },
    )
    assert answer.status == 200
    await service.ended(id_of(answer))

    # then that is what a chat completions server is asked
    (call,) = upstream.calls
    assert call.path == "/v1/chat/completions"
    function = {"name": "f", "arguments": '{"city": "Paris"}'}
    other = {"name": "f", "arguments": '{"city": "Rome"}'}
    calls = [
        {"id": "c1", "type": "function", "function": function},
        {"id": "c2", "type": "function", "function": other},
    ]
    shown = {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low"}}
    assert call.request == {
        "model": "test-model",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "In French."},
            {"role": "user", "content": [{"type": "text", "text": "What is this?"}, shown]},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            {"role": "tool", "tool_call_id": "c2", "content": "sun"},
            {"role": "assistant", "content": "Rain."},
            {"role": "user", "content": "Sure?"},
        ],
        "tools": [{"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "max_tokens": 50,
        "temperature": 0.5,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        "logprobs": True,
        "top_logprobs": 2,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_plain_text_is_asked_as_the_message_of_a_user(service, upstream):
    upstream.script = say("a")
    await ask(service, INPUT)
    (call,) = upstream.calls
    assert call.request["messages"] == [{"role": "user", "content": "Hi"}]
    assert set(call.request) == {"model", "messages", "stream", "stream_options"}


async def test_without_a_model_the_first_of_the_upstream_is_taken(service, upstream):
    upstream.script = say("a")
    found = (await ask(service, {"input": "Hi"})).json()
    assert upstream.calls[0].request["model"] == found["model"] == "test-model"
