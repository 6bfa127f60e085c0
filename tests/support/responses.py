"""Responses as a client sees them: started, read, followed, and what their events say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from support.api import Api
from support.deadlines import eventually, within
from support.http1 import Answer, Stream, open_stream
from support.sse import Message, messages
from support.upstream import Call
from support.v1 import INPUT, RESPONSES_PATH, ask

BACKGROUND = INPUT | {"background": True}
FORMS = pytest.mark.parametrize(
    "form",
    [{"stream": True}, {"stream": False}, {"background": True}, {"background": True, "stream": True}],
    ids=["streamed", "whole", "background", "background streamed"],
)
TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}, "strict": False}


# A client.


async def begin(api: Api, body: dict[str, Any] = INPUT) -> str:
    """Start in the background; the id, whatever the upstream does meanwhile."""
    answer = await ask(api, body | {"background": True})
    assert answer.status == 200, answer
    id: str = answer.json()["id"]
    return id


async def run(api: Api, body: dict[str, Any] = INPUT) -> str:
    """Start, and wait until it has ended; its id. The upstream must have a script."""
    id = await begin(api, body)
    await api.ended(id)
    return id


async def response(api: Api, id: str) -> dict[str, Any]:
    """The response object as it is now."""
    answer = await api.get(f"{RESPONSES_PATH}/{id}")
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json()
    return found


async def becomes(api: Api, id: str, status: str) -> dict[str, Any]:
    """The response object, as soon as it has this status."""
    return await eventually(f"{status} of {id}", lambda: response(api, id), lambda found: found["status"] == status)


async def following(api: Api, id: str, after: int | None = None) -> Stream:
    """The events of a response, those after a number or all; returns when the head has come."""
    return await open_stream(api.at(f"{RESPONSES_PATH}/{id}", stream="true", starting_after=after))


async def events_after(api: Api, id: str, after: int | None = None) -> list[dict[str, Any]]:
    """The events of a response that has ended."""
    answer = await (await following(api, id, after)).to_end()
    return events_of(answer, after=-1 if after is None else after)


async def shows(stream: Stream, count: int) -> list[dict[str, Any]]:
    """Wait until so many events have come; all that have."""

    async def until_there() -> None:
        while len(messages(bytes(stream.body))) < count:
            assert await stream.read(), f"ended with {messages(bytes(stream.body))}, expected {count} events"

    await within(f"{count} events in a response that so far is {bytes(stream.body)[-300:]!r}", until_there())
    return [parsed(message) for message in messages(bytes(stream.body))]


def parsed(message: Message) -> dict[str, Any]:
    """One event: the name it is sent under is its type, and it does not move an EventSource's cursor."""
    event: dict[str, Any] = message.json()
    assert (message.event, message.last_event_id) == (event["type"], "")
    return event


def events_of(answer: Answer, *, after: int = -1, clean: bool = True) -> list[dict[str, Any]]:
    """The events of a streamed answer, which are numbered without a hole."""
    assert (answer.status, answer.media_type) == (200, "text/event-stream"), answer
    assert answer.clean == clean
    events = [parsed(message) for message in messages(answer.body)]
    assert [event["sequence_number"] for event in events] == list(range(after + 1, after + 1 + len(events)))
    return events


def types(events: Iterable[dict[str, Any]]) -> list[str]:
    """The types of events, without `response.`."""
    return [event["type"].removeprefix("response.") for event in events]


def text_in(found: dict[str, Any]) -> str:
    """The visible text of a response object."""
    parts = [part for item in found["output"] for part in item.get("content") or () if item["type"] == "message"]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")


def output_of(found: dict[str, Any]) -> list[Any]:
    """What the items of a response say, each under its type."""
    names = ("call_id", "name", "arguments", "content")
    return [(item["type"], *(item[name] for name in names if name in item)) for item in found["output"]]


def heard(call: Call) -> list[tuple[str, ...]]:
    """What an upstream was told of a conversation, in whichever way it was asked."""
    turns: list[tuple[str, ...]] = []
    for item in call.request["input"] if call.path == RESPONSES_PATH else call.request["messages"]:
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
