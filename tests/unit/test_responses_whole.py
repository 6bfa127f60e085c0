"""Any answer as a response, held against the official SDK and the plainest way, and what makes no sense."""

from __future__ import annotations

import copy
import json
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_streams import canonical, streams, texts, values
from support.response_events import ERROR, ID, accumulated, call, calls, chunk, message_of, played
from support.samples import SAMPLES

CHATS = [sample.chunks for sample in SAMPLES.values() if sample.status == 200 and sample.chunks]

# The official SDK.


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
    transcript = message_of(chunks)
    told = {_KINDS[key]: transcript[key] for key in _KINDS if transcript.get(key)}
    told |= {each["name"]: each["arguments"] for each in (_["function"] for _ in transcript.get("tool_calls", ()))}
    assert canonical(strings_of(response)) == canonical(told)


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
    folded = [message_of(entries) for entries in (chunks, told)]
    assert canonical(folded[1]) == canonical(folded[0])


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
    message_of(chunks)
