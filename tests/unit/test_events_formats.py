"""The three formats of a log, byte for byte and for any content."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_streams import (
    COMPLETED,
    GENERATION_ID,
    START,
    STARTED_MS,
    carries_more,
    dump,
    record,
    streams,
    texts,
    visible,
)
from support.sse import messages

from replay.model.event import Kind, number
from replay.model.generation import End, Start, Status
from replay.model.log import Log
from replay.wire.events import (
    NDJSON,
    SSE,
    Format,
    Recording,
    decode_end,
    decode_start,
    encode_end,
    encode_start,
    event_objects,
)
from replay.wire.openai import chunk_of
from replay.wire.openai_formats import OPENAI_CHUNKS

_BLOCK = re.compile(rb"event: (start|token|delta|end)\ndata: ([^\n\r\0]+)\nid: (\d+-\d+)\n\n")
_CHUNK_BLOCK = re.compile(rb"data: ([^\n\r\0]+)\nid: (\d+-\d+)\n\n")
_LINE = re.compile(rb"([^\n\r\0]+)\n")


def encoded(format: Format, log: Log, start: int = 0, stop: int | None = None) -> bytes:
    return format.encode(Recording(log), start, len(log) if stop is None else stop)


def matches(pattern: re.Pattern[bytes], body: bytes) -> list[Any]:
    """What a pattern finds, if the body is nothing else."""
    assert re.fullmatch(b"(?:%b)*" % pattern.pattern, body)
    return pattern.findall(body)


def objects(log: Log) -> list[dict[str, Any]]:
    """The data of all events."""
    return [json.loads(line) for line in event_objects(Recording(log), 0, len(log))]


def chat(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"id": "c", "created": 1, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def log_with(*chunks: dict[str, Any], end: End | None = COMPLETED) -> Log:
    return record([dump(chunk, "raw") for chunk in chunks], end)


# Byte for byte.


def test_stream_of_events_is_framed_exactly():
    log = log_with(chat(content="Val"), chat(content='key"\\\n'), chat(reasoning="hm"), chat("stop"))
    assert encoded(SSE, log) == (
        b"event: start\n"
        b'data: {"type":"start","generation_id":"gen_unit","model":"m","created":1763701200.123}\n'
        b"id: 1763701200123-0\n\n"
        b"event: token\n"
        b'data: {"type":"token","content":"Val","index":1}\nid: 1763701200133-1\n\n'
        b"event: token\n"
        b'data: {"type":"token","content":"key\\"\\\\\\n","index":2}\nid: 1763701200143-2\n\n'
        b"event: delta\n"
        b'data: {"type":"delta","choices":[{"index":0,"delta":{"reasoning":"hm"},"finish_reason":null}]}\n'
        b"id: 1763701200153-3\n\n"
        b"event: delta\n"
        b'data: {"type":"delta","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\nid: 1763701200163-4\n\n'
        b"event: end\n"
        b'data: {"type":"end","status":"completed","finish_reason":null,"usage":null,"error":null,"total_tokens":0,'
        b'"ttft_ms":null,"duration_ms":0,"tokens":0,"timestamp":1763701200.173}\nid: 1763701200173-5\n\n'
    )


def test_lines_are_framed_exactly():
    log = log_with(chat(content="Val"), chat(content="key"), end=None)
    assert encoded(NDJSON, log) == (
        b'{"id":"1763701200123-0","type":"start","generation_id":"gen_unit","model":"m","created":1763701200.123}\n'
        b'{"id":"1763701200133-1","type":"token","content":"Val","index":1}\n'
        b'{"id":"1763701200143-2","type":"token","content":"key","index":2}\n'
    )


def test_chunks_are_framed_exactly():
    log = log_with({"id": "c", "choices": [{"index": 0, "text": "Val"}]}, {"id": "c", "choices": []})
    assert encoded(OPENAI_CHUNKS, log) == (
        b'data: {"id":"gen_unit","choices":[{"index":0,"text":"Val"}]}\nid: 1763701200133-1\n\n'
        b'data: {"id":"gen_unit","choices":[]}\nid: 1763701200143-2\n\n'
        b"data: [DONE]\nid: 1763701200153-3\n\n"
    )


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (
            End(status=Status.FAILED, error={"code": "upstream_truncated", "message": "it stopped"}),
            {"message": "it stopped", "type": "upstream_truncated", "param": None, "code": "upstream_truncated"},
        ),
        (
            End(
                status=Status.FAILED,
                error={
                    "code": "upstream_error",
                    "message": "no",
                    "upstream": {"type": "t", "param": "p", "code": 429},
                },
            ),
            {"message": "no", "type": "t", "param": "p", "code": 429},
        ),
        (
            End(status=Status.FAILED, error={"code": "invalid_request", "message": "tool_choice: expected …"}),
            {
                "message": "tool_choice: expected …",
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_request",
            },
        ),
        (
            End(status=Status.CANCELLED),
            {"message": "The generation was cancelled.", "type": "cancelled", "param": None, "code": "cancelled"},
        ),
    ],
)
def test_chunks_that_did_not_complete_close_with_the_error_object_under_the_end(end, error):
    log = log_with(chat(content="x"), end=end)
    *_, last = messages(encoded(OPENAI_CHUNKS, log))
    assert (last.event, last.last_event_id) == ("message", str(log.last_id))
    assert json.loads(last.data) == {"error": error}


def test_notices_never_move_the_cursor_unless_they_name_an_event():
    assert SSE.notice("live", {"last_event_id": "1-2"}) == (
        b'event: live\ndata: {"type":"live","last_event_id":"1-2"}\n\n'
    )
    assert SSE.notice("snapshot", {"text": "a\nb"}, "1-2") == (
        b'event: snapshot\ndata: {"type":"snapshot","text":"a\\nb"}\nid: 1-2\n\n'
    )
    assert NDJSON.notice("live", {"last_event_id": "1-2"}) == b'{"type":"live","last_event_id":"1-2"}\n'
    assert NDJSON.notice("snapshot", {"text": ""}, "1-2") == b'{"id":"1-2","type":"snapshot","text":""}\n'
    assert OPENAI_CHUNKS.notice("live", {"last_event_id": "1-2"}) == b""


def test_keep_alive_is_no_event_in_any_face():
    log = log_with(chat(content="x"))
    for format in (SSE, OPENAI_CHUNKS):
        assert format.keepalive == b":k\n"
        assert messages(format.keepalive * 3 + encoded(format, log)) == messages(encoded(format, log))
    assert [json.loads(line) for line in (NDJSON.keepalive * 3 + encoded(NDJSON, log)).splitlines()] == objects(log)


# For any content.


@given(stream=streams())
@settings(deadline=None)
def test_data_of_any_stream_is_one_line_of_json(stream):
    log = record(stream)
    blocks = matches(_BLOCK, encoded(SSE, log))
    assert [(event_id, name) for name, _, event_id in blocks] == [
        (str(event.id).encode(), event.kind.value.encode()) for event in log.events(0)
    ]
    lines = matches(_LINE, encoded(NDJSON, log))
    assert [{"id": event_id.decode()} | json.loads(data) for _, data, event_id in blocks] == objects(log)
    assert [json.loads(line) for line in lines] == objects(log)
    assert all(line.startswith(b'{"id":"') for line in lines)
    chunks = matches(_CHUNK_BLOCK, encoded(OPENAI_CHUNKS, log))
    assert [event_id for _, event_id in chunks] == [str(event.id).encode() for event in log.events(1)]
    assert all(json.loads(data)["id"] == GENERATION_ID for data, _ in chunks[:-1])


@given(text=texts, name=texts)
def test_no_content_breaks_a_frame_wherever_it_stands(text, name):
    # given odd text in every place that somebody else fills
    start = Start(**{**_fields(START), "model": text, "notice": text, "metadata": {text: text}})
    end = End(status=Status.FAILED, finish_reason=text, usage={text: text}, error={"code": "x", "message": text})
    chunks = [
        chat(content=text),
        chat(content=name),
        chat(text, **{"x_" + name: text}),
        {"choices": [], "x_" + text: name},
    ]
    log = Log()
    entries = [event.entry for event in log_with(*chunks, end=None).events(1)]
    for entry in (encode_start(start), *entries, encode_end(end)):
        log.extend(number([entry], after=log.last_id, now_ms=STARTED_MS))
    # then
    assert len(matches(_BLOCK, encoded(SSE, log))) == len(log)
    assert len(matches(_LINE, encoded(NDJSON, log))) == len(log)
    assert len(matches(_CHUNK_BLOCK, encoded(OPENAI_CHUNKS, log))) == len(log) - 1
    for format in (SSE, NDJSON):
        assert not re.search(rb"[\n\r\0]", format.notice("reset", {"asked": text, name: text}).rstrip(b"\n")[13:])


def _fields(start: Start) -> dict[str, Any]:
    return {name: getattr(start, name) for name in start.__slots__}


@given(stream=streams(), cuts=st.lists(st.integers(0, 18), max_size=4))
@settings(deadline=None)
def test_stretches_encoded_one_by_one_are_the_whole(stream, cuts):
    log = record(stream)
    bounds = sorted({0, len(log), *(min(cut, len(log)) for cut in cuts)})
    for format in (SSE, NDJSON, OPENAI_CHUNKS):
        stretches = [encoded(format, log, start, stop) for start, stop in pairwise(bounds)]
        assert b"".join(stretches) == encoded(format, log)


# What an event carries.


@given(stream=streams())
@settings(max_examples=200, deadline=None)
def test_event_of_a_chunk_carries_what_the_contract_says(stream):
    log = record(stream)
    for seq, (raw, data) in enumerate(zip(stream, objects(log)[1:-1], strict=True), start=1):
        chunk = json.loads(raw)
        if visible(chunk):
            assert (data["type"], data["content"], data["index"]) == ("token", visible(chunk), seq)
        else:
            assert data["type"] == "delta"
        if not visible(chunk) or carries_more(chunk):
            assert data["choices"] == chunk["choices"]
            assert data.get("usage") == chunk.get("usage")
            further = {name: value for name, value in chunk.items() if name.startswith("x_")}
            assert further.items() <= data.items()
        else:
            assert data.keys() == {"id", "type", "content", "index"}
        assert not data.keys() & {"object", "created", "model"}


@pytest.mark.parametrize(
    ("chunk", "plain"),
    [
        (chat(content="x"), True),
        ({"choices": [{"index": 0, "text": "x"}]}, True),
        ({"choices": [{"text": "x", "index": 0, "logprobs": None, "finish_reason": None}], "usage": None}, True),
        ({**chat(content="x", refusal=None), "system_fingerprint": "f", "obfuscation": "o"}, True),
        (chat(content="x", role="assistant"), False),
        (chat("stop", content="x"), False),
        ({**chat(content="x"), "usage": {"total_tokens": 1}}, False),
        ({**chat(content="x"), "timings": {"n": 1}}, False),
        ({"choices": [{"index": 0, "text": "x", "logprobs": {"tokens": []}}]}, False),
        ({"choices": [{"index": 0, "delta": {"content": "x"}}, {"index": 1, "delta": {"content": "y"}}]}, False),
    ],
)
def test_token_has_choices_only_where_its_chunk_carried_something_beside(chunk, plain):
    for data in objects(log_with(chunk, chunk))[1:-1]:
        assert (data["type"], data["content"]) == ("token", "x")
        assert ("choices" not in data) == plain
        assert plain or data["choices"] == chunk["choices"]


def test_upstreams_fields_do_not_pass_for_the_events_own():
    chunk = chat(role="assistant", content="x") | {
        "type": "end",
        "content": "forged",
        "index": 99,
        "generation_id": "gen_other",
    }
    log = log_with(chunk)
    data = objects(log)[1]
    assert (data["id"], data["type"], data["content"], data["index"]) == (str(log.event_id(1)), "token", "x", 1)
    assert "generation_id" not in data


def test_end_tells_everything_and_error_is_null_for_completed():
    end = End(status=Status.COMPLETED, finish_reason="stop", usage={"n": 1}, total_tokens=2, ttft_ms=3, duration_ms=4)
    assert objects(log_with(end=end))[-1] == {
        "id": "1763701200133-1",
        "type": "end",
        "status": "completed",
        "finish_reason": "stop",
        "usage": {"n": 1},
        "tokens": 2,
        "total_tokens": 2,
        "ttft_ms": 3,
        "duration_ms": 4,
        "error": None,
        "timestamp": 1763701200.133,
    }


def test_start_tells_a_notice_where_there_is_one():
    log = Log()
    start = Start(**{**_fields(START), "notice": "a demonstration"})
    log.extend(number([encode_start(start)], after=None, now_ms=STARTED_MS))
    assert objects(log)[0]["notice"] == "a demonstration"
    assert "notice" not in objects(log_with())[0]


@given(text=texts, number_=st.integers(0, 2**62), known=st.booleans())
def test_start_and_end_decode_to_what_was_encoded(text, number_, known):
    start = Start(
        generation_id="g",
        model=text,
        node="n",
        run="r",
        ttl_ms=number_,
        abandon_after_ms=number_ if known else None,
        metadata={text: [text, number_]} if known else None,
        notice=text if known else None,
    )
    end = End(
        status=Status.INTERRUPTED,
        finish_reason=text if known else None,
        usage={text: number_},
        error={"code": text, "message": text},
        total_tokens=number_,
        ttft_ms=number_ if known else None,
    )
    assert decode_start(encode_start(start)) == start
    assert decode_end(encode_end(end)) == end


def test_templates_are_made_once_and_for_entries_that_stand_alone():
    log = log_with(chat(content="a"), chat(content="b"), chat(role="assistant"), chat(content="c"))
    recording = Recording(log)
    assert recording.template(0) is None
    assert recording.template(1) is recording.template(2)
    assert recording.template(3) is None  # a role is no shape for others
    assert [event.kind for event in log.events(1, 5)] == [Kind.TOKEN, Kind.TOKEN, Kind.DELTA, Kind.TOKEN]
    assert json.loads(chunk_of(log.entries[2], recording.template(2))) == chat(content="b")
