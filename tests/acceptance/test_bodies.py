"""Bodies as they are sent: encoded, cut, too large when decoded, or not what their headers say."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import zlib

import pytest
from support.api import assert_problem
from support.http1 import request
from support.upstream import say
from support.v1 import CHAT
from support.wire import connected

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RAW = json.dumps(CHAT).encode()


def deflate_without_header(raw: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(raw) + packer.flush()


ENCODED = {
    "gzip": ("gzip", gzip.compress(RAW)),
    "gzip in capitals": ("GZIP", gzip.compress(RAW)),
    "its old name": ("x-gzip", gzip.compress(RAW)),
    "deflate": ("deflate", zlib.compress(RAW)),
    "deflate as some send it": ("deflate", deflate_without_header(RAW)),
    "zstd": ("zstd", zstd.compress(RAW)),
    "none": ("identity", RAW),
    "nothing": ("", RAW),
}
STARTS = {
    "/generations": CHAT,
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "m", "prompt": "Hi"},
    "/v1/responses": {"model": "m", "input": "Hi"},
    "/v1/completions/stream": {"model": "m", "prompt": "Hi"},
}


async def send(service, path: str, encoding: str, body: bytes):
    return await request("POST", service.at(path), headers={"Content-Encoding": encoding}, body=body)


@pytest.mark.parametrize("name", ENCODED)
async def test_an_encoded_body_is_understood(service, upstream, name):
    upstream.script = say("a")
    encoding, body = ENCODED[name]
    answer = await send(service, "/generations", encoding, body)
    assert answer.status == 201
    await service.ended(answer.json()["id"])
    assert [call.request["messages"] for call in upstream.calls] == [CHAT["messages"]]


@pytest.mark.parametrize("path", STARTS)
@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, zstd.compress])
async def test_an_encoded_body_is_understood_wherever_something_starts(service, upstream, path, pack):
    upstream.script = say("a")
    encoding = {gzip.compress: "gzip", zlib.compress: "deflate", zstd.compress: "zstd"}[pack]
    assert (await send(service, path, encoding, pack(json.dumps(STARTS[path]).encode()))).status in (200, 201)


SPOILT = {
    "not encoded": lambda packed: RAW,
    "cut": lambda packed: packed[: len(packed) // 2],
    "cut at the end": lambda packed: packed[:-2],
    "with something behind": lambda packed: packed + b"rest",
    "twice": lambda packed: packed + packed,
    "empty": lambda packed: b"",
}


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_a_body_that_is_not_what_it_claims_is_refused(make_node, upstream, encoding, spoil):
    node = await make_node()
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}[encoding](RAW)
    assert_problem(await send(node.api, "/generations", encoding, SPOILT[spoil](packed)), 400, "invalid_request")
    assert upstream.calls == []
    assert "Traceback" not in node.stderr


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, gzip", "gzip, zstd", "nonsense"])
@pytest.mark.parametrize("path", STARTS)
async def test_an_encoding_that_is_not_known_is_refused_in_the_shape_of_the_path(service, upstream, path, encoding):
    answer = await send(service, path, encoding, RAW)
    if path.startswith("/v1/"):
        error = answer.json()["error"]
        assert (answer.status, error["code"], error["type"]) == (415, "unsupported_encoding", "invalid_request_error")
    else:
        assert_problem(answer, 415, "unsupported_encoding")
    assert all(name in answer.body.decode() for name in ("gzip", "deflate", "zstd"))
    assert upstream.calls == []


async def test_every_line_of_encodings_counts(service, upstream):
    head = "POST /generations HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: identity\r\nContent-Encoding: br\r\n"
    async with connected(service.url) as wire:
        await wire.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(RAW) + RAW)
        assert (await wire.answer())[0] == 415
    assert upstream.calls == []


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, zstd.compress])
async def test_the_limit_holds_for_what_a_body_is_when_decoded(service, upstream, pack):
    encoding = {gzip.compress: "gzip", zlib.compress: "deflate", zstd.compress: "zstd"}[pack]
    body = pack(json.dumps(CHAT | {"user": "x" * (64 << 20)}).encode())
    assert len(body) < 1 << 20
    assert_problem(await send(service, "/generations", encoding, body), 413, "body_too_large")
    assert upstream.calls == []


HOSTILE = {
    "objects": b"{},",
    "lists": b"[[]],",
    "numbers": b"0,",
    "strings": b'"",',
    "members": b'{"a":1},',
}


@pytest.mark.parametrize(
    "name", ["objects", *(pytest.param(name, marks=pytest.mark.slow) for name in list(HOSTILE)[1:])]
)
async def test_a_body_of_very_many_values_is_refused_before_they_take_memory(make_node, upstream, name):
    node = await make_node()
    unit = HOSTILE[name]
    body = b'{"prompt":"Hi","tools":[' + unit * ((8 << 20) // len(unit) - 20) + b"0]}"
    before = node.peak_memory
    answers = await asyncio.gather(*(send(node.api, "/generations", "", body) for _ in range(10)))
    for answer in answers:
        assert_problem(answer, 413, "body_too_large")
    assert node.peak_memory - before < 250 << 20, "ten bodies of 8 MiB, and a little more than one of each"
    assert upstream.calls == []


async def test_a_large_body_of_few_values_is_taken_whatever_is_in_its_strings(service, upstream):
    upstream.script = say("a")
    text = ',[{"\\' * (1 << 20)
    for path in ("/generations", "/v1/chat/completions"):
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        assert (await service.post(path, body)).status in (200, 201)
    assert [call.request["messages"][0]["content"] == text for call in upstream.calls] == [True, True]


async def test_bodies_that_are_received_at_once_have_a_limit_together(make_node, upstream):
    # given two callers who have sent most of a body
    node = await make_node(max_bodies_bytes=1 << 20)
    upstream.script = say("a")
    head = f"POST /generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {700 << 10}\r\n\r\n"
    async with connected(node.url) as one, connected(node.url) as other:
        await one.send(head + '{"prompt":"Hi","user":"' + "x" * (640 << 10))

        # when the second goes too far, then that one is told to come back
        await other.send(head + '{"prompt":"Hi","user":"' + "x" * (640 << 10))
        answer = await other.answer()
        assert answer is not None
        assert (answer[0], b'"overloaded"' in answer[1]) == (503, True)

        # and the first is served, and so is whoever comes after it
        await one.send("x" * (60 * 1024 - 25) + '"}')
        assert (await one.answer())[0] == 201
    assert (await send(node.api, "/generations", "", RAW + b" " * (900 << 10))).status == 201


@pytest.mark.parametrize("pack", [None, gzip.compress])
async def test_large_bodies_are_trees_a_few_at_a_time(make_node, upstream, pack):
    # given bodies within every limit that take a hundred times their bytes
    node = await make_node()
    upstream.script = say("a")
    body = b'{"model":"m","prompt":"Hi","tools":[' + b'{"a":1},' * 80_000 + b"0]}"
    sent = body if pack is None else pack(body)
    before = node.peak_memory

    # when many come at once, then all are taken, and no more than a few take memory at a time
    encoding = "" if pack is None else "gzip"
    answers = await asyncio.gather(*(send(node.api, "/generations", encoding, sent) for _ in range(12)))
    assert [answer.status for answer in answers] == [201] * 12
    assert node.peak_memory - before < 300 << 20


async def test_small_bodies_are_taken_however_many_large_ones_are_on_their_way(make_node, upstream):
    node = await make_node(max_bodies_bytes=1 << 20)
    upstream.script = say("a")
    head = f"POST /generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {8 << 20}\r\n\r\n"
    async with connected(node.url) as wire:
        await wire.send(head + "x" * (1100 << 10))
        for _ in range(3):
            assert (await send(node.api, "/generations", "", RAW + b" " * (60 << 10))).status == 201


async def test_a_request_is_let_go_of_once_the_upstream_has_it(make_node, upstream):
    node = await make_node()
    before = node.memory
    for _ in range(10):
        await node.api.start({"model": "m", "prompt": "x" * (8_000_000)})
        await (await upstream.called()).say("a")
    assert node.memory - before < 60 << 20


async def test_a_frame_that_asks_for_more_memory_than_a_sender_may_is_refused(service, upstream):
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    packer = zstd.ZstdCompressor(options=options)
    body = packer.compress(RAW) + packer.flush()
    assert_problem(await send(service, "/generations", "zstd", body), 400, "invalid_request")


@pytest.mark.parametrize(
    "body", ['5\r\n{"a":\r\nzz\r\n', "-1\r\n\r\n", "99999999999999999\r\n"], ids=["size", "negative", "endless"]
)
async def test_a_body_whose_chunks_are_broken_is_refused(make_node, upstream, body):
    node = await make_node()
    head = "POST /generations HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with connected(node.url) as wire:
        await wire.send(head + body)
        answer = await wire.answer()
        assert answer is not None
        assert answer[0] == 400
    assert "Traceback" not in node.stderr
    assert upstream.calls == []


@pytest.mark.parametrize("key", ["é", "ключ", "\x01", "a\tb", "k" * 256])
async def test_an_idempotency_key_is_printable_ascii(service, upstream, key):
    head = "POST /generations HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: "
    async with connected(service.url) as wire:
        await wire.send(head.encode() + key.encode() + b"\r\nContent-Length: %d\r\n\r\n" % len(RAW) + RAW)
        answer = await wire.answer()
        assert answer is not None
        assert (answer[0], b'"invalid_request"' in answer[1]) == (400, True)
    assert upstream.calls == []
