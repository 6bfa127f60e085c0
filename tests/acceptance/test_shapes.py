"""Chunks that say what they say in a shape of their own; `tests/samples/README.md` tells who sends them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import pytest
from support.samples import DIRECTORY, SHAPES
from support.sse import messages
from support.upstream import play
from support.v1 import INPUT, id_of

CHATS = [shape for shape in SHAPES if not shape.is_response]
RESPONSES = [shape for shape in SHAPES if shape.is_response]
NAME = re.compile(r"^\| (\S+\.sse) \|", re.MULTILINE)


def each(shapes):
    return pytest.mark.parametrize("shape", [pytest.param(shape, id=shape.name) for shape in shapes])


def strict(data: str | bytes) -> Any:
    """JSON as others read it: without `NaN`, and without numbers that they could not hold."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    def finite(text: str) -> float:
        assert math.isfinite(float(text)), text
        return float(text)

    return json.loads(data, parse_constant=refuse, parse_float=finite)


def joined(pieces: Iterable[str]) -> str:
    """The whole text; of a character that was cut in two as well."""
    return "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def said_in(output: list[dict[str, Any]]) -> list[str]:
    """The items of a response: each as its type and what it says, a call that was made an id as `*`."""
    said = []
    for item in output:
        parts = [*item.get("content", ()), *item.get("summary", ())]
        told = "".join(part.get("text") or part.get("refusal") or "" for part in parts)
        if "call_id" in item:
            call_id = "*" if item["call_id"].startswith("call_gen_") else item["call_id"]
            told = f"{call_id} {item['name']} {item.get('arguments', item.get('input'))}"
        said.append(f"{item['type']} {told}")
    return said


def test_each_stream_is_in_the_table():
    _, table = (DIRECTORY / "README.md").read_text().split("## Shapes of their own")
    listed = NAME.findall(table)
    assert sorted(listed) == sorted(shape.path.name for shape in SHAPES)


@each(CHATS)
async def test_a_chunk_passes_as_it_came_and_is_understood(service, other_service, upstream, shape):
    # given
    upstream.script = play(shape, 11)
    id = await service.run()

    for api in (service, other_service):
        # then its readers get the chunks as they were sent, as JSON that everybody reads
        *chunks, done = messages((await api.read(id, format="openai")).body)
        assert done.data == "[DONE]"
        assert [strict(chunk.data) for chunk in chunks] == [chunk | {"id": id} for chunk in shape.payloads]

        # and its tokens joined are the answer
        events = [strict(line) for line in (await api.read(id, {"Accept": "application/x-ndjson"})).body.splitlines()]
        assert joined(event["content"] for event in events if event["type"] == "token") == shape.right["text"]
        assert events[-1]["status"] == "completed"

        # and the transcript and the whole completion say what it says
        transcript = await api.transcript(id)
        assert (transcript["text"], transcript["message"]) == (shape.right["text"], shape.right["message"])
        assert transcript["finish_reason"] == events[-1]["finish_reason"] == shape.right["finish_reason"]
        whole = strict((await api.get(f"/v1/chat/completions/{id}")).body)
        assert whole["object"] == "chat.completion"
        told = [{"refusal": None} | message for message in (shape.right["message"], *shape.right.get("others", ()))]
        assert [choice["message"] for choice in whole["choices"]] == told


@each(shape for shape in CHATS if "output" in shape.right)
async def test_a_chunk_is_understood_where_a_response_is_made_of_it(service, upstream, shape):
    upstream.script = play(shape)
    streamed = await service.post("/v1/responses", INPUT | {"stream": True})
    id = id_of(streamed)
    *_, last = (strict(event.data) for event in messages(streamed.body))
    assert said_in(last["response"]["output"]) == shape.right["output"]
    assert strict((await service.get(f"/v1/responses/{id}")).body) == last["response"]


@each(RESPONSES)
async def test_an_event_passes_as_it_came_and_is_understood(make_node, upstream, shape):
    # given
    upstream.speaks_responses = True
    upstream.script = play(shape, 11)
    node = await make_node()
    streamed = await node.api.post("/v1/responses", INPUT | {"stream": True})
    id = id_of(streamed)

    # then its reader gets the events as they were sent, numbered, and the last with all items
    *events, last = (strict(event.data) for event in messages(streamed.body))
    hidden = shape.right.get("hidden", [])
    *sent, last_sent = (event for event in shape.payloads if event["type"] not in hidden)
    assert [event["sequence_number"] for event in (*events, last)] == list(range(len(sent) + 1))
    for event, came in zip(events, sent, strict=True):
        assert _without_ours(event) == _without_ours(came)
    assert last["type"] == last_sent["type"]
    assert said_in(last["response"]["output"]) == shape.right["output"]

    # and so do those who ask for the whole
    whole = strict((await node.api.get(f"/v1/responses/{id}")).body)
    assert whole["output"] == last["response"]["output"]
    assert (whole["status"], type(whole["completed_at"])) == ("completed", int)

    # and its tokens, its transcript and its whole completion say what it says
    lines = (await node.api.read(id, {"Accept": "application/x-ndjson"})).body.splitlines()
    log = [strict(line) for line in lines]
    assert joined(event["content"] for event in log if event["type"] == "token") == shape.right["text"]
    assert [event for event in log if event["type"] == "delta" and "event" not in event] == []
    transcript = await node.api.transcript(id)
    assert (transcript["text"], transcript["message"]) == (shape.right["text"], shape.right["message"])
    assert transcript["finish_reason"] == log[-1]["finish_reason"] == shape.right["finish_reason"]


def _without_ours(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("sequence_number", "response")}
