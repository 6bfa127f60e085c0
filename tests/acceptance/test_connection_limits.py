"""Clients that send nothing, or half of it, or take nothing: connections have limits, and Valkey its descriptors."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import ExitStack
from pathlib import Path

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


async def test_an_empty_line_between_requests_begins_no_head(make_node):
    node = await make_node(request_timeout_s=1, idle_connection_s=60)
    body = '{"prompt": "x"}'
    async with connected(node.url) as wire:
        await wire.send(f"POST /generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}")
        assert (await wire.answer())[0] == 201
        await wire.send("\r\n")
        assert await wire.said_within(2) is None
        await wire.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await wire.answer())[0] == 200


@pytest.mark.parametrize(
    "before", ["Content-Length: 2\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
)
async def test_half_a_head_behind_a_request_is_given_up_too(make_node, before):
    node = await make_node(request_timeout_s=1, idle_connection_s=60)
    async with connected(node.url) as wire:
        await wire.send("POST /generations HTTP/1.1\r\nHost: localhost\r\n" + before + HALF[1])
        assert (await wire.answer())[0] == 400
        assert (await wire.answer())[0] == 408


@pytest.mark.parametrize("before", ["", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_a_head_is_limited_as_a_whole(make_node, before):
    # given lines of which each is allowed, and fewer than are allowed
    node = await make_node()
    async with connected(node.url) as wire:
        if before:
            await wire.send(before)
            assert (await wire.answer())[0] == 200
        head = "GET /healthz HTTP/1.1\r\n" + "".join(f"X-{number}: {'a' * 32_700}\r\n" for number in range(3)) + "X: "
        # One byte too many: of more, some could be unread when the node closes, and reset the connection.
        await wire.send(head.ljust((96 << 10) + 1, "a"))
        answer = await wire.answer()
        assert (answer[0], b'"invalid_request"' in answer[1]) == (431, True)


async def test_requests_behind_each_other_are_no_large_head(make_node):
    node = await make_node()
    one = f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {'a' * 1000}\r\n\r\n"
    async with connected(node.url) as wire:
        await wire.send(one * 200)
        for _ in range(200):
            assert (await wire.answer())[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "/nowhere"])
async def test_an_expectation_that_is_not_known_is_a_problem(make_node, path):
    node = await make_node()
    answer = await node.api.get(path, headers={"Expect": "nonsense"})
    assert (answer.status, answer.media_type) == (417, "application/problem+json")
    assert answer.json()["code"] == "expectation_failed"
    assert answer.json()["detail"] == "Expect: expected 100-continue, or no such header"
    openai = await node.api.get("/v1/models", headers={"Expect": "nonsense"})
    assert (openai.status, openai.json()["error"]["code"]) == (417, "expectation_failed")


@pytest.mark.parametrize("hosts", ["", "Host: localhost\r\nHost: localhost\r\n"])
async def test_what_is_expected_of_a_host_is_said(make_node, hosts):
    node = await make_node()
    async with connected(node.url) as wire:
        await wire.send(f"GET /healthz HTTP/1.1\r\n{hosts}\r\n")
        answer = await wire.answer()
        assert (answer[0], b"one Host" in answer[1]) == (400, True)


@pytest.mark.parametrize("path", ["/generations/{id}/transcript", "/generations/{id}/events"])
async def test_who_takes_nothing_of_an_answer_is_cut(make_node, upstream, path):
    # given a large answer, and a client that has asked for it and reads nothing
    node = await make_node(write_deadline_s=1)
    upstream.script = say(*["x" * 100_000] * 100)
    path = path.format(id=await node.api.run())
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", node.port))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n".encode())
        assert client.recv(1) == b"H"

        # then the node lets go of it
        await eventually("its end", lambda: open_at(node, client.getsockname()[1]), lambda is_open: not is_open)


async def open_at(node, client: int) -> bool:
    """Whether a node has a connection that is open to a client's port."""
    ends = f":{node.port:04X}", f":{client:04X}"
    listing = await asyncio.to_thread(Path(f"/proc/{node.pid}/net/tcp").read_text)
    rows = [line.split()[1:4] for line in listing.splitlines()[1:]]
    return any(ours.endswith(ends[0]) and theirs.endswith(ends[1]) and state == "01" for ours, theirs, state in rows)


@pytest.mark.slow
async def test_who_takes_an_answer_slowly_gets_it_all(make_node, upstream):
    node = await make_node(write_deadline_s=1)
    upstream.script = say(*["x" * 100_000] * 100)
    url = node.api.at(f"/generations/{await node.api.run()}/transcript")
    stream = await open_stream(url, receive_buffer=64 << 10)
    slow = 2 << 20  # the kernel would take twice as much before it told of room again

    async def read() -> int:
        size = 0
        while piece := await stream.read():
            size += len(piece)
            await asyncio.sleep(0.2 if size < slow else 0)
        return size

    assert await within("the whole answer", read(), 60) > 10_000_000
    assert stream.clean


async def descriptors(node) -> int:
    return node.open_files


async def test_descriptors_are_kept_for_valkey(make_node, valkey_proxy, upstream):
    # given a node with few descriptors, a client, and more than it has of them
    upstream.script = say("a", "b")
    node = await make_node(most_open_files=128)
    id = await node.api.run()
    async with connected(node.url) as wire:
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
            await eventually("a line about it", lambda: said(node, "too few file descriptors"), bool)
            await eventually("the node to be full", lambda: descriptors(node), lambda number: number >= 90)

            # when Valkey's connections are lost, then the node gets new ones all the same
            valkey_proxy.cut()
            await eventually("readiness", lambda: get(wire, "/readyz"), lambda answer: answer[0] == 200)
            assert await get(wire, f"/generations/{id}/transcript", "text/plain") == (200, b"ab")
            assert await descriptors(node) >= 90


async def test_calls_of_an_upstream_leave_valkey_its_descriptors(make_node, valkey_proxy, upstream):
    # given a client that starts more generations than there are descriptors
    node = await make_node(most_open_files=128, upstream_retries=0)
    body = '{"prompt": "x"}'
    start = f"POST /generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    async with connected(node.url) as wire:
        ids = []
        for _ in range(140):
            await wire.send(start)
            status, answer = await wire.answer()
            assert status == 201
            ids.append(json.loads(answer)["id"])
        call = await upstream.called()
        await eventually("the last one's end", lambda: get(wire, f"/generations/{ids[-1]}"), has_ended)
        assert json.loads((await get(wire, f"/generations/{ids[-1]}"))[1])["error"]["code"] == "overloaded"

        # when Valkey's connections are lost, then the node gets new ones, and a call that is under way goes on
        valkey_proxy.cut()
        await eventually("readiness", lambda: get(wire, "/readyz"), lambda answer: answer[0] == 200)
        await call.say("a")
        await call.finish()
        answer = await get(wire, f"/generations/{ids[0]}/transcript?wait=30", "text/plain")
        assert answer == (200, b"a")


def has_ended(answer: tuple[int, bytes]) -> bool:
    return json.loads(answer[1])["status"] not in ("queued", "streaming")


async def get(wire, path: str, accept: str = "application/json") -> tuple[int, bytes]:
    """What a connection that is there already is answered."""
    await wire.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n")
    answer = await wire.answer()
    assert answer is not None
    return answer


async def said(node, text: str) -> bool:
    return text in node.stderr
