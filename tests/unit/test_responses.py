"""The Responses API as a view of a log, held against the official SDK and against the plainest way."""

from __future__ import annotations

import copy
import json
import tracemalloc
from itertools import groupby
from typing import Any

import pytest
from chunk_streams import canonical, streams, texts, values
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai._models import construct_type_unchecked
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent
from support.samples import SAMPLES

from replay.model.transcript import Transcript
from replay.wire.reading import Reader
from replay.wire.repeated import REPEATED
from replay.wire.responses import Responses
from replay.wire.responses_dialect import RESPONSES as DIALECT
from replay.wire.responses_dialect import as_chunk

ID = "gen_unit"
CREATED, ENDED = 1763701200, 1763701201
ERROR = {"code": "upstream_error", "message": "it broke", "upstream": {"param": "p"}}
PASSED = SAMPLES["15-responses-event-lines"].payloads
CHATS = [sample.chunks for sample in SAMPLES.values() if sample.status == 200 and sample.chunks]

BEGUN = ["created", "in_progress"]
ITEM, ITEM_DONE = ["output_item.added"], ["output_item.done"]
PART, PART_DONE = [*ITEM, "content_part.added"], ["content_part.done", *ITEM_DONE]
TEXT, TEXT_DONE = "output_text.delta", ["output_text.done", *PART_DONE]
REASONING, REASONING_DONE = "reasoning_text.delta", ["reasoning_text.done", *PART_DONE]
REFUSAL, REFUSAL_DONE = "refusal.delta", ["refusal.done", *PART_DONE]
ARGUMENTS, ARGUMENTS_DONE = "function_call_arguments.delta", ["function_call_arguments.done", *ITEM_DONE]
INPUT, INPUT_DONE = "custom_tool_call_input.delta", ["custom_tool_call_input.done", *ITEM_DONE]


def chunk(finish_reason: Any = None, **delta: Any) -> dict[str, Any]:
    """A chat chunk."""
    return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def call(index: int | None, arguments: str | None = None, **said: Any) -> dict[str, Any]:
    """A fragment of a call."""
    function = {name: said.pop(name) for name in ("name",) if name in said}
    function |= {} if arguments is None else {"arguments": arguments}
    return ({} if index is None else {"index": index}) | said | ({"function": function} if function else {})


def calls(*fragments: Any) -> dict[str, Any]:
    return chunk(tool_calls=list(fragments))


def custom(index: int, **said: Any) -> dict[str, Any]:
    return {"index": index, "id": "c", "type": "custom", "custom": said}


def fresh(request: dict[str, Any] | None = None) -> Responses:
    return Responses(ID, model="asked", created_at=CREATED, request=request or {})


def played(
    chunks: list[Any], status: str = "completed", error: Any = None, request: Any = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a log and the response at its end."""
    responses = fresh(request)
    events = responses.start()
    events += [event for entry in chunks for event in responses.add(entry)]
    events += responses.end(status, error, ENDED)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events, responses.response


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


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


# The official SDK.


def accumulated(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The final response as the SDK's own accumulator has it."""
    state: ResponseStreamState[None] = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        told = state.handle_event(construct_type_unchecked(type_=ResponseStreamEvent, value=copy.deepcopy(event)))
    return _without_parsed(told[-1].response.to_dict(mode="python"))


def _without_parsed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_parsed(each) for key, each in value.items() if not key.startswith("parsed")}
    return [_without_parsed(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("status", ["completed", "failed"])
@pytest.mark.parametrize("chunks", CHATS)
def test_sdk_reads_the_events_of_a_sample(chunks, status):
    events, response = played(chunks, status, ERROR if status == "failed" else None)
    assert accumulated(events) == response
    # A reader that comes back asks for what follows an event; the events are the same each time.
    assert played(chunks, status, ERROR if status == "failed" else None) == (events, response)


@given(stream=streams())
@settings(deadline=None)
def test_sdk_reads_the_events_of_any_stream(stream):
    events, response = played([json.loads(raw) for raw in stream])
    times = {name: float(time) for name, time in response.items() if name.endswith("_at") and time is not None}
    assert canonical(accumulated(events)) == canonical(response | times)  # the SDK reads times as floats


# Against the plainest way.

_KINDS = {"content": "output_text", "reasoning_content": "reasoning_text", "refusal": "refusal"}


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The deltas of an answer: text, reasoning and refusals in any order, and calls whose fragments take turns."""
    deltas: list[dict[str, Any]] = []
    begun: set[int] = set()
    for _ in range(draw(st.integers(0, 12))):
        key = draw(st.sampled_from([*_KINDS, "content", "tool_calls"]))
        if key != "tool_calls":
            deltas.append({key: draw(texts)})
            continue
        index = draw(st.integers(0, 2))
        beginning = {} if index in begun else {"id": f"id_{index}", "name": f"f_{index}"}
        begun.add(index)
        deltas.append({"tool_calls": [call(index, draw(texts), **beginning)]})
    return deltas


def naive(deltas: list[dict[str, Any]]) -> dict[str, str]:
    """Every string of an answer, joined."""
    said: dict[str, str] = {}
    for delta in deltas:
        for key, value in delta.items():
            fragment = value[0] if key == "tool_calls" else None
            name = f"f_{fragment['index']}" if fragment else _KINDS[key]
            said[name] = said.get(name, "") + (fragment["function"]["arguments"] if fragment else value)
    return {name: text for name, text in said.items() if text or name.startswith("f_")}


def strings_of(response: dict[str, Any]) -> dict[str, str]:
    """The same of a response."""
    said: dict[str, str] = {}
    for item in response["output"]:
        for part in item.get("content", [item]):
            name = item.get("name", part["type"])
            said[name] = said.get(name, "") + (part.get("text") or part.get("refusal") or part.get("arguments") or "")
    return said


@given(deltas=conversations())
@settings(max_examples=200, deadline=None)
def test_response_says_what_the_chunks_said(deltas):
    chunks = [chunk(**delta) for delta in deltas]
    _, response = played(chunks)
    assert canonical(strings_of(response)) == canonical(naive(deltas))
    transcript = _folded(chunks)
    told = {_KINDS[key]: transcript[key] for key in _KINDS if transcript.get(key)}
    told |= {each["name"]: each["arguments"] for each in (_["function"] for _ in transcript.get("tool_calls", ()))}
    assert canonical(strings_of(response)) == canonical(told)


def _folded(chunks: list[Any]) -> dict[str, Any]:
    return _transcript(chunks).message


def _transcript(chunks: list[Any]) -> Transcript:
    transcript, reader = Transcript(), Reader()
    for said in map(reader.read, chunks):
        if said is not None:
            transcript.add(said)
    return transcript


@given(deltas=conversations())
@settings(deadline=None)
def test_every_item_ends_once_and_grows_only_while_it_is_open(deltas):
    events, response = played([chunk(**delta) for delta in deltas])
    under_way: set[str] = set()
    ended = []
    for event in events:
        if event["type"] == "response.output_item.added":
            under_way.add(event["item"]["id"])
        elif event["type"] == "response.output_item.done":
            under_way.remove(event["item"]["id"])
            ended.append(event["item"])
        elif "item_id" in event:
            assert event["item_id"] in under_way
    assert under_way == set()
    assert sorted(ended, key=response["output"].index) == response["output"]


@given(deltas=conversations())
@settings(deadline=None)
def test_chunk_of_several_joined_says_the_same(deltas):
    # given
    runs = [(key, [delta[key] for delta in run]) for key, run in groupby(deltas, key=lambda delta: next(iter(delta)))]
    joined = [
        chunk(**{key: "".join(said)}) if key != "tool_calls" else calls(*(each for (each,) in said))
        for key, said in runs
    ]
    assert canonical(played(joined)[1]) == canonical(played([chunk(**delta) for delta in deltas])[1])


@given(deltas=conversations())
@settings(deadline=None)
def test_events_folded_as_chunks_say_what_the_chunks_said(deltas):
    # given
    chunks = [chunk(**{key: said for key, said in delta.items() if said}) for delta in deltas]
    # when
    told = played(chunks)[0]
    # then
    folded = [_folded(entries) for entries in (chunks, told)]
    assert canonical(folded[1]) == canonical(folded[0])


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
        transcript = _transcript([event])
        assert transcript.finish_reason == expected
        assert transcript.usage == (counted if response else None)


# Events of an upstream that speaks the Responses API.


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
    calls_told = _folded([*added, *written])["tool_calls"]
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
    assert DIALECT.recognises(entry) is expected


# What cannot be understood.


def _odd(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object with some of these fields, or anything at all."""
    return values | st.fixed_dictionaries({}, optional=fields)


_odd_item = _odd(type=st.sampled_from(["function_call", "message", [], None]), id=values, name=values)
_odd_call = _odd(
    index=st.sampled_from([0, 1, None, "0", []]),
    id=values,
    type=st.sampled_from(["function", "custom", None]),
    function=_odd(name=values, arguments=values),
    custom=_odd(name=values, input=values),
)
_odd_choice = _odd(
    index=st.sampled_from([0, 0, 1, None]),
    delta=_odd(content=values, reasoning=values, refusal=values, tool_calls=st.lists(_odd_call, max_size=3) | values),
    text=values,
    finish_reason=values,
    logprobs=_odd(content=st.lists(values | st.just({"bytes": 1}), max_size=2)),
)
_odd_chunk = _odd(choices=st.lists(_odd_choice, max_size=3) | values, usage=values, model=values, type=values)
_odd_event = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            [
                *("response.created", "response.output_item.added", "response.output_item.done"),
                *("response.output_text.delta", "response.function_call_arguments.delta", "response.unheard_of"),
                *("response.completed", "response.incomplete", "response.failed", "error"),
            ]
        )
    },
    optional={
        "response": _odd(status=values, output=values | st.lists(_odd_item), usage=values, incomplete_details=values),
        "item": _odd_item,
        "output_index": values,
        "item_id": values,
        "delta": values,
    },
)
_odd_chunks = st.lists(_odd_chunk.filter(lambda entry: isinstance(entry, dict)) | _odd_event, max_size=4)


@given(chunks=_odd_chunks, status=st.sampled_from(["completed", "failed", "cancelled", "interrupted"]))
@settings(max_examples=300, deadline=None)
def test_what_cannot_be_understood_is_passed_over(chunks, status):
    before = copy.deepcopy(chunks)
    events, response = played(chunks, status, ERROR if status == "failed" else None)
    assert chunks == before
    json.dumps([events, response])
    assert response["id"] == ID
    assert isinstance(response["output"], list)
    _folded(chunks)


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
