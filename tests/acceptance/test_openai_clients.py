"""OpenAI's clients, and those that speak its API, get from /v1 what they get from OpenAI: only the base URL is another.

The official package for Python (synchronous, on httpx, on aiohttp), npm's `openai`, and Vercel's `ai` through
`@ai-sdk/openai-compatible`: each is used as its documentation says, and nothing of it is patched.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import operator
import os
import re
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    AsyncOpenAI,
    BadRequestError,
    ConflictError,
    DefaultAioHttpClient,
    DefaultAsyncHttpxClient,
    DefaultHttpxClient,
    InternalServerError,
    LengthFinishReasonError,
    NotFoundError,
    OpenAI,
    RateLimitError,
    Stream,
    UnprocessableEntityError,
)
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from support.api import Api
from support.deadlines import DEADLINE_S, eventually, within
from support.fault_proxy import FaultProxy
from support.ports import free_port
from support.samples import SAMPLES
from support.upstream import USAGE, Call, Script, generate, play, respond, said, say

pytestmark = pytest.mark.slow  # all of it together takes more than a minute

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"

CHAT: dict[str, Any] = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]}
COUNTED: dict[str, Any] = CHAT | {"stream_options": {"include_usage": True}}
PROMPT: dict[str, Any] = {"model": "test-model", "prompt": "Hi"}
INPUT: dict[str, Any] = {"model": "test-model", "input": "Hi"}
KEEPALIVE = b"2\r\n:\n\r\n"  # one on the wire
AT_ONCE_S = DEADLINE_S / 2  # less than anything that the service itself waits for

# The recorded answers that are chat completions and complete.
SAID = [
    *("01-role-only-then-null-content", "02-role-and-content-together", "03-usage-only-empty-choices"),
    *("04-usage-inside-finish-no-DONE", "07-reasoning_content", "08-tool_calls", "09-tool_calls-parallel"),
    *("12-logprobs", "30-raw-U2028-and-DONE-in-text", "40-azure-first-chunk", "42-crlf"),
    *("44-continuous-usage", "47-empty-delta-and-null-delta", "49-vllm-finish-with-content"),
]
REFUSED = ["25-429-retry-after", "28-400-openai-error"]
LEGACY = ["05-completions-text", "14-keepalive-comments"]


# The official package, three ways. A client lives as long as one question, and shows what came where the test sees it.

Ask = Callable[..., Awaitable[Any]]


@contextlib.asynccontextmanager
async def sdk(url: str, *, http_client: Any = None, **options: Any) -> AsyncIterator[AsyncOpenAI]:
    """The official client of a node, on httpx."""
    http_client = http_client or DefaultAsyncHttpxClient(trust_env=False)
    options = {"api_key": "none", "timeout": DEADLINE_S, "max_retries": 0} | options
    async with AsyncOpenAI(base_url=f"{url}/v1", http_client=http_client, **options) as client:
        yield client


async def on_httpx(url: str, call: str, shown: list[Any] | None = None, **request: Any) -> Any:
    """Ask with AsyncOpenAI; a stream and the pages of a list are read to their end."""
    async with sdk(url) as client:
        return await _asked(client, call, [] if shown is None else shown, request)


async def on_aiohttp(url: str, call: str, shown: list[Any] | None = None, **request: Any) -> Any:
    """The same on its other transport."""
    async with sdk(url, http_client=DefaultAioHttpClient(trust_env=False)) as client:
        return await _asked(client, call, [] if shown is None else shown, request)


async def _asked(client: AsyncOpenAI, call: str, shown: list[Any], request: dict[str, Any]) -> Any:
    answer = operator.attrgetter(call)(client)(**request)
    if inspect.iscoroutine(answer):
        answer = await answer
    if not hasattr(answer, "__aiter__"):
        return answer
    async for item in answer:
        shown.append(item)  # noqa: PERF401 - the test watches it grow
    return shown


async def synchronous(url: str, call: str, shown: list[Any] | None = None, **request: Any) -> Any:
    """The same with OpenAI, in a thread."""

    def ask() -> Any:
        http_client = DefaultHttpxClient(trust_env=False)
        with OpenAI(
            base_url=f"{url}/v1", api_key="none", timeout=DEADLINE_S, max_retries=0, http_client=http_client
        ) as client:
            answer = operator.attrgetter(call)(client)(**request)
            if not isinstance(answer, Stream) and not hasattr(answer, "iter_pages"):
                return answer
            items = [] if shown is None else shown
            items.extend(answer)
            return items

    return await asyncio.to_thread(ask)


every_sdk = pytest.mark.parametrize("ask", [synchronous, on_httpx, on_aiohttp], ids=lambda ask: ask.__name__)
streamed_or_not = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


@pytest.fixture
async def client(service: Api) -> AsyncIterator[AsyncOpenAI]:
    """The official client of a shared node."""
    async with sdk(service.url) as client:
        yield client


@pytest.fixture
def key() -> dict[str, str]:
    return {"Idempotency-Key": f"key-{uuid.uuid4()}"}


def chunks(*choices: dict[str, Any], usage: dict[str, Any] | None = None) -> Script:
    """Send these, each as choice 0 of a chunk of its own, and finish."""

    async def script(call: Call) -> None:
        for choice in choices:
            await call.send(call.chunk(choice))
        await call.finish(usage=usage)

    return script


def in_turn(*scripts: Script) -> Script:
    """The first call is answered with the first script, and so on."""
    left = list(scripts)

    async def script(call: Call) -> None:
        await left.pop(0)(call)

    return script


def text_of(shown: Sequence[ChatCompletionChunk]) -> str:
    """The visible text of choice 0."""
    return "".join(choice.delta.content or "" for chunk in shown for choice in chunk.choices if choice.index == 0)


async def has(shown: Sequence[Any], count: int, task: asyncio.Task[Any]) -> None:
    """Wait until a client that runs as a task has shown so much."""

    async def seen() -> int:
        if task.done():
            task.result()
        return len(shown)

    await eventually(f"{count} items from a client", seen, lambda seen: seen >= count)


async def keep_alives(network: FaultProxy, count: int = 3) -> None:
    """Wait until so many have gone to the client."""
    target = network.replies.bytes + count * len(KEEPALIVE)

    async def passed() -> int:
        return network.replies.bytes

    await eventually(f"{count} keep-alives", passed, lambda size: size >= target)


# Chat completions.


@every_sdk
@pytest.mark.parametrize("name", SAID)
async def test_streamed_chunks_are_the_upstreams_under_another_id(ask, service, upstream, name):
    upstream.script = play(SAMPLES[name])
    shown = await ask(service.url, "chat.completions.create", **COUNTED, stream=True)
    (id,) = {chunk.id for chunk in shown}
    assert [chunk.to_dict() for chunk in shown] == [chunk | {"id": id} for chunk in SAMPLES[name].chunks]
    assert (await service.generation(id))["status"] == "completed"


# finish reason and message of every choice
WHOLE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "02-role-and-content-together": [("stop", {"content": "Hello café 😀"})],
    "04-usage-inside-finish-no-DONE": [("length", {"content": "tet"})],
    "07-reasoning_content": [("length", {"reasoning_content": " the reader is", "content": " the reader"})],
    "08-tool_calls": [
        (
            "tool_calls",
            {
                "tool_calls": [
                    {
                        "id": "ciZ4iQvGw94UgyET1rnHM1gfXGGeQRTO",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "Paris é"}'},
                    }
                ]
            },
        )
    ],
    "09-tool_calls-parallel": [
        (
            "tool_calls",
            {
                "tool_calls": [
                    {
                        "id": "call__Jpw_dlnOgeM7c9t",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
                    },
                    {
                        "id": "call_H4UY_by5qR7nOFIY",
                        "type": "function",
                        "function": {"name": "get_time", "arguments": '{"tz":"CET"}'},
                    },
                ]
            },
        )
    ],
    "40-azure-first-chunk": [("stop", {"content": "Hi"})],
    "47-empty-delta-and-null-delta": [("content_filter", {"content": "x", "refusal": "No."})],
    "49-vllm-finish-with-content": [("length", {"content": "tr "})],
}


def told(completion: ChatCompletion) -> list[tuple[str, dict[str, Any]]]:
    """What a whole completion says, as WHOLE has it."""
    messages = [
        {name: value for name, value in choice.message.to_dict().items() if value is not None and name != "role"}
        for choice in completion.choices
    ]
    return [(choice.finish_reason, message) for choice, message in zip(completion.choices, messages, strict=True)]


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
    assert told(completion) == WHOLE[name]
    # and it can be had again
    again = await ask(service.url, "chat.completions.retrieve", completion_id=completion.id)
    assert again.to_dict() == completion.to_dict() | {"metadata": {}}


@pytest.mark.parametrize("name", [name for name in SAID if not name.startswith("47")])  # a null delta breaks the SDK's
async def test_the_sdks_own_assembly_of_a_stream_is_the_whole_answer(client, upstream, name):
    # given a stream, as the SDK's accumulator has put it together
    upstream.script = play(SAMPLES[name])
    state = ChatCompletionStreamState()
    async for chunk in await client.chat.completions.create(**COUNTED, stream=True):
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
    assert told(completion) == [("stop", {"content": "Yes"}), ("length", {"content": "Ja, gern"})]
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
    upstream.script = chunks(
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
    upstream.script = chunks({"delta": {"content": "Hi"}}, usage=USAGE)
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


ROUNDS = 50


@pytest.mark.parametrize(
    "transport",
    [DefaultHttpxClient, DefaultAsyncHttpxClient, DefaultAioHttpClient],
    ids=["synchronous", "on_httpx", "on_aiohttp"],
)
async def test_a_client_asks_again_and_again_on_the_connections_that_it_keeps(service, upstream, transport):
    # given a client that does not try again, as it would on a connection that it finds closed
    upstream.script = say("Hel", "lo")

    def ask() -> list[str]:
        with OpenAI(
            base_url=f"{service.url}/v1",
            api_key="none",
            timeout=DEADLINE_S,
            max_retries=0,
            http_client=transport(trust_env=False),
        ) as client:
            return [text_of(list(client.chat.completions.create(**CHAT, stream=True))) for _ in range(ROUNDS)]

    async def ask_async() -> list[str]:
        async with sdk(service.url, http_client=transport(trust_env=False)) as client:
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
    assert told(await client.chat.completions.retrieve(chunk.id)) == [("stop", {"content": "Hello"})]


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


class City(BaseModel):
    name: str
    people: int


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str


JSON = ('{"name": "Pa', 'ris", "peo', 'ple": 2', "100000}")


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_the_stream_helper_tells_events_and_the_whole(kind, service, client, upstream):
    upstream.script = say("Hel", "lo ", "café 😀", usage=USAGE)

    def read() -> tuple[list[Any], ChatCompletion]:
        http_client = DefaultHttpxClient(trust_env=False)
        with (
            OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=DEADLINE_S, http_client=http_client) as client,
            client.chat.completions.stream(**COUNTED) as stream,
        ):
            return list(stream), stream.get_final_completion()

    if kind == "sync":
        events, completion = await asyncio.to_thread(read)
    else:
        async with client.chat.completions.stream(**COUNTED) as stream:
            events = [event async for event in stream]
            completion = await stream.get_final_completion()
    assert [event.delta for event in events if event.type == "content.delta"] == ["Hel", "lo ", "café 😀"]
    assert [event.content for event in events if event.type == "content.done"] == ["Hello café 😀"]
    assert told(completion) == [("stop", {"content": "Hello café 😀"})]
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
    upstream.script = say(*JSON)
    async with client.chat.completions.stream(**CHAT, response_format=City) as stream:
        streamed = await stream.get_final_completion()
    whole = await client.chat.completions.parse(**CHAT, response_format=City)
    for call, completion in zip(upstream.calls, (streamed, whole), strict=True):
        assert call.request["response_format"]["json_schema"]["name"] == "City"
        assert completion.choices[0].message.parsed == City(name="Paris", people=2_100_000)


async def test_an_answer_that_was_too_long_to_parse_is_the_sdks_own_error(client, upstream):
    upstream.script = say(*JSON[:2], reason="length", usage=USAGE)
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


# Legacy completions, models, and what is kept.


@every_sdk
@pytest.mark.parametrize("name", LEGACY)
async def test_legacy_completions_stream_and_come_whole(ask, service, upstream, name):
    upstream.script = play(SAMPLES[name])
    shown = await ask(service.url, "completions.create", **PROMPT, stream=True)
    assert upstream.calls[-1].legacy
    assert upstream.calls[-1].request["prompt"] == "Hi"
    (id,) = {chunk.id for chunk in shown}
    assert [chunk.to_dict() for chunk in shown] == [chunk | {"id": id} for chunk in SAMPLES[name].chunks]

    whole: Completion = await ask(service.url, "completions.create", **PROMPT)
    (choice,) = whole.choices
    assert (whole.object, choice.text) == ("text_completion", "".join(chunk.choices[0].text for chunk in shown))
    assert (choice.finish_reason, whole.usage) == ("length", shown[-1].usage)


@every_sdk
async def test_models_are_the_upstreams(ask, service, upstream):
    upstream.models = ["test-model", "org/other:model"]
    assert [model.id for model in await ask(service.url, "models.list")] == upstream.models
    model = await ask(service.url, "models.retrieve", model="org/other:model")
    assert (model.id, model.object, model.owned_by) == ("org/other:model", "model", "test")
    with pytest.raises(NotFoundError) as raised:
        await ask(service.url, "models.retrieve", model="nobody's")
    assert raised.value.code == "model_not_found"


@every_sdk
async def test_completions_are_listed_over_pages_and_deleted(ask, make_node, upstream):
    # given five that completed, one that was refused, and one of another model that goes on
    node = await make_node()
    upstream.script = say("Hello")
    made = [
        await ask(
            node.url,
            "chat.completions.create",
            **CHAT,
            store=True,
            metadata={"parity": "even" if place % 2 == 0 else "odd"},
        )
        for place in range(5)
    ]
    ids = [completion.id for completion in made]
    upstream.script = play(SAMPLES["28-400-openai-error"])
    with pytest.raises(BadRequestError):
        await ask(node.url, "chat.completions.create", **CHAT)
    upstream.script = None
    going_on = await node.api.start(CHAT | {"model": "other-model"})

    # then lists have the five, page by page
    async def listed(**query: Any) -> list[str]:
        return [completion.id for completion in await ask(node.url, "chat.completions.list", **query)]

    assert await listed() == ids
    assert await listed(limit=2) == ids
    assert await listed(limit=2, order="desc") == ids[::-1]
    assert await listed(limit=1, after=ids[2]) == ids[3:]
    assert await listed(limit=1, metadata={"parity": "odd"}) == ids[1::2]
    assert await listed(model="test-model") == ids
    assert await listed(model="other-model") == []
    (first, *_) = await ask(node.url, "chat.completions.list", limit=2)
    assert told(first) == told(made[0]) == [("stop", {"content": "Hello"})]
    assert first.metadata == {"parity": "even"}

    # and what is deleted is gone
    gone = await ask(node.url, "chat.completions.delete", completion_id=ids[1])
    assert (gone.id, gone.object, gone.deleted) == (ids[1], "chat.completion.deleted", True)
    assert await listed(limit=2) == [ids[0], *ids[2:]]
    for call in ("retrieve", "delete"):
        with pytest.raises(NotFoundError):
            await ask(node.url, f"chat.completions.{call}", completion_id=ids[1])
    assert (await node.api.post(f"/generations/{going_on['id']}/cancel")).status == 200


@every_sdk
async def test_the_messages_of_a_completion_are_those_of_its_request(ask, service, upstream):
    upstream.script = say("Hello")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi 😀"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [{"type": "text", "text": "How are you?"}]},
        {"role": "user", "content": "Well?"},
    ]
    made = await ask(service.url, "chat.completions.create", model="test-model", messages=messages, store=True)

    async def kept(**query: Any) -> list[dict[str, Any]]:
        listed = await ask(service.url, "chat.completions.messages.list", completion_id=made.id, **query)
        assert len({message.id for message in listed}) == len(listed)
        return [{"role": message.role, "content": message.content} for message in listed]

    async def contents(**query: Any) -> list[Any]:
        return [message["content"] for message in await kept(**query)]

    expected = [message["content"] for message in messages]
    assert [message["role"] for message in await kept()] == [message["role"] for message in messages]
    assert await contents(limit=2) == expected
    assert await contents(limit=2, order="desc") == expected[::-1]


# Errors.


@every_sdk
@streamed_or_not
@pytest.mark.parametrize("name", REFUSED)
async def test_a_refusal_keeps_the_upstreams_status_headers_and_body(ask, service, upstream, name, stream):
    sample = SAMPLES[name]
    upstream.script = play(sample)
    expected = {400: BadRequestError, 429: RateLimitError}[sample.status]
    with pytest.raises(expected) as raised:
        await within("a refusal", ask(service.url, "chat.completions.create", **CHAT, stream=stream), AT_ONCE_S)
    error: APIStatusError = raised.value
    assert (error.status_code, error.response.text) == (sample.status, sample.body.decode())
    assert error.response.headers.get("retry-after") == sample.headers.get("retry-after")
    assert error.request_id is not None
    if sample.headers["content-type"].startswith("application/json"):
        told = json.loads(sample.body)["error"]
        assert (error.body, error.code, error.type) == (told, str(told["code"]), told["type"])


@every_sdk
@streamed_or_not
async def test_a_refusal_in_the_shape_of_a_stream_is_an_error_with_the_upstreams_words(ask, service, upstream, stream):
    sample = SAMPLES["23-status500-with-sse-body"]
    upstream.script = play(sample)
    with pytest.raises(InternalServerError) as raised:
        await within("a refusal", ask(service.url, "chat.completions.create", **CHAT, stream=stream), AT_ONCE_S)
    told = sample.payloads[0]["error"]
    assert (raised.value.body["message"], raised.value.code) == (told["message"], told["code"])


async def test_it_is_the_sdk_that_tries_again_and_not_the_node(make_node, upstream):
    # given a node as it comes, and an upstream that refuses once
    node = await make_node(upstream_retries=None)
    busy = play(SAMPLES["25-429-retry-after"])

    # when a client does not want to try again, then the upstream is asked once
    upstream.script = busy
    async with sdk(node.url) as client:
        with pytest.raises(RateLimitError):
            await client.chat.completions.create(**CHAT)
    assert len(upstream.calls) == 1

    # when it does, then it gets the second answer
    async with sdk(node.url, max_retries=1) as client:
        upstream.script = in_turn(busy, say("Hello"))
        assert told(await client.chat.completions.create(**CHAT)) == [("stop", {"content": "Hello"})]
        upstream.script = in_turn(busy, say("Hello"))
        assert text_of([c async for c in await client.chat.completions.create(**CHAT, stream=True)]) == "Hello"
    assert len(upstream.calls) == 5


async def test_a_refusal_does_not_use_up_the_idempotency_key_for_the_sdks_next_try(service, upstream, key):
    async def refuse(call: Call) -> None:
        await call.respond(503, {"error": {"message": "Busy"}}, {"retry-after-ms": "1"})

    upstream.script = in_turn(refuse, refuse, say("Hello"))
    async with sdk(service.url, max_retries=2) as client:
        first = await client.chat.completions.create(**CHAT, extra_headers=key)
        again = await client.chat.completions.create(**CHAT, extra_headers=key)
    assert told(first) == [("stop", {"content": "Hello"})]
    assert again == first
    assert len(upstream.calls) == 3


@every_sdk
@streamed_or_not
async def test_an_upstream_that_cannot_be_reached_is_a_502(ask, make_node, stream):
    node = await make_node(upstream_url=f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(InternalServerError) as raised:
        await within("a refusal", ask(node.url, "chat.completions.create", **CHAT, stream=stream), AT_ONCE_S)
    assert (raised.value.status_code, raised.value.code) == (502, "upstream_unreachable")


@every_sdk
@streamed_or_not
async def test_an_upstream_that_answers_200_and_nothing_is_a_502(ask, service, upstream, stream):
    upstream.script = play(SAMPLES["21-empty-200"])
    with pytest.raises(InternalServerError) as raised:
        await ask(service.url, "chat.completions.create", **CHAT, stream=stream)
    assert raised.value.status_code == 502
    assert raised.value.code in ("upstream_truncated", "upstream_invalid")


@every_sdk
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("19-error-string-midstream", "has to be a strictly positive float"),
        ("20-error-object-midstream-no-DONE", "Response payload is not completed"),
    ],
)
async def test_an_error_in_the_stream_is_raised_with_the_upstreams_words(ask, service, upstream, name, message):
    upstream.script = play(SAMPLES[name])
    shown: list[ChatCompletionChunk] = []
    with pytest.raises(APIError, match=message) as raised:
        await ask(service.url, "chat.completions.create", shown, **CHAT, stream=True)
    assert not isinstance(raised.value, APIConnectionError)
    assert raised.value.body.keys() == {"message", "type", "param", "code"}
    assert len(shown) == len(SAMPLES[name].chunks)
    assert (await service.generation(shown[0].id))["status"] == "failed"


@every_sdk
async def test_a_stream_that_the_upstream_cuts_is_an_error_after_what_was_said(ask, service, upstream):
    shown: list[ChatCompletionChunk] = []
    asking = asyncio.create_task(ask(service.url, "chat.completions.create", shown, **CHAT, stream=True))
    call = await upstream.called()
    await call.say("Hel")
    await has(shown, 1, asking)
    await call.cut()
    with pytest.raises(APIError) as raised:
        await within("an error", asking)
    assert (raised.value.code, text_of(shown)) == ("upstream_truncated", "Hel")
    kept = await service.ended(shown[0].id)
    assert (kept["status"], kept["error"]["code"]) == ("failed", "upstream_truncated")


@every_sdk
async def test_a_whole_answer_that_the_upstream_cuts_is_a_502(ask, service, upstream):
    upstream.script = play(SAMPLES["22-cut-midline-no-final-chunk"])
    with pytest.raises(InternalServerError) as raised:
        await ask(service.url, "chat.completions.create", **CHAT)
    assert raised.value.status_code == 502


@every_sdk
async def test_a_refusal_that_takes_its_time_keeps_its_status(ask, make_node, upstream):
    node = await make_node(keepalive_s=0.05)
    asking = asyncio.create_task(ask(node.url, "chat.completions.create", **CHAT, stream=True))
    call = await upstream.called()
    await asyncio.sleep(0.3)  # several keep-alives' time, none of which may be sent before the status is known
    await call.respond(429, {"error": {"message": "Slow down", "type": "tokens", "param": None, "code": "tpm"}})
    with pytest.raises(RateLimitError, match="Slow down") as raised:
        await within("an error", asking, AT_ONCE_S)
    assert (raised.value.code, raised.value.type) == ("tpm", "tokens")


@every_sdk
@pytest.mark.parametrize("fault", ["cut", "killed"])
async def test_a_connection_that_breaks_is_never_taken_for_the_end(ask, node, upstream, fault):
    async with FaultProxy(node.url) as network:
        shown: list[ChatCompletionChunk] = []
        asking = asyncio.create_task(ask(network.url, "chat.completions.create", shown, **CHAT, stream=True))
        call = await upstream.called()
        await call.say("Hel")
        await has(shown, 1, asking)
        if fault == "cut":
            network.cut()
        else:
            node.kill()
        with pytest.raises(APIConnectionError):
            await within("an error", asking)
    assert text_of(shown) == "Hel"


@every_sdk
async def test_a_node_that_drains_ends_a_stream_with_an_error(ask, node, upstream):
    shown: list[ChatCompletionChunk] = []
    asking = asyncio.create_task(ask(node.url, "chat.completions.create", shown, **CHAT, stream=True))
    call = await upstream.called()
    await call.say("Hel")
    await has(shown, 1, asking)
    assert await node.stop() == 0
    with pytest.raises(APIError):
        await within("an error", asking)
    assert text_of(shown) == "Hel"


@every_sdk
async def test_requests_that_no_upstream_could_answer_are_bad_requests(ask, service, upstream):
    for request in ({"messages": []}, {"messages": "Hi"}, {"extra_body": {"replay": {"colour": 1}}}):
        with pytest.raises(BadRequestError) as raised:
            await ask(service.url, "chat.completions.create", **(CHAT | request))
        assert (raised.value.code, raised.value.type) == ("invalid_request", "invalid_request_error")
    with pytest.raises(BadRequestError):
        await ask(service.url, "completions.create", model="test-model", prompt=None)
    assert upstream.calls == []


# The member `replay`, and the Idempotency-Key.


@every_sdk
@streamed_or_not
async def test_options_of_the_service_go_into_the_body(ask, service, upstream, stream):
    upstream.script = say("Hello")
    id = f"chosen-{uuid.uuid4()}"
    options = {"id": id, "ttl": 60, "metadata": {"user": "u1"}}
    answer = await ask(service.url, "chat.completions.create", **CHAT, stream=stream, extra_body={"replay": options})
    assert "replay" not in upstream.calls[-1].request
    assert {chunk.id for chunk in (answer if stream else [answer])} == {id}
    kept = await service.ended(id)
    assert (kept["metadata"], kept["status"]) == ({"user": "u1"}, "completed")
    assert kept["expires_at"] - kept["ended"] == pytest.approx(60, abs=1)


@streamed_or_not
async def test_a_taken_id_is_a_conflict_at_once(service, upstream, stream):
    # given a client that would try twice more, on a connection that counts
    upstream.script = say("Hello")
    requests: list[Any] = []

    async def count(request: Any) -> None:
        requests.append(request)

    http_client = DefaultAsyncHttpxClient(trust_env=False, event_hooks={"request": [count]})
    async with sdk(service.url, http_client=http_client, max_retries=2) as client:
        chosen = {"replay": {"id": f"chosen-{uuid.uuid4()}"}}
        await client.chat.completions.create(**CHAT, extra_body=chosen)
        requests.clear()

        # when it asks for the same id, then it hears so, once
        with pytest.raises(ConflictError) as raised:
            await client.chat.completions.create(**CHAT, stream=stream, extra_body=chosen)
    assert (raised.value.code, len(requests)) == ("generation_exists", 1)
    assert len(upstream.calls) == 1


@every_sdk
async def test_the_same_key_gets_the_same_answer_streamed_or_whole_on_any_node(
    ask, service, other_service, upstream, key
):
    upstream.script = say("Hel", "lo", usage=USAGE)
    answers = [
        await ask(url, "chat.completions.create", **CHAT, stream=stream, extra_headers=key)
        for url in (service.url, other_service.url)
        for stream in (True, False)
    ]
    assert answers[0] == answers[2]
    assert answers[1] == answers[3]
    assert text_of(answers[0]) == answers[1].choices[0].message.content == "Hello"
    assert answers[0][0].id == answers[1].id
    assert len(upstream.calls) == 1
    with pytest.raises(UnprocessableEntityError) as raised:
        await ask(service.url, "chat.completions.create", **CHAT, temperature=1, extra_headers=key)
    assert raised.value.code == "idempotency_key_reused"


async def test_of_clients_that_race_with_one_key_all_get_the_one_answer(service, other_service, upstream, key):
    upstream.script = generate(50)
    asked = [
        on_httpx(url, "chat.completions.create", **CHAT, stream=True, extra_headers=key)
        for url in [service.url, other_service.url] * 5
    ]
    first, *others = await asyncio.gather(*asked)
    assert all(other == first for other in others)
    assert len(upstream.calls) == 1


async def test_a_connection_that_is_lost_before_the_answer_is_made_good_by_the_sdk_itself(node, upstream, key):
    # given a client whose answer is on its way when the connection goes
    async with FaultProxy(node.url) as network, sdk(network.url, max_retries=1) as client:
        network.hold_replies()
        asking = asyncio.create_task(client.chat.completions.create(**CHAT, stream=True, extra_headers=key))
        call = await upstream.called()
        await call.say("Hel")
        await network.reply_held()

        # when it is cut
        network.cut()
        network.release()

        # then the client asks again and reads from the first token on
        stream = await within("an answer", asking)
        first = await within("a chunk", anext(stream))
        await call.say("lo")
        await call.finish()
        assert text_of([first, *[chunk async for chunk in stream]]) == "Hello"
    assert len(upstream.calls) == 1


# Exactly once, with nothing but the SDK: a program that is killed, and started again.

_PROGRAM = """
import sys
from openai import OpenAI

url, key = sys.argv[1:]
client = OpenAI(base_url=url, api_key="none")
stream = client.chat.completions.create(
    model="test-model",
    messages=[{"role": "user", "content": "Hi"}],
    stream=True,
    extra_headers={"Idempotency-Key": key},
)
for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, flush=True)
print("over", flush=True)
"""

# Whoever runs the tests may have settings of their own.
_FOREIGN = re.compile(r"OPENAI_|.*_PROXY$", re.IGNORECASE)


@dataclass
class Program:
    """A program that prints lines."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    async def has(self, count: int) -> None:
        """Wait until it has printed so many lines."""
        while len(self.lines) < count:
            line = await within(f"line {len(self.lines) + 1} of a program", self._line())
            assert line, f"the program ended after {self.lines}: {await self._stderr()}"
            self.lines.append(line.decode().removesuffix("\n"))

    async def ended(self) -> list[str]:
        """Everything it printed, when it has ended, and well."""
        while line := await within(f"a line or the end of a program; has {self.lines}", self._line()):
            self.lines.append(line.decode().removesuffix("\n"))
        assert await within("the end of a program", self.process.wait()) == 0, await self._stderr()
        return self.lines

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def _line(self) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.readline()

    async def _stderr(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@contextlib.asynccontextmanager
async def running(program: str, *arguments: str) -> AsyncIterator[Program]:
    """A program, as long as the test is interested."""
    pipe = asyncio.subprocess.PIPE
    environ = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=pipe, stderr=pipe, cwd=HERE, env=environ, limit=1 << 20
    )
    try:
        yield Program(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("place", ["the same node", "another node"])
async def test_a_program_that_is_killed_and_started_again_prints_the_whole_answer(make_node, upstream, key, place):
    # given a program that has printed three tokens when it is killed
    node = await make_node()
    words = [f"word{number}" for number in range(8)]
    arguments = ("-c", _PROGRAM, f"{node.url}/v1", key["Idempotency-Key"])
    async with running(sys.executable, *arguments) as program:
        call = await upstream.called()
        for word in words[:3]:
            await call.say(word)
        await program.has(3)
        await program.kill()
    assert program.lines == words[:3]

    # and a model that goes on meanwhile
    for word in words[3:6]:
        await call.say(word)
    if place == "another node":
        node = await make_node()
        arguments = ("-c", _PROGRAM, f"{node.url}/v1", key["Idempotency-Key"])

    # when it is started again
    async with running(sys.executable, *arguments) as program:
        await program.has(6)
        for word in words[6:]:
            await call.say(word)
        await call.finish()

        # then it prints everything from the first token on, and nobody has paid twice
        assert await program.ended() == [*words, "over"]
    assert len(upstream.calls) == 1

    # and once more when all is over
    async with running(sys.executable, *arguments) as program:
        assert await program.ended() == [*words, "over"]
    assert len(upstream.calls) == 1


# The Responses API.


def kinds(events: Sequence[Any]) -> list[str]:
    return [event.type.removeprefix("response.") for event in events]


@every_sdk
async def test_a_response_streams_and_comes_whole(ask, service, upstream):
    upstream.script = say("Hel", "lo", usage=USAGE)
    shown = await ask(service.url, "responses.create", **INPUT, stream=True)
    assert [event.sequence_number for event in shown] == list(range(len(shown)))
    assert (kinds(shown)[0], kinds(shown)[-1]) == ("created", "completed")
    assert [event.delta for event in shown if event.type == "response.output_text.delta"] == ["Hel", "lo"]
    streamed = shown[-1].response
    assert (streamed.status, streamed.output_text, streamed.error) == ("completed", "Hello", None)
    assert (streamed.usage.input_tokens, streamed.usage.output_tokens, streamed.usage.total_tokens) == (5, 7, 12)
    assert await ask(service.url, "responses.retrieve", response_id=streamed.id) == streamed

    whole = await ask(service.url, "responses.create", **INPUT)
    assert (whole.status, whole.output_text, whole.usage) == ("completed", "Hello", streamed.usage)
    assert whole.id != streamed.id
    assert await ask(service.url, "responses.retrieve", response_id=whole.id) == whole


async def test_the_response_stream_helper_parses_text_and_tool_calls(client, upstream):
    upstream.script = say(*JSON)
    async with client.responses.stream(**INPUT, text_format=City) as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        response = await stream.get_final_response()
    assert (deltas, response.output_parsed) == (list(JSON), City(name="Paris", people=2_100_000))
    assert (await client.responses.parse(**INPUT, text_format=City)).output_parsed == response.output_parsed

    upstream.script = play(SAMPLES["09-tool_calls-parallel"])
    async with client.responses.stream(**INPUT) as stream:
        response = await stream.get_final_response()
    assert [(item.type, item.call_id, item.name, item.arguments) for item in response.output] == [
        ("function_call", "call__Jpw_dlnOgeM7c9t", "get_weather", '{"city":"Paris"}'),
        ("function_call", "call_H4UY_by5qR7nOFIY", "get_time", '{"tz":"CET"}'),
    ]


@every_sdk
async def test_a_response_of_an_upstream_that_speaks_the_api_passes_through(ask, make_node, upstream):
    upstream.speaks_responses = True
    upstream.script = respond(said("Hel", "lo"))
    node = await make_node()
    shown = await ask(node.url, "responses.create", **INPUT, stream=True)
    assert kinds(shown) == [event["type"].removeprefix("response.") for event in said("Hel", "lo")]
    assert (shown[-1].response.output_text, shown[-1].response.usage.total_tokens) == ("Hello", 12)
    assert (await ask(node.url, "responses.create", **INPUT)).output_text == "Hello"


@every_sdk
async def test_a_response_in_the_background_is_followed_from_any_event_on_any_node(
    ask, service, other_service, upstream
):
    # given one whose client has left
    response = await ask(service.url, "responses.create", **INPUT, background=True)
    assert response.status in ("queued", "in_progress")
    call = await upstream.called()
    await call.say("Hel")
    await service.has(response.id, 2)

    # when others follow it, from its start or from what they have, while it goes on
    followers = []
    for api in (service, other_service):
        shown: list[Any] = []
        following = ask(api.url, "responses.retrieve", shown, response_id=response.id, stream=True)
        followers.append((shown, asyncio.create_task(following)))
    for shown, task in followers:
        await has(shown, 1, task)
    await call.say("lo")
    await call.finish(usage=USAGE)

    # then all have the same events, and what comes after each of them is exactly the rest
    whole, other = [await within("the end", task) for _, task in followers]
    assert whole == other
    assert kinds(whole)[-1] == "completed"
    for number in range(len(whole)):
        rest = await ask(
            other_service.url, "responses.retrieve", response_id=response.id, stream=True, starting_after=number
        )
        assert rest == whole[number + 1 :]
    done = await ask(other_service.url, "responses.retrieve", response_id=response.id)
    assert (done.status, done.output_text, done.background) == ("completed", "Hello", True)
    assert len(upstream.calls) == 1


@every_sdk
async def test_a_cancelled_response_ends_its_stream_without_an_error(ask, service, upstream):
    shown: list[Any] = []
    asking = asyncio.create_task(ask(service.url, "responses.create", shown, **INPUT, background=True, stream=True))
    call = await upstream.called()
    await call.say("Hel")

    async def deltas() -> list[str]:
        return [kind for kind in kinds(shown) if kind == "output_text.delta"]

    await eventually("a delta", deltas)
    id = shown[0].response.id
    assert (await ask(service.url, "responses.cancel", response_id=id)).status == "cancelled"
    await within("the end of the stream", asking)
    assert not {"completed", "failed", "incomplete"} & set(kinds(shown))
    kept = await ask(service.url, "responses.retrieve", response_id=id)
    assert (kept.status, kept.output_text) == ("cancelled", "Hel")
    await call.hung_up()


@every_sdk
async def test_a_deleted_response_is_gone(ask, service, upstream):
    upstream.script = say("Hello")
    made = await ask(service.url, "responses.create", **INPUT)
    await ask(service.url, "responses.delete", response_id=made.id)
    for call in ("retrieve", "delete", "cancel"):
        with pytest.raises(NotFoundError):
            await ask(service.url, f"responses.{call}", response_id=made.id)


@every_sdk
async def test_a_response_that_the_upstream_cuts_has_failed(ask, service, upstream):
    shown: list[Any] = []
    asking = asyncio.create_task(ask(service.url, "responses.create", shown, **INPUT, stream=True))
    call = await upstream.called()
    await call.say("Hel")
    await has(shown, 1, asking)
    await call.cut()
    with contextlib.suppress(APIError):  # the SDK may be told so or so, but told it must be
        await within("the end", asking)
        assert kinds(shown)[-1] == "failed"
        assert shown[-1].response.error.message
    kept = await ask(service.url, "responses.retrieve", response_id=shown[0].response.id)
    assert (kept.status, kept.output_text) == ("failed", "Hel")
    assert kept.error is not None


@every_sdk
@streamed_or_not
async def test_a_response_is_refused_with_the_upstreams_status_and_body(ask, service, upstream, stream):
    sample = SAMPLES["25-429-retry-after"]
    upstream.script = play(sample)
    with pytest.raises(RateLimitError) as raised:
        await within("a refusal", ask(service.url, "responses.create", **INPUT, stream=stream), AT_ONCE_S)
    assert raised.value.response.text == sample.body.decode()
    assert raised.value.response.headers["retry-after"] == sample.headers["retry-after"]


@every_sdk
async def test_a_response_continues_another_and_its_input_can_be_had(ask, service, upstream):
    upstream.script = say("Yes?")
    first = await ask(service.url, "responses.create", **INPUT, instructions="Be brief.")
    upstream.script = say("Well.")
    second = await ask(
        service.url, "responses.create", model="test-model", input="How are you?", previous_response_id=first.id
    )
    assert (second.previous_response_id, second.output_text) == (first.id, "Well.")
    asked = [(message["role"], message["content"]) for message in upstream.calls[-1].request["messages"]]
    assert asked == [("user", "Hi"), ("assistant", "Yes?"), ("user", "How are you?")]
    items = await ask(service.url, "responses.input_items.list", response_id=second.id, limit=1, order="asc")
    assert [(item.role, item.content[0].text) for item in items] == asked


# JavaScript: npm's `openai`, and Vercel's `ai`.

OPENAI_JS, AI_SDK = "pages/npm-openai.mjs", "pages/ai-sdk.mjs"


@contextlib.asynccontextmanager
async def questioning(script: str, url: str, call: str, **spec: Any) -> AsyncIterator[Program]:
    """One of the scripts in `pages`, on its way with a question."""
    program = shutil.which("node")
    assert program, "node is not installed; on Debian, as root: apt-get install nodejs npm"
    assert MODULES.is_dir(), "the npm clients are not installed: npm ci --prefix tests/acceptance"
    question = json.dumps({"url": f"{url}/v1", "call": call, **spec})
    async with running(program, script, question) as process:
        yield process


async def answered(script: str, url: str, call: str, **spec: Any) -> list[tuple[str, Any]]:
    """All that a script printed about the answer to a question."""
    async with questioning(script, url, call, **spec) as program:
        return [(kind, value) for kind, value in map(json.loads, await program.ended())]


def only(kind: str, printed: Sequence[tuple[str, Any]]) -> list[Any]:
    """The values of one kind."""
    return [value for name, value in printed if name == kind]


@pytest.mark.parametrize("name", SAID)
async def test_npm_openai_streams_the_upstreams_chunks(service, upstream, name):
    upstream.script = play(SAMPLES[name])
    printed = await answered(OPENAI_JS, service.url, "create", request=COUNTED | {"stream": True})
    (response,) = only("response", printed)
    assert response["request_id"].startswith("req_")
    assert only("chunk", printed) == [chunk | {"id": response["id"]} for chunk in SAMPLES[name].chunks]
    assert printed[-1] == ("end", None)


@pytest.mark.parametrize("name", WHOLE)
async def test_npm_openai_gets_whole_answers(service, upstream, name):
    upstream.script = play(SAMPLES[name])
    printed = await answered(OPENAI_JS, service.url, "create", request=CHAT)
    (completion,) = only("completion", printed)
    assert told(ChatCompletion.model_validate(completion)) == WHOLE[name]
    assert [response["id"] for response in only("response", printed)] == [completion["id"]]


async def test_npm_openais_helper_puts_text_and_tool_calls_together(service, upstream):
    first = {"delta": {"role": "assistant", "content": "Hel"}}  # without a role it will not have it
    upstream.script = chunks(first, {"delta": {"content": "lo"}}, usage=USAGE)
    printed = await answered(OPENAI_JS, service.url, "helper", request=COUNTED)
    (completion,) = only("completion", printed)
    assert only("content", printed) == ["Hel", "lo"]
    assert (completion["choices"][0]["message"]["content"], completion["usage"]) == ("Hello", USAGE)

    upstream.script = play(SAMPLES["09-tool_calls-parallel"])
    printed = await answered(OPENAI_JS, service.url, "helper", request=CHAT)
    (completion,) = only("completion", printed)
    ((_, expected),) = WHOLE["09-tool_calls-parallel"]
    calls = completion["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == ['{"city":"Paris"}', '{"tz":"CET"}']
    assert [call["id"] for call in calls] == [call["id"] for call in expected["tool_calls"]]
    assert only("arguments", printed) == ['{"city":"Paris"}', '{"tz":"CET"}']


async def test_npm_openai_streams_and_resumes_responses(service, other_service, upstream):
    upstream.script = say("Hel", "lo", usage=USAGE)
    printed = await answered(OPENAI_JS, service.url, "respond", request=INPUT | {"background": True})
    events = only("event", printed)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == "Hello"
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.completed", "completed")
    id = events[0]["response"]["id"]
    printed = await answered(OPENAI_JS, other_service.url, "resume", request={"id": id, "starting_after": 2})
    assert only("event", printed) == events[3:]


async def test_npm_openai_asks_again_and_again_on_the_connections_that_it_keeps(service, upstream):
    upstream.script = say("Hel", "lo")
    printed = await answered(OPENAI_JS, service.url, "again", request=CHAT | {"stream": True}, rounds=ROUNDS)
    assert printed == [*[("text", "Hello")] * ROUNDS, ("end", None)]
    assert len(upstream.calls) == ROUNDS


async def test_npm_openai_lists_over_pages(make_node, upstream):
    node = await make_node()
    upstream.script = say("Hello")
    ids = [await node.api.run(CHAT) for _ in range(5)]
    printed = await answered(OPENAI_JS, node.url, "list", request={"limit": 2})
    assert [completion["id"] for completion in only("completion", printed)] == ids


@streamed_or_not
@pytest.mark.parametrize("name", REFUSED)
async def test_npm_openai_sees_a_refusal_with_its_status(service, upstream, name, stream):
    sample = SAMPLES[name]
    upstream.script = play(sample)
    printed = await answered(OPENAI_JS, service.url, "create", request=CHAT | {"stream": stream})
    ((kind, error),) = printed
    expected = {400: "BadRequestError", 429: "RateLimitError", 500: "InternalServerError"}[sample.status]
    assert (kind, error["name"], error["status"]) == ("error", expected, sample.status)
    assert error["retry_after"] == sample.headers.get("retry-after")
    if sample.headers["content-type"].startswith("application/json"):
        assert error["type"] == json.loads(sample.body)["error"]["type"]


@pytest.mark.parametrize("name", ["19-error-string-midstream", "20-error-object-midstream-no-DONE"])
async def test_npm_openai_sees_an_error_in_the_stream(service, upstream, name):
    upstream.script = play(SAMPLES[name])
    printed = await answered(OPENAI_JS, service.url, "create", request=CHAT | {"stream": True})
    assert len(only("chunk", printed)) == len(SAMPLES[name].chunks)
    kind, error = printed[-1]
    assert (kind, error["name"]) == ("error", "APIError")
    assert not only("end", printed)


@pytest.mark.parametrize("fault", ["upstream cut", "connection cut", "node killed"])
async def test_npm_openai_never_takes_a_cut_for_the_end(node, upstream, fault):
    async with (
        FaultProxy(node.url) as network,
        questioning(OPENAI_JS, network.url, "create", request=CHAT | {"stream": True}) as program,
    ):
        call = await upstream.called()
        await call.say("Hel")
        await program.has(2)  # the response and a chunk
        await _break(fault, call, network, node)
        printed = [json.loads(line) for line in await program.ended()]
    assert [kind for kind, _ in printed] == ["response", "chunk", "error"]
    if fault == "upstream cut":
        assert printed[-1][1]["code"] == "upstream_truncated"


async def _break(fault: str, call: Call, network: FaultProxy, node: Any) -> None:
    if fault == "upstream cut":
        await call.cut()
    elif fault == "connection cut":
        network.cut()
    else:
        node.kill()


async def test_npm_openai_with_a_key_gets_the_same_answer(service, other_service, upstream, key):
    upstream.script = say("Hel", "lo")
    spec = {"request": CHAT | {"stream": True}, "options": {"headers": key}}
    first = await answered(OPENAI_JS, service.url, "create", **spec)
    again = await answered(OPENAI_JS, other_service.url, "create", **spec)
    assert only("chunk", first) == only("chunk", again) != []
    assert len(upstream.calls) == 1


async def test_keep_alives_disturb_no_client_in_javascript(make_node, upstream):
    node = await make_node(keepalive_s=0.05)
    for script, call_name, spec in (
        (OPENAI_JS, "create", {"request": CHAT | {"stream": True}}),
        (AI_SDK, "fullStream", {}),
    ):
        async with FaultProxy(node.url) as network, questioning(script, network.url, call_name, **spec) as program:
            call = await upstream.called()
            await call.answer()
            await keep_alives(network, 5)
            await call.say("Hel")
            await keep_alives(network, 5)
            await call.say("lo")
            await call.finish()
            printed = [json.loads(line) for line in await program.ended()]
        assert printed[-1] == ["end", None]
        texts = only("text", printed) or [
            chunk["choices"][0]["delta"].get("content", "") for chunk in only("chunk", printed)
        ]
        assert "".join(texts) == "Hello"


async def test_ai_sdk_streams_text(service, upstream):
    upstream.script = say("Hel", "lo ", "café 😀", usage=USAGE)
    printed = await answered(AI_SDK, service.url, "textStream")
    assert printed == [("text", "Hel"), ("text", "lo "), ("text", "café 😀"), ("end", None)]
    printed = await answered(AI_SDK, service.url, "fullStream")
    assert only("text", printed) == ["Hel", "lo ", "café 😀"]
    assert printed[-2:] == [("finish", {"reason": "stop", "tokens": USAGE["total_tokens"]}), ("end", None)]


async def test_ai_sdk_generates_text(service, upstream):
    upstream.script = say("Hel", "lo", usage=USAGE)
    ((_, result), _) = await answered(AI_SDK, service.url, "generateText")
    id = result.pop("id")
    assert result == {"text": "Hello", "tools": [], "reason": "stop", "tokens": USAGE["total_tokens"]}
    assert (await service.transcript(id))["text"] == "Hello"


async def test_ai_sdk_streams_reasoning(service, upstream):
    upstream.script = play(SAMPLES["07-reasoning_content"])
    printed = await answered(AI_SDK, service.url, "fullStream")
    assert ("".join(only("reasoning", printed)), "".join(only("text", printed))) == (" the reader is", " the reader")
    assert only("finish", printed)[0]["reason"] == "length"


async def test_ai_sdk_calls_tools(service, upstream):
    upstream.script = play(SAMPLES["08-tool_calls"])
    expected = {"toolName": "get_weather", "input": {"city": "Paris é"}}
    printed = await answered(AI_SDK, service.url, "fullStream")
    assert upstream.calls[-1].request["tools"][0]["function"]["name"] == "get_weather"
    assert only("tool", printed) == [expected]
    assert only("finish", printed)[0]["reason"] == "tool-calls"
    ((_, result), _) = await answered(AI_SDK, service.url, "generateText")
    assert (result["tools"], result["reason"]) == ([expected], "tool-calls")


@pytest.mark.parametrize("call_name", ["textStream", "fullStream", "generateText"])
async def test_ai_sdk_sees_a_refusal_with_its_status_and_body(service, upstream, call_name):
    sample = SAMPLES["25-429-retry-after"]
    upstream.script = play(sample)
    printed = await answered(AI_SDK, service.url, call_name)
    (error,) = only("onError", printed) or only("error", printed)
    assert (error["name"], error["status"]) == ("AI_APICallError", 429)
    assert error["body"] == sample.body.decode()
    assert not only("text", printed)


async def test_ai_sdk_sees_an_error_in_the_stream(service, upstream):
    sample = SAMPLES["20-error-object-midstream-no-DONE"]
    upstream.script = play(sample)
    printed = await answered(AI_SDK, service.url, "fullStream")
    assert only("text", printed) == [" reader", " is"]
    assert "Response payload is not completed" in only("error", printed)[0]["message"]
    assert [finish["reason"] for finish in only("finish", printed)] in ([], ["error"])
    printed = await answered(AI_SDK, service.url, "textStream")
    assert "Response payload is not completed" in only("onError", printed)[0]["message"]


@pytest.mark.parametrize("fault", ["upstream cut", "connection cut", "node killed"])
async def test_ai_sdk_never_takes_a_cut_for_the_end(node, upstream, fault):
    async with FaultProxy(node.url) as network, questioning(AI_SDK, network.url, "fullStream") as program:
        call = await upstream.called()
        await call.say("Hel")
        await program.has(1)
        await _break(fault, call, network, node)
        printed = [json.loads(line) for line in await program.ended()]
    assert only("text", printed) == ["Hel"]
    assert only("error", printed)
    assert [finish["reason"] for finish in only("finish", printed)] in ([], ["error"])


async def test_ai_sdk_with_a_key_gets_the_same_answer(service, other_service, upstream, key):
    upstream.script = say("Hel", "lo")
    first = await answered(AI_SDK, service.url, "textStream", headers=key)
    again = await answered(AI_SDK, other_service.url, "textStream", headers=key)
    assert first == again == [("text", "Hel"), ("text", "lo"), ("end", None)]
    assert len(upstream.calls) == 1
