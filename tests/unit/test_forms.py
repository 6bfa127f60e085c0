"""Chunks that differ in several values: stored as those values, and given back in every format as they came."""

from __future__ import annotations

import itertools
import json
import random
import re
import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_streams import (
    COMPLETED,
    GENERATION_ID,
    canonical,
    dump,
    entries_of,
    log_of,
    record,
    streams,
    visible,
)
from support.sse import messages

from replay.errors import UpstreamInvalid
from replay.live.feed import Encoding, Feed
from replay.model.event import Entry
from replay.model.log import Log
from replay.model.transcript import Transcript
from replay.redaction import Redaction
from replay.wire import filling
from replay.wire.chat_dialect import CHAT
from replay.wire.events import NDJSON, SSE, Format, Recording
from replay.wire.folding import Folding, fold
from replay.wire.framing import UNTIL_CLOSE
from replay.wire.json import loads, mended
from replay.wire.normalizing import Normalizer
from replay.wire.openai import chunk_of
from replay.wire.openai_formats import COMPLETIONS, COMPLETIONS_BARE, OPENAI_CHUNKS, TOKEN_LINES
from replay.wire.recorder import Recorder
from replay.wire.responses_dialect import RESPONSES
from replay.wire.responses_format import RESPONSE_EVENTS
from replay.wire.sse import Message

FORMATS = (SSE, NDJSON, OPENAI_CHUNKS, COMPLETIONS, COMPLETIONS_BARE, TOKEN_LINES, RESPONSE_EVENTS)


def chunk(
    beside: dict[str, Any] | None = None, *, index: int = 0, finish_reason: str | None = None, **delta: Any
) -> bytes:
    """A raw chunk with one choice, and further fields."""
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason}
    return dump({"id": "c", "created": 1763701200, "choices": [choice], **(beside or {})}, "raw")


def usage(counted: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": 25, "completion_tokens": counted, "total_tokens": 25 + counted}}


def chunks_of(log: Log) -> list[bytes]:
    """The chunks that the log's entries stand for, each read by a reader that begins there."""
    places = range(1, len(log) - log.complete)
    return [chunk_of(log.entries[seq], Recording(log).template(seq)) for seq in places]


def shown(format: Format, log: Log, start: int = 0, stop: int | None = None) -> list[Any]:
    """What a format shows of a stretch, to a reader that begins there."""
    body = format.encode(Recording(log), start, len(log) if stop is None else stop)
    if format is NDJSON:
        return [json.loads(line) for line in body.split(b"\n") if line]
    read = [(message.event, message.last_event_id, message.data) for message in messages(body)]
    return [(*names, data if data == "[DONE]" else json.loads(data)) for *names, data in read]


# How it is stored.


def test_chunks_of_the_example_are_stored_as_it_says():
    example = re.findall(r"^    (\{.*\})\n        (.+?)[,:] ", filling.__doc__, re.MULTILINE)
    chunks = [raw.encode() for raw, _ in example]
    plain, form, filled = (entry.encode().decode("unicode_escape").encode() for _, entry in example)
    assert entries_of(chunks)[0] == [plain + chunks[0], form + b"\n" + chunks[1], filled]


def test_what_changes_is_stored_alone():
    texts = [" one", " two", " three", " four", " five"]
    stream = [chunk({"obfuscation": 7 * letter}, content=text) for text, letter in zip(texts, "abcde", strict=True)]
    entries, _ = entries_of(stream)
    assert [entry[:1] for entry in entries] == [b"T", b"F", b"f", b"f", b"f"]
    assert entries[2:] == [b"f three\1ccccccc", b"f four\1ddddddd", b"f five\1eeeeeee"]
    assert chunks_of(log_of(entries)) == stream


def test_numbers_are_stored_as_what_was_added_since_the_form():
    counts = {"a": 1, "b": 2, "c": 3, "d": 70, "e": 1070, "f": 1}
    stream = [chunk(usage(counted), content=text) for text, counted in counts.items()]
    entries, recorder = entries_of(stream)
    assert entries[2:] == [b"fc\0031\4", b"fd\00368\4", b"fe\0031068\4", b"ff\0011\00126"]
    assert chunks_of(log_of(entries)) == stream
    assert recorder.usage == usage(1)["usage"]


def test_value_that_repeats_the_text_or_the_form_is_not_stored_again():
    stream = [
        chunk({"id": id_}, reasoning=text, reasoning_content=text, content="")
        for id_, text in (("x", "He"), ("y", "l"), ("y", "lo"), ("x", ""))
    ]
    entries, _ = entries_of(stream)
    assert [entry[:1] for entry in entries] == [b"D", b"G", b"g", b"g"]
    assert entries[2:] == [b"glo\5\2", b"g\1x\2"]
    assert chunks_of(log_of(entries)) == stream


def test_message_so_far_is_stored_as_what_is_new():
    so_far = list(itertools.accumulate(["Hel", "lo", " wor", "ld", "", "!"]))
    pieces = ["Hel", "lo", " wor", "ld", "", "?"]
    stream = [chunk({"so_far": {"text": text}}, content=piece) for text, piece in zip(so_far, pieces, strict=True)]
    entries, _ = entries_of(stream)
    assert [entry[:1] for entry in entries] == [b"T", b"F", b"f", b"f", b"g", b"f"]
    assert entries[2:] == [b"f wor\2", b"fld\2", b"g\2", b"f?\1!"]
    assert chunks_of(log_of(entries)) == stream


def test_message_so_far_that_begins_anew_is_whole_and_grows_again():
    pieces = [30 * letter for letter in "abcdefgh"]
    so_far = [*itertools.accumulate(pieces[:3]), *itertools.accumulate(pieces[3:])]
    stream = [chunk({"so_far": text}, content=piece) for text, piece in zip(so_far, pieces, strict=True)]
    entries, _ = entries_of(stream)
    assert b"".join(entry[:1] for entry in entries) == b"TFfFfFff"
    assert entries[-1] == b"f" + 30 * b"h" + b"\2"
    assert chunks_of(log_of(entries)) == stream


def test_further_value_that_changes_becomes_a_blank_too():
    stream = [chunk({"obfuscation": 3 * letter}, content=letter) for letter in "abcd"]
    stream += [chunk({"obfuscation": 3 * letter, "created": 1763701201}, content=letter) for letter in "efgh"]
    stream += [chunk({"obfuscation": 3 * letter, "created": 1763701203}, content=letter) for letter in "ij"]
    entries, _ = entries_of(stream)
    assert b"".join(entry[:1] for entry in entries) == b"TFffFfffff"
    assert chunks_of(log_of(entries)) == stream


def test_events_of_the_responses_api_have_blanks_too():
    events = [
        {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "delta": text, "obfuscation": noise}
        for text, noise in (("Hel", "q1"), ("lo", "w22"), ("!", "e333"))
    ]
    recorder = Recorder(RESPONSES)
    entries = [
        recorder.record(Message(b"", dump(event | {"sequence_number": n}, "raw"))) for n, event in enumerate(events)
    ]
    assert entries[2] == b"f!\1e333"
    assert [json.loads(raw) for raw in chunks_of(log_of(entries))] == events


_chance = random.Random(1)
_LETTERS = string.ascii_letters + string.digits
_WORDS = [" " + "".join(_chance.choices(string.ascii_lowercase, k=4)) for _ in range(1000)]
_SO_FAR = list(itertools.accumulate(_WORDS))
# A chunk by its place, and how many bytes a token may take: one that is plain takes 6.
SORTS: dict[str, tuple[Callable[[int], bytes], float]] = {
    "obfuscation": (
        lambda n: chunk({"obfuscation": "".join(_chance.choices(_LETTERS, k=10))}, content=_WORDS[n]),
        12 + 6,  # ten random letters have 60 bits that nobody can leave out
    ),
    "usage": (lambda n: chunk(usage(n), content=_WORDS[n]), 12),
    "two names": (lambda n: chunk(reasoning=_WORDS[n], reasoning_content=_WORDS[n]), 12),
    "details": (
        lambda n: chunk(
            content="",
            reasoning=_WORDS[n],
            reasoning_details=[{"type": "reasoning.text", "text": _WORDS[n], "index": 0}],
        ),
        12,
    ),
    "created": (lambda n: chunk({"created": 1763701200 + n}, content=_WORDS[n]), 12),
    "message so far": (lambda n: chunk({"message": {"content": _SO_FAR[n]}}, content=_WORDS[n]), 12),
}


@pytest.mark.parametrize("sort", SORTS)
def test_token_takes_at_most_twice_what_a_plain_one_takes(sort):
    make, most = SORTS[sort]
    stream = [make(place) for place in range(1000)]
    entries, _ = entries_of(stream)
    assert sum(map(len, entries)) / 1000 <= most
    log = log_of(entries)
    recording = Recording(log)
    assert [chunk_of(log.entries[seq], recording.template(seq)) for seq in range(1, 1001)] == stream


# For any stream.


def whole(stream: list[bytes]) -> Log:
    """The log of a stream with every chunk as it came."""
    kinds = [Entry.WHOLE_TOKEN if visible(json.loads(raw)) else Entry.WHOLE_DELTA for raw in stream]
    return log_of([kind + raw.replace(b"\n", b" ") for kind, raw in zip(kinds, stream, strict=True)])


@given(stream=streams(), start=st.integers(0, 15), length=st.integers(0, 15))
@settings(max_examples=300, deadline=None)
def test_every_face_shows_what_it_would_show_of_whole_chunks_from_any_place(stream, start, length):
    log, plain = record(stream), whole(stream)
    start = min(start, len(log))
    stop = min(start + length, len(log))
    for format in FORMATS:
        assert canonical(shown(format, log)) == canonical(shown(format, plain))
        assert canonical(shown(format, log, start, stop)) == canonical(shown(format, plain, start, stop))


@given(stream=streams())
@settings(max_examples=200, deadline=None)
def test_a_stream_is_judged_as_its_chunks_are(stream):
    finished: dict[int, str] = {}
    started, usage = set(), None
    for chunk in map(json.loads, stream):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            started.add(choice["index"])
            if choice.get("finish_reason"):
                finished[choice["index"]] = choice["finish_reason"]
    _, recorder = entries_of(stream)
    assert canonical(recorder.usage) == canonical(usage)
    assert recorder.finish_reason == (finished[min(finished)] if finished else None)
    assert recorder.finished == (bool(started) and started <= finished.keys())


_damage = st.tuples(
    st.integers(0, 400),
    st.integers(0, 3),
    st.sampled_from([b"", b'"', b"\\", b"0", b"e9", b",", b"\n", b"\xff", b"x", b'"a":1,']),
)


@given(stream=streams(), damage=st.lists(st.tuples(st.integers(0, 14), _damage), max_size=6))
@settings(max_examples=500, deadline=None)
def test_what_is_recorded_is_json_and_comes_back_byte_for_byte(stream, damage):
    # given chunks that something was cut out of or put into
    for number, (place, length, bytes_) in damage:
        if number < len(stream):
            raw = stream[number]
            stream[number] = raw[:place] + bytes_ + raw[place + length :]
    recorder, entries, recorded = Recorder(), [], []
    for raw in stream:
        try:
            entry = recorder.record(Message(b"", raw))
        except UpstreamInvalid:
            continue
        if entry is not None:
            entries.append(entry)
            recorded.append(_as_json(raw).replace(b"\n", b" "))
    # then what was taken is JSON, but for numbers that nobody could hold, and nothing of it is lost
    assert chunks_of(log_of(entries)) == recorded
    for raw in recorded:
        json.loads(raw)


def _as_json(raw: bytes) -> bytes:
    try:
        loads(raw)
    except ValueError:
        return mended(raw)
    return raw


# What must be looked at is looked at.


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (chunk({"x": "1"}, content="a"), chunk({"x": "2"}, index=1, content="b")),
        (chunk({"x": "1"}, content="a", finish_reason=""), chunk({"x": "2"}, content="b", finish_reason="stop")),
        (chunk({"type": "a"}, content="a"), chunk({"type": "b"}, content="b")),
        (chunk({"error": ""}, content="a"), chunk({"error": "no"}, content="b")),
        (
            b'{"choices":[{"index":0,"delta":{"content":"a"},"error":""}],"x":"1"}',
            b'{"choices":[{"index":0,"delta":{"content":"b"},"error":"no"}],"x":"2"}',
        ),
        (chunk({"object": "a"}, content="a"), chunk({"object": "error"}, content="b")),
        (chunk({"base_resp": {"status_code": 0}}, content="a"), chunk({"base_resp": {"status_code": 1}}, content="b")),
    ],
    ids=["index", "finish_reason", "type", "error", "error of a choice", "object", "base_resp"],
)
def test_what_a_stream_is_judged_by_is_no_blank(before, after):
    entries, _ = entries_of([before, after])
    assert entries[1][:1] in (b"T", b"D")


@pytest.mark.parametrize("responses", [True, False])
def test_events_of_another_type_in_the_same_shape_are_recorded_whole(responses):
    stream = [b'{"type":"response.%b.delta","delta":"a","n":1}' % kind for kind in (b"reasoning_text", b"output_text")]
    recorder = Recorder(RESPONSES if responses else CHAT)
    entries = [recorder.record(Message(b"", raw)) for raw in stream]
    assert [entry[1:] for entry in entries] == stream


_STRING_AND_NUMBER = b'{"choices":[{"index":0,"delta":{"content":"%b"}}],"x":"%b","n":%b}'


@pytest.mark.parametrize(
    "odd",
    [
        b'a"b',  # ends the string early
        b"a\\",  # takes the closing quote along
        b"a\tb",  # control characters stand escaped
        b"\1",
        b"\\x41",  # no such escape
        b"\xff",  # no UTF-8
        b"\xed\xa0\xbd",  # half a surrogate pair as bytes
        b'","role":"x',  # JSON all the same, but another shape
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_what_only_looks_like_a_string_of_the_form_does_not_fill_it(odd, place):
    _, recorder = entries_of([_STRING_AND_NUMBER % (b"%d" % n, b"%d" % n, b"%d" % n) for n in range(3)])
    values = [odd, b"x"] if place == 0 else [b"x", odd]
    try:
        entry = recorder.record(Message(b"", _STRING_AND_NUMBER % (*values, b"7")))
    except UpstreamInvalid:
        return
    assert entry is not None
    assert entry[:1] in (b"T", b"D")


@pytest.mark.parametrize("odd", [b"1e999", b"1e400", b"NaN", b"-Infinity", b"9" * 5000])
def test_number_that_no_reader_could_hold_is_kept_as_null(odd):
    stream = [_STRING_AND_NUMBER % (b"%d" % n, b"%d" % n, b"%d" % n) for n in range(3)]
    *_, last = chunks_of(record([*stream, _STRING_AND_NUMBER % (b"x", b"x", odd)]))
    assert json.loads(last) == json.loads(_STRING_AND_NUMBER % (b"x", b"x", b"null"))


@pytest.mark.parametrize("odd", [b"01", b"+1", b"1.", b".5", b"1e", b"-", b"0x1", b"nan", b""])
def test_what_is_no_number_does_not_fill_a_form(odd):
    _, recorder = entries_of([_STRING_AND_NUMBER % (b"%d" % n, b"%d" % n, b"%d" % n) for n in range(3)])
    with pytest.raises(UpstreamInvalid):
        recorder.record(Message(b"", _STRING_AND_NUMBER % (b"x", b"x", odd)))


@pytest.mark.parametrize("number", [b"-1", b"-0", b"0", b"1.50", b"1E5", b"1e-7", b"9" * 17, b"9" * 25, b"1e22"])
def test_number_comes_back_as_it_was_spelt(number):
    stream = [_STRING_AND_NUMBER % (b"%d" % n, b"%d" % n, b"%d" % n) for n in range(3)]
    stream.append(_STRING_AND_NUMBER % (b"x", b"x", number))
    assert chunks_of(record(stream)) == stream


def test_form_is_found_after_many_chunks_that_have_none():
    either = [chunk(content="a"), chunk(content="b", reasoning="c", refusal="d")]
    steady = [chunk({"obfuscation": 5 * letter}, content=letter) for letter in string.ascii_letters]
    entries, _ = entries_of(either * 20 + steady)
    assert entries[-1][:1] == b"f"


def test_key_that_comes_twice_is_no_blank():
    stream = [b'{"choices":[{"index":0,"delta":{"content":"%d"}}],"a":"%d","a":"%d"}' % (n, n, n) for n in range(4)]
    entries, _ = entries_of(stream)
    assert [entry[:1] for entry in entries] == [b"T"] * 4
    assert chunks_of(log_of(entries)) == stream


def test_text_that_stays_the_same_is_seen_all_the_same():
    stream = [chunk(content="ha", reasoning=letter) for letter in "abcd"]
    log = record(stream)
    assert [data for *_, data in shown(TOKEN_LINES, log)][:-1] == [{"token": "ha"}] * 4
    assert chunks_of(log) == stream


@pytest.mark.parametrize("count", [16, 300])
def test_chunk_with_very_many_values_that_change_has_no_form(count):
    stream = [chunk({"many": [place + value for value in range(count)]}, content=str(place)) for place in range(3)]
    entries, _ = entries_of(stream)
    assert [entry[:1] for entry in entries] == [b"T"] * 3


def test_long_value_that_does_not_grow_is_kept_whole():
    stream = [
        chunk({"x": letter * length}, content=letter) for letter, length in zip("abcd", (1, 1, 300, 1), strict=True)
    ]
    entries, _ = entries_of(stream)
    assert b"".join(entry[:1] for entry in entries) == b"TFFf"
    assert chunks_of(log_of(entries)) == stream


def test_secret_is_taken_out_of_a_blank():
    secret = "sk-0123456789abcdef"
    recorder = Recorder(redaction=Redaction([secret]))
    values = ["one", "two", "three", f"key {secret}", "four"]
    stream = [chunk({"debug": value}, content=str(place)) for place, value in enumerate(values)]
    entries = [recorder.record(Message(b"", raw)) for raw in stream]
    assert b"".join(entry[:1] for entry in entries) == b"TFfFf"
    assert not any(secret.encode() in entry for entry in entries if entry is not None)
    assert [json.loads(raw)["debug"] for raw in chunks_of(log_of(entries))] == [
        "one",
        "two",
        "three",
        "key [redacted]",
        "four",
    ]


def test_secret_that_comes_in_pieces_is_taken_out_of_what_grows():
    secret = "sk-0123456789abcdef"
    recorder = Recorder(redaction=Redaction([secret]))
    stream = [chunk({"trace": f"key {secret}"[:length]}, content=str(length)) for length in range(1, 24)]
    log = log_of([recorder.record(Message(b"", raw)) for raw in stream])
    assert b"+" in log.entries[2].partition(b"\n")[0]
    assert not any(secret.encode() in raw for raw in chunks_of(log))


@pytest.mark.parametrize("wants_usage", [True, False])
def test_piece_that_says_nothing_but_its_usage_is_for_who_asked_for_usage(wants_usage):
    stream = [
        dump({"id": "c", "choices": [{"index": 0, "text": text}], **usage(counted)}, "raw")
        for counted, text in enumerate(["a", "b", "c", "", "d"])
    ]
    format = COMPLETIONS if wants_usage else COMPLETIONS_BARE
    texts = [data["choices"][0]["text"] for *_, data in shown(format, record(stream))[:-1]]
    assert texts == (["a", "b", "c", "", "d"] if wants_usage else ["a", "b", "c", "d"])


# What grows.


def growing(count: int, begun: str = "") -> list[bytes]:
    """Chunks with the message so far, of which some was said before."""
    pieces = [f" word{place}" for place in range(count)]
    so_far = itertools.accumulate(pieces, initial=begun)
    return [
        chunk({"message": {"content": text}}, content=piece)
        for text, piece in zip(itertools.islice(so_far, 1, None), pieces, strict=True)
    ]


def test_what_grows_is_folded_without_reading_it_again_and_again():
    # given a transcript that counts what it is told
    class Counting(Transcript):
        __slots__ = ("told",)

        def __init__(self) -> None:
            super().__init__()
            self.told = 0

        def add(self, chunk: dict[str, Any]) -> None:
            self.told += len(chunk["message"]["content"])
            super().add(chunk)

    stream = growing(500)
    said = json.loads(stream[-1])["message"]["content"]
    # when
    folding = Folding()
    folding.transcript = transcript = Counting()
    folding.go_on(Recording(log := record(stream)), len(log))
    # then
    assert transcript.text == said
    assert transcript.envelope["message"] == {"content": said}
    assert transcript.told < 3 * len(said)


@pytest.mark.parametrize("beside", ["in the delta", "as the id", "as an item's id"])
def test_transcript_is_the_same_where_something_else_grows(beside):
    # given values that grow, of which not only the last counts
    pairs = list(zip("abcde", itertools.accumulate("vwxyz"), strict=True))
    event = {"type": "response.function_call_arguments.delta"}
    stream = {
        "in the delta": [chunk(content=piece, reasoning=so_far) for piece, so_far in pairs],
        "as the id": [chunk({"id": so_far[1:]}, content=piece) for piece, so_far in pairs],
        "as an item's id": [dump(event | {"item_id": so_far, "delta": piece}, "raw") for piece, so_far in pairs],
    }[beside]
    log, transcript, normalizer = record(stream), Transcript(), Normalizer()
    for said in map(normalizer.normalize, map(json.loads, stream)):
        assert said is not None
        transcript.add(said)
    # then
    assert log.entries[-2][:1] in (b"f", b"g")
    folded = fold(Recording(log))
    assert (folded.message, folded.envelope) == (transcript.message, transcript.envelope)


async def test_segment_of_what_grows_is_bounded_in_bytes():
    feed = Feed(GENERATION_ID, record(growing(600, begun="x" * 100_000), COMPLETED))
    encoding = Encoding(OPENAI_CHUNKS, UNTIL_CLOSE)
    place, read = 0, []
    while place < len(feed.log):
        data, place = feed.segment(encoding, place, len(feed.log))
        read.append(data)
    assert b"".join(read) == OPENAI_CHUNKS.encode(Recording(feed.log), 0, len(feed.log))
    assert max(map(len, read)) < 2 << 20


# What an earlier version wrote.

EARLIER = [
    b'T{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"}}]}',
    b"tlo",
    b"d",
    rb"t \"\u00e9\\\n",
    b'D{"id":"c","choices":[{"index":0,"delta":{"reasoning":"hm","reasoning_content":"hm"}}],"obfuscation":"x"}',
    b'D{"id":"c","choices":[{"index":0,"delta":{"reasoning":"so","reasoning_content":"so"}}],"obfuscation":"yz"}',
    b'T{"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}],"obfuscation":"x"}',
    b'D{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"total_tokens":3}}',
]


def test_log_of_an_earlier_version_is_read():
    log = log_of(EARLIER)
    said = [EARLIER[0][1:].replace(b"Hel", entry[1:]) for entry in EARLIER[1:4]]
    assert chunks_of(log) == [EARLIER[0][1:], *said, *(entry[1:] for entry in EARLIER[4:])]
    assert fold(Recording(log)).message == {
        "role": "assistant",
        "content": 'Hello "é\\\na',
        "reasoning": "hmso",
        "reasoning_content": "hmso",
    }
