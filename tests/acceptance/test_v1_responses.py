"""OpenAI's Responses API in front of the log: translated or passed through, resumed, continued, cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import random
import re
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.api import Api, text_of
from support.deadlines import DEADLINE_S, eventually, within
from support.fault_proxy import FaultProxy
from support.http1 import Answer, Stream, open_stream, request
from support.node import Node
from support.ports import free_port
from support.samples import SAMPLES
from support.sse import Message, messages
from support.upstream import USAGE, Call, Script, ScriptedUpstream, generate, play, respond, said, say
from support.valkey_wires import ValkeyWires

PATH = "/v1/responses"
BODY: dict[str, Any] = {"model": "test-model", "input": "Hi"}
BACKGROUND = BODY | {"background": True}
ERROR = {"error": {"message": "slow down", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}}
UNDERSTOOD_USAGE = {
    "input_tokens": 5,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 12,
}
LLAMA = SAMPLES["15-responses-event-lines"].payloads

PROMPT_S = 3  # a refusal waits for nothing, and least of all for what is done behind it

BOTH = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
FORMS = pytest.mark.parametrize(
    "form",
    [{"stream": True}, {"stream": False}, {"background": True}, {"background": True, "stream": True}],
    ids=["streamed", "whole", "background", "background streamed"],
)

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


# A client.


async def opened(
    api: Api, body: dict[str, Any] = BODY, headers: dict[str, str] | None = None, seconds: float = DEADLINE_S
) -> Stream:
    """A streamed call; returns when its head has come."""
    stream = await open_stream(
        api.at(PATH),
        method="POST",
        headers={"Content-Type": "application/json", **(headers or {})},
        body=json.dumps({**body, "stream": True}).encode(),
        seconds=seconds,
    )
    api.started.append(stream.headers.get("replay-generation-id", "none"))
    return stream


async def ask(
    api: Api,
    body: dict[str, Any] = BODY,
    headers: dict[str, str] | None = None,
    *,
    stream: bool = False,
    seconds: float = DEADLINE_S,
) -> Answer:
    """A call, streamed or not, and its whole answer."""
    if stream or body.get("stream"):
        return await (await opened(api, body, headers, seconds)).to_end(seconds)
    answer = await api.post(PATH, body, headers, seconds=seconds)
    api.started.append(answer.headers.get("replay-generation-id", "none"))
    return answer


def asking(api: Api, *args: Any, **options: Any) -> asyncio.Task[Answer]:
    """A call that is under way."""
    return asyncio.create_task(ask(api, *args, **options))


def opening(api: Api, *args: Any) -> asyncio.Task[Stream]:
    """A streamed call whose head has not come yet."""
    return asyncio.create_task(opened(api, *args))


async def begin(api: Api, body: dict[str, Any] = BODY) -> str:
    """Start in the background; the id, whatever the upstream does meanwhile."""
    answer = await ask(api, body | {"background": True})
    assert answer.status == 200, answer
    id: str = answer.json()["id"]
    return id


async def run(api: Api, body: dict[str, Any] = BODY) -> str:
    """Start, and wait until it has ended; its id. The upstream must have a script."""
    id = await begin(api, body)
    await api.ended(id)
    return id


async def response(api: Api, id: str) -> dict[str, Any]:
    """The response object as it is now."""
    answer = await api.get(f"{PATH}/{id}")
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json()
    return found


async def becomes(api: Api, id: str, status: str) -> dict[str, Any]:
    """The response object, as soon as it has this status."""
    return await eventually(f"{status} of {id}", lambda: response(api, id), lambda found: found["status"] == status)


async def following(api: Api, id: str, after: int | None = None) -> Stream:
    """The events of a response, those after a number or all; returns when the head has come."""
    return await open_stream(api.at(f"{PATH}/{id}", stream="true", starting_after=after))


async def events_after(api: Api, id: str, after: int | None = None) -> list[dict[str, Any]]:
    """The events of a response that has ended."""
    answer = await (await following(api, id, after)).to_end()
    return told(answer, after=-1 if after is None else after)


async def shows(stream: Stream, count: int) -> list[dict[str, Any]]:
    """Wait until so many events have come; all that have."""

    async def until_there() -> None:
        while len(messages(bytes(stream.body))) < count:
            assert await stream.read(), f"ended with {messages(bytes(stream.body))}, expected {count} events"

    await within(f"{count} events in a response that so far is {bytes(stream.body)[-300:]!r}", until_there())
    return [parsed(message) for message in messages(bytes(stream.body))]


def id_of(answer: Answer | Stream) -> str:
    return answer.headers["replay-generation-id"]


def parsed(message: Message) -> dict[str, Any]:
    """One event: the name it is sent under is its type, and it does not move an EventSource's cursor."""
    event: dict[str, Any] = message.json()
    assert (message.event, message.last_event_id) == (event["type"], "")
    return event


def told(answer: Answer, *, after: int = -1, clean: bool = True) -> list[dict[str, Any]]:
    """The events of a streamed answer, which are numbered without a hole."""
    assert (answer.status, answer.media_type) == (200, "text/event-stream"), answer
    assert answer.clean == clean
    events = [parsed(message) for message in messages(answer.body)]
    assert [event["sequence_number"] for event in events] == list(range(after + 1, after + 1 + len(events)))
    return events


def types(events: Iterable[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def text_in(found: dict[str, Any]) -> str:
    """The visible text of a response object."""
    parts = [part for item in found["output"] for part in item.get("content") or () if item["type"] == "message"]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")


def output_of(found: dict[str, Any]) -> list[Any]:
    """What the items of a response say, each under its type."""
    names = ("call_id", "name", "arguments", "content")
    return [(item["type"], *(item[name] for name in names if name in item)) for item in found["output"]]


async def stays_silent(task: asyncio.Task[Any], seconds: float = 0.3) -> bool:
    """Nothing has come for so long."""
    done, _ = await asyncio.wait([task], timeout=seconds)
    return not done


def assert_refused(answer: Answer, status: int, code: Any = ..., message: str = "") -> None:
    """Hold an answer against what OpenAI's clients know as an error."""
    assert answer.status == status, answer
    assert answer.media_type == "application/json", answer
    assert answer.headers["x-request-id"]
    payload = answer.json()
    assert set(payload) == {"error"}, payload
    error = payload["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert message in error["message"]
    assert isinstance(error["type"], str)
    assert code is ... or error["code"] == code, error


@pytest.fixture
def key() -> dict[str, str]:
    return {"Idempotency-Key": f"key-{uuid.uuid4()}"}


def new_id() -> str:
    return f"gen_{uuid.uuid4().hex}"


# Nodes that know that their upstream speaks the Responses API; tests share them as they share `service`.


@pytest.fixture(scope="module")
def _speaking_nodes(
    tmp_path_factory: pytest.TempPathFactory, _shared_listener: Any, _shared_valkey: Any
) -> Iterator[list[Node]]:
    upstream_url = f"http://127.0.0.1:{_shared_listener.getsockname()[1]}/v1"
    world = {"valkey_url": _shared_valkey.url, "upstream_url": upstream_url, "upstream_responses": "yes"}
    directory = tmp_path_factory.mktemp("speaking-nodes")
    nodes = [Node(directory, upstream_retries=0, lease_s=1, store_timeout_s=1, **world) for _ in range(2)]
    yield nodes
    for node in nodes:
        node.destroy()


@pytest.fixture
async def speaking(_speaking_nodes: list[Node], service: Api, upstream: ScriptedUpstream) -> AsyncIterator[Api]:
    """The API of a node whose upstream speaks the Responses API."""
    upstream.speaks_responses = True
    await asyncio.gather(*(node.start() for node in _speaking_nodes if not node.running))
    api = _speaking_nodes[0].api
    yield api
    for id in api.started:
        await api.post(f"/generations/{id}/cancel")


@pytest.fixture
def other_speaking(_speaking_nodes: list[Node], speaking: Api) -> Api:
    """The API of a second node beside `speaking`."""
    return _speaking_nodes[1].api


# What upstreams say.


def delta(**said: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": said, "finish_reason": None}]}


def fragment(index: int, **said: Any) -> dict[str, Any]:
    """A piece of a call."""
    beside = {name: said.pop(name) for name in ("id", "type") if name in said}
    return delta(tool_calls=[{"index": index, **beside, "function": said}])


def finish(reason: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def chunks(*payloads: dict[str, Any]) -> Script:
    """Send these chunks, and end as chat completions do."""

    async def script(call: Call) -> None:
        for payload in payloads:
            await call.send_raw(b"data: %b\n\n" % json.dumps(call.chunk() | payload).encode())
        await call.send_raw(b"data: [DONE]\n\n")
        await call.done()

    return script


BEGUN = ["created", "in_progress"]
ITEM, ITEM_DONE = ["output_item.added"], ["output_item.done"]
PART, PART_DONE = [*ITEM, "content_part.added"], ["content_part.done", *ITEM_DONE]
TEXT, TEXT_DONE = ["output_text.delta"], ["output_text.done", *PART_DONE]
REASONING, REASONING_DONE = ["reasoning_text.delta"], ["reasoning_text.done", *PART_DONE]
REFUSAL, REFUSAL_DONE = ["refusal.delta"], ["refusal.done", *PART_DONE]
ARGUMENTS, ARGUMENTS_DONE = ["function_call_arguments.delta"], ["function_call_arguments.done", *ITEM_DONE]

# A chat completion that has everything, and the events that each of its chunks makes.
STEPS: list[tuple[dict[str, Any], list[str]]] = [
    (delta(role="assistant", content=None), BEGUN),
    (delta(reasoning_content="Hm"), [*PART, *REASONING]),
    (delta(reasoning_content=", é😀"), REASONING),
    (delta(content="Val"), [*REASONING_DONE, *PART, *TEXT]),
    (delta(content="key\n\ndata: [DONE]\n\n"), TEXT),
    (fragment(0, id="call_a", type="function", name="get_weather", arguments=""), [*TEXT_DONE, *ITEM]),
    (fragment(0, arguments='{"city": "Par'), ARGUMENTS),
    (fragment(1, id="call_b", type="function", name="get_time", arguments="{"), [*ITEM, *ARGUMENTS]),
    (fragment(0, arguments='is"}'), ARGUMENTS),
    (fragment(1, arguments="}"), ARGUMENTS),
    (finish("tool_calls"), []),
    ({"choices": [], "usage": USAGE}, []),
]
ENDING = [*ARGUMENTS_DONE, *ARGUMENTS_DONE, "completed"]
ALL_TYPES = [*(name for _, names in STEPS for name in names), *ENDING]
EVERYTHING = chunks(*(payload for payload, _ in STEPS))
OUTPUT = [
    ("reasoning", [{"type": "reasoning_text", "text": "Hm, é😀"}]),
    (
        "message",
        [{"type": "output_text", "text": "Valkey\n\ndata: [DONE]\n\n", "annotations": [], "logprobs": []}],
    ),
    ("function_call", "call_a", "get_weather", '{"city": "Paris"}'),
    ("function_call", "call_b", "get_time", "{}"),
]


def rich() -> list[dict[str, Any]]:
    """What OpenAI's server sends when a model thinks, searches, speaks and calls: obfuscated, with logprobs."""
    texts = ["Val", "key é😀", ' "sequence_number": 3, ', "\u2028\n\ndata: [DONE]\n\n"]
    logprobs = [
        [{"token": text, "logprob": -0.25, "bytes": [*text.encode()], "top_logprobs": [{"token": "x", "logprob": -2}]}]
        for text in texts
    ]
    whole = said(*texts)[-1]["response"]
    parameters = {"type": "object", "properties": {"sequence_number": {"type": "integer"}, "delta": {"type": "string"}}}
    whole["tools"] = [{"type": "function", "name": "get_weather", "strict": True, "parameters": parameters}]
    whole["temperature"] = 1.0
    annotation = {"type": "url_citation", "url": "https://a", "title": "A", "start_index": 0, "end_index": 3}
    message = whole["output"][0]
    message["content"][0] |= {"annotations": [annotation], "logprobs": [each for (each,) in logprobs]}
    summary = {"type": "summary_text", "text": "Hm, so"}
    thought = {"id": "rs_1", "type": "reasoning", "summary": [summary], "encrypted_content": "gAAA="}
    search = {"id": "ws_1", "type": "web_search_call", "status": "completed"}
    search |= {"action": {"type": "search", "query": "valkey"}}
    calls = [
        {"id": f"fc_{name}", "type": "function_call", "status": "completed", "call_id": f"call_{name}"}
        | {"name": f"get_{name}", "arguments": '{"city": "Paris"}'}
        for name in ("weather", "time")
    ]
    custom = {"id": "ctc_1", "type": "custom_tool_call", "status": "completed", "call_id": "call_c"}
    custom |= {"name": "run", "input": "ls -l"}
    whole["output"] = [thought, search, message, *calls, custom]
    begun = whole | {"status": "in_progress", "output": [], "usage": None}
    chance = random.Random(1)

    def veiled(event: dict[str, Any]) -> dict[str, Any]:
        return event | {"obfuscation": "".join(chance.choices("abcXYZ019", k=chance.randrange(1, 16)))}

    def about(index: int, kind: str, item_id: str, **further: Any) -> dict[str, Any]:
        return {"type": f"response.{kind}", "item_id": item_id, "output_index": index, **further}

    def item(index: int, what: str, **shown: Any) -> dict[str, Any]:
        found = whole["output"][index] | shown
        return {"type": f"response.output_item.{what}", "output_index": index, "item": found}

    summed = {"summary_index": 0}
    spoken = {"content_index": 0}
    part = message["content"][0]
    bare = part | {"text": "", "annotations": [], "logprobs": []}
    events = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        item(0, "added", summary=[]),
        about(0, "reasoning_summary_part.added", "rs_1", **summed, part=summary | {"text": ""}),
        veiled(about(0, "reasoning_summary_text.delta", "rs_1", **summed, delta="Hm, ")),
        veiled(about(0, "reasoning_summary_text.delta", "rs_1", **summed, delta="so")),
        about(0, "reasoning_summary_text.done", "rs_1", **summed, text="Hm, so"),
        about(0, "reasoning_summary_part.done", "rs_1", **summed, part=summary),
        item(0, "done"),
        item(1, "added", status="in_progress"),
        *(about(1, f"web_search_call.{what}", "ws_1") for what in ("in_progress", "searching", "completed")),
        item(1, "done"),
        item(2, "added", status="in_progress", content=[]),
        about(2, "content_part.added", message["id"], **spoken, part=bare),
        *(
            veiled(about(2, "output_text.delta", message["id"], **spoken, delta=text, logprobs=probable))
            for text, probable in zip(texts, logprobs, strict=True)
        ),
        about(2, "output_text.annotation.added", message["id"], **spoken, annotation_index=0, annotation=annotation),
        about(2, "output_text.done", message["id"], **spoken, text=part["text"], logprobs=part["logprobs"]),
        about(2, "content_part.done", message["id"], **spoken, part=part),
        item(2, "done"),
        item(3, "added", status="in_progress", arguments=""),
        item(4, "added", status="in_progress", arguments=""),
        *(
            veiled(about(index, "function_call_arguments.delta", calls[index - 3]["id"], delta=piece))
            for piece in ('{"city', '": "Par', 'is"}')
            for index in (3, 4)
        ),
        *(
            about(index, "function_call_arguments.done", call["id"], arguments=call["arguments"], name=call["name"])
            for index, call in enumerate(calls, 3)
        ),
        item(3, "done"),
        item(4, "done"),
        item(5, "added", status="in_progress", input=""),
        veiled(about(5, "custom_tool_call_input.delta", "ctc_1", delta="ls")),
        veiled(about(5, "custom_tool_call_input.delta", "ctc_1", delta=" -l")),
        about(5, "custom_tool_call_input.done", "ctc_1", input="ls -l"),
        item(5, "done"),
        {"type": "response.completed", "response": whole},
    ]
    return [event | {"sequence_number": number} for number, event in enumerate(copy.deepcopy(events))]


def under(id: str, events: list[dict[str, Any]], *, background: bool = False) -> list[dict[str, Any]]:
    """An upstream's events as the client has to see them.

    The id is the generation's and the numbers are ours; the upstream was not asked to work in the background.
    """
    ours = {"id": id, "background": background}
    return [
        event | ({"response": event["response"] | ours} if "response" in event else {}) | {"sequence_number": number}
        for number, event in enumerate(events)
    ]


PASSED = {"llama.cpp": LLAMA, "openai": rich()}
passed_through = pytest.mark.parametrize("events", PASSED.values(), ids=PASSED)


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
    answer = await ask(service, stream=True)
    id = id_of(answer)

    # then these are the events, each under its name, with nothing else on the wire
    events = told(answer)
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
    events = told(await ask(service, stream=True))
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


@BOTH
async def test_the_head_of_a_response_names_its_generation(service, upstream, stream):
    upstream.script = say("a")
    answer = await ask(service, BODY, {"Accept-Encoding": "gzip, br"}, stream=stream)
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
    waiting = asking(service, BODY | ({} if flag is None else {"stream": flag, "background": flag}))
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
    answer = await ask(service, BODY | asked | form)
    assert answer.status == 200
    found = await becomes(service, id_of(answer), "completed")
    assert {name: found[name] for name in asked} == asked
    assert found["background"] is form.get("background", False)
    if form.get("stream"):
        for event in told(answer):
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
    events = told(await stream.to_end())
    assert types(events) == [*BEGUN, *PART, *TEXT, *TEXT_DONE, "completed"]
    assert {event["response"]["background"] for event in events if "response" in event} == {True}
    for event in events:
        EVENT.validate_python(event)
    for other in others:
        assert told(await other.to_end()) == events


async def test_without_background_the_head_waits_for_the_upstreams_first_word(service, upstream):
    starting = opening(service)
    call = await upstream.called()
    assert await stays_silent(starting)
    await call.answer()
    assert await stays_silent(starting)
    await call.say("a")
    stream = await starting
    assert types(await shows(stream, 5)) == [*BEGUN, *PART, *TEXT]
    await call.finish()
    assert told(await stream.to_end())[-1]["type"] == "response.completed"


async def test_what_a_stream_tells_arrives_before_the_next_is_produced(service, upstream):
    starting = opening(service)
    call = await upstream.called()
    await call.say("word0")
    stream = await starting
    for number in range(1, 20):
        await stream.until(b'"word%d"' % (number - 1))
        await call.say(f"word{number}")
    await stream.until(b'"word19"')
    await call.finish()
    events = told(await stream.to_end())
    assert [event["delta"] for event in events if "delta" in event] == [f"word{number}" for number in range(20)]


async def test_pauses_are_kept_alive_by_bare_comment_lines(make_node, upstream):
    # given an upstream that thinks before its first word and after it
    node = await make_node(keepalive_s=0.2)
    behind = await opened(node.api, BACKGROUND)
    first = await upstream.called()
    starting = opening(node.api)
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
        assert types(told(answer)) == [*BEGUN, *PART, *TEXT, *TEXT_DONE, "completed"]


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
    events = told(await ask(service, stream=True))
    assert types(events) == [*BEGUN, *expected, "completed"]
    assert output_of(events[-1]["response"]) == output
    whole = (await ask(service)).json()
    assert output_of(whole) == output
    Response.model_validate(whole, strict=True)


@pytest.mark.parametrize(
    ("finish_reason", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
async def test_an_answer_that_was_cut_short_is_incomplete(service, upstream, finish_reason, reason):
    upstream.script = chunks(delta(content="Val"), finish(finish_reason), {"choices": [], "usage": USAGE})
    events = told(await ask(service, stream=True))
    assert types(events) == [*BEGUN, *PART, *TEXT, *TEXT_DONE, "incomplete"]
    whole = (await ask(service)).json()
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
    whole = (await ask(service)).json()
    assert whole["usage"] == expected
    assert (await service.generation(whole["id"]))["usage"] == usage  # as the upstream said it


async def test_log_probabilities_are_told_with_the_text(service, upstream):
    upstream.script = play(SAMPLES["12-logprobs"])
    sent = [choice.get("logprobs") for chunk in SAMPLES["12-logprobs"].chunks for choice in chunk["choices"]]
    probable = [(token["token"], token["logprob"]) for each in sent if each for token in each["content"]]
    events = told(await ask(service, BODY | {"include": ["message.output_text.logprobs"]}, stream=True))
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
    await ask(service)
    (call,) = upstream.calls
    assert call.request["messages"] == [{"role": "user", "content": "Hi"}]
    assert set(call.request) == {"model", "messages", "stream", "stream_options"}


async def test_without_a_model_the_first_of_the_upstream_is_taken(service, upstream):
    upstream.script = say("a")
    found = (await ask(service, {"input": "Hi"})).json()
    assert upstream.calls[0].request["model"] == found["model"] == "test-model"


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
        answer = await ask(node.api)
        assert (answer.status, answer.json()) == (404, unknown)
    assert [call.path for call in upstream.calls] == [PATH] * 2

    # and when it knows the model, it is passed through
    upstream.script = respond(said("Val", "key"))
    assert text_in((await ask(node.api)).json()) == "Valkey"

    # and from then on whatever it refuses, however it says so
    upstream.script = lambda call: call.respond(404, b"404 page not found", {"content-type": "text/plain"})
    answer = await ask(node.api)
    assert_refused(answer, 404, "upstream_error", "404 page not found")
    assert {call.path for call in upstream.calls} == {PATH}


async def test_that_the_upstream_speaks_no_responses_can_be_set(make_node, upstream):
    upstream.speaks_responses = True
    upstream.script = say("a")
    node = await make_node(upstream_responses="no")
    for stream in (True, False):
        answer = await ask(node.api, stream=stream)
        assert text_in(told(answer)[-1]["response"] if stream else answer.json()) == "a"
    assert [call.path for call in upstream.calls] == ["/v1/chat/completions"] * 2


async def test_that_the_upstream_speaks_responses_can_be_set(speaking, upstream):
    upstream.script = respond(said("a"))
    assert text_in((await ask(speaking)).json()) == "a"
    upstream.speaks_responses = False
    answer = await ask(speaking)
    assert (answer.status, answer.json()) == (404, {"detail": "Not Found"})
    assert (len(upstream.calls), upstream.asked_in_vain) == (1, 1)
    assert {call.path for call in upstream.calls} == {PATH}


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
                id = id_of(await ask(node.api, BODY | {"model": f"m{place}"} | form))
                assert text_in(await becomes(node.api, id, "completed")) == "a"
            assert [call.path for call in server.calls] == [PATH, *["/v1/chat/completions"] * 4]


def _without_responses(status: int, body: bytes, content_type: str) -> Script:
    async def script(call: Call) -> None:
        if call.path == PATH:
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
    live = await ask(speaking, BODY, key, stream=True)
    id = id_of(live)
    again = await ask(other_speaking, BODY, key, stream=True)

    # then they are the same, as JSON, but for what is ours
    for found in (told(live), await events_after(speaking, id), await events_after(other_speaking, id), told(again)):
        assert found == under(id, events)
    (call,) = upstream.calls
    assert call.path == PATH

    # and the whole is what the last of them says
    for api in (speaking, other_speaking):
        assert (await response(api, id)).items() >= under(id, events)[-1]["response"].items()
        assert (await api.generation(id))["status"] == "completed"


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


@passed_through
async def test_without_streaming_the_last_event_says_the_whole(speaking, upstream, events):
    upstream.script = respond(events)
    answer = await ask(speaking)
    assert answer.status == 200
    found = answer.json()
    assert found.items() >= under(id_of(answer), events)[-1]["response"].items()
    assert await response(speaking, found["id"]) == found


@FORMS
async def test_an_upstream_that_speaks_responses_is_asked_what_the_client_asks(speaking, upstream, form):
    # given a request with things that no chat could be asked
    body = BODY | {
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
    assert told(answer) == [created, *under(id, events, background=True)[1:]]
    assert await events_after(other_speaking, id) == told(answer)
    found = await becomes(other_speaking, id, "completed")
    assert found.items() >= under(id, events, background=True)[-1]["response"].items()


async def test_what_is_passed_through_is_a_generation_like_any_other(speaking, other_speaking, upstream):
    # given a response that has everything
    upstream.script = respond(rich())
    id = id_of(await ask(speaking, stream=True))
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


NASTY = (
    *("", " ", "\n\ndata: x\n\n", "\r", "\0", '"', "\\", '\\"}}]}', "\u2028", "é😀", "\ufeff", "[DONE]", "x" * 300),
    *('"}', '"sequence_number": 5', ',"sequence_number":5', '"delta":"x"', "{", "\ud83d", "\ude00"),
)
KINDS = (
    *("output_text.delta", "refusal.delta", "reasoning_text.delta", "reasoning_summary_text.delta"),
    *("function_call_arguments.delta", "custom_tool_call_input.delta", "mcp_call_arguments.delta", "audio.delta"),
    *("output_text.done", "output_item.added", "output_item.done", "in_progress", "something.new", "queued"),
)


def nasty_event(chance: random.Random, number: int) -> dict[str, Any]:
    """An event of any of the shapes that servers send, with its members in any order, and any text."""
    text = chance.choice(NASTY)
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
    live = await ask(speaking, BODY, key, stream=True)
    for found in (
        told(live),
        await events_after(speaking, id_of(live)),
        told(await ask(speaking, BODY, key, stream=True)),
    ):
        assert found == under(id_of(live), events)


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
    live = await ask(speaking, stream=True)
    for found in (told(live), await events_after(speaking, id_of(live))):
        assert found == under(id_of(live), events)


async def test_a_fraction_of_that_name_inside_an_event_breaks_nothing(speaking, upstream):
    events = said("Val", "key")
    events[4] = {"x": {"a": 0, "sequence_number": 1.5}, **events[4]}
    upstream.script = respond(events)
    live = await ask(speaking, stream=True)
    assert told(live) == under(id_of(live), events)


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
    answer = await ask(speaking, stream=True)
    assert b"[DONE]" not in answer.body
    assert [kind for kind in types(told(answer)) if kind != "keepalive"] == types(said("Val", "key"))
    assert (await speaking.generation(id_of(answer)))["status"] == "completed"


@pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter"])
async def test_an_incomplete_response_is_passed_through(speaking, upstream, reason):
    events = said("Val")
    events[-1]["type"] = "response.incomplete"
    events[-1]["response"] |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
    upstream.script = respond(events)
    answer = await ask(speaking, stream=True)
    assert told(answer) == under(id_of(answer), events)
    found = await response(speaking, id_of(answer))
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": reason})
    generation = await speaking.generation(id_of(answer))
    assert generation["finish_reason"] == {"max_output_tokens": "length"}.get(reason, reason)


# Both ways: whether a response is translated or passed through, its readers, its canceller and its heirs see no
# difference.


@dataclass
class World:
    """Two nodes, and how their upstream says things."""

    kind: str
    here: Api
    there: Api
    upstream: ScriptedUpstream

    @property
    def passes(self) -> bool:
        return self.kind == "passed"

    @property
    def everything(self) -> Script:
        return respond(rich()) if self.passes else EVERYTHING

    @property
    def steps(self) -> list[tuple[dict[str, Any], list[str]]]:
        """What the upstream sends, and the types of the events that each of that makes."""
        return [(event, types([event])) for event in said("Val", "key", "!")] if self.passes else STEPS

    @property
    def ending(self) -> list[str]:
        """The events that its end makes, beside those."""
        return [] if self.passes else ENDING

    def says(self, *texts: str) -> Script:
        return respond(said(*texts)) if self.passes else say(*texts, usage=USAGE)

    def speaks(self, tokens: int, per_second: float) -> Script:
        """Say so many tokens at that rate."""
        if not self.passes:
            return generate(tokens, per_second)
        events = said(*(f"word{index} " for index in range(tokens)))

        async def script(call: Call) -> None:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            for index, event in enumerate(events):
                await asyncio.sleep(max(0.0, begun + index / per_second - loop.time()))
                await call.send_event(event)
            await call.done()

        return script

    async def send(self, call: Call, payload: dict[str, Any]) -> None:
        await (call.send_event(payload) if self.passes else call.send(call.chunk() | payload))

    async def speak(self, call: Call, text: str) -> None:
        """Begin to answer, with this text."""
        if not self.passes:
            await call.say(text)
            return
        for event in said(text)[:5]:
            await call.send_event(event)

    async def began(self, id: str) -> None:
        """Wait until everybody knows of such a beginning."""
        for api in (self.here, self.there):
            await api.has(id, 6 if self.passes else 2)


@pytest.fixture(params=["translated", "passed"])
def world(
    request: pytest.FixtureRequest,
    service: Api,
    other_service: Api,
    speaking: Api,
    other_speaking: Api,
    upstream: ScriptedUpstream,
) -> World:
    upstream.speaks_responses = request.param == "passed"
    here, there = (speaking, other_speaking) if upstream.speaks_responses else (service, other_service)
    return World(request.param, here, there, upstream)


# Resuming.


async def test_after_every_event_of_an_ended_response_come_exactly_those_after_it(world):
    # given a response that has everything, and has ended
    world.upstream.script = world.everything
    live = await ask(world.here, stream=True)
    id, events = id_of(live), told(live)
    assert len(events) > 20

    # when its events are asked for after each of them, then exactly the others come
    for api in (world.here, world.there):
        assert await events_after(api, id) == events
        for after in range(len(events)):
            answer = await (await following(api, id, after)).to_end()
            assert told(answer, after=after) == events[after + 1 :]
            assert live.body.endswith(answer.body)

        # and after the last of them, and what is beyond it, nothing
        for after in (len(events) - 1, len(events), 1000, 2**31):
            answer = await (await following(api, id, after)).to_end()
            assert (answer.status, answer.media_type, answer.body, answer.clean) == (
                200,
                "text/event-stream",
                b"",
                True,
            )


@pytest.mark.parametrize("background", [False, True], ids=["", "background"])
async def test_after_every_event_of_a_running_response_come_those_after_it_and_then_the_rest(world, background):
    # given a response whose upstream sends one thing after the other
    id = new_id()
    body = BODY | {"background": background, "stream": True, "replay": {"id": id}}
    starting = opening(world.here, body)
    call = await world.upstream.called()
    readers: list[tuple[int, Stream]] = []
    expected = ["created"] if background else []
    for sent, (payload, names) in enumerate(world.steps, 1):
        await world.send(call, payload)
        await world.here.has(id, 1 + sent)
        expected += [name for name in names if not (background and name == "created")]

        # when others come in at any event of which they may know, then they get those after it
        for after in range(-1, len(expected)):
            api = world.there if (after + sent) % 2 else world.here
            reader = await following(api, id, after if after >= 0 else None)
            assert reader.status == 200, await reader.to_end()
            assert types(await shows(reader, len(expected) - after - 1)) == expected[after + 1 :]
            readers.append((after, reader))

        # and what nobody can know of yet is no event of it
        for after in (len(expected), len(expected) + 7):
            for api in (world.here, world.there):
                assert_refused(await (await following(api, id, after)).to_end(), 400, "invalid_request", str(after))
    await call.done()

    # then each of them gets all the rest, and nothing else
    events = told(await (await starting).to_end())
    assert types(events) == [*expected, *world.ending]
    for after, reader in readers:
        assert told(await reader.to_end(), after=after) == events[after + 1 :]
    assert await events_after(world.there, id) == events


async def test_what_is_no_number_is_no_place_to_go_on_from(world):
    world.upstream.script = world.says("a")
    id = await run(world.here)
    for text in ("-1", "-0", "1.5", "x", "1e3", "+1", " 1", "", "²", "99999999999", "null", "0x1"):
        answer = await world.here.get(f"{PATH}/{id}", stream="true", starting_after=text)
        assert_refused(answer, 400, "invalid_request", f"starting_after={text!r}: expected an integer from 0 to ")


async def test_without_stream_a_place_to_go_on_from_means_nothing(world):
    world.upstream.script = world.says("a")
    id = await run(world.here)
    found = await response(world.here, id)
    for query in ({"starting_after": 1}, {"stream": "false"}, {"stream": "false", "starting_after": 3}):
        answer = await world.here.get(f"{PATH}/{id}", **query)
        assert (answer.media_type, answer.json()) == ("application/json", found)


async def resume_in_pieces(
    proxies: list[FaultProxy], id: str, chance: random.Random
) -> tuple[list[dict[str, Any]], int]:
    """Read a response through wires that are cut again and again; its events, and how many reads it took."""
    events: list[dict[str, Any]] = []
    for reads in range(1, 1000):
        proxy = chance.choice(proxies)
        proxy.cut_replies_after(chance.randrange(1, 6000))
        after = events[-1]["sequence_number"] if events else None
        query = "?stream=true" + ("" if after is None else f"&starting_after={after}")
        with contextlib.suppress(OSError):  # cut before the head was there
            stream = await open_stream(f"{proxy.url}{PATH}/{id}{query}")
            assert stream.status == 200, await stream.to_end()
            answer = await stream.to_end()
            events += told(answer, after=-1 if after is None else after, clean=answer.clean)
            if answer.clean:
                return events, reads
    raise AssertionError(f"not through after {reads} reads, with {len(events)} events")


@pytest.mark.parametrize("seed", range(2))
async def test_a_reader_that_is_cut_at_any_byte_loses_nothing_and_gets_nothing_twice(world, seed):
    # given readers behind wires that break, at a response that runs
    chance = random.Random(seed)
    world.upstream.script = world.speaks(150, per_second=200)
    async with FaultProxy(world.here.url) as near, FaultProxy(world.there.url) as far:
        id = await begin(world.here)
        live, reads = await within("a broken reader", resume_in_pieces([near, far], id, chance), 20)

        # then they have all of it, while it runs and afterwards
        events = await events_after(world.here, id)
        assert live == events
        assert reads > 5
        recorded, reads = await within("a broken reader", resume_in_pieces([near, far], id, chance), 20)
        assert recorded == events
        assert reads > 5
    assert "".join(event["delta"] for event in events if "delta" in event) == "".join(f"word{n} " for n in range(150))


async def test_a_reader_goes_on_at_a_node_that_has_not_heard_of_its_last_event(make_node, valkey, upstream):
    # given two nodes that show a response, of which one does not hear of anything new any more
    async with ValkeyWires(valkey.url) as wires:
        node, deaf = await asyncio.gather(make_node(), make_node(valkey_url=wires.url))
        stream = await opened(node.api, BACKGROUND)
        id = id_of(stream)
        call = await upstream.called()
        await call.say("a")
        other = await following(deaf.api, id)
        await shows(other, 5)
        wires.channels.hold_replies()
        await call.say("b")
        *_, last = await shows(stream, 6)

        # when a reader that knows more goes on there, then it gets what comes after it
        reader = await following(deaf.api, id, last["sequence_number"])
        assert reader.status == 200
        await call.say("c")
        await call.finish()
        events = told(await stream.to_end())
        assert told(await reader.to_end(), after=5) == events[6:]
        assert told(await other.to_end()) == events


# Cancelling and deleting.


async def test_a_cancelled_response_ends_cleanly_and_without_a_word(world):
    # given readers of a response that has begun
    id = await begin(world.here)
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await world.began(id)
    readers = [await following(api, id) for api in (world.here, world.there)]
    before = await shows(readers[0], 5)

    # when it is cancelled, at another node than its own
    answer = await world.there.post(f"{PATH}/{id}/cancel")
    assert answer.status == 200
    assert (answer.json()["id"], answer.json()["status"]) == (id, "cancelled")
    await call.hung_up()

    # then no event says so
    for reader in readers:
        assert told(await reader.to_end()) == before
    for api in (world.here, world.there):
        assert await events_after(api, id) == before
        assert await events_after(api, id, 2) == before[3:]

    # but the response does
    for api in (world.here, world.there):
        found = await response(api, id)
        assert (found["status"], found["error"], found["completed_at"]) == ("cancelled", None, None)
        assert [item["status"] for item in found["output"]] == ["incomplete"]
        generation = await api.generation(id)
        assert (generation["status"], generation["error"]) == ("cancelled", None)

    # and to cancel it again changes nothing
    for api in (world.here, world.there):
        again = await api.post(f"{PATH}/{id}/cancel")
        assert (again.status, again.json()) == (200, answer.json())
    assert len(world.upstream.calls) == 1


@pytest.mark.parametrize("end", ["", "cancelled", "failed"])
async def test_a_response_that_is_not_complete_has_what_was_said_until_now(world, end):
    id = await begin(world.here)
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await world.began(id)
    if end == "cancelled":
        await world.there.post(f"{PATH}/{id}/cancel")
    elif end:
        await call.cut()
    for api in (world.here, world.there):
        assert text_in(await becomes(api, id, end or "in_progress")) == "Val"
        assert (await api.transcript(id))["text"] == "Val"


async def test_a_response_is_cancelled_before_its_upstream_answers(world):
    stream = await opened(world.here, BACKGROUND)
    id = id_of(stream)
    call = await world.upstream.called()
    answer = await world.there.post(f"{PATH}/{id}/cancel")
    assert (answer.status, answer.json()["status"], answer.json()["output"]) == (200, "cancelled", [])
    await call.hung_up()
    assert types(told(await stream.to_end())) == ["created"]
    assert (await response(world.here, id))["status"] == "cancelled"


async def test_to_cancel_what_has_ended_changes_nothing(world):
    world.upstream.script = world.says("Val", "key")
    id = await run(world.here)
    found = await response(world.here, id)
    for api in (world.here, world.there):
        answer = await api.post(f"{PATH}/{id}/cancel")
        assert (answer.status, answer.json()) == (200, found)


async def test_who_waits_for_the_whole_of_a_cancelled_response_is_told(world):
    # given a call that waits, and an upstream that has begun
    id = new_id()
    waiting = asking(world.here, BODY | {"replay": {"id": id}})
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await world.began(id)
    await world.there.post(f"{PATH}/{id}/cancel")
    answer = await waiting
    assert (answer.status, answer.json()["status"]) == (200, "cancelled")


async def test_a_deleted_response_is_gone(world):
    world.upstream.script = world.says("Val", "key")
    id = await run(world.here)
    answer = await world.there.delete(f"{PATH}/{id}")
    assert (answer.status, answer.media_type) == (200, "application/json")
    assert answer.json() == {"id": id, "object": "response", "deleted": True}
    assert answer.headers["x-request-id"]
    for api in (world.here, world.there):
        await assert_unknown(api, id)
        assert (await api.get(f"/generations/{id}")).status == 404


async def test_to_delete_a_running_response_cancels_it(world):
    id = await begin(world.here)
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await world.began(id)
    readers = [await following(api, id) for api in (world.here, world.there)]
    for reader in readers:
        await shows(reader, 5)
    assert (await world.there.delete(f"{PATH}/{id}")).status == 200
    await call.hung_up()
    for reader in readers:
        assert len(told(await reader.to_end())) == 5
    for api in (world.here, world.there):
        await assert_unknown(api, id)


@pytest.mark.parametrize("id", ["gen_unknown", "resp_67c9fdcecf488190bdd9a0409de3a1ec", "not.an.id", "x" * 200])
async def test_what_was_never_started_is_unknown(service, id):
    await assert_unknown(service, id)


async def assert_unknown(api: Api, id: str) -> None:
    for answer in (
        await api.get(f"{PATH}/{id}"),
        await api.get(f"{PATH}/{id}", stream="true"),
        await api.get(f"{PATH}/{id}", stream="true", starting_after=3),
        await api.get(f"{PATH}/{id}/input_items"),
        await api.post(f"{PATH}/{id}/cancel"),
        await api.delete(f"{PATH}/{id}"),
    ):
        assert_refused(answer, 404, "generation_not_found")


# Input items.


async def test_a_text_is_listed_as_the_message_it_is(world):
    world.upstream.script = world.says("a")
    id = await run(world.here)
    for api in (world.here, world.there):
        answer = await api.get(f"{PATH}/{id}/input_items")
        assert (answer.status, answer.media_type) == (200, "application/json")
        listed = answer.json()
        (item,) = listed["data"]
        assert item.pop("id")
        content = [{"type": "input_text", "text": "Hi"}]
        assert (item["type"], item["role"], item["content"]) == ("message", "user", content)
        assert (listed["object"], listed["has_more"]) == ("list", False)


@pytest.mark.parametrize("content", ["Hi", [{"type": "input_text", "text": "Hi"}]], ids=["a text", "parts"])
async def test_a_message_is_listed_as_one_however_it_was_written(service, upstream, content):
    # the type may be left out of a request's message, but the official client needs it in a list
    upstream.script = say("a")
    id = await run(service, BODY | {"input": [{"role": "user", "content": content}]})
    (item,) = (await service.get(f"{PATH}/{id}/input_items")).json()["data"]
    assert (item["type"], item["role"], item["content"]) == (
        *("message", "user"),
        [{"type": "input_text", "text": "Hi"}],
    )


async def test_items_are_listed_in_pages_in_both_orders(world):
    # given a response to a conversation
    given = [
        {"role": "user", "content": "How is it in Paris?"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "So?"}]},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Sure?"},
    ]
    world.upstream.script = world.says("a")
    id = await run(world.here, BODY | {"input": given})
    path = f"{PATH}/{id}/input_items"
    listed = (await world.here.get(path, order="asc")).json()
    items = listed["data"]
    assert [item.get("type") for item in items] == [
        *("message", "function_call", "function_call_output", "message", "message", "message")
    ]
    for item, each in zip(items, given, strict=True):
        assert {**each, "type": item["type"], "content": ...}.items() <= {**item, "content": ...}.items()
    assert items[0]["content"] == [{"type": "input_text", "text": "How is it in Paris?"}]
    assert items[4]["content"] == [{"type": "output_text", "text": "It rains."}]
    ids = [item["id"] for item in items]
    assert len(set(ids)) == len(given)
    assert (listed["first_id"], listed["last_id"]) == (ids[0], ids[-1])

    # then they can be read in pages, newest first where nothing else is said
    for order, expected in (("asc", ids), ("desc", ids[::-1]), (None, ids[::-1])):
        found: list[str] = []
        for _ in range(3):
            page = (await world.there.get(path, order=order, limit=2, after=found[-1] if found else None)).json()
            found += [item["id"] for item in page["data"]]
            assert page["has_more"] == (len(found) < len(ids))
        assert found == expected
    for wrong in ({"limit": 0}, {"limit": "x"}, {"limit": 101}, {"order": "up"}, {"after": "unknown"}):
        assert_refused(await world.here.get(path, **wrong), 400, "invalid_request")


# Conversations.

TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
GIVEN = {"role": "user", "content": [{"type": "input_text", "text": "How is it in Paris?"}]}
OUTPUT_OF_CALL = {"type": "function_call_output", "call_id": "call_a", "output": "rain"}
HISTORY = [
    ("user", "How is it in Paris?"),
    ("call", "call_a", "get_weather", '{"city": "Paris"}'),
    ("output", "call_a", "rain"),
    ("assistant", "It rains."),
    ("user", "Sure?"),
    ("assistant", "Yes."),
    ("user", "And tomorrow?"),
]


def calls_for_weather(world: World) -> Script:
    """Call a function, and say nothing else."""
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    if not world.passes:
        return chunks(fragment(0, id="call_a", type="function", **function), finish("tool_calls"))
    item = {"id": "fc_upstream", "type": "function_call", "status": "completed", "call_id": "call_a", **function}
    created, in_progress, *_, completed = said(output=[item])
    begun = {"output_index": 0, "item": item | {"arguments": "", "status": "in_progress"}}
    place = {"item_id": "fc_upstream", "output_index": 0}
    events = [
        created,
        in_progress,
        {"type": "response.output_item.added", **begun},
        {"type": "response.function_call_arguments.delta", **place, "delta": function["arguments"]},
        {"type": "response.function_call_arguments.done", **place, **function},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        completed,
    ]
    return respond([event | {"sequence_number": number} for number, event in enumerate(events)])


def heard(call: Call) -> list[tuple[str, ...]]:
    """What an upstream was told of a conversation, in whichever way it was asked."""
    turns: list[tuple[str, ...]] = []
    for item in call.request["input"] if call.path == PATH else call.request["messages"]:
        if item.get("type") == "function_call_output" or item.get("role") == "tool":
            turns.append(("output", item.get("call_id") or item["tool_call_id"], item.get("output") or item["content"]))
        elif item.get("type") == "function_call":
            turns.append(("call", item["call_id"], item["name"], item["arguments"]))
        else:
            content = item.get("content") or []
            text = content if isinstance(content, str) else "".join(part["text"] for part in content)
            turns += [(item["role"], text)] if text else []
            for each in item.get("tool_calls") or ():
                turns.append(("call", each["id"], each["function"]["name"], each["function"]["arguments"]))
    return turns


async def test_a_conversation_goes_on_from_the_earlier_response(world):
    # given a first turn, in which the model calls a function
    world.upstream.script = calls_for_weather(world)
    first = await ask(world.here, BODY | {"input": [GIVEN], "instructions": "Be brief.", "tools": [TOOL]})
    assert [item["type"] for item in first.json()["output"]] == ["function_call"]
    said = world.upstream.calls[0].request
    assert said["tools"] == [
        TOOL if world.passes else {"type": "function", "function": {k: v for k, v in TOOL.items() if k != "type"}}
    ]

    # when its output is given in a second turn, and more is asked in others, here and there, streamed or not
    turns = [
        (world.there, [OUTPUT_OF_CALL], "It rains.", {"stream": True}),
        (world.here, "Sure?", "Yes.", {"background": True}),
        (world.there, [{"role": "user", "content": "And tomorrow?"}], "No.", {}),
    ]
    ids = [id_of(first)]
    for api, given, text, form in turns:
        world.upstream.script = world.says(text)
        id = id_of(await ask(api, BODY | {"input": given, "previous_response_id": ids[-1]} | form))
        found = await becomes(api, id, "completed")
        assert (found["previous_response_id"], text_in(found), found["instructions"]) == (ids[-1], text, None)
        ids.append(id)

    # then the upstream hears all that was said before each time, but for instructions, which are not handed on
    for call, turn in zip(world.upstream.calls[1:], (3, 5, 7), strict=True):
        assert heard(call) == HISTORY[:turn]
        assert "previous_response_id" not in call.request
        assert "instructions" not in call.request

    # and so it is listed
    for api in (world.here, world.there):
        listed = (await api.get(f"{PATH}/{ids[-1]}/input_items", order="asc")).json()["data"]
        assert [item.get("type", "message") for item in listed] == [
            *("message", "function_call", "function_call_output", "message", "message", "message", "message")
        ]


async def test_a_conversation_branches(world):
    # given an answer, from which two go on
    world.upstream.script = world.says("One.")
    id = id_of(await ask(world.here))
    for api, text in ((world.here, "left"), (world.there, "right")):
        await ask(api, BODY | {"input": text, "previous_response_id": id})
    assert [heard(call)[-2:] for call in world.upstream.calls[1:]] == [
        [("assistant", "One."), ("user", "left")],
        [("assistant", "One."), ("user", "right")],
    ]


async def test_new_instructions_take_the_place_of_the_old(world):
    world.upstream.script = world.says("a")
    id = id_of(await ask(world.here, BODY | {"instructions": "Be brief."}))
    found = (await ask(world.here, BODY | {"instructions": "Be long.", "previous_response_id": id})).json()
    assert found["instructions"] == "Be long."
    sent = json.dumps(world.upstream.calls[1].request)
    assert "Be long." in sent
    assert "Be brief." not in sent


async def test_an_incomplete_response_is_continued(world):
    events = said("Val")
    events[-1]["type"] = "response.incomplete"
    events[-1]["response"] |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    world.upstream.script = respond(events) if world.passes else say("Val", reason="length")
    earlier = (await ask(world.here)).json()
    assert earlier["status"] == "incomplete"
    world.upstream.script = world.says("key")
    assert (await ask(world.here, BODY | {"input": "Go on", "previous_response_id": earlier["id"]})).status == 200
    assert heard(world.upstream.calls[1]) == [("user", "Hi"), ("assistant", "Val"), ("user", "Go on")]


@pytest.mark.parametrize(
    "earlier", ["unknown", "running", "failed", "cancelled", "not kept", "deleted", "expired", "a chat", "refused"]
)
async def test_what_cannot_be_continued_is_a_400_and_starts_nothing(world, earlier):
    # given something that is no response which is still here and was complete
    id = await _no_response(world, earlier)
    calls = len(world.upstream.calls)

    # when it is to be continued, then it is refused, and nothing is started
    for api in (world.here, world.there):
        for form in ({"stream": True}, {"stream": False}, {"background": True}, {"background": True, "stream": True}):
            chosen = new_id()
            body = BODY | {"previous_response_id": id, "replay": {"id": chosen}} | form
            answer = await ask(api, body)
            assert_refused(answer, 400, "previous_response_not_found", "previous_response_id")
            assert answer.headers.get("replay-generation-id") is None
            assert (await api.get(f"/generations/{chosen}")).status == 404
    assert len(world.upstream.calls) == calls


async def _no_response(world: World, how: str) -> str:
    if how == "unknown":
        return "resp_67c9fdcecf488190bdd9a0409de3a1ec"
    if how in ("running", "cancelled", "failed"):
        id = await begin(world.here)
        call = await world.upstream.called()
        await world.speak(call, "a")
        if how == "cancelled":
            await world.here.post(f"{PATH}/{id}/cancel")
        elif how == "failed":
            await call.cut()
            await world.here.ended(id)
        return id
    if how == "refused":
        world.upstream.script = lambda call: call.respond(400, ERROR)
        return await run(world.here)
    world.upstream.script = say("a") if how == "a chat" else world.says("a")
    if how == "a chat":
        return await world.here.run()
    id = await run(world.here, BODY | {"store": how != "not kept", "replay": {"ttl": 1 if how == "expired" else 60}})
    if how == "deleted":
        await world.there.delete(f"{PATH}/{id}")
    if how == "expired":
        for api in (world.here, world.there):
            await eventually("its expiry", lambda: api.get(f"{PATH}/{id}"), lambda answer: answer.status == 404)  # noqa: B023 - called at once
    return id


async def test_a_request_that_was_too_large_to_be_kept_is_not_continued(world):
    world.upstream.script = world.says("a")
    id = id_of(await ask(world.here, BODY | {"input": "x" * (256 << 10)}))
    answer = await ask(world.here, BODY | {"previous_response_id": id})
    assert_refused(answer, 400, "previous_response_not_found", "max-kept-request-bytes")
    assert len(world.upstream.calls) == 1


# What fails.

REFUSALS = {
    "429": (429, json.dumps(ERROR).encode(), {"content-type": "application/json", "retry-after": "7"}),
    "recorded": (400, SAMPLES["28-400-openai-error"].body, SAMPLES["28-400-openai-error"].headers),
}


@BOTH
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_of_the_upstream_is_answered_as_it_came(world, refusal, stream):
    status, body, headers = refusal
    world.upstream.script = lambda call: call.respond(status, body, headers)
    answer = await ask(world.here, stream=stream, seconds=PROMPT_S)
    assert (answer.status, answer.body, answer.clean) == (status, body, True)
    assert answer.headers["content-type"] == headers["content-type"]
    assert answer.headers.get("retry-after") == headers.get("retry-after")
    assert len(world.upstream.calls) == 1


@BOTH
async def test_a_refusal_that_is_no_json_becomes_an_error_object(world, stream):
    world.upstream.script = lambda call: call.respond(503, b"overloaded \xe9", {"content-type": "text/plain"})
    answer = await ask(world.here, stream=stream, seconds=PROMPT_S)
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
        events = told(await each.to_end())
        assert types(events)[0] == "created"
        assert types(events)[-1] == "failed"
        assert events[-1]["response"] == found


@BOTH
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
    answer = await ask(world.here, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 502)


async def test_an_upstream_that_cannot_be_reached_is_a_502(make_node):
    node = await make_node(upstream_url=f"http://127.0.0.1:{free_port()}/v1")
    for stream in (True, False):
        assert_refused(await ask(node.api, stream=stream, seconds=PROMPT_S), 502, "upstream_unreachable")


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
    starting = opening(world.here, BODY | {"background": background, "replay": {"id": id}})
    call = await world.upstream.called()
    world.here.started.append(id)
    with contextlib.suppress(ConnectionError):  # it need not be listened to any longer
        await break_off(world, call, fault)

    # then its stream ends cleanly, with an event that says so, and nothing that had begun is called done
    events = told(await (await starting).to_end())
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
    live = await ask(speaking, stream=True)
    id = id_of(live)
    assert told(live) == under(id, events)
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
    events = told(await ask(speaking, stream=True))
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
    waiting = asking(world.here, BODY | {"replay": {"id": id}})
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
            live = await ask(doomed.api, BODY | {"model": model}, stream=True)
            ended[id_of(live)] = (told(live), await response(doomed.api, id_of(live)))
            world.upstream.script = None
            reader = await opened(doomed.api, BACKGROUND | {"model": model})
            await world.speak(await world.upstream.called(), "Val")
            begun[id_of(reader)] = (await shows(reader, 5), reader, await following(other.api, id_of(reader)))

        # when the node is killed
        doomed.kill()

        # then the second one ends what had begun, and tells so whoever goes on there
        for id, (seen, reader, watching) in begun.items():
            assert told(await reader.to_end(), clean=False) == seen
            resumed = await following(other.api, id, seen[-1]["sequence_number"])
            (failed,) = told(await resumed.to_end(), after=4)
            assert failed["type"] == "response.failed"
            assert (failed["response"]["status"], failed["response"]["error"]["code"]) == ("failed", "node_lost")
            assert told(await watching.to_end()) == [*seen, failed]
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
    events = told(answer, clean=answer.clean)
    assert events[:5] == seen
    assert types(events[5:]) == (["failed"] if answer.clean else [])

    # and when it comes back, it is told
    await node.restart()
    (failed,) = await events_after(node.api, id, 4)
    assert (failed["type"], failed["response"]["error"]["code"]) == ("response.failed", "shutdown")
    assert await response(node.api, id) == failed["response"]


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


@BOTH
@pytest.mark.parametrize("asked", UNSAYABLE.values(), ids=UNSAYABLE)
async def test_what_no_chat_can_be_asked_is_a_400(service, upstream, asked, stream):
    upstream.script = say("a")
    answer = await ask(service, BODY | asked, stream=stream, seconds=PROMPT_S)
    assert_refused(answer, 400, "invalid_request", next(name for name in reversed(asked)))
    assert upstream.calls == []


async def test_why_nothing_is_streamed_is_asked_without_a_stream_where_none_is_wanted(world):
    # given a server that refuses a prompt, but in a stream just says nothing
    async def too_long(call):
        await (call.done() if call.request["stream"] else call.respond(400, ERROR))

    world.upstream.script = too_long
    answer = await ask(world.here)
    assert (answer.status, answer.json()) == (400, ERROR)
    assert [call.request["stream"] for call in world.upstream.calls] == [True, False]

    # when the client wants events, then its one call is all
    assert_refused(await ask(world.here, stream=True), 502, "upstream_truncated")
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
    stream = await open_stream(service.at(PATH), method="POST", headers={"Content-Type": "application/json"}, body=body)
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
    body = {key: value for key, value in (BODY | wrong).items() if value is not None}
    assert_refused(await service.post(PATH, body), 400, "invalid_request")
    assert upstream.calls == []


@pytest.mark.parametrize("wrong", WRONG_IN_A_CHAT, ids=lambda wrong: json.dumps(wrong)[:60])
async def test_members_that_no_chat_can_be_made_of_are_a_400(service, upstream, wrong):
    answer = await ask(service, BODY | wrong)
    assert_refused(answer, 400, "invalid_request", next(iter(wrong)))
    assert upstream.calls == []


async def test_half_a_character_in_a_request_is_no_failure_of_the_upstream(world):
    # half a surrogate pair is valid JSON, and what JavaScript sends where a text was cut
    world.upstream.script = world.says("a")
    answer = await ask(world.here, BODY | {"input": "Hi \ud83d"})
    if answer.status == 200:
        asked = world.upstream.calls[0].request
        assert (asked["input"] if world.passes else asked["messages"][0]["content"]) == "Hi \ud83d"
    else:
        assert_refused(answer, 400, "invalid_request")


async def test_half_a_character_in_an_answer_can_be_continued(world):
    cut = chunks(delta(content="Val\ud83d"), finish("stop"))
    world.upstream.script = world.says("Val\ud83d") if world.passes else cut
    id = id_of(await ask(world.here))
    world.upstream.script = world.says("key")
    answer = await ask(world.here, BODY | {"input": "Go on", "previous_response_id": id})
    assert answer.status == 200, answer
    assert heard(world.upstream.calls[1])[1] == ("assistant", "Val\ud83d")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PATH, "POST"),
        ("DELETE", PATH, "GET, POST"),
        ("POST", f"{PATH}/gen_x", "DELETE, GET, HEAD"),
        ("GET", f"{PATH}/gen_x/cancel", "POST"),
        ("POST", f"{PATH}/gen_x/input_items", "GET, HEAD"),
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
        await ask(service, BODY, foreign),
        await ask(service, BODY, foreign, stream=True),
        await service.post(f"{PATH}/{id}/cancel", headers=foreign),
    ):
        assert_refused(answer, 403, "cross_site_request")
    assert len(upstream.calls) == 1


# Idempotency-Key.


@FORMS
async def test_the_same_key_gives_the_same_response_when_it_is_over(world, key, form):
    world.upstream.script = world.says("Val", "key")
    first = await ask(world.here, BODY | form, key)
    found = await becomes(world.here, id_of(first), "completed")
    for api in (world.here, world.there):
        again = await ask(api, BODY | form, key)
        assert (again.status, again.clean, id_of(again)) == (200, True, id_of(first))
        if form.get("stream"):
            assert again.body == first.body
        else:
            assert again.json() == found
    assert len(world.upstream.calls) == 1


async def test_the_same_key_streams_from_the_first_event_while_it_runs(world, key):
    starting = opening(world.here, BODY, key)
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await shows(await starting, 5)
    streams = [await starting, *[await opened(api, BODY, key) for api in (world.here, world.there)]]
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
    racing = [ask(api, BODY | form, key) for api in [world.here, world.there] * 4]
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
    await ask(world.here, BODY, key)
    for api in (world.here, world.there):
        for form in ({"stream": True}, {"stream": False}, {"background": True}):
            assert_refused(await ask(api, BODY | other | form, key), 422, "idempotency_key_reused")
    assert (await ask(world.here, BODY, key)).status == 200
    assert len(world.upstream.calls) == 1


@BOTH
async def test_a_call_that_was_refused_does_not_bind_its_key(world, key, stream):
    world.upstream.script = lambda call: call.respond(429, ERROR)
    refused = await ask(world.here, BODY, key, stream=stream, seconds=PROMPT_S)
    assert (refused.status, refused.headers.get("x-should-retry")) == (429, None)
    world.upstream.script = world.says("a")
    again = await ask(world.there, BODY, key, stream=stream)
    assert again.status == 200


async def test_the_same_key_leads_to_the_answer_though_what_it_continues_is_gone(world, key):
    # given a second turn that was made with a key, and a first one that is deleted
    world.upstream.script = world.says("a")
    first = id_of(await ask(world.here))
    body = BODY | {"previous_response_id": first}
    second = await ask(world.here, body, key)
    await world.here.delete(f"{PATH}/{first}")

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
    answer = await ask(world.here, BODY | {"metadata": {"user": "u1"}, "replay": options} | form)
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
    id = await run(world.here, BODY | {"metadata": {"user": "u1"}})
    assert (await world.here.generation(id))["metadata"] == {"user": "u1"}


@FORMS
async def test_a_taken_id_is_a_409_for_good(world, form):
    world.upstream.script = world.says("a")
    id = await run(world.here)
    for api in (world.here, world.there):
        answer = await ask(api, BODY | {"replay": {"id": id}} | form)
        assert_refused(answer, 409, "generation_exists")
        assert answer.headers["x-should-retry"] == "false"
    assert len(world.upstream.calls) == 1


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_hangs_up_cancels_nothing(world, stream):
    # given a client that leaves while its response is made
    id = new_id()
    body = BODY | {"replay": {"id": id}}
    starting = opening(world.here, body) if stream else asking(world.here, body)
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await world.began(id)
    if stream:
        (await starting).hang_up()
    else:
        starting.cancel()
    await eventually("nobody", lambda: world.here.generation(id), lambda found: found["subscribers"] == 0)

    # then it is made all the same
    if world.passes:
        for event in said("Val")[5:]:
            await call.send_event(event)
        await call.done()
    else:
        await call.finish()
    assert text_in(await becomes(world.there, id, "completed")) == "Val"
