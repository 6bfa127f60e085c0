"""A whole completion as the chunks of a stream that says the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from replay.wire.sse import Message
from replay.wire.unfolding import unfolded


def chunks_of(value: Any) -> list[Any]:
    """What a value that stands bare in a stream becomes."""
    return [json.loads(message.data) for message in unfolded([Message(b"", json.dumps(value).encode(), bare=True)])]


def test_choices_are_numbered_and_keep_what_is_beside_their_message():
    message = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    whole = {"object": "chat.completion", "id": "u", "choices": [{"message": message}, {"message": {}, "index": 5}]}
    assert chunks_of(whole) == [
        {
            "object": "chat.completion.chunk",
            "id": "u",
            "choices": [{"index": 0, "delta": message}, {"index": 5, "delta": {}}],
        }
    ]


@pytest.mark.parametrize("calls", [[{"id": "a"}, {"id": "b"}], [{"id": "a", "index": 0}, {"id": "b", "index": 1}]])
def test_calls_are_numbered(calls):
    (chunk,) = chunks_of({"choices": [{"message": {"tool_calls": calls}}]})
    assert chunk["choices"][0]["delta"]["tool_calls"] == [{"id": "a", "index": 0}, {"id": "b", "index": 1}]


@pytest.mark.parametrize(
    "value",
    [
        {"choices": [{"index": 0, "delta": {"content": "a"}}], "message": "x"},
        {"choices": [{"index": 0, "text": "a"}]},
        {"error": {"message": "no"}},
        {"output": [], "object": "list"},
        {"choices": 7, "message": "x"},
        "hello",
    ],
)
def test_anything_else_is_as_it_was(value):
    assert chunks_of(value) == [value]


def test_lists_are_taken_apart():
    assert chunks_of([{"a": 1}, {"choices": [{"message": {}}]}, 3])[::2] == [{"a": 1}, 3]


def test_what_is_no_json_and_what_was_named_data_is_as_it_was():
    messages = [Message(b"e", b"{", bare=True), Message(b"", b'{"choices": [{"message": {}}]}')]
    assert [message[:2] for message in unfolded(messages)] == [message[:2] for message in messages]
    assert unfolded(messages[1:]) == messages[1:]


def test_events_lead_to_a_response():
    # given a response with an item of every sort
    text = {"type": "output_text", "text": "a", "annotations": [], "logprobs": [{"token": "a"}]}
    items = [
        {"id": "r", "type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []},
        {"id": "m", "type": "message", "content": [text, {"type": "refusal", "refusal": "no"}, {"type": "x", "y": 1}]},
        {"id": "f", "type": "function_call", "arguments": "{}", "name": "f", "call_id": "c"},
        {"id": "c", "type": "custom_tool_call", "input": "i", "name": "g", "call_id": "d"},
        {"id": "w", "type": "web_search_call"},
    ]
    response = {"object": "response", "id": "u", "status": "incomplete", "output": items, "usage": {"total_tokens": 1}}

    # when it is taken apart
    events = chunks_of(response)

    # then each string comes once, in its place, between the events that begin and end what it is in
    deltas = [(event["item_id"], event["delta"]) for event in events if event["type"].endswith(".delta")]
    assert deltas == [("r", "hm"), ("m", "a"), ("m", "no"), ("f", "{}"), ("c", "i")]
    begun = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert begun == [
        items[0] | {"content": [], "status": "in_progress"},
        items[1] | {"content": [], "status": "in_progress"},
        items[2] | {"arguments": "", "status": "in_progress"},
        items[3] | {"input": "", "status": "in_progress"},
        items[4] | {"status": "in_progress"},
    ]
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == items
    assert [event["part"] for event in events if event["type"] == "response.content_part.done"] == [
        part for item in items[:2] for part in item["content"]
    ]
    assert events[0]["response"] == response | {"status": "in_progress", "output": [], "usage": None}
    assert events[-1] == {"type": "response.incomplete", "response": response}


@pytest.mark.parametrize("status", ["in_progress", "queued", "cancelled"])
def test_response_that_has_not_ended_has_no_last_event(status):
    events = chunks_of({"object": "response", "status": status, "output": []})
    assert [event["type"] for event in events] == ["response.created"]
