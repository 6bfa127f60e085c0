"""The decoder of event streams, held against section 9.2.6 of the WHATWG's HTML standard."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.wire.sse import KEEPALIVE, Decoder, Message, block

PLENTY = 1 << 20


def decode(*pieces: bytes) -> tuple[list[Message], list[Message], bytes]:
    """What a decoder makes of the pieces, of the end after them, and what foreign line it met."""
    decoder = Decoder(PLENTY)
    messages = [message for piece in pieces for message in decoder.decode(piece)]
    return messages, decoder.finish(), decoder.foreign


def reference(stream: bytes) -> tuple[list[Message], list[Message]]:
    """The standard over the whole text; also what it would dispatch if a blank line followed."""
    *lines, last = re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))
    messages = _interpret(lines)
    rest = _interpret([*lines, last, b""])[len(messages) :]
    return messages, rest


def _interpret(lines: list[bytes]) -> list[Message]:
    messages, data, event = [], b"", b""
    for line in lines:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if line == b"":
            if data:
                messages.append(Message(event, data.removesuffix(b"\n")))
            data, event = b"", b""
        elif field == b"data":
            data += value + b"\n"
        elif field == b"event":
            event = value
    return messages


RICH = (
    b"\xef\xbb\xbf: hello\n"
    b"event: start\r\ndata: one\r\n\r\n"
    b"data:two\rdata: and a half\r\r"
    b"id: 7\nretry: 10\ndata\ndata:\ndata:  spaced \n\n"
    b"event: dropped\n\n"
    b":\n\ndata: caf\xc3\xa9 \xe2\x80\xa8 \xc2\x85 \x0b\x0c\x1c\r\n\n"
    b"\r\n\r\n\revent:e\ndata: x:y: z\n\r"
    b"data: cut off"
)


def test_rich_stream_says_what_the_standard_says():
    assert decode(RICH)[:2] == (
        [
            Message(b"start", b"one"),
            Message(b"", b"two\nand a half"),
            Message(b"", b"\n\n spaced "),
            Message(b"", b"caf\xc3\xa9 \xe2\x80\xa8 \xc2\x85 \x0b\x0c\x1c"),
            Message(b"e", b"x:y: z"),
        ],
        [Message(b"", b"cut off")],
    )


def test_messages_are_the_same_wherever_the_stream_is_cut():
    whole = decode(RICH)
    for place in range(len(RICH) + 1):
        assert decode(RICH[:place], RICH[place:]) == whole, place
        assert decode(RICH[:place], b"", RICH[place : place + 1], RICH[place + 1 :]) == whole, place


def test_messages_are_the_same_byte_by_byte():
    assert decode(*(RICH[i : i + 1] for i in range(len(RICH)))) == decode(RICH)


_WORDS = (b"data", b"data:", b"data: ", b"event", b"event: ", b"id: 1", b"retry: 5", b":", b" ", b"x")
_ODD = (b"\0", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xef", b"\xff")
_LINES = st.tuples(
    st.sampled_from((b"", *_WORDS)),
    st.sampled_from((b"", b"", *_WORDS, *_ODD)),
    st.sampled_from((b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"")),
).map(b"".join)
_STREAMS = st.lists(_LINES, max_size=20).map(b"".join)


@given(stream=_STREAMS, places=st.lists(st.integers(0, 200), max_size=12))
def test_any_stream_in_any_pieces_gives_what_the_standard_gives(stream, places):
    # given
    bounds = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    pieces = [stream[start:stop] for start, stop in pairwise(bounds)]
    # when
    messages, rest, foreign = decode(*pieces)
    # then
    expected_messages, expected_rest = reference(stream)
    assert messages == expected_messages
    assert foreign == decode(stream)[2]
    assert rest == expected_rest


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_event_without_its_blank_line_is_said_by_finish(line_end):
    assert decode(b"event: e" + line_end + b"data: last" + line_end) == ([], [Message(b"e", b"last")], b"")


@pytest.mark.parametrize(("stream", "rest"), [(b"data: x", b"x"), (b"data", b""), (b"event: e", None), (b"", None)])
def test_event_without_its_line_end_is_said_by_finish(stream, rest):
    assert decode(stream)[1] == ([] if rest is None else [Message(b"", rest)])


def test_finish_says_nothing_twice():
    decoder = Decoder(PLENTY)
    assert list(decoder.decode(b"data: x\n\ndata: y")) == [Message(b"", b"x")]
    assert decoder.finish() == [Message(b"", b"y")]
    assert decoder.finish() == []


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_byte_order_mark_is_skipped_once_and_only_at_the_start(line_end):
    bom = b"\xef\xbb\xbf"
    stream = bom + b"data: " + bom + b"x" + line_end + line_end
    for place in range(len(stream)):
        assert decode(stream[:place], stream[place:]) == ([Message(b"", bom + b"x")], [], b"")


def test_line_ends_of_all_sorts_may_be_mixed():
    stream = b"data: 1\r\ndata: 2\ndata: 3\rdata: 4\r\n\n\rdata: 5\n\r\n"
    assert decode(stream)[0] == [Message(b"", b"1\n2\n3\n4"), Message(b"", b"5")]


def test_separators_of_other_standards_end_no_line():
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei".encode()
    assert decode(b"data: " + text + b"\n\n")[0] == [Message(b"", text)]


@pytest.mark.parametrize(
    ("stream", "foreign"),
    [
        (b"<!DOCTYPE html>\n<html>\n", b"<!DOCTYPE html>"),
        (b"{\n", b"{"),
        (b"datum: x\n\n", b"datum: x"),
        (b" data: x\n\n", b" data: x"),
        (b": comment\n:\n\nid: 3\nid\nretry: 5\nevent: e\ndata: x\ndata\n\n", b""),
        (b'{"a": 1}\n', b""),
        (b"", b""),
    ],
)
def test_foreign_is_what_no_event_stream_has(stream, foreign):
    assert decode(stream)[2] == foreign


# Beside the standard.


@pytest.mark.parametrize(
    ("stream", "messages"),
    [
        (b'{"a":1}\r\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}', [b'{"a":1}']),
        (b'data: {"a":1}\n\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'data: {"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'[{"a":1}]\n', [b'[{"a":1}]']),
        (b'{\n  "a": {"b":\n    1}\n}', [b'{\n  "a": {"b":\n    1}\n}\n']),
        (b': hello\n\n{\n"a": 1\n}\ndata: x\n\n', [b"x", b'{\n"a": 1\n}\n']),
    ],
)
def test_json_that_is_no_field_is_a_message(stream, messages):
    found, rest, _ = decode(stream)
    assert [message.data for message in found + rest] == messages
    assert all(message.bare == (b"data:" not in stream) for message in (found + rest)[:1])


BESIDE = (
    b'data: {"a":1}\ndata: {"b":2}\r\n{"c":3}\r\ndata: 4\n\nerror: 5\n\nevent: e\n[6]\n\ndata: {"a":\ndata: 7}\n\n'
    b'{\n  "d": {\n    "e": 8\n  }\n}\n: c\n\ndata: [DONE]\n\n'
)


def test_what_is_beside_the_standard_is_the_same_wherever_the_stream_is_cut():
    whole = decode(BESIDE)
    assert (len(whole[0]), len(whole[1])) == (8, 1)
    for place in range(len(BESIDE) + 1):
        assert decode(BESIDE[:place], BESIDE[place:]) == whole, place
    assert decode(*(BESIDE[i : i + 1] for i in range(len(BESIDE)))) == whole


def test_a_field_error_is_an_event_of_that_name():
    assert decode(b'data: 1\n\nerror: {"code":500}\n\n')[0] == [Message(b"", b"1"), Message(b"error", b'{"code":500}')]


def test_objects_are_messages_each_where_no_blank_line_is_between_them():
    stream = b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n'
    assert decode(stream)[:2] == ([Message(b"", b'{"a":1}'), Message(b"", b'{"b":2}')], [Message(b"", b"[DONE]")])


def test_an_object_over_several_data_lines_is_one_message():
    assert decode(b'data: {"a": {}\ndata: }\n\n')[0] == [Message(b"", b'{"a": {}\n}')]


def test_endless_json_that_is_no_field_overflows():
    assert until_overflow([b"{\n", *[b"  1,\n"] * 1000], 1000)[1] is not None


# The limit.


def until_overflow(pieces: list[bytes], max_bytes: int) -> tuple[list[Message], int | None]:
    """What a decoder with that limit makes of the pieces, and after how many bytes it overflows."""
    decoder = Decoder(max_bytes)
    messages, taken = [], 0
    for piece in pieces:
        messages += decoder.decode(piece)
        taken += len(piece)
        if decoder.overflow:
            return messages, taken
    return messages, None


@pytest.mark.parametrize(
    "endless",
    [
        [b"data: "] + [b"x" * 100] * 100,
        [b"x" * 100] * 100,
        [b": "] + [b"x" * 100] * 100,
        [b"data: " + b"x" * 93 + b"\n"] * 100,
        [b"data: " + b"x" * 92 + b"\r\n"] * 100,
        [b"event: "] + [b"x" * 100] * 100,
    ],
    ids=["data", "field", "comment", "lines", "CRLF lines", "event"],
)
def test_endless_event_overflows_soon(endless):
    messages, taken = until_overflow(endless, 1000)
    assert messages == []
    assert taken is not None
    assert 1000 < taken <= 1200


def test_line_that_comes_in_many_pieces_is_put_together_once():
    class Piece(bytes):
        joined = 0  # bytes to which one was added

        def __radd__(self, before: bytes) -> bytes:
            Piece.joined += len(before)
            return before + bytes(self)

    data = b"x" * 100_000
    line = b"data: %b\n\n" % data
    decoder = Decoder(PLENTY)
    messages = [
        message for start in range(0, len(line), 100) for message in decoder.decode(Piece(line[start : start + 100]))
    ]
    assert messages == [Message(b"", data)]
    assert Piece.joined <= 2 * len(line)


@pytest.mark.parametrize("line", [b"data\n", b"data:\n", b"data: \n"])
def test_endless_event_of_empty_lines_overflows(line):
    assert until_overflow([line * 100] * 100, 1000)[1] is not None


def test_endless_comments_and_names_are_no_event():
    assert until_overflow([b": a comment that repeats\nevent: e\nid: 1\n"] * 1000, 1000) == ([], None)


def test_limit_is_for_one_event_not_for_the_stream():
    message = b"event: e\ndata: " + b"x" * 400 + b"\ndata: " + b"y" * 400 + b"\n\n"
    pieces = [message[i : i + 7] for i in range(0, len(message), 7)] * 20
    messages, taken = until_overflow(pieces, 1000)
    assert (len(messages), taken) == (20, None)


def test_what_came_before_an_endless_event_is_told():
    pieces = [b"data: one\n\ndata: two\n\ndata: " + b"x" * 2000]
    assert until_overflow(pieces, 1000)[0] == [Message(b"", b"one"), Message(b"", b"two")]
    assert until_overflow(pieces, 1000)[1] == len(pieces[0])


# Out.


def test_block_is_whole_lines_and_leaves_the_cursor_alone_without_an_id():
    assert block(b"token", b"{}", event_id=b"1-2") == b"event: token\ndata: {}\nid: 1-2\n\n"
    assert block(b"reset", b"{}") == b"event: reset\ndata: {}\n\n"


def test_keep_alive_is_one_comment_line_and_no_block():
    assert KEEPALIVE == b":k\n"
    assert decode(block(b"a", b"1") + KEEPALIVE + block(b"b", b"2"))[0] == [Message(b"a", b"1"), Message(b"b", b"2")]
