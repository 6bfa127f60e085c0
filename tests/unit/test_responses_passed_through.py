"""Events of an upstream that speaks the Responses API itself: passed on under our ids, and read as chunks are."""

from __future__ import annotations

import tracemalloc

import pytest
from support.response_events import (
    ENDED,
    ERROR,
    ID,
    accumulated,
    chunk,
    fresh,
    message_of,
    played,
    transcript_of,
    types,
)
from support.samples import SAMPLES

from replay.wire.responses_dialect import RESPONSES, as_chunk

PASSED = SAMPLES["15-responses-event-lines"].payloads

# Passed on.


def test_events_of_an_upstream_pass_under_the_generations_id_and_numbered():
    request = {"background": False, "metadata": {"a": "b"}, "previous_response_id": None}
    events, response = played(PASSED, request=request)
    assert len(events) == len(PASSED)
    for event, sent in zip(events, PASSED, strict=True):
        told = {key: value for key, value in event.items() if key not in ("sequence_number", "response")}
        assert told == {key: value for key, value in sent.items() if key != "response"}
        if "response" in sent:
            assert event["response"] == sent["response"] | request | {"id": ID}
    last = PASSED[-1]["response"]
    assert response == fresh(request).response | last | {"id": ID, "completed_at": ENDED}
    assert (response["status"], response["model"], response["created_at"]) == ("completed", "tiny", 1795238425)


def test_number_of_an_upstream_is_replaced():
    events, _ = played([event | {"sequence_number": 7} for event in PASSED])
    assert [event["sequence_number"] for event in events] == list(range(len(PASSED)))


def test_entry_that_is_neither_does_not_decide_what_a_log_holds():
    assert played([{"type": "ping"}, *PASSED]) == played(PASSED)


def test_items_of_an_upstream_are_told_apart_without_places_and_states():
    # llama.cpp leaves the places out, and the ids of calls
    items = [{"type": "function_call", "call_id": f"fc_{name}", "name": name, "arguments": ""} for name in "ab"]
    added = [{"type": "response.output_item.added", "item": item} for item in items]
    written = [
        {"type": "response.function_call_arguments.delta", "item_id": item["call_id"], "delta": item["name"]}
        for item in items
    ]
    _, response = played([*added, *written, {"type": "response.completed", "response": {}}])
    said = [item | {"arguments": item["name"]} for item in items]
    assert (response["status"], response["output"]) == ("completed", said)
    calls_told = message_of([*added, *written])["tool_calls"]
    assert [each["function"] for each in calls_told] == [{"name": name, "arguments": name} for name in "ab"]


def test_response_of_an_upstream_is_known_at_any_moment():
    responses = fresh()
    responses.add({"type": "response.created", "response": {"id": "x", "status": "queued", "output": []}})
    assert (responses.response["status"], responses.response["model"]) == ("queued", "asked")
    item = {"type": "message", "id": "msg", "status": "in_progress", "content": []}
    responses.add({"type": "response.output_item.added", "output_index": 0, "item": item})
    responses.add({"type": "response.output_item.added", "output_index": 1, "item": item | {"id": "other"}})
    done = item | {"status": "completed", "content": [{"type": "output_text", "text": "a"}]}
    responses.add({"type": "response.output_item.done", "output_index": 0, "item": done})
    assert responses.response["output"] == [done, item | {"id": "other"}]
    assert responses.end("cancelled", None, ENDED) == []
    assert responses.response["status"] == "cancelled"
    assert responses.response["output"] == [done, item | {"id": "other", "status": "incomplete"}]


def test_what_comes_behind_the_last_event_does_not_undo_it():
    # given an upstream whose events come out of order; who polls would wait for ever
    _, response = played([*PASSED[1:], PASSED[0]])
    assert (response["status"], response["output"]) == ("completed", PASSED[-1]["response"]["output"])


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_failure_of_an_upstream_is_told_once(status):
    # given one that stops without a last event
    events, response = played(PASSED[:5], status, ERROR)
    assert types(events)[5:] == ["failed"]
    assert events[-1]["response"] == response
    assert (response["status"], response["error"]["code"]) == ("failed", "upstream_error")
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    # or that tells it itself, in either way
    failed = {"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error"}}}
    events, response = played([*PASSED[:5], failed], status, ERROR)
    assert types(events)[5:] == ["failed"]
    assert response["error"] == {"code": "server_error"}
    events, response = played([{"type": "error", "message": "m"}], status, ERROR)
    assert (types(events), response["status"], response["error"]["code"]) == (["error"], "failed", "upstream_error")


def test_sdk_reads_the_events_of_an_upstream():
    placed = [{"output_index": 0, "content_index": 0, "logprobs": [], **event} for event in PASSED]
    last = accumulated(played(placed)[0])
    assert (last["id"], last["output"]) == (ID, PASSED[-1]["response"]["output"])


@pytest.mark.parametrize(
    ("entry", "expected"),
    [({"type": "response.x"}, True), ({"type": "error"}, False), ({"type": ["response."]}, False), (chunk(), False)],
)
def test_event_is_told_from_a_chunk_by_its_type(entry, expected):
    assert RESPONSES.recognises(entry) is expected


# As chunks.


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"type": "response.output_text.delta", "delta": "a"}, {"content": "a"}),
        ({"type": "response.refusal.delta", "delta": "a"}, {"refusal": "a"}),
        ({"type": "response.reasoning_text.delta", "delta": "a"}, {"reasoning_content": "a"}),
        ({"type": "response.reasoning_summary_text.delta", "delta": "a"}, {"reasoning_content": "a"}),
        (
            {
                "type": "response.output_item.added",
                "output_index": 2,
                "item": {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": ""},
            },
            {"tool_calls": [{"index": 2, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        ),
        (
            {
                "type": "response.output_item.added",
                "output_index": 2,
                "item": {"type": "custom_tool_call", "id": "ctc", "call_id": "c", "name": "f", "input": ""},
            },
            {"tool_calls": [{"index": 2, "id": "c", "type": "custom", "custom": {"name": "f", "input": ""}}]},
        ),
        (
            {"type": "response.function_call_arguments.delta", "output_index": 2, "item_id": "fc", "delta": "{"},
            {"tool_calls": [{"index": 2, "function": {"arguments": "{"}}]},
        ),
        (
            {"type": "response.custom_tool_call_input.delta", "item_id": "ctc", "delta": "x"},
            {"tool_calls": [{"index": "ctc", "custom": {"input": "x"}}]},
        ),
        (
            {"type": "response.output_text.annotation.added", "annotation": {"type": "url_citation", "url": "u"}},
            {"annotations": [{"type": "url_citation", "url": "u"}]},
        ),
        ({"type": "response.output_text.annotation.added", "annotation": "u"}, None),
        ({"type": "response.output_item.added", "item": {"type": "message", "id": "msg"}}, None),
        ({"type": "response.output_text.done", "text": "a"}, None),
        ({"type": "response.output_text.delta", "delta": None}, None),
        ({"type": ["response.created"], "delta": "a"}, None),
        ({}, None),
    ],
)
def test_event_as_a_chunk(event, expected):
    told = as_chunk(event)
    assert (told and told["choices"]) == (expected and [{"index": 0, "delta": expected}])


@pytest.mark.parametrize(
    ("name", "response", "expected"),
    [
        ("completed", {"output": [{"type": "message"}]}, "stop"),
        ("completed", {"output": [{"type": "reasoning"}, {"type": "function_call"}]}, "tool_calls"),
        ("completed", {"output": [{"type": "custom_tool_call"}]}, "tool_calls"),
        ("completed", None, "stop"),
        ("incomplete", {"incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ("incomplete", {"incomplete_details": {"reason": "content_filter"}}, "content_filter"),
        ("incomplete", {"incomplete_details": None}, "length"),
        ("failed", {"output": [{"type": "function_call"}]}, None),
    ],
)
def test_last_event_as_a_chunk_finishes_and_counts(name, response, expected):
    usage = {"input_tokens": 1}
    for counted in (None, usage):
        event = {"type": f"response.{name}", "response": response and response | {"usage": counted}}
        transcript = transcript_of([event])
        assert transcript.finish_reason == expected
        assert transcript.usage == (counted if response else None)


# What it costs.


def test_item_of_an_upstream_does_not_copy_those_before_it():
    # given an upstream that begins thousands of items and says of none that it is done
    responses = fresh()
    places = [{"item_id": f"msg_{index}", "output_index": index, "content_index": 0} for index in range(3000)]
    for place in places:
        responses.add({"type": "response.output_text.delta", **place, "delta": "x"})
    tracemalloc.start()
    try:
        responses.add({"type": "response.output_item.added", "output_index": 0, "item": {"id": "msg_0"}})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000
