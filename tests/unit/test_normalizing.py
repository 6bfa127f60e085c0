"""What chunks of odd shapes say is the same however they are stored, and whichever way it is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_streams import canonical, dump, record, texts
from support.samples import SHAPES

from replay.model.transcript import Transcript
from replay.wire.events import Recording, event_objects
from replay.wire.folding import Folding, fold
from replay.wire.normalizing import Normalizer
from replay.wire.openai import chunk_of
from replay.wire.responses import Responses


def read(chunks: Iterable[Any]) -> Transcript:
    """The transcript of these chunks, each added by itself."""
    transcript, normalizer = Transcript(), Normalizer()
    for said in map(normalizer.normalize, chunks):
        if said is not None:
            transcript.add(said)
    return transcript


def told(transcript: Transcript) -> str:
    """All that it says of its choices."""
    choices = {
        index: [choice.message, choice.finish_reason, choice.further] for index, choice in transcript.choices.items()
    }
    return canonical(choices)


# Streams.

_part = (
    st.fixed_dictionaries({"type": st.just("text"), "text": texts})
    | st.fixed_dictionaries({"type": st.just("thinking"), "thinking": texts})
    | texts
    | st.just({"type": "reference", "reference_ids": [1]})
)
_content = st.none() | texts | _part | st.lists(_part, max_size=3)
_arguments = st.sampled_from(["", "{", "}", "{}", '{"a":', "1}", '"{"', "\\", None, {}, {"a": 1}]) | texts
_call = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"arguments": _arguments}, optional={"name": st.sampled_from(["f", "g", ""])})},
    optional={
        "index": st.sampled_from([0, 0, 1, "1", None]),
        "id": st.sampled_from(["a", "b", "", None]),
        "extra_content": st.just({"x": 1}),
    },
)
_block = st.fixed_dictionaries(
    {"type": st.sampled_from(["reasoning.text", "thinking"])},
    optional={
        **dict.fromkeys(("text", "thinking", "data"), texts),
        "index": st.sampled_from([0, 1, None]),
        "id": st.sampled_from(["a", "b", None]),
        "signature": st.sampled_from(["c2ln", "", None]),
    },
)
_delta = st.fixed_dictionaries(
    {},
    optional={
        "content": _content,
        "reasoning": st.none() | texts,
        "thinking": st.none() | texts,
        "tool_calls": st.none() | _call | st.lists(_call, max_size=2),
        "reasoning_details": st.lists(_block, max_size=2),
        "annotations": st.lists(st.sampled_from([{"url": "a"}, {"url": "b"}]), max_size=2),
        "audio": st.fixed_dictionaries({}, optional={"data": st.sampled_from(["QQ==", "QUJD", "QQ"]), "id": texts}),
        "x": st.sampled_from(["a", 1, {"a": [1]}, [1], ["a"]]),
    },
)
_choice = st.fixed_dictionaries(
    {},
    optional={
        "index": st.sampled_from([0, 0, 0, "0", None, 1]),
        "delta": _delta | _delta | _delta | st.none() | texts,
        "message": _delta,
        "text": texts,
        "finish_reason": st.sampled_from([None, None, None, "stop", ""]),
    },
)
_choices = st.lists(_choice | st.none(), max_size=1) | st.tuples(
    _choice, _choice.map(lambda choice: {**choice, "index": 1})
).map(list)
_chunk = st.fixed_dictionaries({"choices": _choices | st.none()})


@st.composite
def odd_streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Chunks, of which some are sent several times in a row: they are stored as pieces then."""
    chunks: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 5))):
        chunks += [draw(_chunk)] * draw(st.integers(1, 4))
    return chunks


@given(chunks=odd_streams(), place=st.integers(0, 20))
@settings(max_examples=400, deadline=None)
def test_odd_stream_is_stored_without_loss_and_folded_as_each_of_its_chunks_says(chunks, place):
    # given
    log = record([dump(chunk, "ascii") for chunk in chunks])
    recording = Recording(log)
    stop = min(1 + place, len(log))

    # then
    stored = log.events(1, len(log) - 1)
    assert [json.loads(chunk_of(entry, recording.template(id.seq))) for id, entry in stored] == chunks
    transcript = fold(recording)
    assert told(transcript) == told(read(chunks))
    folding = Folding()
    for end in (stop, len(log)):
        folding.go_on(recording, end)
    assert told(folding.transcript) == told(transcript)
    events = map(json.loads, event_objects(recording, 0, len(log)))
    assert canonical("".join(event["content"] for event in events if event["type"] == "token")) == canonical(
        transcript.text
    )


@given(chunks=odd_streams())
@settings(max_examples=300, deadline=None)
def test_response_made_of_an_odd_stream_says_what_its_transcript_says(chunks):
    responses = Responses("gen_x", model="m", created_at=1, request={})
    for chunk in chunks:
        responses.add(chunk)
    responses.end("completed", None, 2)
    output, message = responses.response["output"], read(chunks).message
    parts = [part["text"] for item in output if item["type"] == "message" for part in item["content"]]
    assert canonical("".join(parts)) == canonical(read(chunks).text)
    calls = [call["function"] for call in message.get("tool_calls", ())]
    assert canonical([(item["name"], item["arguments"]) for item in output if "call_id" in item]) == canonical(
        [(call["name"], call["arguments"]) for call in calls]
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_shape_is_folded_as_each_of_its_chunks_says(shape):
    assert read(shape.payloads).message == shape.right["message"]
