"""Clients that send nothing, or half of it, or take nothing: connections have limits, and Valkey its descriptors."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from support.deadlines import DEADLINE_S, eventually, within
from support.http1 import open_stream
from support.upstream import say
from support.wire import connected

HALF = ["G", "GET /healthz HTTP/1.1\r\n", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: y"]


@pytest.mark.parametrize("half", HALF)
async def test_half_a_head_is_given_up(make_node, half):
    node = await make_node(request_timeout_s=1, idle_connection_s=60)
    async with connected(node.url) as wire:
        await wire.send(half)
        answer = await wire.answer()
        assert answer is not None
        assert (answer[0], b'"request_timeout"' in answer[1]) == (408, True)
        assert await wire.said_within(DEADLINE_S) == b""


async def test_a_head_that_comes_in_drops_is_given_up_too(make_node):
    node = await make_node(request_timeout_s=1, idle_connection_s=60)
    async with connected(node.url) as wire:
        await wire.send("GET /healthz HTTP/1.1\r\n")
        for number in range(40):
            if (said := await wire.said_within(0.1)) is not None:
                break
            await wire.send(f"X-{number}: y\r\n")
        else:
            pytest.fail("the head may still come after four seconds")
        assert said.startswith(b"HTTP/1.1 408 ")


async def test_a_second_head_has_the_same_time(make_node):
    node = await make_node(request_timeout_s=1, idle_connection_s=60)
    async with connected(node.url) as wire:
        for _ in range(2):
            await wire.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await wire.answer())[0] == 200
        await wire.send(HALF[1])
        assert (await wire.answer())[0] == 408


async def test_a_head_in_pieces_is_in_time(make_node):
    node = await make_node(request_timeout_s=2)
    async with connected(node.url) as wire:
        for _ in range(2):
            for piece in ("GET /healthz", " HTTP/1.1\r\nHost: local", "host\r\n", "\r\n"):
                await wire.send(piece)
                await asyncio.sleep(0.01)  # so that they arrive as pieces
            assert (await wire.answer())[0] == 200
        # and what is late for one request counts for no other
        assert await wire.said_within(3) is None


@pytest.mark.parametrize("asks", [0, 1])
async def test_a_silent_connection_is_closed(make_node, asks):
    node = await make_node(idle_connection_s=1)
    async with connected(node.url) as wire:
        for _ in range(asks):
            await wire.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await wire.answer())[0] == 200
        assert await wire.said_within(DEADLINE_S) == b""


async def test_a_request_that_takes_long_is_no_silence(make_node, upstream):
    node = await make_node(idle_connection_s=0.3, request_timeout_s=0.3)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with connected(node.url) as wire:
        await wire.send(f"GET /generations/{id}/transcript?wait=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await wire.said_within(1) is None
        await call.finish()
        assert (await wire.answer())[0] == 200


@pytest.mark.parametrize("path", ["/generations/{id}/transcript", "/generations/{id}/events"])
async def test_who_takes_nothing_of_an_answer_is_cut(make_node, upstream, path):
    # given a large answer, and a client that has asked for it and reads no more than its head
    node = await make_node(write_deadline_s=1)
    upstream.script = say(*["x" * 100_000] * 100)
    path = path.format(id=await node.api.run())
    stream = await open_stream(node.api.at(path), headers={"Accept": "application/json"}, receive_buffer=4096)
    before = await descriptors(node)

    # then the node lets go of it
    await eventually("the connection's end", lambda: descriptors(node), lambda number: number < before)
    stream.hang_up()


async def test_who_takes_an_answer_slowly_gets_it_all(make_node, upstream):
    node = await make_node(write_deadline_s=1)
    upstream.script = say(*["x" * 100_000] * 100)
    url = node.api.at(f"/generations/{await node.api.run()}/transcript")
    stream = await open_stream(url, receive_buffer=64 << 10)

    async def read() -> int:
        size = 0
        while piece := await stream.read():
            size += len(piece)
            await asyncio.sleep(0.02)
        return size

    assert await within("the whole answer", read(), 60) > 10_000_000
    assert stream.clean


async def descriptors(node) -> int:
    return node.open_files


async def test_descriptors_are_kept_for_valkey(make_node, valkey_proxy, upstream):
    # given a node with few descriptors, and more clients than it has
    upstream.script = say("a", "b")
    node = await make_node(most_open_files=128)
    id = await node.api.run()
    parts = urlsplit(node.url)
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((parts.hostname, parts.port))) for _ in range(200)]
        await eventually("the node to be full", lambda: descriptors(node), lambda number: number >= 90)

        # when Valkey's connections are lost, then the node gets new ones all the same
        valkey_proxy.cut()
        await eventually("a line about it", lambda: said(node, "too few file descriptors"), bool)
        for sock in silent[:20]:
            sock.close()
        await eventually("readiness", lambda: node.api.get("/readyz"), lambda answer: answer.status == 200)
        assert [event.event for event in await node.api.log(id)] == ["start", "token", "token", "delta", "end"]


async def said(node, text: str) -> bool:
    return text in node.stderr
