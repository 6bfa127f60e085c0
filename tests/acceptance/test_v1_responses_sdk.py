"""The official OpenAI package and the Responses API: only its base URL is another, and nothing of it is patched."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import pytest
from openai import (
    APIStatusError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    RateLimitError,
    UnprocessableEntityError,
    pydantic_function_tool,
)
from openai.types.responses import Response
from pydantic import BaseModel
from support.deadlines import eventually, within
from support.fault_proxy import FaultProxy
from support.programs import running
from support.responses import BACKGROUND
from support.samples import SAMPLES
from support.sdk import ON_HTTPX, WAYS, Sdk, types
from support.upstream import USAGE, Call, Script, play, respond, said, say
from support.v1 import ERROR, INPUT, streamed_or_whole

TEXT_EVENTS = [
    *("created", "in_progress", "output_item.added", "content_part.added"),
    *("output_text.delta", "output_text.delta", "output_text.done"),
    *("content_part.done", "output_item.done", "completed"),
]


@pytest.fixture(params=[WAYS["synchronous"], ON_HTTPX], ids=["synchronous", "asynchronous"])
def sdk(request: pytest.FixtureRequest) -> Sdk:
    way: Sdk = request.param
    return way


def numbers(events: list[Any]) -> list[int]:
    return [event.sequence_number for event in events]


def deltas(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def calls_for_weather(*cities: str) -> Script:
    """Call a function for each of these cities at once."""

    async def script(call: Call) -> None:
        for index, city in enumerate(cities):
            function = {"name": "GetWeather", "arguments": ""}
            beside = {"index": index, "id": f"call_{index}", "type": "function"}
            await call.send(call.chunk({"delta": {"tool_calls": [{**beside, "function": function}]}}))
            for piece in ('{"city"', f': "{city}"', "}"):
                fragment = {"index": index, "function": {"arguments": piece}}
                await call.send(call.chunk({"delta": {"tool_calls": [fragment]}}))
        await call.finish("tool_calls", USAGE)

    return script


# Creating.


async def test_a_response_is_created(service, upstream, sdk):
    upstream.script = say("Val", "key", usage=USAGE)
    found = await sdk.ask(service.url, "responses.create", **INPUT)
    assert isinstance(found, Response)
    assert (found.status, found.output_text, found.error, found.background) == ("completed", "Valkey", None, False)
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.total_tokens) == (5, 7, 12)
    assert found.usage.output_tokens_details.reasoning_tokens == 0
    assert found._request_id.startswith("req_")
    assert (await service.generation(found.id))["status"] == "completed"


async def test_a_streamed_response_is_events_of_their_kinds(service, upstream, sdk):
    upstream.script = say("Val", "key", usage=USAGE)
    events = await sdk.ask(service.url, "responses.create", **INPUT, stream=True)
    assert types(events) == TEXT_EVENTS
    assert numbers(events) == list(range(len(events)))
    assert deltas(events) == "Valkey"
    assert events[-1].response.output_text == "Valkey"
    assert len({type(event) for event in events}) == len(set(TEXT_EVENTS))


async def test_a_response_in_the_background_is_polled(service, other_service, upstream, sdk):
    # given a response that is made in the background
    found = await sdk.ask(service.url, "responses.create", **BACKGROUND)
    assert (found.status, found.output_text, found.background) == ("queued", "", True)

    # when it is asked for until it is there, as the documentation says
    call = await upstream.called()
    await call.say("Val")

    async def becomes(status: str) -> Any:
        return await eventually(
            f"{status} of {found.id}",
            lambda: sdk.ask(other_service.url, "responses.retrieve", response_id=found.id),
            lambda answer: answer.status == status,
        )

    assert (await becomes("in_progress")).output_text == "Val"
    await call.say("key")
    await call.finish()
    assert (await becomes("completed")).output_text == "Valkey"


async def test_a_stream_in_the_background_begins_at_once(client, upstream):
    stream = await client.responses.create(**BACKGROUND, stream=True)
    created = await within("the first event", anext(stream))
    assert (created.type, created.response.status, created.sequence_number) == ("response.created", "queued", 0)
    call = await upstream.called()
    for text in ("Val", "key"):
        await call.say(text)
        while (event := await within("a delta", anext(stream))).type != "response.output_text.delta":
            pass
        assert event.delta == text
    await call.finish()
    assert [event.type async for event in stream][-1] == "response.completed"


async def test_a_format_is_parsed(service, upstream, sdk):
    class Weather(BaseModel):
        city: str
        degrees: int

    upstream.script = say('{"city": "Par', 'is", "degr', 'ees": 21}')
    parsed = await sdk.ask(service.url, "responses.parse", **INPUT, text_format=Weather)
    assert parsed.output_parsed == Weather(city="Paris", degrees=21)
    form = upstream.calls[0].request["response_format"]
    assert (form["type"], form["json_schema"]["name"], form["json_schema"]["strict"]) == (
        "json_schema",
        "Weather",
        True,
    )
    assert set(form["json_schema"]["schema"]["properties"]) == {"city", "degrees"}

    # and so it is by the helper
    events, final = await sdk.follow(service.url, **INPUT, text_format=Weather)
    assert final.output_parsed == parsed.output_parsed
    (done,) = (event for event in events if event.type == "response.output_text.done")
    assert done.parsed == parsed.output_parsed


async def test_options_of_ours_go_in_the_extra_body(client, service, upstream):
    upstream.script = say("a")
    options = {"id": f"gen_{os.urandom(8).hex()}", "ttl": 600, "metadata": {"k": ["v"]}}
    found = await client.responses.create(**INPUT, metadata={"user": "u1"}, extra_body={"replay": options})
    assert (found.id, found.metadata) == (options["id"], {"user": "u1"})
    generation = await service.generation(found.id)
    assert generation["metadata"] == {"k": ["v"]}
    assert generation["expires_at"] == pytest.approx(generation["ended"] + 600, abs=2)
    with pytest.raises(ConflictError):
        await client.responses.create(**INPUT, extra_body={"replay": options})


# The helper.


async def test_the_helper_follows_a_text(service, upstream, sdk):
    upstream.script = say("Val", "key", usage=USAGE)
    events, final = await sdk.follow(service.url, **INPUT)
    assert types(events) == TEXT_EVENTS
    assert [event.snapshot for event in events if event.type == "response.output_text.delta"] == ["Val", "Valkey"]
    assert (final.status, final.output_text, final.usage.total_tokens) == ("completed", "Valkey", 12)


async def test_the_helper_follows_calls(service, upstream, sdk):
    class GetWeather(BaseModel):
        city: str

    # given a tool that is made of a model, as the documentation says
    tool = pydantic_function_tool(GetWeather)
    given = {"type": "function", **tool["function"]}
    upstream.script = calls_for_weather("Paris", "Rome")
    events, final = await sdk.follow(service.url, **INPUT, tools=[given])

    # then its calls are told piece by piece, and whole and parsed
    pieces = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert [event.snapshot for event in pieces if event.output_index == 1][-1] == '{"city": "Rome"}'
    assert [(item.type, item.call_id, item.name) for item in final.output] == [
        ("function_call", "call_0", "GetWeather"),
        ("function_call", "call_1", "GetWeather"),
    ]
    assert [json.loads(item.arguments) for item in final.output] == [{"city": "Paris"}, {"city": "Rome"}]
    assert upstream.calls[0].request["tools"] == [tool]


@pytest.mark.parametrize(
    ("sample", "status", "kinds", "text"),
    [
        ("07-reasoning_content", "incomplete", ["reasoning", "message"], " the reader"),
        ("09-tool_calls-parallel", "completed", ["function_call", "function_call"], ""),
        ("12-logprobs", "incomplete", ["message"], " a "),
    ],
)
async def test_the_helper_follows_what_was_recorded(service, upstream, sdk, sample, status, kinds, text):
    upstream.script = play(SAMPLES[sample])
    events, final = await sdk.follow(service.url, **INPUT)
    assert numbers(events) == list(range(len(events)))
    assert deltas(events) == text
    found = events[-1].response
    assert (types(events)[-1], found.status) == (status, status)
    assert ([item.type for item in found.output], found.output_text) == (kinds, text)
    if status == "completed":
        assert [item.type for item in final.output] == kinds
    else:
        assert "response.completed" in str(final)  # the helper knows no other ending


async def test_the_helper_is_told_of_a_failure(service, upstream, sdk):
    async def script(call: Call) -> None:
        await call.say("Val")
        await call.send({"error": {"message": "on fire", "type": "server_error", "param": None, "code": None}})
        await call.done()

    upstream.script = script
    events, final = await sdk.follow(service.url, **INPUT)
    assert isinstance(final, RuntimeError)
    assert types(events)[-1] == "failed"
    assert (events[-1].response.status, events[-1].response.error.message) == ("failed", "on fire")
    found = await sdk.ask(service.url, "responses.retrieve", response_id=events[0].response.id)
    assert (found.status, found.error.message, found.output_text) == ("failed", "on fire", "Val")


# Following what somebody else has started.


async def test_what_has_ended_is_followed_from_its_beginning_and_from_anywhere(service, other_service, upstream, sdk):
    upstream.script = say("Val", "key", usage=USAGE)
    found = await sdk.ask(service.url, "responses.create", **INPUT)
    for url in (service.url, other_service.url):
        # by the helper, which reads all and shows what comes after
        events, final = await sdk.follow(url, response_id=found.id)
        assert types(events) == TEXT_EVENTS
        assert (final.id, final.output_text) == (found.id, "Valkey")
        for after in (0, 4, 8):
            later, final = await sdk.follow(url, response_id=found.id, starting_after=after)
            assert numbers(later) == list(range(after + 1, len(TEXT_EVENTS)))
            assert final.output_text == "Valkey"

        # and without it
        assert (await sdk.ask(url, "responses.retrieve", response_id=found.id)).to_dict() == found.to_dict()
        streamed = await sdk.ask(url, "responses.retrieve", response_id=found.id, stream=True)
        assert types(streamed) == TEXT_EVENTS
        for after in (0, 4, 8, 9):
            rest = await sdk.ask(url, "responses.retrieve", response_id=found.id, stream=True, starting_after=after)
            assert [event.to_dict() for event in rest] == [event.to_dict() for event in streamed[after + 1 :]]
    assert len(upstream.calls) == 1


async def test_what_runs_is_followed_by_the_helper_until_its_end(service, other_service, upstream, sdk):
    # given a response in the background that has said something
    found = await sdk.ask(service.url, "responses.create", **BACKGROUND)
    call = await upstream.called()
    await call.say("Val")
    seen: list[Any] = []
    others = [
        asyncio.create_task(sdk.follow(service.url, seen, response_id=found.id)),
        asyncio.create_task(sdk.follow(other_service.url, response_id=found.id, starting_after=4)),
        asyncio.create_task(
            sdk.ask(other_service.url, "responses.retrieve", response_id=found.id, stream=True, starting_after=2)
        ),
    ]

    # when others follow it, and it goes on once they are there
    await service.has_subscribers(found.id, 3)
    assert not any(task.done() for task in others)
    await call.say("key")
    await call.finish()

    # then each has what it asked for
    (events, final), (later, other_final), rest = await asyncio.gather(*others)
    assert types(events) == types(seen) == TEXT_EVENTS
    assert events[0].response.status == "queued"
    assert numbers(later) == list(range(5, len(TEXT_EVENTS)))
    assert final.output_text == other_final.output_text == "Valkey"
    assert numbers(rest) == list(range(3, len(TEXT_EVENTS)))


# Cancelling, deleting, listing.


async def test_a_cancelled_response_ends_its_stream(service, other_service, upstream, sdk):
    found = await sdk.ask(service.url, "responses.create", **BACKGROUND)
    call = await upstream.called()
    await call.say("Val")
    await service.has(found.id, 2)
    following = asyncio.create_task(sdk.follow(service.url, response_id=found.id))
    await service.has_subscribers(found.id, 1)
    cancelled = await sdk.ask(other_service.url, "responses.cancel", response_id=found.id)
    assert (cancelled.id, cancelled.status, cancelled.output_text) == (found.id, "cancelled", "Val")
    events, final = await following
    assert types(events) == TEXT_EVENTS[:5]
    assert isinstance(final, RuntimeError)
    again = await sdk.ask(service.url, "responses.cancel", response_id=found.id)
    assert again.to_dict() == cancelled.to_dict()
    assert (await sdk.ask(service.url, "responses.retrieve", response_id=found.id)).status == "cancelled"


async def test_a_deleted_response_is_not_found(service, other_service, upstream, sdk):
    upstream.script = say("a")
    found = await sdk.ask(service.url, "responses.create", **INPUT)
    assert await sdk.ask(other_service.url, "responses.delete", response_id=found.id) is None
    for call in ("retrieve", "cancel", "delete"):
        with pytest.raises(NotFoundError) as caught:
            await sdk.ask(service.url, f"responses.{call}", response_id=found.id)
        assert caught.value.code == "generation_not_found"
    with pytest.raises(NotFoundError):
        await sdk.follow(service.url, response_id=found.id)


async def test_input_items_are_listed_page_by_page(service, upstream, sdk):
    upstream.script = say("a")
    given = [
        {"role": "user", "content": "How is it in Paris?"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "So?"}]},
    ]
    found = await sdk.ask(service.url, "responses.create", **(INPUT | {"input": given}))
    for order in ("asc", "desc"):
        listed = await sdk.ask(service.url, "responses.input_items.list", response_id=found.id, limit=3, order=order)
        kinds = [item.type for item in listed]
        assert kinds[:: 1 if order == "asc" else -1] == ["message", "function_call", "function_call_output", "message"]
        assert {type(item).__name__ for item in listed} == {
            *("ResponseInputMessageItem", "ResponseFunctionToolCallItem", "ResponseFunctionToolCallOutputItem")
        }


# Conversations.


async def test_a_tool_is_called_in_a_conversation(service, other_service, upstream, sdk):
    # given a response that calls a function
    tool = {"type": "function", "name": "GetWeather", "parameters": {"type": "object"}, "strict": False}
    question = {"role": "user", "content": "How is it in Paris?"}
    upstream.script = calls_for_weather("Paris")
    first = await sdk.ask(service.url, "responses.create", **(INPUT | {"input": [question]}), tools=[tool])
    (call,) = first.output
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}

    # when its output is given, by the id of the response, or with all that was said
    upstream.script = say("It rains.")
    by_id = INPUT | {"input": [output], "previous_response_id": first.id}
    by_hand = INPUT | {"input": [question, *first.output, output]}
    for url, request in ((service.url, by_id), (other_service.url, by_id), (service.url, by_hand)):
        second = await sdk.ask(url, "responses.create", **request)
        assert (second.output_text, second.previous_response_id) == (
            *("It rains.",),
            request.get("previous_response_id"),
        )

    # then the upstream hears the same
    function = {"name": "GetWeather", "arguments": '{"city": "Paris"}'}
    for call in upstream.calls[1:]:
        assert call.request["messages"] == [
            question,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "call_0", "content": "rain"},
        ]


async def test_what_cannot_be_continued_is_an_error_with_its_code(service, upstream, sdk):
    with pytest.raises(BadRequestError) as caught:
        await sdk.ask(service.url, "responses.create", **INPUT, previous_response_id="resp_unknown")
    assert caught.value.code == "previous_response_not_found"
    assert upstream.calls == []


# What fails.


@streamed_or_whole
async def test_a_refusal_is_the_error_of_its_status(service, upstream, sdk, stream):
    upstream.script = lambda call: call.respond(429, ERROR)
    with pytest.raises(RateLimitError) as caught:
        await sdk.ask(service.url, "responses.create", **INPUT, stream=stream)
    assert (caught.value.code, caught.value.body) == ("rate_limit_exceeded", ERROR["error"])
    with pytest.raises(RateLimitError):
        await sdk.follow(service.url, **INPUT)


async def test_what_cannot_be_asked_is_a_bad_request(service, upstream, sdk):
    for request in (
        {"tool_choice": {"type": "web_search_preview"}},
        {"prompt": {"id": "pmpt_1"}},
        {"conversation": "conv_1"},
    ):
        with pytest.raises(BadRequestError) as caught:
            await sdk.ask(service.url, "responses.create", **INPUT, **request)
        assert next(iter(request)) in caught.value.message
    assert upstream.calls == []


async def test_a_call_that_is_tried_again_with_its_key_reaches_the_upstream_once(service, upstream):
    # given a client whose first answer is lost on the way
    upstream.script = say("Val", "key")
    async with FaultProxy(service.url) as proxy, ON_HTTPX.client(proxy.url, max_retries=2) as client:
        for number, form in enumerate(({}, {"stream": True}, {"background": True}), 1):
            key = {"Idempotency-Key": os.urandom(8).hex()}
            proxy.cut_replies_after(1)
            answer = await client.responses.create(**INPUT, **form, extra_headers=key)
            await proxy.reply_cut()

            # then it tries again, and has the one answer
            if form.get("stream"):
                assert deltas([event async for event in answer]) == "Valkey"
            else:
                await service.ended(answer.id)
                assert (await client.responses.retrieve(answer.id)).output_text == "Valkey"
            assert len(upstream.calls) == number

        # and may not ask for something else with it
        with pytest.raises(UnprocessableEntityError):
            await client.responses.create(model="test-model", input="Ho", extra_headers=key)


# Passed through.


async def test_an_upstream_that_speaks_responses_is_followed_all_the_same(make_node, upstream):
    # given a node whose upstream speaks the Responses API
    upstream.speaks_responses = True
    upstream.script = respond(said("Val", "key"))
    node = await make_node()
    for sdk in WAYS.values():
        # when it is used in every way
        events, final = await sdk.follow(node.url, **INPUT)
        whole = await sdk.ask(node.url, "responses.create", **BACKGROUND)
        behind, behind_final = await sdk.follow(node.url, response_id=whole.id)
        again, again_final = await sdk.follow(node.url, response_id=final.id, starting_after=4)
        rest = await sdk.ask(node.url, "responses.retrieve", response_id=final.id, stream=True, starting_after=4)

        # then there is no difference
        assert types(events) == types(behind) == TEXT_EVENTS
        assert final.output_text == behind_final.output_text == again_final.output_text == "Valkey"
        assert numbers(again) == numbers(rest) == list(range(5, len(TEXT_EVENTS)))
    assert {call.path for call in upstream.calls} == {"/v1/responses"}

    # nor where it refuses
    upstream.script = lambda call: call.respond(429, ERROR)
    with pytest.raises(APIStatusError) as caught:
        await ON_HTTPX.ask(node.url, "responses.create", **INPUT)
    assert caught.value.status_code == 429


# A script that uses nothing but the package.

SCRIPT = """
import json, os, sys
from openai import DefaultHttpxClient, OpenAI

base_url, notes = sys.argv[1:]
client = OpenAI(base_url=base_url, api_key="none", http_client=DefaultHttpxClient(trust_env=False))

if os.path.exists(notes):  # it was begun before
    with open(notes) as file:
        state = json.load(file)
    stream = client.responses.retrieve(state["id"], stream=True, starting_after=state["numbers"][-1])
else:
    state = {"id": None, "numbers": [], "texts": []}
    stream = client.responses.create(model="test-model", input="Hi", background=True, stream=True)

for event in stream:
    if event.type == "response.created":
        state["id"] = event.response.id
    if event.type == "response.output_text.delta":
        state["texts"].append(event.delta)
    state["numbers"].append(event.sequence_number)
    with open(notes + ".new", "w") as file:
        json.dump(state, file)
    os.replace(notes + ".new", notes)
    print(event.type, flush=True)
"""


async def test_a_script_that_is_killed_goes_on_where_it_was(service, other_service, upstream, tmp_path):
    # given a script that follows a response which it has started in the background
    script, notes = tmp_path / "script.py", tmp_path / "notes.json"
    script.write_text(SCRIPT)
    async with running(sys.executable, str(script), f"{service.url}/v1", str(notes)) as first:
        call = await upstream.called()
        await first.prints("response.created")
        for number in range(10):
            await call.say(f"word{number} ")
        await first.prints("response.output_text.delta", 5)

    # when it is killed half-way, and started again at another node while the model goes on
    assert first.process.returncode == -signal.SIGKILL
    for number in range(10, 20):
        await call.say(f"word{number} ")
    async with running(sys.executable, str(script), f"{other_service.url}/v1", str(notes)) as second:
        await second.prints("response.output_text.delta", 7)
        await call.say("word20 ")
        await call.finish()
        await second.prints("response.completed")
        await second.ended()

    # then it has every event once, and the upstream was called once
    state = json.loads(notes.read_text())
    assert state["texts"] == [f"word{number} " for number in range(21)]
    assert state["numbers"] == list(range(len(state["numbers"])))
    assert len(upstream.calls) == 1
