"""An upstream's stream through the recorder, a log and back: nothing is lost, and the verdict is right."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_streams import GENERATION_ID, dump, entries_of, log_of, record, streams, texts, values, visible
from support.samples import SAMPLES, Sample
from support.sse import messages

from replay.errors import UpstreamError, UpstreamInvalid, UpstreamTruncated
from replay.model.event import Entry, Kind
from replay.model.log import Log
from replay.wire.dialects import visible_text
from replay.wire.events import SSE, Recording, event_data
from replay.wire.failures import upstream_error
from replay.wire.folding import fold
from replay.wire.openai import chunk_of, template_of
from replay.wire.openai_formats import OPENAI_CHUNKS
from replay.wire.recorder import Recorder
from replay.wire.responses_dialect import RESPONSES
from replay.wire.sse import Decoder, Message

STREAMS = [sample for sample in SAMPLES.values() if "json" not in sample.headers.get("content-type", "")]


def chunk(*choices: dict[str, Any], **further: Any) -> bytes:
    """A raw chunk."""
    return dump({"id": "c", "object": "chat.completion.chunk", "choices": list(choices), **further}, "raw")


def delta(index: int = 0, finish_reason: str | None = None, **said: Any) -> dict[str, Any]:
    """A choice of a chat chunk."""
    return {"index": index, "delta": said, "finish_reason": finish_reason}


def recorded(sample: Sample) -> tuple[list[bytes], Recorder, Decoder]:
    """A sample as the producer records it."""
    decoder, recorder = Decoder(1 << 20), Recorder()
    taken = [*decoder.decode(sample.body), *decoder.finish()]
    entries = [recorder.record(message) for message in taken]
    return [entry for entry in entries if entry is not None], recorder, decoder


def chunks_of(log: Log) -> list[Any]:
    """What the log's entries decode to."""
    recording = Recording(log)
    between = [event for event in log.events(0) if event.kind in (Kind.TOKEN, Kind.DELTA)]
    return [json.loads(chunk_of(event.entry, recording.template(event.id.seq))) for event in between]


def face_chunks(log: Log) -> list[Any]:
    """What a reader of `format=openai` gets, without the closing line."""
    body = OPENAI_CHUNKS.encode(Recording(log), 0, len(log))
    *chunks, closing = messages(body)
    assert closing.data == "[DONE]"
    return [json.loads(message.data) for message in chunks]


def token_contents(log: Log) -> list[str]:
    """The contents of the token events, as a page joins them."""
    body = SSE.encode(Recording(log), 0, len(log))
    return [json.loads(message.data)["content"] for message in messages(body) if message.event == "token"]


# Lossless.


@pytest.mark.parametrize("sample", STREAMS, ids=str)
def test_sample_decodes_to_what_came_in(sample):
    entries, _, _ = recorded(sample)
    log = log_of(entries)
    # With the last event of a stream that was cut after it, before its blank line.
    payloads = [json.loads(event.data) for event in messages(sample.body + b"\n\n") if event.data != "[DONE]"]
    expected = [payload for payload in payloads if "error" not in payload]
    assert chunks_of(log) == expected
    assert face_chunks(log) == [payload | {"id": GENERATION_ID} for payload in expected]
    assert "".join(token_contents(log)) == "".join(map(visible, expected))


@given(stream=streams())
@settings(max_examples=300, deadline=None)
def test_any_stream_decodes_to_what_came_in(stream):
    # given
    sent = [json.loads(raw) for raw in stream]
    # when
    log = record(stream)
    # then
    assert chunks_of(log) == sent
    assert face_chunks(log) == [payload | {"id": GENERATION_ID} for payload in sent]
    assert "".join(token_contents(log)) == "".join(map(visible, sent))
    assert all(token_contents(log))


@given(stream=streams())
@settings(deadline=None)
def test_entry_is_a_token_exactly_when_its_chunk_has_visible_text(stream):
    entries, recorder = entries_of(stream)
    kinds = [event.kind for event in record(stream).events(1, 1 + len(stream))]
    assert kinds == [Kind.TOKEN if visible(json.loads(raw)) else Kind.DELTA for raw in stream]
    assert recorder.chunks == len(entries) == len(stream)


@given(stream=streams(), place=st.integers(0, 15))
@settings(deadline=None)
def test_chunks_decode_from_any_place_of_the_log(stream, place):
    log = record(stream)
    start = min(place, len(log))
    body = OPENAI_CHUNKS.encode(Recording(log), start, len(log))
    whole = OPENAI_CHUNKS.encode(Recording(log), 0, len(log))
    assert whole == OPENAI_CHUNKS.encode(Recording(log), 0, start) + body


def test_chunks_after_the_first_of_a_shape_are_stored_as_their_text():
    stream = [chunk(delta(content=text)) for text in ("Hel", "lo", "", ' "\\\n')]
    entries, _ = entries_of(stream)
    assert entries == [Entry.WHOLE_TOKEN + stream[0], b"tlo", b"d", rb"t \"\\\n"]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "refusal"])
def test_text_that_is_not_visible_is_stored_alone_too(key):
    entries, _ = entries_of([chunk(delta(**{key: text})) for text in "ab"])
    assert [entry[:1] for entry in entries] == [Entry.WHOLE_DELTA, Entry.DELTA]
    assert entries[1] == b"db"


def test_arguments_of_a_call_are_stored_alone_too():
    calls = [[{"index": 0, "function": {"arguments": text}}] for text in ('{"a', '":1}')]
    entries, _ = entries_of([chunk(delta(tool_calls=call)) for call in calls])
    assert entries[1] == rb"d\":1}"


@pytest.mark.parametrize(
    "text",
    [
        b'a"b',  # ends the string early
        b"a\\",  # takes the closing quote along
        b"a\tb",  # control characters stand escaped
        b"a\0b",
        b"\\x41",  # no such escape
        b"\\u12g4",
        b"\xff",  # no UTF-8
        b"\xed\xa0\xbd",  # half a surrogate pair as bytes
        b'","role":"x',  # JSON all the same, but another shape
    ],
)
def test_what_only_looks_like_the_shape_is_not_taken_for_it(text):
    template = template_of(chunk(delta(content="x")))
    assert template is not None
    assert template.entry(template.chunk(text)) is None


def test_one_quote_does_not_both_open_and_close_the_text():
    template = template_of(chunk(delta(content="x")))
    assert template is not None
    assert template.entry(template.prefix + template.suffix[1:]) is None
    assert template.entry(template.prefix) is None
    assert template.entry(template.suffix) is None


@pytest.mark.parametrize(
    "raw",
    [
        chunk(delta(content="x", finish_reason="stop")),  # those after it would finish too
        chunk(delta(content="x"), usage={"total_tokens": 1}),  # or count
        chunk({**delta(content="x"), "logprobs": {"content": []}}),
        chunk(delta(content="x"), delta(1, content="y")),
        chunk(delta(content="x", reasoning="y")),
        chunk(delta(role="assistant")),
        chunk(delta(content="x"), content="y"),  # which of the two strings is it
        chunk(),
        b'{"error":{"message":"x"}}',
        b'{"choices":[{"index":0,"delta":{"content":"x"}}],"error":"y"}',
    ],
)
def test_chunk_that_is_no_shape_for_others_makes_no_template(raw):
    assert template_of(raw) is None


def test_chunk_over_several_data_lines_is_stored_as_one_line():
    raw = json.dumps(json.loads(chunk(delta(content="x"))), indent=2).encode()
    (entry,), _ = entries_of([raw])
    assert b"\n" not in entry
    assert json.loads(entry[1:]) == json.loads(raw)


# Shapes that are seldom seen.


@pytest.mark.parametrize(
    "choice",
    [
        {"index": 0, "delta": {"text": "{}"}, "finish_reason": None},
        {"index": 0, "content": "{}", "finish_reason": None},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"content": "{}"}}]}},
    ],
)
def test_string_that_nobody_sees_is_no_token(choice):
    stream = [chunk(json.loads(json.dumps(choice).replace("{}", text))) for text in ("one", "two", "three")]
    log = record(stream)
    assert [event.kind for event in log.events(1, 4)] == [Kind.DELTA] * 3
    assert token_contents(log) == []


def test_chunk_with_delta_and_text_carries_both():
    raw = chunk({"index": 0, "delta": {"content": "seen"}, "text": "beside"})
    log = record([raw, raw.replace(b"seen", b"more")])
    for event in log.events(1, 3):
        data = json.loads(event_data(event, Recording(log).template(event.id.seq)))
        assert data["choices"] == json.loads(chunk_of(event.entry, Recording(log).template(event.id.seq)))["choices"]


@given(
    body=st.fixed_dictionaries(
        {},
        optional={
            "choices": st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "index": st.sampled_from([0, 0, 1, None, "0"]),
                        "delta": st.dictionaries(
                            st.sampled_from(["role", "content", "reasoning", "text", "tool_calls", "function_call"]),
                            values
                            | st.lists(st.fixed_dictionaries({}, optional={"index": values, "function": values})),
                            max_size=3,
                        )
                        | st.none(),
                        "text": values,
                        "content": values,
                        "finish_reason": values,
                        "logprobs": values,
                    },
                ),
                max_size=2,
            )
            | st.none(),
            "usage": values,
            "error": values,
            "id": values,
            "type": values,
        },
    ),
    strings=st.lists(texts, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_chunk_of_any_sort_is_refused_or_can_be_shown_and_folded(body, strings):
    # given a chunk of any sort, between others
    raws = [chunk(delta(content=text)) for text in strings]
    raws[1:1] = [dump(body, "raw")] * 2
    recorder, entries = Recorder(), []
    # when
    for raw in raws:
        try:
            entries.append(recorder.record(Message(b"", raw)))
        except UpstreamInvalid:
            continue
    # then
    log = log_of([entry for entry in entries if entry is not None])
    assert len(messages(SSE.encode(Recording(log), 0, len(log)))) == len(log)
    face_chunks(log)
    json.dumps(fold(Recording(log)).message)
    assert isinstance(fold(Recording(log)).text, str)
    recorder.verdict()


def _deeper(frames: int, act: Callable[[], Any]) -> Any:
    return act() if frames == 0 else _deeper(frames - 1, act)


@pytest.mark.parametrize("depth", [100, 500, 920, 940, 960, 980, 1000, 1020, 5000, 100_000])
def test_deep_chunk_is_refused_or_can_be_shown_wherever_that_is_called(depth):
    try:
        (entry,), _ = entries_of([b'{"choices":[],"x":%b%b}' % (b"[" * depth, b"]" * depth)])
    except UpstreamInvalid:
        return
    log = log_of([entry])
    for format in (SSE, OPENAI_CHUNKS):
        assert _deeper(60, lambda format=format: format.encode(Recording(log), 0, len(log)))


@pytest.mark.parametrize(
    "text", ["x" * (1 << 18), '"' * (1 << 17), "x\n" * (1 << 17)], ids=["plain", "quotes", "lines"]
)
def test_large_chunk_costs_memory_in_proportion(text):
    raw = chunk(delta(content=text))
    tracemalloc.start()
    try:
        entries_of([raw, raw])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(raw)


# The verdict.

_INVALID, _TRUNCATED, _ERROR = UpstreamInvalid, UpstreamTruncated, UpstreamError
_VERDICTS = {
    "01": None,
    "02": None,
    "03": None,
    "04": None,
    "05": None,
    "07": None,
    "08": None,
    "09": None,
    "11": None,  # choice 1 never finishes, but the stream has its end mark
    "12": None,
    "14": None,
    "15": _INVALID,
    "19": _ERROR,
    "20": _ERROR,
    "21": _TRUNCATED,
    "22": _TRUNCATED,
    "23": _ERROR,
    "30": None,
    "40": None,
    "42": None,
    "44": None,
    "47": None,
    "49": None,
}


@pytest.mark.parametrize("sample", STREAMS, ids=str)
def test_verdict_on_a_sample(sample):
    _, recorder, decoder = recorded(sample)
    verdict = recorder.verdict(foreign=decoder.foreign)
    expected = _VERDICTS[sample.name.partition("-")[0]]
    assert verdict is None if expected is None else type(verdict) is expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ([delta(content="x"), delta(finish_reason="stop")], None),
        ([delta(content="x", finish_reason="length")], None),
        ([delta(1, content="x"), delta(0, content="y"), delta(1, finish_reason="stop")], _TRUNCATED),
        ([delta(1, content="x"), delta(0, finish_reason="stop"), delta(1, finish_reason="stop")], None),
        ([delta(content="x")], _TRUNCATED),
        ([delta(content="x")] * 3, _TRUNCATED),
        ([], _TRUNCATED),
    ],
)
def test_every_choice_that_was_started_needs_its_finish_reason(stream, expected):
    _, recorder = entries_of([chunk(choice) for choice in stream])
    verdict = recorder.verdict()
    assert verdict is None if expected is None else type(verdict) is expected


def test_done_proves_nothing():
    entries, recorder = entries_of([chunk(delta(content="x")), b"[DONE]", chunk(delta(finish_reason="stop"))])
    assert recorder.done
    assert len(entries) == 2
    assert recorder.verdict() is None
    assert type(entries_of([chunk(delta(content="x")), b"[DONE]"])[1].verdict()) is _TRUNCATED


def test_chunks_of_the_protocol_that_start_no_choice_are_cut_short_not_invalid():
    _, recorder = entries_of([json.dumps(SAMPLES["40-azure-first-chunk"].chunks[0]).encode()])
    assert type(recorder.verdict()) is _TRUNCATED


def test_foreign_stream_is_invalid():
    assert type(Recorder().verdict(foreign=b"hello")) is _INVALID
    assert type(entries_of([b'{"hello":1}'])[1].verdict()) is _INVALID


def test_usage_and_finish_reason_are_the_last_ones_said():
    stream = [
        chunk(delta(1, content="x"), usage={"total_tokens": 1}),
        chunk(delta(0, content="x"), usage={"total_tokens": 2}),
        chunk(delta(1, finish_reason="length"), usage=None),
        chunk(delta(0, finish_reason="stop")),
        chunk(usage={"total_tokens": 3}),
    ]
    _, recorder = entries_of(stream)
    assert (recorder.finish_reason, recorder.usage) == ("stop", {"total_tokens": 3})
    assert entries_of(stream[:3])[1].finish_reason == "length"
    assert entries_of(stream[:2])[1].finish_reason is None


# Errors inside a stream.


@pytest.mark.parametrize(
    ("error", "message", "details"),
    [
        ("it broke", "it broke", {}),
        ({"message": "m", "type": "t", "param": "p", "code": 7}, "m", {"type": "t", "param": "p", "code": 7}),
        ({"message": "m", "type": None, "param": None, "code": "500"}, "m", {"code": "500"}),
        ({"detail": "d"}, "d", {}),
        ({"detail": [{"loc": ["body"]}]}, '[{"loc":["body"]}]', {}),
        ({"code": 3}, '{"code":3}', {"code": 3}),
        (["odd"], '["odd"]', {}),
        ({"message": "half \ud83d"}, "half \ud83d", {}),
    ],
)
def test_error_of_an_upstream_has_a_message_and_its_details(error, message, details):
    raised = upstream_error(error)
    assert (str(raised), raised.details) == (message, details)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Message(b"", b'{"error":"it broke"}'), "it broke"),
        (Message(b"", b'{"error":{"message":"it broke","code":1}}'), "it broke"),
        (Message(b"", b'{"id":"c","choices":[],"error":{"message":"it broke"}}'), "it broke"),
        (Message(b"error", b'{"message":"it broke"}'), "it broke"),
        (Message(b"error", b'{"error":{"message":"it broke"}}'), "it broke"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_error_message_is_no_chunk_and_fails_the_stream_even_after_a_finish_reason(message, said, finished):
    _, recorder = entries_of([chunk(delta(content="x", finish_reason="stop" if finished else None))])
    assert recorder.record(message) is None
    assert type(recorder.verdict()) is UpstreamError
    assert str(recorder.verdict()) == said


def test_chunk_with_choices_and_an_error_is_recorded_and_fails_the_stream():
    raw = chunk(delta(content="last words", finish_reason="error"), error={"message": "it broke", "code": 502})
    recorder = Recorder()
    assert recorder.record(Message(b"", raw)) == Entry.WHOLE_TOKEN + raw
    assert str(recorder.verdict()) == "it broke"


@pytest.mark.parametrize(
    "raw",
    [
        b"hello",
        b"[1]",
        b'[{"a":1}]',
        b"<html>",
        b"{",
        b'{"a":}',
        b"1",
        b'"x"',
        b"\xff",
        b'{"a":"\xff"}',
        b'{"a":"\n"}',
        b'{"choices":{}}',
        b'{"choices":[1]}',
        b'{"choices":"x"}',
        b'{"choices":[{"index":"x"}]}',
        b'{"choices":[{"index":[]}]}',
        b'{"choices":[{"index":0,"delta":[]}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_chunk_is_invalid(raw):
    with pytest.raises(UpstreamInvalid, match="expected"):
        Recorder().record(Message(b"", raw))


def test_visible_text_is_a_string_of_choice_0_only():
    assert visible_text({"choices": [{"index": 1, "text": "n"}, {"index": 0, "text": "y"}]}) == "y"
    assert visible_text({"choices": [{"text": "y"}]}) == "y"
    assert visible_text({"choices": [{"index": 0, "delta": {"content": [{"type": "thinking"}]}}]}) == ""
    assert visible_text({"choices": None}) == visible_text({}) == ""


def test_empty_finish_reason_finishes_nothing():
    # some servers send it with every chunk, and a stream that is cut must not pass for a complete one
    recorder = Recorder()
    chunk = b'{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":""}]}'
    recorder.record(Message(b"", chunk))
    assert not recorder.finished
    assert isinstance(recorder.verdict(), UpstreamTruncated)


# The Responses API.


def test_events_of_the_responses_api_are_tokens_and_deltas_where_they_were_asked_for():
    # given
    numbered = [
        {**payload, "sequence_number": place}
        for place, payload in enumerate(SAMPLES["15-responses-event-lines"].payloads)
    ]
    recorder = Recorder(RESPONSES)
    # when
    entries = [recorder.record(Message(payload["type"].encode(), dump(payload, "raw"))) for payload in numbered]
    log = log_of(entries)
    # then nothing is lost but the numbers, which are the events' places
    assert recorder.verdict() is None
    assert recorder.done
    assert (recorder.finish_reason, recorder.usage) == ("stop", numbered[-1]["response"]["usage"])
    assert chunks_of(log) == SAMPLES["15-responses-event-lines"].payloads
    said = "".join(payload["delta"] for payload in numbered if payload["type"] == "response.output_text.delta")
    assert "".join(token_contents(log)) == fold(Recording(log)).text == said
    assert said


def test_text_of_the_responses_api_is_stored_alone():
    chunks = [
        {
            "type": "response.output_text.delta",
            "item_id": "m",
            "output_index": 0,
            "delta": text,
            "sequence_number": place,
        }
        for place, text in enumerate(("Hel", "lo", " wor"))
    ]
    recorder = Recorder(RESPONSES)
    entries = [recorder.record(Message(b"", dump(chunk, "raw"))) for chunk in chunks]
    assert [entry[:1] for entry in entries] == [b"T", b"t", b"t"]
    assert entries[1:] == [b"tlo", b"t wor"]


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "response.failed", "response": {"error": {"code": "server_error", "message": "no"}}}, "server_error"),
        ({"type": "response.failed", "response": None}, None),
        ({"type": "error", "code": "rate_limit", "message": "no", "sequence_number": 3}, "rate_limit"),
    ],
)
def test_failure_of_a_response_is_the_upstreams_error(event, code):
    recorder = Recorder(RESPONSES)
    recorder.record(Message(event["type"].encode(), dump(event, "raw")))
    assert recorder.verdict().code == "upstream_error"
    assert recorder.verdict().details.get("code") == code


def test_response_without_its_end_is_truncated():
    recorder = Recorder(RESPONSES)
    recorder.record(Message(b"", b'{"type":"response.output_text.delta","delta":"a"}'))
    assert recorder.verdict().code == "upstream_truncated"
