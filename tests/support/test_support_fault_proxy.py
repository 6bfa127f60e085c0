"""The proxy itself, between raw sockets and an echo server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from support.deadlines import eventually
from support.fault_proxy import FaultProxy


@pytest.fixture
async def seen() -> list[bytes]:
    """What the echo server has read."""
    return []


@pytest.fixture
async def proxy(seen: list[bytes]) -> AsyncIterator[FaultProxy]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                seen.append(data)
                writer.write(data)
        writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with FaultProxy(f"echo://:pw@127.0.0.1:{server.sockets[0].getsockname()[1]}/0") as proxy:
        yield proxy
    server.close()


@contextlib.asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_proxy_passes_on_and_counts(proxy: FaultProxy) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert (proxy.connections, proxy.accepted) == (1, 1)
        assert (proxy.requests.bytes, proxy.replies.bytes) == (5, 5)
    assert proxy.url == f"echo://:pw@127.0.0.1:{proxy.port}/0"


async def test_held_reply_was_executed_and_comes_after_release(proxy: FaultProxy, seen: list[bytes]) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.hold_replies()
        writer.write(b"a")
        await proxy.reply_held()
        assert seen == [b"a"]
        assert proxy.replies.bytes == 0
        proxy.release()
        assert await reader.readexactly(1) == b"a"


async def test_held_request_was_not_executed(proxy: FaultProxy, seen: list[bytes]) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.hold_requests()
        writer.write(b"a")
        await proxy.request_held()
        assert seen == []
        proxy.release()
        assert await reader.readexactly(1) == b"a"


async def test_held_reply_is_lost_by_a_cut(proxy: FaultProxy, seen: list[bytes]) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.hold_replies()
        writer.write(b"a")
        await proxy.reply_held()
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()
    proxy.release()
    async with connected(proxy) as (reader, writer):  # a new connection is as good as the first
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"
    assert seen == [b"a", b"b"]


@pytest.mark.parametrize("count", [0, 1, 7])
async def test_cut_after_lets_exactly_so_many_reply_bytes_through(proxy: FaultProxy, count: int) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"before")
        await reader.readexactly(6)
        proxy.cut_replies_after(count)
        writer.write(b"0123456789")
        assert await reader.read() == b"0123456789"[:count]
        await proxy.reply_cut()
    async with connected(proxy) as (reader, writer):
        writer.write(b"once only")
        assert await reader.readexactly(9) == b"once only"


async def test_refused_connections_leave_the_standing_ones_alone(proxy: FaultProxy) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"a")
        await reader.readexactly(1)
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"
        await proxy.accept()
        async with connected(proxy) as (second, its_writer):
            its_writer.write(b"c")
            assert await second.readexactly(1) == b"c"


async def test_close_of_one_side_closes_the_other(proxy: FaultProxy) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"last words")
        await reader.readexactly(10)
        writer.close()
        await writer.wait_closed()

    async def connections() -> int:
        return proxy.connections

    await eventually("no connection left", connections, lambda count: count == 0)


async def test_unreachable_target_resets_the_client() -> None:
    async with FaultProxy("echo://127.0.0.1:1") as proxy, connected(proxy) as (reader, writer):
        writer.write(b"a")
        with pytest.raises(ConnectionResetError):
            await reader.read()
