"""The strict client itself, held against the examples and the rules of the WHATWG text."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

import pytest

from support.http1 import reset_on_close
from support.sse import CLOSED, OPEN, EventSourceClient, Message, Parser, messages, read_stream

EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"data: a\n\n", [("message", "a", "")]),
        (b"data:a\ndata: b\ndata:  c\n\n", [("message", "a\nb\n c", "")]),
        (b"event: e\ndata\n\n", [("e", "", "")]),  # a field without colon has the empty value
        (b"event: e\n\ndata: x\n\n", [("message", "x", "")]),  # no data: nothing, and the name is forgotten
        (b"id: 1\ndata: a\n\ndata: b\n\n", [("message", "a", "1"), ("message", "b", "1")]),
        (b"id: 1\ndata: a\n\nid\ndata: b\n\n", [("message", "a", "1"), ("message", "b", "")]),
        (b"id: 1\nid: 2\0\ndata: a\n\n", [("message", "a", "1")]),  # an id with NUL is no id
        (b": note\ndata: a\n:\n\n", [("message", "a", "")]),
        (b"data: a\n", []),  # incomplete: never dispatched
        (b"data: a\n\ndata: b", [("message", "a", "")]),
        (b"unknown: 1\ndata: a\n\n", [("message", "a", "")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("message", "a", "")]),  # one byte order mark is allowed
        ("data: a\u2028b\u0085c\x0b\n\n".encode(), [("message", "a\u2028b\u0085c\x0b", "")]),
        (b"data: \xff\n\n", [("message", "\ufffd", "")]),
    ],
)
def test_parser_follows_the_rules(body: bytes, expected: list[tuple[str, str, str]]) -> None:
    assert [tuple(message) for message in messages(body)] == expected


def test_parser_takes_retry_only_as_digits() -> None:
    parser = Parser()
    parser.parse(b"retry: 250\n\nretry: 1s\nretry: -1\nretry:\n")
    assert parser.retry_ms == 250


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_parser_does_not_care_where_the_bytes_are_split(line_end: bytes) -> None:
    # given a stream with every kind of line, in one of the three line ends
    body = "retry: 5\nid: 1\nevent: e\ndata: é😀\n\n: c\ndata: x\ndata: y\n\n\nid: 2\ndata: z\n\n".encode()
    body = body.replace(b"\n", line_end)
    expected = messages(body)
    assert [message.data for message in expected] == ["é😀", "x\ny", "z"]

    # when it comes in any two pieces, byte by byte, and in random pieces
    splits = [[body[:at], body[at:]] for at in range(len(body) + 1)] + [[bytes([byte]) for byte in body]]
    for seed in range(50):
        cuts = sorted(random.Random(seed).choices(range(len(body)), k=6))
        splits.append([body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)])

    # then the events are the same
    for pieces in splits:
        parser = Parser()
        assert [message for piece in pieces for message in parser.parse(piece)] == expected


def test_parser_mixes_line_ends() -> None:
    assert messages(b"data: a\r\rdata: b\r\n\ndata: c\n\r") == [Message("message", text, "") for text in "abc"]


@contextlib.asynccontextmanager
async def serving(*answers: Callable[[asyncio.StreamWriter], object]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers its first connection with the first answer, and so on; the request heads it saw."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        answers[len(heads) - 1](writer)
        with contextlib.suppress(OSError):
            await writer.drain()
        await reader.read()  # until the client is gone
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", heads
    finally:
        server.close()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(*pieces: bytes, end: bool = True) -> Callable[[asyncio.StreamWriter], None]:
    """Answer with an event stream that then ends cleanly, or is reset."""

    def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + b"".join(map(chunk, pieces)) + (b"0\r\n\r\n" if end else b""))
        if not end:
            writer.write_eof()

    return answer


def hold(*pieces: bytes) -> Callable[[asyncio.StreamWriter], None]:
    """Answer with an event stream that goes on."""
    return lambda writer: writer.write(EVENT_STREAM + b"".join(map(chunk, pieces)))


def plain(head: bytes) -> Callable[[asyncio.StreamWriter], None]:
    return lambda writer: writer.write(head + b"\r\nContent-Length: 0\r\n\r\n")


def reset(writer: asyncio.StreamWriter) -> None:
    reset_on_close(writer.get_extra_info("socket"))
    writer.transport.abort()


async def test_source_comes_back_with_its_cursor_after_a_cut_and_after_a_clean_end() -> None:
    first = stream(b"retry: 1\nid: 7\ndata: a\n\nid: 8\ndata: incomplete", end=False)
    second = stream(b"data: b\n\n")  # no id: the cursor stays
    async with (
        serving(first, reset, second, hold(b"id: 9\ndata: c\n\n")) as (url, heads),
        EventSourceClient(url) as source,
    ):
        assert [(await source.next()).data for _ in range(3)] == ["a", "b", "c"]
        assert b"Last-Event-ID" not in heads[0]
        assert all(b"\r\nLast-Event-ID: 7\r\n" in head for head in heads[1:])
        assert (source.last_event_id, source.retry_ms, source.ready_state) == ("9", 1, OPEN)
        assert [connection.clean for connection in source.connections] == [False, None, True, None]


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/event-stream",
        b"HTTP/1.1 404 Not Found",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html",
    ],
)
async def test_source_is_closed_for_good_by_any_other_answer(head: bytes) -> None:
    async with serving(plain(head)) as (url, heads), EventSourceClient(url, retry_ms=1) as source:
        closing = await source.closed()
        assert closing.status == int(head.split()[1])
        assert source.ready_state == CLOSED
        with pytest.raises(AssertionError, match="closed by"):
            await source.event("end")
        assert len(heads) == 1


async def test_source_that_is_cut_by_the_test_comes_back() -> None:
    async with (
        serving(hold(b"retry: 1\nid: 1\ndata: a\n\n"), hold(b"id: 2\ndata: b\n\n")) as (url, heads),
        EventSourceClient(url) as source,
    ):
        await source.next()
        source.cut()
        assert (await source.next()).data == "b"
        assert b"Last-Event-ID: 1" in heads[1]


async def test_raw_reader_tells_a_clean_end_from_an_abort() -> None:
    answers = (
        stream(b"data: a\n\n", b"data: b"),
        stream(b"data: a\n\n", b"data: b", end=False),
        lambda writer: writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"),
        lambda writer: (writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc"), writer.write_eof()),
        lambda writer: (writer.write(EVENT_STREAM + b"5\r\nab"), writer.write_eof()),
    )
    async with serving(*answers) as (url, _):
        ends = [await read_stream(url) for _ in answers]
    assert [(answer.body, answer.clean) for answer in ends] == [
        (b"data: a\n\ndata: b", True),
        (b"data: a\n\ndata: b", False),
        (b"abc", True),
        (b"abc", False),
        (b"ab", False),
    ]
