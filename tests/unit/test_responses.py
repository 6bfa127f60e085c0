"""The Responses API as a view of a log of chat chunks: its events, in order, and the response object at any moment."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from support.response_events import CREATED, ENDED, ERROR, ID, call, calls, chunk, fresh, played, types
from support.samples import SAMPLES

from replay.wire.repeated import REPEATED

BEGUN = ["created", "in_progress"]
ITEM, ITEM_DONE = ["output_item.added"], ["output_item.done"]
PART, PART_DONE = [*ITEM, "content_part.added"], ["content_part.done", *ITEM_DONE]
TEXT, TEXT_DONE = "output_text.delta", ["output_text.done", *PART_DONE]
REASONING, REASONING_DONE = "reasoning_text.delta", ["reasoning_text.done", *PART_DONE]
REFUSAL, REFUSAL_DONE = "refusal.delta", ["refusal.done", *PART_DONE]
ARGUMENTS, ARGUMENTS_DONE = "function_call_arguments.delta", ["function_call_arguments.done", *ITEM_DONE]
INPUT, INPUT_DONE = "custom_tool_call_input.delta", ["custom_tool_call_input.done", *ITEM_DONE]


def custom(index: int, **said: Any) -> dict[str, Any]:
    return {"index": index, "id": "c", "type": "custom", "custom": said}


def texts_of(response: dict[str, Any]) -> list[tuple[str, str]]:
    """What the output says, as kind and string."""
    said = []
    for item in response["output"]:
        parts = item.get("content", [item])
        said += [
            (part["type"], next(part[key] for key in ("text", "refusal", "arguments", "input") if key in part))
            for part in parts
        ]
    return said


# The events that chat chunks make.


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (
            [chunk(role="assistant", content=""), chunk(content="a"), chunk("stop", content="b")],
            [*PART, TEXT, TEXT, *TEXT_DONE],
        ),
        (
            [{"choices": [{"index": 0, "text": "a"}]}, {"choices": [{"index": 1, "text": "n"}]}],
            [*PART, TEXT, *TEXT_DONE],
        ),
        (
            [chunk(reasoning_content="a"), chunk(reasoning="b"), chunk(content="c")],
            [*PART, REASONING, REASONING, *REASONING_DONE, *PART, TEXT, *TEXT_DONE],
        ),
        (
            [chunk(reasoning_content="same", reasoning="same", content="c")],
            [*PART, REASONING, *REASONING_DONE, *PART, TEXT, *TEXT_DONE],
        ),
        ([calls(call(0, "", id="a", name="f")), calls(call(0, "{}"))], [*ITEM, ARGUMENTS, *ARGUMENTS_DONE]),
        ([calls(call(0, "{}", id="a", name="f"))], [*ITEM, ARGUMENTS, *ARGUMENTS_DONE]),
        (
            [
                calls(call(0, "1", id="a", name="f"), call(1, "2", id="b", name="g")),
                calls(call(0, "3")),
                calls(call(1, "")),
            ],
            [*ITEM, ARGUMENTS, *ITEM, ARGUMENTS, ARGUMENTS, *ARGUMENTS_DONE, *ARGUMENTS_DONE],
        ),
        (
            [chunk(content="a"), calls(call(0, "1", id="a", name="f")), chunk(content="b"), calls(call(0, "2"))],
            [*PART, TEXT, *TEXT_DONE, *ITEM, ARGUMENTS, *PART, TEXT, ARGUMENTS, *ARGUMENTS_DONE, *TEXT_DONE],
        ),
        ([calls(custom(0, name="f", input="x")), calls(custom(0, input="y"))], [*ITEM, INPUT, INPUT, *INPUT_DONE]),
        ([chunk(refusal="No"), chunk(refusal=".")], [*PART, REFUSAL, REFUSAL, *REFUSAL_DONE]),
        (
            [chunk(content="a"), chunk(refusal="No")],
            [*PART, TEXT, *TEXT_DONE[:2], "content_part.added", REFUSAL, *REFUSAL_DONE],
        ),
        ([chunk(role="assistant"), {"choices": [], "usage": {}}, chunk("stop")], []),
        ([], []),
    ],
)
def test_chunks_make_the_events_of_their_items_in_order(chunks, expected):
    events, response = played(chunks)
    assert types(events) == [*BEGUN, *expected, "completed"]
    assert (events[-1]["response"], response["status"]) == (response, "completed")


def test_events_say_which_item_and_part_they_are_about():
    events, response = played([chunk(reasoning_content="hm"), chunk(content="Hi"), chunk(refusal="No")])
    about = [
        (event["item_id"], event["output_index"], event["content_index"]) for event in events if "item_id" in event
    ]
    reasoning, text, refusal = ("rs_gen_unit_0", 0, 0), ("msg_gen_unit_1", 1, 0), ("msg_gen_unit_1", 1, 1)
    assert about == [*[reasoning] * 4, *[text] * 4, *[refusal] * 4]
    assert response["output"] == [
        {
            "id": "rs_gen_unit_0",
            "type": "reasoning",
            "summary": [],
            "status": "completed",
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {
            "id": "msg_gen_unit_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []},
                {"type": "refusal", "refusal": "No"},
            ],
        },
    ]


def test_call_is_told_with_its_name_and_id():
    events, response = played([calls(call(0, "{", id="call_1", name="f")), calls(call(0, "}"))])
    item = {"id": "fc_gen_unit_0", "type": "function_call", "call_id": "call_1", "name": "f"}
    added, delta, _, done, item_done = events[2:7]
    assert added["item"] == item | {"arguments": "", "status": "in_progress"}
    assert (delta["item_id"], delta["output_index"], delta["delta"]) == ("fc_gen_unit_0", 0, "{")
    assert (done["item_id"], done["name"], done["arguments"]) == ("fc_gen_unit_0", "f", "{}")
    assert item_done["item"] == response["output"][0] == item | {"arguments": "{}", "status": "completed"}


@pytest.mark.parametrize(
    ("fragments", "expected"),
    [
        # A name and a type with every fragment.
        ([call(0, text, id="a", name="f", type="function") for text in "{}"], [("a", "f", "{}")]),
        # A name in pieces.
        ([call(0, "", id="a", name="get_"), call(0, "{}", name="weather")], [("a", "get_weather", "{}")]),
        # No index: each came whole.
        ([call(None, text, id=text, name="f") for text in "12"], [("1", "f", "1"), ("2", "f", "2")]),
        # No id, or one id for all.
        (
            [call(0, "1", id="", name="f"), call(1, "2", name="f")],
            [("call_gen_unit_0", "f", "1"), ("call_gen_unit_1", "f", "2")],
        ),
        (
            [call(0, "1", id="f", name="f"), call(1, "2", id="f", name="f")],
            [("f", "f", "1"), ("call_gen_unit_1", "f", "2")],
        ),
        # No function, or nothing in it.
        ([call(0, id="a"), call(0, "{}", name="f")], [("a", "f", "{}")]),
        ([{"index": 0, "id": "a", "function": None, "custom": None}, call(0, "{}", name="f")], [("a", "f", "{}")]),
    ],
)
def test_calls_are_understood_as_servers_send_them(fragments, expected):
    _, response = played([calls(fragment) for fragment in fragments])
    assert [(item["call_id"], item["name"], item["arguments"]) for item in response["output"]] == expected


def test_log_probabilities_come_with_the_delta_and_with_the_whole():
    top = {"token": "b", "logprob": -2.0, "bytes": None, "id": 1}
    token = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": [top]}
    entry = chunk(content="a")
    entry["choices"][0]["logprobs"] = {"content": [token, None], "refusal": None}
    events, response = played([entry, chunk(content="b"), entry])
    told = token | {"top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": []}]}
    assert [event["logprobs"] for event in events if "logprobs" in event] == [[told], [], [told], [told, told]]
    assert response["output"][0]["content"][0]["logprobs"] == [told, told]


def test_usage_is_told_in_the_words_of_the_api():
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": None},
    }
    expected = {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 12,
    }
    events, response = played([chunk(content="a"), {"choices": [], "usage": usage}, {"choices": [], "usage": None}])
    assert response["usage"] == expected
    assert events[0]["response"]["usage"] is None
    assert played([chunk(content="a")])[1]["usage"] is None
    bare = {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": None}
    assert played([chunk() | {"usage": bare}])[1]["usage"]["total_tokens"] == 12


def test_character_that_was_cut_in_two_is_whole_in_the_response():
    events, response = played([chunk(content="a\ud83d"), chunk(content="\ude00b"), chunk(content="c\ud83d")])
    assert texts_of(response) == [("output_text", "a\U0001f600bc\ud83d")]
    assert [event["delta"] for event in events if "delta" in event] == ["a\ud83d", "\ude00b", "c\ud83d"]


# The response object.


def test_response_says_what_its_request_did_not():
    assert fresh().response == {
        "id": ID,
        "object": "response",
        "created_at": CREATED,
        "completed_at": None,
        "status": "queued",
        "error": None,
        "incomplete_details": None,
        "model": "asked",
        "output": [],
        "usage": None,
        **REPEATED,
    }


def test_response_repeats_its_request():
    request = {
        "instructions": "be brief",
        "metadata": {"a": "b"},
        "temperature": 0.0,
        "store": False,
        "tools": None,
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "high"},
        "input": "not repeated",
    }
    response = fresh(request).response
    assert {key: response[key] for key in request.keys() & response.keys()} == {
        "instructions": "be brief",
        "metadata": {"a": "b"},
        "temperature": 0.0,
        "store": False,
        "tools": [],
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "reasoning": {"effort": "high", "summary": None},
    }


def test_response_grows_with_the_log():
    responses = fresh()
    assert responses.response["status"] == "queued"
    responses.add({"model": "", "choices": []})
    assert (responses.response["status"], responses.response["model"]) == ("in_progress", "asked")
    for text in "ab":
        responses.add(chunk(content=text))
    assert texts_of(responses.response) == [("output_text", "ab")]
    assert (responses.response["output"][0]["status"], responses.response["model"]) == ("in_progress", "m")
    responses.end("completed", None, ENDED)
    assert (responses.response["status"], responses.response["completed_at"]) == ("completed", ENDED)
    assert responses.response["output"][0]["status"] == "completed"


@pytest.mark.parametrize(
    ("finish_reason", "reason"),
    [
        ("length", "max_output_tokens"),
        ("content_filter", "content_filter"),
        ({"type": "length"}, "max_output_tokens"),
    ],
)
def test_answer_that_was_cut_short_is_incomplete(finish_reason, reason):
    events, response = played([chunk(reasoning="a"), chunk(finish_reason, content="b"), chunk()])
    assert types(events)[-4:] == [*TEXT_DONE, "incomplete"]
    assert events[-1]["response"] == response
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": reason})
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["completed_at"] is None


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_failure_is_told_and_leaves_open_items_open(status):
    events, response = played([chunk(content="a")], status, ERROR)
    assert types(events) == [*BEGUN, *PART, TEXT, "failed"]
    assert events[-1]["response"] == response
    assert (response["status"], response["error"]) == ("failed", {"code": "upstream_error", "message": "it broke"})
    assert response["output"][0]["status"] == "incomplete"


def test_failure_before_the_first_chunk_is_told_from_the_beginning():
    events, response = played([], "failed", ERROR)
    assert types(events) == [*BEGUN, "failed"]
    assert response["output"] == []
    assert played([], "interrupted")[1]["error"] == {
        "code": "server_error",
        "message": "The generation was interrupted.",
    }


def test_cancelled_response_just_ends():
    events, response = played([chunk(content="a")], "cancelled")
    assert types(events) == [*BEGUN, *PART, TEXT]
    assert (response["status"], response["error"], texts_of(response)) == ("cancelled", None, [("output_text", "a")])
    assert response["output"][0]["status"] == "incomplete"
    events, response = played([], "cancelled", {"code": "abandoned", "message": "m"})
    assert (events, response["status"], response["error"]["code"]) == ([], "cancelled", "abandoned")


# What it costs.


def test_chunk_does_not_copy_what_was_said_before():
    responses = fresh()
    for _ in range(1000):
        responses.add(chunk(content="x" * 1000))
    tracemalloc.start()
    try:
        responses.add(chunk(content="x"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


# In the background.


@pytest.mark.parametrize("upstream", ["chunks", "events"])
def test_background_response_is_created_before_the_upstream_speaks_and_once(upstream):
    # given
    entries = SAMPLES["15-responses-event-lines"].payloads if upstream == "events" else [chunk(content="x")]
    responses = fresh({"background": True})
    # when
    (created,) = responses.start()
    said = [event for entry in entries for event in responses.add(entry)]
    # then
    assert (created["type"], created["sequence_number"]) == ("response.created", 0)
    assert (created["response"]["status"], created["response"]["background"]) == ("queued", True)
    assert said[0]["type"] == "response.in_progress"
    assert [event["sequence_number"] for event in said] == list(range(1, len(said) + 1))
    assert "response.created" not in [event["type"] for event in said]


def test_response_in_the_foreground_waits_for_the_upstream():
    assert fresh().start() == []


def test_response_that_is_completed_stays_as_it_is_though_its_log_ends_later():
    responses = fresh()
    responses.add({"type": "response.completed", "response": {"status": "completed", "output": []}}, ENDED - 3)
    completed = responses.response
    responses.end("completed", None, ENDED)
    assert responses.response == completed
    assert completed["completed_at"] == ENDED - 3


def test_times_are_whole_seconds_whatever_the_upstream_sends():
    responses = fresh()
    times = {"created_at": 1795238425.75, "completed_at": 1795238426.5}
    sent = {"id": "theirs", "status": "completed", "output": [], **times}
    (event,) = responses.add({"type": "response.completed", "response": sent})
    for response in (event["response"], responses.response):
        assert [repr(response[name]) for name in times] == ["1795238425", "1795238426"]
