"""The servers that the benchmark stands beside do what it measures them at: every event, once, in order, to all."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from benchmarks.peers import PEERS, DurableStreams, Missing, Nchan, NchanBackup, Peer, ResumableStream
from benchmarks.peers.publisher import Refused
from support.deadlines import POLL_S, within
from support.sse import Message, Parser

pytestmark = pytest.mark.slow  # they are installed if need be, and started

EVENTS = [b'{"at":%d,"content":"\xe2\x82\xac %d"}' % (number, number) for number in range(200)]
HALF = len(EVENTS) // 2
SUBSCRIBERS = 5
STREAM = "a-stream_1"
HEARD = b"heard?"


class Subscriber:
    """One connection that has sent a peer's own request."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.events: list[Message] = []
        self.control = ""  # the last that the protocol added after the events; Durable Streams does
        self.body = ""
        self._reader = reader
        self._parser = Parser()
        self._chunked = False

    @classmethod
    @contextlib.asynccontextmanager
    async def on(cls, peer: Peer, *, replay: bool = False, after: str | None = None) -> AsyncIterator[Subscriber]:
        """Subscribed, as far as a subscriber can tell."""
        reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
        try:
            writer.write(peer.request(STREAM, replay=replay, after=after))
            subscriber = cls(reader)
            await within("the beginning of a subscription", subscriber._begin(waits=not peer.replays))
            yield subscriber
        finally:
            writer.transport.abort()

    async def has(self, events: int) -> list[bytes]:
        """Wait for so many events; their data."""

        return await self._when(f"{events} events", lambda: len(self.events) >= events)

    async def until(self, data: bytes) -> list[bytes]:
        """Wait for this event; the data of all."""
        return await self._when(f"{data!r}", lambda: bool(self.events) and self.events[-1].data == data.decode())

    async def _when(self, what: str, met: Callable[[], bool]) -> list[bytes]:
        async def until_met() -> None:
            while not met():
                await self._read()

        await within(what, until_met())
        return [event.data.encode() for event in self.events]

    async def point(self, peer: Peer) -> str:
        """Where it stands, as this peer wants to be told."""
        if isinstance(peer, ResumableStream):
            return str(len(self.body))
        if isinstance(peer, DurableStreams):
            while not self.control:
                await within("a control event", self._read())
            return str(json.loads(self.control)["streamNextOffset"])
        return self.events[-1].last_event_id

    async def _begin(self, *, waits: bool) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200 "), head
        assert b"\r\ncontent-type: text/event-stream" in head, head
        self._chunked = b"\r\ntransfer-encoding: chunked" in head
        while waits and not self._parser.comments:
            await self._read()

    async def _read(self) -> None:
        piece = await self._piece()
        self.body += piece.decode()  # no peer cuts within a character
        for message in self._parser.parse(piece):
            if message.event == "control":
                self.control = message.data
            else:
                self.events.append(message)
                self.control = ""

    async def _piece(self) -> bytes:
        if self._chunked:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            piece = (await self._reader.readexactly(size + 2))[:-2]
        else:
            piece = await self._reader.read(65536)
        assert piece, f"closed after {len(self.events)} events"
        return piece


@pytest.fixture(params=[*PEERS, NchanBackup], ids=lambda kind: kind.name)
async def peer(request: pytest.FixtureRequest) -> AsyncIterator[Peer]:
    kind: type[Peer] = request.param
    try:
        await kind.install()
        running = await kind().__aenter__()
    except Missing as missing:
        pytest.skip(f"missing: {missing}")
    try:
        yield running
    finally:
        await running.__aexit__()


async def test_every_subscriber_gets_every_event_in_order_and_a_late_one_what_the_peer_can_replay(peer: Peer) -> None:
    await peer.open(STREAM)
    async with contextlib.AsyncExitStack() as stack:
        subscriptions = [Subscriber.on(peer, replay=not peer.subscribes_at_once) for _ in range(SUBSCRIBERS)]
        subscribers = [await stack.enter_async_context(each) for each in subscriptions]

        for data in EVENTS[:HALF]:
            await peer.publish(STREAM, data)
        await peer.publish_many(STREAM, EVENTS[HALF:])

        for subscriber in subscribers:
            assert await subscriber.has(len(EVENTS)) == EVENTS

    if peer.replays:
        async with Subscriber.on(peer, replay=True) as late:
            await peer.publish(STREAM, b"one more")
            assert await late.has(len(EVENTS) + 1) == [*EVENTS, b"one more"]


async def test_a_subscriber_from_now_on_gets_nothing_of_before(peer: Peer) -> None:
    await peer.open(STREAM)
    await peer.publish_many(STREAM, EVENTS[:HALF])

    async with Subscriber.on(peer) as late:
        await _publish_until_heard(peer, late)
        await peer.publish_many(STREAM, EVENTS[HALF:])

        received = await late.until(EVENTS[-1])
        assert [data for data in received if data != HEARD] == EVENTS[HALF:]


async def _publish_until_heard(peer: Peer, subscriber: Subscriber) -> None:
    """Some subscribe a moment after they have begun to answer."""
    hearing = asyncio.ensure_future(subscriber.has(1))
    while not hearing.done():
        await peer.publish(STREAM, HEARD)
        await asyncio.wait([hearing], timeout=POLL_S)
    await hearing


async def test_a_subscriber_that_comes_back_gets_what_it_has_missed(peer: Peer) -> None:
    if not peer.resumes:
        with pytest.raises(ValueError, match="cannot resume"):
            peer.request(STREAM, after="1")
        return
    await peer.open(STREAM)
    async with Subscriber.on(peer, replay=True) as subscriber:
        await peer.publish_many(STREAM, EVENTS[:HALF])
        await subscriber.has(HALF)
        point = await subscriber.point(peer)
    await peer.publish_many(STREAM, EVENTS[HALF:])

    async with Subscriber.on(peer, after=point) as returned:
        await peer.publish(STREAM, b"one more")

        assert await returned.has(HALF + 1) == [*EVENTS[HALF:], b"one more"]


async def test_a_long_stream_is_replayed_whole(peer: Peer) -> None:
    if not peer.replays:
        with pytest.raises(ValueError, match="cannot replay"):
            peer.request(STREAM, replay=True)
        return
    await peer.open(STREAM)
    many = [b"%d" % number for number in range(10_000)]
    await peer.publish_many(STREAM, many)

    async with Subscriber.on(peer, replay=True) as late:
        assert await late.has(len(many)) == many


async def test_its_processes_are_known_and_gone_afterwards(peer: Peer) -> None:
    pids = peer.pids()
    assert all(_runs(pid) for pid in pids.values())

    await peer.__aexit__()

    assert not [name for name, pid in pids.items() if _runs(pid)]


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_what_a_server_refuses_is_not_taken_for_published() -> None:
    await Nchan.install()
    async with Nchan() as nchan:
        with pytest.raises(Refused, match="404"):
            await nchan.publish("no/location", b"data")


async def test_what_cannot_be_installed_is_missing_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(Missing, match="node or npm is not installed"):
        await DurableStreams.install()
