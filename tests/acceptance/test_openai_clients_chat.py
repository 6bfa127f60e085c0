"""The official package gets chat completions from `/v1` as it gets them from OpenAI, with its helpers on top."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import (
    APIError,
    DefaultAioHttpClient,
    DefaultAsyncHttpxClient,
    DefaultHttpxClient,
    LengthFinishReasonError,
    NotFoundError,
)
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from support.deadlines import within
from support.fault_proxy import FaultProxy, keep_alives
from support.samples import CHATS, SAMPLES, WHOLE
from support.scripts import say_choices
from support.sdk import CITY, ON_HTTPX, ROUNDS, SYNCHRONOUS, City, choices_of, every_sdk, has, text_of
from support.upstream import USAGE, Call, play, say
from support.v1 import CHAT, COUNTED

pytestmark = pytest.mark.slow


# Chat completions.


@every_sdk
@pytest.mark.parametrize("name", CHATS)
async def test_streamed_chunks_are_the_upstreams_under_another_id(ask, service, upstream, name):
    upstream.script = play(SAMPLES[name])
    shown = await ask(service.url, "chat.completions.create", **CHAT, **COUNTED, stream=True)
    (id,) = {chunk.id for chunk in shown}
    assert [chunk.to_dict() for chunk in shown] == [chunk | {"id": id} for chunk in SAMPLES[name].chunks]
    assert (await service.generation(id))["status"] == "completed"


@every_sdk
@pytest.mark.parametrize("name", WHOLE)
async def test_a_whole_answer_is_assembled_from_the_upstreams_stream(ask, service, upstream, name):
    upstream.script = play(SAMPLES[name])
    completion = await ask(service.url, "chat.completions.create", **CHAT)
    assert upstream.calls[-1].request["stream"] is True
    assert (completion.object, {choice.message.role for choice in completion.choices}) == (
        "chat.completion",
        {"assistant"},
    )
    assert choices_of(completion) == WHOLE[name]
    # and it can be had again
    again = await ask(service.url, "chat.completions.retrieve", completion_id=completion.id)
    assert again.to_dict() == completion.to_dict() | {"metadata": {}}


@pytest.mark.parametrize("name", [name for name in CHATS if not name.startswith("47")])  # a null delta breaks the SDK's
async def test_the_sdks_own_assembly_of_a_stream_is_the_whole_answer(client, upstream, name):
    # given a stream, as the SDK's accumulator has put it together
    upstream.script = play(SAMPLES[name])
    state = ChatCompletionStreamState()
    async for chunk in await client.chat.completions.create(**CHAT, **COUNTED, stream=True):
        state.handle_chunk(chunk)
    assembled = state.current_completion_snapshot

    # when the same is asked for as a whole
    whole = await client.chat.completions.retrieve(assembled.id)

    # then it says the same
    *_, last = SAMPLES[name].chunks
    assert (whole.model, whole.created) == (last["model"], last["created"])
    assert [choice.finish_reason for choice in whole.choices] == [c.finish_reason for c in assembled.choices]
    assert [choice.logprobs and choice.logprobs.content for choice in whole.choices] == [
        choice.logprobs and choice.logprobs.content for choice in assembled.choices
    ]
    for choice, other in zip(whole.choices, assembled.choices, strict=True):
        assert choice.message.content == other.message.content
        assert choice.message.refusal == other.message.refusal
        assert choice.message.model_extra == other.message.model_extra
        assert [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()] == [
            (call.id, call.function.name, call.function.arguments) for call in other.message.tool_calls or ()
        ]
    counted = [chunk["usage"] for chunk in SAMPLES[name].chunks if chunk.get("usage")]
    assert (whole.usage and whole.usage.to_dict()) == (counted[-1] if counted else None)


@every_sdk
async def test_several_choices_are_told_apart(ask, service, upstream):
    async def script(call: Call) -> None:
        for index, text in ((1, "Ja"), (0, "Y"), (1, ", gern"), (0, "es")):
            await call.send(call.chunk({"index": index, "delta": {"content": text}}))
        await call.send(call.chunk({"index": 1, "delta": {}, "finish_reason": "length"}))
        await call.finish()

    upstream.script = script
    completion = await ask(service.url, "chat.completions.create", **CHAT, n=2)
    assert upstream.calls[-1].request["n"] == 2
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert choices_of(completion) == [("stop", {"content": "Yes"}), ("length", {"content": "Ja, gern"})]
    shown = await ask(service.url, "chat.completions.create", **CHAT, n=2, stream=True)
    assert [chunk.choices[0].index for chunk in shown] == [1, 0, 1, 0, 1, 0]
    assert text_of(shown) == "Yes"


@every_sdk
async def test_log_probabilities_are_there_streamed_and_whole(ask, service, upstream):
    upstream.script = play(SAMPLES["12-logprobs"])
    shown = await ask(service.url, "chat.completions.create", **CHAT, stream=True, logprobs=True, top_logprobs=2)
    (request,) = [call.request for call in upstream.calls]
    assert (request["logprobs"], request["top_logprobs"]) == (True, 2)
    streamed = [token for chunk in shown if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    whole = await ask(service.url, "chat.completions.retrieve", completion_id=shown[0].id)
    assert [token.token for token in streamed] == [" a", " "]
    assert all(len(token.top_logprobs) == 2 for token in streamed)
    assert whole.choices[0].logprobs.content == streamed


@every_sdk
async def test_reasoning_comes_as_the_field_that_the_upstream_gave_it(ask, service, upstream):
    upstream.script = say_choices(
        {"delta": {"role": "assistant", "content": None}},
        {"delta": {"reasoning": "Let me "}},
        {"delta": {"reasoning": "think."}},
        {"delta": {"content": "42"}},
    )
    shown = await ask(service.url, "chat.completions.create", **CHAT, stream=True)
    extra = [chunk.choices[0].delta.model_extra or {} for chunk in shown]
    assert [fields["reasoning"] for fields in extra if "reasoning" in fields] == ["Let me ", "think."]
    whole = await ask(service.url, "chat.completions.retrieve", completion_id=shown[0].id)
    assert whole.choices[0].message.model_extra == {"reasoning": "Let me think."}
    assert (whole.choices[0].message.content, text_of(shown)) == ("42", "42")


@every_sdk
@pytest.mark.parametrize("wanted", [None, False, True])
async def test_usage_is_streamed_to_whoever_asks_and_counted_for_all(ask, service, upstream, wanted):
    upstream.script = say_choices({"delta": {"content": "Hi"}}, usage=USAGE)
    options = {} if wanted is None else {"stream_options": {"include_usage": wanted}}
    shown = await ask(service.url, "chat.completions.create", **CHAT, **options, stream=True)
    assert upstream.calls[-1].request["stream_options"]["include_usage"] is True
    assert [chunk.usage.to_dict() for chunk in shown if chunk.usage] == ([USAGE] if wanted else [])
    assert all(chunk.choices for chunk in shown if not chunk.usage)
    whole = await ask(service.url, "chat.completions.retrieve", completion_id=shown[0].id)
    assert whole.usage.to_dict() == USAGE


async def test_parameters_reach_the_upstream_as_the_sdk_sent_them(client, upstream):
    upstream.script = say("Hi")
    parameters = {"temperature": 0.5, "seed": 7, "stop": ["\n"], "max_completion_tokens": 9, "user": "u", "top_p": 1}
    extra = {"min_p": 0.1, "nested": {"a": [1, None]}}
    await client.chat.completions.create(**CHAT, **parameters, extra_body=extra)
    expected = CHAT | parameters | extra | {"stream": True, "stream_options": {"include_usage": True}}
    assert upstream.calls[-1].request == expected


@every_sdk
async def test_a_token_is_shown_before_the_upstream_goes_on(ask, service, upstream):
    shown: list[ChatCompletionChunk] = []
    asking = asyncio.create_task(ask(service.url, "chat.completions.create", shown, **CHAT, stream=True))
    call = await upstream.called()
    for count, text in enumerate(("Hel", "lo", "!"), 1):
        await call.say(text)
        await has(shown, count, asking)
    await call.finish()
    assert text_of(await within("the end", asking)) == "Hello!"


@every_sdk
async def test_keep_alives_while_the_model_thinks_disturb_nobody(ask, make_node, upstream):
    # given a client on a node that is never silent for long, and a model that thinks
    node = await make_node(keepalive_s=0.05)
    async with FaultProxy(node.url) as network:
        shown: list[ChatCompletionChunk] = []
        asking = asyncio.create_task(ask(network.url, "chat.completions.create", shown, **CHAT, stream=True))
        call = await upstream.called()
        await call.answer()
        await keep_alives(network, 5)

        # when it speaks, and falls silent, and speaks
        for count, text in enumerate(("Hel", "lo", "!"), 1):
            await call.say(text)
            await has(shown, count, asking)
            await keep_alives(network)
        await call.finish()

        # then the client has shown the words alone
        assert [chunk.choices[0].delta.content for chunk in await within("the end", asking)] == ["Hel", "lo", "!", None]


@pytest.mark.parametrize(
    "transport",
    [DefaultHttpxClient, DefaultAsyncHttpxClient, DefaultAioHttpClient],
    ids=["synchronous", "on_httpx", "on_aiohttp"],
)
async def test_a_client_asks_again_and_again_on_the_connections_that_it_keeps(service, upstream, transport):
    # given a client that does not try again, as it would on a connection that it finds closed
    upstream.script = say("Hel", "lo")

    def ask() -> list[str]:
        with SYNCHRONOUS.client(service.url) as client:
            return [text_of(list(client.chat.completions.create(**CHAT, stream=True))) for _ in range(ROUNDS)]

    async def ask_async() -> list[str]:
        async with ON_HTTPX.client(service.url, http_client=transport(trust_env=False)) as client:
            return [
                text_of([chunk async for chunk in await client.chat.completions.create(**CHAT, stream=True)])
                for _ in range(ROUNDS)
            ]

    # when it asks for one stream after the other, then it gets each
    said = await (asyncio.to_thread(ask) if transport is DefaultHttpxClient else ask_async())
    assert said == ["Hello"] * ROUNDS
    assert len(upstream.calls) == ROUNDS


async def test_a_client_that_leaves_ends_nothing(client, service, upstream):
    asking = asyncio.create_task(client.chat.completions.create(**CHAT, stream=True))
    call = await upstream.called()
    await call.say("Hel")
    stream = await within("an answer", asking)
    chunk = await within("a chunk", anext(stream))
    await stream.close()
    unfinished = await client.chat.completions.retrieve(chunk.id)
    assert (unfinished.choices[0].message.content, unfinished.choices[0].finish_reason) == ("Hel", None)
    await call.say("lo")
    await call.finish()
    await service.ended(chunk.id)
    assert choices_of(await client.chat.completions.retrieve(chunk.id)) == [("stop", {"content": "Hello"})]


async def test_a_cancel_is_an_error_to_the_client_that_reads(client, service, upstream):
    asking = asyncio.create_task(client.chat.completions.create(**CHAT, stream=True))
    call = await upstream.called()
    await call.say("Hel")
    stream = await within("an answer", asking)
    chunk = await within("a chunk", anext(stream))
    assert (await service.post(f"/generations/{chunk.id}/cancel")).status == 200
    with pytest.raises(APIError) as raised:
        await within("an error", anext(stream))
    assert raised.value.code == "cancelled"
    await call.hung_up()


# What the package puts on top.


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_the_stream_helper_tells_events_and_the_whole(kind, service, client, upstream):
    upstream.script = say("Hel", "lo ", "café 😀", usage=USAGE)

    def read() -> tuple[list[Any], ChatCompletion]:
        with SYNCHRONOUS.client(service.url) as client, client.chat.completions.stream(**CHAT, **COUNTED) as stream:
            return list(stream), stream.get_final_completion()

    if kind == "sync":
        events, completion = await asyncio.to_thread(read)
    else:
        async with client.chat.completions.stream(**CHAT, **COUNTED) as stream:
            events = [event async for event in stream]
            completion = await stream.get_final_completion()
    assert [event.delta for event in events if event.type == "content.delta"] == ["Hel", "lo ", "café 😀"]
    assert [event.content for event in events if event.type == "content.done"] == ["Hello café 😀"]
    assert choices_of(completion) == [("stop", {"content": "Hello café 😀"})]
    assert completion.usage is not None
    assert completion.usage.to_dict() == USAGE


async def test_the_stream_helper_puts_tool_calls_together_and_parses_them(client, upstream):
    def fragment(index: int, **function: str) -> dict[str, Any]:
        head = {"id": f"call_{index}", "type": "function"} if "name" in function else {}
        return {"delta": {"tool_calls": [{"index": index, **head, "function": function}]}}

    async def script(call: Call) -> None:
        await call.send(call.chunk({"delta": {"role": "assistant", "content": None}}))
        for index, city in enumerate(("Paris é", "東京")):
            await call.send(call.chunk(fragment(index, name="GetWeather", arguments="")))
            for piece in ('{"city": "', city, '"}'):
                await call.send(call.chunk(fragment(index, arguments=piece)))
        await call.finish("tool_calls")

    upstream.script = script
    tools = [openai.pydantic_function_tool(GetWeather)]
    async with client.chat.completions.stream(**CHAT, tools=tools) as stream:
        events = [event async for event in stream]
        completion = await stream.get_final_completion()
    assert upstream.calls[-1].request["tools"] == json.loads(json.dumps(tools))
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.index, event.parsed_arguments.city) for event in done] == [(0, "Paris é"), (1, "東京")]
    calls = completion.choices[0].message.tool_calls
    assert [(call.id, call.function.parsed_arguments) for call in calls] == [
        ("call_0", GetWeather(city="Paris é")),
        ("call_1", GetWeather(city="東京")),
    ]
    # and the same as a whole
    whole = await client.chat.completions.parse(**CHAT, tools=tools)
    assert [call.function.parsed_arguments for call in whole.choices[0].message.tool_calls] == [
        GetWeather(city="Paris é"),
        GetWeather(city="東京"),
    ]


async def test_a_pydantic_model_as_response_format_is_parsed(client, upstream):
    upstream.script = say(*CITY)
    async with client.chat.completions.stream(**CHAT, response_format=City) as stream:
        streamed = await stream.get_final_completion()
    whole = await client.chat.completions.parse(**CHAT, response_format=City)
    for call, completion in zip(upstream.calls, (streamed, whole), strict=True):
        assert call.request["response_format"]["json_schema"]["name"] == "City"
        assert completion.choices[0].message.parsed == City(name="Paris", people=2_100_000)


async def test_an_answer_that_was_too_long_to_parse_is_the_sdks_own_error(client, upstream):
    upstream.script = say(*CITY[:2], reason="length", usage=USAGE)
    with pytest.raises(LengthFinishReasonError):
        await client.chat.completions.parse(**CHAT, response_format=City)
    with pytest.raises(LengthFinishReasonError):
        async with client.chat.completions.stream(**CHAT, response_format=City) as stream:
            await stream.get_final_completion()


async def test_the_raw_stream_is_data_lines_alone_under_headers_that_name_the_generation(client, service, upstream):
    upstream.script = say("Hel", "lo")
    async with client.chat.completions.with_streaming_response.create(**CHAT, stream=True) as response:
        lines = [line async for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines.pop() == "data: [DONE]"
    id = response.headers["replay-generation-id"]
    assert {json.loads(line.removeprefix("data: "))["id"] for line in lines} == {id}
    assert response.headers["link"] == f'</generations/{id}/events>; rel="monitor"'
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.request_id == response.headers["x-request-id"]
    assert response.request_id.startswith("req_")
    assert (await service.transcript(id))["text"] == "Hello"


async def test_the_raw_response_of_a_whole_answer_has_the_same_headers(client, upstream):
    upstream.script = say("Hello")
    response = await client.chat.completions.with_raw_response.create(**CHAT)
    completion = response.parse()
    assert response.headers["replay-generation-id"] == completion.id
    assert response.headers["content-type"].startswith("application/json")
    assert completion._request_id == response.headers["x-request-id"]
    streaming = await client.chat.completions.with_raw_response.create(**CHAT, stream=True)
    shown = [chunk async for chunk in streaming.parse()]
    assert (text_of(shown), streaming.headers["replay-generation-id"]) == ("Hello", shown[0].id)


@every_sdk
async def test_every_answer_has_a_request_id_of_its_own(ask, service, upstream):
    upstream.script = say("Hello")
    first = await ask(service.url, "chat.completions.create", **CHAT)
    again = await ask(service.url, "chat.completions.retrieve", completion_id=first.id)
    assert len({first._request_id, again._request_id, None}) == 3
    with pytest.raises(NotFoundError) as raised:
        await ask(service.url, "chat.completions.retrieve", completion_id="nobody")
    assert raised.value.request_id not in (None, first._request_id, again._request_id)
