"""The transcript, folded from a log run by run, against one folded chunk by chunk in the plainest way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_streams import canonical, dump, entries_of, log_of, record, streams
from support.samples import SAMPLES

from replay.model.transcript import Transcript
from replay.wire.events import Recording
from replay.wire.folding import fold
from replay.wire.normalizing import Normalizer


def naive(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What choice 0 of these chunks says: strings are joined, calls told apart by index, names said once."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    calls: dict[int, dict[str, Any]] = {}
    finish_reason = usage = None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            if choice["index"] != 0:
                continue
            finish_reason = choice.get("finish_reason") or finish_reason
            delta = choice.get("delta", {"content": choice.get("text")})
            for name, text in strings(delta):
                message[name] = (message.get(name) or "") + text
            for fragment in delta.get("tool_calls") or []:
                call = calls.setdefault(
                    fragment["index"],
                    {
                        "id": None,
                        "type": "function",
                        "function": {"name": "", "arguments": ""},
                    },
                )
                call["id"] = fragment.get("id") or call["id"]
                call["function"]["name"] = fragment["function"].get("name") or call["function"]["name"]
                call["function"]["arguments"] += fragment["function"].get("arguments", "")
    if calls:
        message["tool_calls"] = list(calls.values())
    return {"message": message, "finish_reason": finish_reason, "usage": usage}


def strings(delta: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a delta says, name by name."""
    for name in ("content", "reasoning_content", "reasoning", "refusal"):
        if isinstance(delta.get(name), str):
            yield name, delta[name]
    for part in delta["content"] if isinstance(delta.get("content"), list) else ():
        said = part[part["type"]]
        said = "".join(each["text"] for each in said) if isinstance(said, list) else said
        if said:
            yield "content" if part["type"] == "text" else "reasoning_content", said


def told(transcript: Transcript) -> dict[str, Any]:
    return {
        "message": transcript.message,
        "finish_reason": transcript.finish_reason,
        "usage": transcript.usage,
    }


def everything(transcript: Transcript) -> dict[str, Any]:
    choices = {
        index: [choice.message, choice.finish_reason, choice.logprobs, choice.further]
        for index, choice in transcript.choices.items()
    }
    return {"choices": choices, "envelope": transcript.envelope, "usage": transcript.usage}


def folded(*deltas: dict[str, Any]) -> Transcript:
    """The transcript of a stream of these deltas, by way of a log."""
    stream = [dump({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}, "raw") for delta in deltas]
    log = record(stream)
    return fold(Recording(log))


def added(*deltas: dict[str, Any]) -> Transcript:
    """The transcript of the same, chunk by chunk."""
    return read([{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas])


def read(chunks: Iterable[dict[str, Any]]) -> Transcript:
    """The transcript of these chunks, each added by itself."""
    transcript, normalizer = Transcript(), Normalizer()
    for chunk in chunks:
        said = normalizer.normalize(chunk)
        if said is not None:
            transcript.add(said)
    return transcript


@pytest.mark.parametrize("sample", [sample for sample in SAMPLES.values() if sample.status == 200], ids=str)
def test_fold_of_a_sample_says_what_its_chunks_say(sample):
    log = log_of(entries_of([json.dumps(chunk).encode() for chunk in sample.chunks])[0])
    expected = naive([_with_deltas(chunk) for chunk in sample.chunks])
    assert told(fold(Recording(log))) == expected
    assert fold(Recording(log)).text == (expected["message"]["content"] or "")


def _with_deltas(chunk: dict[str, Any]) -> dict[str, Any]:
    """A delta may be null."""
    choices = [
        choice | {"delta": choice["delta"] or {}} if "delta" in choice else choice for choice in chunk["choices"]
    ]
    return chunk | {"choices": choices}


@given(stream=streams(), place=st.integers(0, 15))
@settings(deadline=None)
def test_fold_of_any_stream_says_what_its_chunks_say_up_to_any_place(stream, place):
    chunks = [json.loads(raw) for raw in stream]
    log = record(stream)
    assert canonical(told(fold(Recording(log)))) == canonical(naive(chunks))
    stop = min(1 + place, len(log))
    assert canonical(told(fold(Recording(log), stop))) == canonical(naive(chunks[: stop - 1]))


@given(stream=streams())
@settings(deadline=None)
def test_fold_equals_adding_each_chunk(stream):
    log = record(stream)
    assert canonical(everything(fold(Recording(log)))) == canonical(everything(read(map(json.loads, stream))))


def test_empty_log_says_nothing():
    log = record([])
    transcript = fold(Recording(log))
    assert told(transcript) == {
        "message": {"role": "assistant", "content": None},
        "finish_reason": None,
        "usage": None,
    }
    assert transcript.text == ""


# Calls.


def call(arguments: str, index: int | None = 0, **further: Any) -> dict[str, Any]:
    """A delta with a fragment of one call."""
    name = {"name": further.pop("name")} if "name" in further else {}
    place = {} if index is None else {"index": index}
    return {"tool_calls": [{**place, **further, "function": {**name, "arguments": arguments}}]}


def test_fragments_of_calls_are_joined_by_index_however_they_are_mixed():
    transcript = folded(
        call("", 1, id="b", type="function", name="second"),
        call("", 0, id="a", type="function", name="first"),
        call('{"x', 1),
        call('{"y', 0),
        call('":1}', 1),
        call('":2}', 0),
    )
    assert transcript.message["tool_calls"] == [
        {"id": "b", "type": "function", "function": {"name": "second", "arguments": '{"x":1}'}},
        {"id": "a", "type": "function", "function": {"name": "first", "arguments": '{"y":2}'}},
    ]


def test_fragments_of_several_calls_may_come_in_one_chunk():
    both = {"tool_calls": [*call("1", 0, name="a")["tool_calls"], *call("2", 1, name="b")["tool_calls"]]}
    calls = folded(both, both).message["tool_calls"]
    assert [each["function"] for each in calls] == [
        {"name": "a", "arguments": "11"},
        {"name": "b", "arguments": "22"},
    ]


@pytest.mark.parametrize("make", [folded, added])
def test_name_that_is_repeated_with_every_fragment_is_said_once(make):
    calls = make(*(call(text, id="a", name="get_weather") for text in "{}{}")).message["tool_calls"]
    assert [each["function"] for each in calls] == [{"name": "get_weather", "arguments": "{}{}"}]


@pytest.mark.parametrize("make", [folded, added])
def test_name_in_fragments_is_joined(make):
    calls = make(call("", id="a", name="get_"), call("", name="weather"), call("{}")).message["tool_calls"]
    assert [each["function"] for each in calls] == [{"name": "get_weather", "arguments": "{}"}]


@pytest.mark.parametrize("make", [folded, added])
def test_call_without_an_index_is_a_call_of_its_own(make):
    # Servers that send each call whole in a chunk of its own leave the index out; a run of such is several calls.
    calls = make(*(call(text, None, id="", name="f") for text in ("{}", "[]", "1", "2"))).message["tool_calls"]
    assert [each["function"]["arguments"] for each in calls] == ["{}", "[]", "1", "2"]


@pytest.mark.parametrize("make", [folded, added])
def test_legacy_function_call_is_joined(make):
    deltas = [{"function_call": {"name": "f", "arguments": ""}}, *({"function_call": {"arguments": x}} for x in "{}")]
    assert make(*deltas).message["function_call"] == {"name": "f", "arguments": "{}"}


# What else a delta may hold.


@pytest.mark.parametrize("make", [folded, added])
def test_text_reasoning_and_refusal_grow_and_all_else_is_kept(make):
    deltas = [
        {"role": "assistant", "content": "", "audio": {"id": 1}},
        {"reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "Hel", "annotations": ["x"]},
        {"content": "lo", "role": None},
        {"refusal": "No"},
        {"refusal": "."},
    ]
    assert make(*deltas).message == {
        "role": "assistant",
        "content": "Hello",
        "reasoning_content": "hm",
        "refusal": "No.",
        "audio": {"id": 1},
        "annotations": ["x"],
    }


def test_string_that_the_transcript_does_not_join_is_not_joined_by_a_run_either():
    deltas = [{"text": text} for text in "abc"]
    assert folded(*deltas).message == added(*deltas).message


@pytest.mark.parametrize("make", [folded, added])
def test_content_may_come_in_parts(make):
    # Mistral's reasoning models send their thinking as a list of parts, and their answer as a string.
    thinking = {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}
    assert make({"role": "assistant", "content": ""}, thinking, {"content": "Hel"}, {"content": "lo"}).text == "Hello"


@pytest.mark.parametrize(
    "odd",
    [
        {"content": [{"type": "text", "text": "x"}]},
        {"content": {"x": 1}},
        {"content": 1},
        {"reasoning": {"x": 1}},
        {"tool_calls": {"0": "x"}},
        {"tool_calls": "x"},
        {"tool_calls": [None, 1, "x", {}]},
        {"tool_calls": [{"index": 0, "function": "x"}]},
        {"tool_calls": [{"index": None, "function": None}]},
        {"function_call": "x"},
    ],
)
def test_odd_delta_does_not_keep_the_rest_from_being_told(odd):
    usual = {
        "content": "Hi",
        "reasoning": "hm",
        **call("{}", name="f"),
        "function_call": {"name": "g", "arguments": ""},
    }
    for deltas in ([odd, usual], [usual, odd], [odd, odd, usual, usual]):
        assert "Hi" in added(*deltas).text


@pytest.mark.parametrize("make", [folded, added])
def test_character_that_was_cut_in_two_is_whole_in_the_text(make):
    # Two Python strings joined keep the halves apart, and text/plain would show "??".
    text = make({"content": "a\ud83d"}, {"content": "\ude00b"}, {"content": "c"}).text
    assert text.encode(errors="replace").decode() == "a\U0001f600bc"


def test_choices_beside_the_first_are_left_out():
    transcript = read([{"choices": [{"index": 1, "text": "n", "finish_reason": "stop"}, {"index": 0, "text": "y"}]}])
    assert (transcript.text, transcript.finish_reason) == ("y", None)
