"""HEAD: the headers of the GET and nothing else, wherever a GET starts nothing."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest
from support.http1 import open_stream, request
from support.upstream import say

# Of the connection, not of what is asked for; a stream's own connection leaves out who serves it.
_CONNECTION = ("date", "server", "connection", "transfer-encoding")

_PATHS = (
    *("/", "/g/{id}", "/replay.js", "/dashboard/base.css", "/healthz", "/readyz", "/openapi.json"),
    *("/generations", "/generations?q=x", "/generations/{id}", "/generations/{id}/transcript"),
    *("/v1/models", "/v1/models/test-model", "/v1/chat/completions", "/v1/chat/completions/{id}"),
    "/v1/chat/completions/{id}/messages",
    "/v1/responses/{id}",
    "/v1/responses/{id}/input_items",
)
_STREAMS = (
    *("/generations/{id}/events", "/generations/{id}/events?format=openai", "/generations/{id}/events?mode=snapshot"),
    *("/events?generation={id}", "/feed", "/feed?progress=1", "/v1/responses/{id}?stream=true"),
)
_REFUSED = (
    *("/generations?x=1", "/generations/nobody", "/generations/nobody/events", "/events"),
    *("/generations/{id}/events?after=x", "/v1/responses/nobody?stream=true"),
)


def fields(headers):
    return {name: value for name, value in headers.items() if name not in (*_CONNECTION, "x-request-id")}


async def head(service, path, headers=None):
    """The answer; the connection is closed behind it, so that a body would be seen."""
    answer = await request("HEAD", service.at(path), headers={"Connection": "close", **(headers or {})})
    assert answer.body == b""
    return answer


@pytest.mark.parametrize("path", [*_PATHS, *_REFUSED])
async def test_head_is_the_get_without_its_body(service, upstream, path):
    upstream.script = say("a", "b")
    path = path.format(id=await service.run())
    expected = await service.get(path)
    answer = await head(service, path)
    assert answer.status == expected.status
    assert fields(answer.headers) == fields(expected.headers)


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
@pytest.mark.parametrize("path", _STREAMS)
async def test_head_of_a_stream_has_its_headers_and_subscribes_nobody(service, upstream, path, accept):
    # given a generation that goes on
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("a")
    await service.has(id, 2)
    # when
    answer = await head(service, path.format(id=id), {"Accept": accept})
    # then
    assert (await service.generation(id))["subscribers"] == 0
    stream = await open_stream(service.at(path.format(id=id)), headers={"Accept": accept})
    stream.hang_up()
    assert (answer.status, fields(answer.headers)) == (stream.status, fields(stream.headers))


async def test_head_behind_the_end_of_a_generation_is_a_204_and_a_page_has_its_length(service, upstream):
    upstream.script = say("a")
    id = await service.run()
    last = (await service.generation(id))["last_event_id"]
    assert (await head(service, f"/generations/{id}/events", {"Last-Event-ID": last})).status == 204
    page = await service.get(f"/generations/{id}/events", {"Accept": "application/json"})
    answer = await head(service, f"/generations/{id}/events", {"Accept": "application/json"})
    assert int(answer.headers["content-length"]) == len(page.body)


async def test_connection_of_a_head_takes_the_next_request(service, upstream):
    id = (await service.start())["id"]
    parts = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    for path in (f"/generations/{id}/events", "/feed", "/generations"):
        writer.write(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        heads = (await reader.read()).split(b"\r\n\r\n")
    writer.close()
    assert [head.split(b"\r\n")[0] for head in heads[:-1]] == [b"HTTP/1.1 200 OK"] * 4
    assert heads[-1] == b'{"status":"ok"}'


async def test_head_while_valkey_is_away_has_the_headers_of_the_stream(node, valkey, upstream):
    id = (await node.api.start())["id"]
    valkey.kill()
    answer = await head(node.api, f"/generations/{id}/events")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
