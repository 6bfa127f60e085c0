"""What becomes of a connection when the stream on it is over: the next request on it is answered, or it is closed.

Never may bytes of one request become another, and never may a request be dropped in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from urllib.parse import urlsplit

import aiohttp
import pytest
from support.deadlines import DEADLINE_S, within
from support.upstream import say
from support.v1 import CHAT
from support.wire import connected

STREAMED = CHAT | {"stream": True}
STREAMS = {
    "events": "/generations/{id}/events",
    "lines": "/generations/{id}/events",
    "openai": "/generations/{id}/events?format=openai",
    "snapshot": "/generations/{id}/events?mode=snapshot",
    "several": "/events?generation={id}",
    "response": "/v1/responses/{id}?stream=true",
}
LINES = "Accept: application/x-ndjson\r\n"
AFTER_S = 0.3  # so long something has to go on not happening


def get(path: str, *headers: str) -> str:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{''.join(headers)}\r\n"


def post(path: str, body: object, *headers: str) -> str:
    text = json.dumps(body)
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n{''.join(headers)}\r\n{text}"


def stream_of(name: str, id: str, *headers: str) -> str:
    return get(STREAMS[name].format(id=id), *headers, LINES if name == "lines" else "")


def starting(name: str) -> str:
    """A request with a body whose answer is a stream."""
    if name == "generations":
        return post("/generations", STREAMED, "Accept: text/event-stream\r\n")
    if name == "responses":
        return post("/v1/responses", {"model": "m", "input": "Hi", "stream": True})
    if name == "tokens":
        return post("/v1/completions/stream", {"model": "m", "prompt": "Hi"})
    return post("/v1/chat/completions", STREAMED)


BODIED = ["generations", "chat", "responses", "tokens"]


@pytest.fixture
async def ended(service, upstream) -> str:
    upstream.script = say("a", "b")
    return await service.run()


# Bytes of one request are not another.


@pytest.mark.parametrize("announced", ["Content-Length: {size}\r\n", "Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("name", STREAMS)
async def test_a_body_that_comes_late_is_no_request(service, ended, name, announced):
    # given a stream that was asked for with a body, which does not come
    smuggled = f"DELETE /generations/{ended} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with connected(service.url) as wire:
        await wire.send(stream_of(name, ended, announced.format(size=len(smuggled))))
        status, body = await wire.answer()
        assert (status, bool(body)) == (200, True)

        # when it comes after all, then nobody takes it for a request
        with contextlib.suppress(ConnectionError):
            await wire.send(smuggled)
        assert await wire.answer() is None
    assert (await service.generation(ended))["status"] == "completed"


@pytest.mark.parametrize("name", STREAMS)
async def test_a_body_that_comes_while_the_stream_goes_on_is_no_request(service, upstream, name):
    # given a stream that goes on, and was asked for with a body
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("a")
    smuggled = f"POST /generations/{id}/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    async with connected(service.url) as wire:
        await wire.send(stream_of(name, id, f"Content-Length: {len(smuggled)}\r\n"))
        await within("the head", wire.reader.readuntil(b"\r\n\r\n"), DEADLINE_S)

        # when the body comes in the middle, then the stream goes on to its end, and no further
        await wire.send(smuggled)
        said = b""
        while (more := await wire.said_within(AFTER_S)) is not None:
            said += more
        assert b"cancelled" not in said
        await call.finish()
        rest = await within("the end", wire.reader.read(), DEADLINE_S)
        assert rest.endswith(b"\r\n0\r\n\r\n")
        assert rest.count(b"HTTP/1.1") == 0
    assert (await service.ended(id))["status"] == "completed"


async def test_a_large_body_that_nobody_reads_holds_up_nobody(service, ended):
    async with connected(service.url) as wire:
        size = 8 << 20
        await wire.send(stream_of("events", ended, f"Content-Length: {size}\r\n"))
        await within("the body to be taken", wire.send(b"x" * size), DEADLINE_S)
        assert (await wire.answer())[0] == 200
        assert await wire.answer() is None


@pytest.mark.parametrize("name", BODIED)
async def test_what_comes_behind_a_body_is_answered_or_the_connection_closes(service, upstream, name):
    upstream.script = say("a")
    async with connected(service.url) as wire:
        await wire.send(starting(name) + get("/healthz"))
        status, _ = await wire.answer()
        assert status == 200
        answer = await wire.answer()
        assert answer is None or answer[0] == 200


# Every request is answered, or the connection is closed.


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("name", STREAMS)
async def test_a_pipelined_request_is_answered_or_the_connection_closes(service, ended, name, pieces):
    whole = (stream_of(name, ended) + get("/healthz")).encode()
    size = -(-len(whole) // pieces)
    async with connected(service.url) as wire:
        for start in range(0, len(whole), size):
            await wire.send(whole[start : start + size])
            await asyncio.sleep(0.01)  # so that they arrive as pieces
        status, _ = await wire.answer()
        assert status == 200
        answer = await wire.answer()
        assert answer is None or answer[0] == 200


async def test_a_request_behind_a_stream_that_goes_on_is_answered_or_the_connection_closes(service, upstream):
    # given a stream that goes on
    id = (await service.start())["id"]
    call = await upstream.called()
    async with connected(service.url) as wire:
        await wire.send(get(f"/generations/{id}/events"))
        await within("the start", wire.reader.readuntil(b"event: start"), DEADLINE_S)

        # when something is asked after it, then the connection is closed with its end
        await wire.send(get("/healthz"))
        await call.finish()
        rest = await within("the end", wire.reader.read(), DEADLINE_S)
        assert rest.endswith(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("pause_s", [0, 0.3, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STREAMS)
async def test_a_connection_serves_the_next_request_after_a_stream(service, ended, name, pause_s):
    async with connected(service.url) as wire:
        for _ in range(3):
            await wire.send(stream_of(name, ended))
            assert (await wire.answer())[0] == 200
            await asyncio.sleep(pause_s)
        await wire.send(get("/healthz"))
        assert (await wire.answer())[0] == 200


@pytest.mark.parametrize("pause_s", [0, 0.3, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", BODIED)
async def test_a_connection_serves_the_next_request_after_one_with_a_body(service, upstream, name, pause_s):
    upstream.script = say("a")
    async with connected(service.url) as wire:
        for _ in range(3):
            head, _, body = starting(name).partition("\r\n\r\n")
            for piece in (head[:30], head[30:] + "\r\n", "\r\n" + body[:5], body[5:]):
                await wire.send(piece)
                await asyncio.sleep(0.01)  # so that they arrive as pieces
            assert (await wire.answer())[0] == 200
            await asyncio.sleep(pause_s)
        await wire.send(get("/healthz"))
        assert (await wire.answer())[0] == 200


async def test_a_request_is_whole_also_when_its_head_looks_as_if_it_ended_before(service, ended):
    """An empty line in front of a request is allowed, and makes it seem longer than it is."""
    async with connected(service.url) as wire:
        await wire.send("\r\n\r\n" + stream_of("events", ended))
        assert (await wire.answer())[0] == 200
        await wire.send(get("/healthz"))
        answer = await wire.answer()
        assert answer is None or answer[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("beginning", ["", "GET /healthz HTTP/1.1\r\nHo"])
async def test_a_connection_on_which_nothing_more_is_asked_is_closed(service, ended, beginning):
    async with connected(service.url) as wire:
        await wire.send(stream_of("events", ended))
        assert (await wire.answer())[0] == 200
        await wire.send(beginning)
        assert await wire.said_within(3) is None
        assert await wire.said_within(20) == b""


@pytest.mark.parametrize("late", ["", "Content-Length: 100\r\n"], ids=["given back", "closed"])
async def test_a_reader_that_is_slow_at_the_end_has_the_end_once(service, upstream, late):
    # given a reader that takes nothing of a large answer
    upstream.script = say(*["x" * 1000] * 4000)
    id = await service.run()
    async with connected(service.url) as wire:
        await wire.send(stream_of("events", id, late))
        await within("the start", wire.reader.readuntil(b"event: start"), DEADLINE_S)
        await asyncio.sleep(AFTER_S)

        # when it goes on reading, then it has the whole, and nothing after the end
        body = b""
        while not body.endswith(b"\r\n0\r\n\r\n"):
            body += await within("more", wire.reader.read(1 << 16), DEADLINE_S)
        assert body.count(b"event: token") == 4000
        if late:
            assert await within("the end of the connection", wire.reader.read(), DEADLINE_S) == b""
        else:
            assert await wire.said_within(AFTER_S) in (None, b"")


# Clients that keep their connections.


async def test_aiohttp_posts_one_stream_after_the_other_on_one_connection(service, upstream):
    upstream.script = say("a")
    made = []

    async def note(*_: object) -> None:
        made.append(1)

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_end.append(note)
    async with aiohttp.ClientSession(trace_configs=[tracing]) as session:
        for _ in range(20):
            async with session.post(service.at("/v1/chat/completions"), json=STREAMED) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
    assert len(made) == 1


async def test_http_client_reads_one_stream_after_the_other_on_one_connection(service, ended):
    def read() -> set[int]:
        parts = urlsplit(service.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=DEADLINE_S)
        connection.connect()
        ports = set()
        for path in [STREAMS["events"].format(id=ended), "/healthz"] * 10:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.read()
            ports.add(connection.sock.getsockname()[1])
        return ports

    assert len(await asyncio.to_thread(read)) == 1
