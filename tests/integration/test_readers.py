"""Readers that are cut anywhere, read slowly, or not at all: what they get, and what they cost the others."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time

import pytest
from support.api import Api, text_of
from support.crowd import Reader, allow_open_files, crowd, read, rss_bytes
from support.deadlines import eventually
from support.fault_proxy import FaultProxy
from support.logs import assert_whole
from support.sse import EventSourceClient, Message
from support.upstream import Call, ScriptedUpstream, generate, say

# One, two, three and four bytes a character, and what looks like a line end and is none.
WORDS = ["Ä", "漢字", "😀", "é\u0301", "\u2028", "a\nb", "👩‍🚀", "ß", "x", "\u0085", "日本", "…"]
KERNEL_BYTES = 6 << 20  # more than the kernel takes for a connection that nobody reads


async def metric(api: Api, name: str) -> float:
    text = (await api.get("/metrics")).body.decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.split()[0] == name)


# Cut at any byte.


async def cut_at(proxy: FaultProxy, path: str, count: int) -> EventSourceClient:
    """An EventSource whose first connection ends after so many bytes; what it has when it has closed itself."""
    proxy.cut_replies_after(count)
    source = EventSourceClient(f"http://127.0.0.1:{proxy.port}{path}", retry_ms=1)
    async with source:
        await source.closed()
    return source


async def test_reader_that_is_cut_at_any_byte_of_the_beginning_gets_every_event_once(make_node, upstream):
    # given a recorded text of characters of many lengths
    node = await make_node(retry_ms=1)
    upstream.script = say(*WORDS)
    id = await node.api.run()
    log = await node.api.log(id)
    assert text_of(log) == "".join(WORDS)
    async with FaultProxy(node.url) as proxy:
        # when the first connection is cut after byte 1, 2, 3 …: in the headers, a chunk's size, an `id:`, a character
        for count in range(1, 601):
            source = await cut_at(proxy, f"/generations/{id}/events", count)

            # then the reader comes back and has everything, once
            assert source.received == log, f"cut after byte {count}"
            assert [event for event in source.events if event.event == "reset"] == []


async def test_reader_that_is_cut_at_any_byte_while_it_happens_gets_every_event_once(make_node, upstream):
    # given a generation that goes on, read through a wire that is cut after any number of bytes
    node = await make_node(retry_ms=1)
    upstream.script = generate(1200, per_second=400, text="{}" + "".join(WORDS))
    id = (await node.api.start())["id"]
    chance = random.Random(11)
    async with FaultProxy(node.url) as proxy:
        source = EventSourceClient(f"http://127.0.0.1:{proxy.port}/generations/{id}/events", retry_ms=1)
        async with source:
            cuts = 0
            while source.ready_state != 2:
                proxy.cut_replies_after(chance.randrange(1, 4000))
                cut = asyncio.create_task(proxy.reply_cut(30))
                closed = asyncio.create_task(source.closed(30))
                await asyncio.wait((cut, closed), return_when=asyncio.FIRST_COMPLETED)
                cuts += cut.done()
                for task in (cut, closed):
                    task.cancel()
                await asyncio.gather(cut, closed, return_exceptions=True)

    # then it has the log
    assert cuts > 50
    assert source.received == await node.api.log(id)
    assert_whole(source.received)


@pytest.mark.parametrize("query", ["format=openai", "mode=snapshot"])
async def test_other_forms_are_resumed_exactly_too(make_node, upstream, query):
    node = await make_node(retry_ms=1)
    upstream.script = say(*WORDS)
    id = await node.api.run()
    path = f"/generations/{id}/events?{query}"
    async with EventSourceClient(node.url + path, retry_ms=1) as whole:
        await whole.closed()
    async with FaultProxy(node.url) as proxy:
        for count in range(300, 900, 7):
            source = await cut_at(proxy, path, count)
            if query == "mode=snapshot":  # a snapshot that did not come whole comes anew
                assert source.received == whole.received
            else:
                assert source.events == whole.events


# Not reading.


async def fill_kernel(call: Call, api: Api, id: str) -> int:
    """Say more than the kernel takes for one connection, and wait until it is recorded; the number of events."""
    before = (await api.generation(id))["events"]
    count = KERNEL_BYTES // 65_536
    for _ in range(count):
        await call.say("x" * 65_536)
    await api.has(id, before + count)
    return before + count


async def stalled(api: Api, id: str) -> Reader:
    """A reader that has caught up and takes nothing any more."""
    reader = await read(api.events_url(id), receive_buffer=4096)
    await reader.has(b"event: live")
    reader.stop_reading()
    return reader


async def delays(
    api: Api, upstream: ScriptedUpstream, *, readers: int, tokens: int, one_stalled: bool
) -> tuple[float, list[list[Message]]]:
    """The 99th percentile of the seconds from a token's sending to its arrival, and what each reader has received."""
    id = (await api.start())["id"]
    call = await upstream.called()
    idle = await stalled(api, id) if one_stalled else None
    await fill_kernel(call, api, id)
    last_id = (await api.generation(id))["last_event_id"]
    async with crowd(api.events_url(id, after=last_id), readers) as others:
        sent: list[float] = []
        for index in range(tokens):
            sent.append(time.perf_counter())
            await call.say(f"word{index} ")
            await asyncio.sleep(0.005)  # a model's pace
        await call.finish()
        for reader in others:
            await reader.ended()
        taken = [
            arrived - said
            for reader in others
            for said, arrived in zip(sent, reader.times_of(b"event: token"), strict=True)
        ]
        received = [reader.received for reader in others]
    if idle is not None:
        assert not idle.gone.is_set()  # it was there all the time
        idle.transport.abort()
    return statistics.quantiles(taken, n=100)[98], received


async def test_a_stalled_reader_among_a_hundred_delays_nobody(make_node, upstream):
    # given rounds with and without one reader that never reads, taking turns on one node
    node = await make_node(write_deadline_s=60)
    with_it, without_it = [], []
    for _ in range(3):
        for p99s, one_stalled in ((without_it, False), (with_it, True)):
            p99, received = await delays(node.api, upstream, readers=99, tokens=60, one_stalled=one_stalled)
            p99s.append(p99)

            # then every other reader has everything
            expected = "".join(f"word{index} " for index in range(60))
            assert {text_of(events) for events in received} == {expected}

    # and has it as soon; the limit is generous, since other work shares the machine
    print(f"p99 without: {statistics.median(without_it) * 1e3:.1f} ms, with: {statistics.median(with_it) * 1e3:.1f} ms")
    assert statistics.median(with_it) < 3 * statistics.median(without_it) + 0.02
    assert await metric(node.api, "replay_slow_reader_aborts_total") == 0


async def test_stalled_readers_do_not_grow_the_node(make_node, upstream):
    # given forty readers that do not read, of a generation of some megabytes
    node = await make_node(write_deadline_s=60, upstream_idle_timeout_s=60)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.say("begin")
    async with crowd(node.api.events_url(id), 40, receive_buffer=4096) as readers:
        for reader in readers:
            reader.stop_reading()
        await fill_kernel(call, node.api, id)
        before = rss_bytes(node.pid)

        # when the model goes on, then what they have not taken is nowhere kept for them
        for _ in range(3):
            await fill_kernel(call, node.api, id)
        grown = rss_bytes(node.pid) - before
        print(f"RSS grew by {grown >> 20} MiB for {3 * KERNEL_BYTES >> 20} MiB of log and 40 stalled readers")
        assert grown < 3 * KERNEL_BYTES + (40 << 20)  # the log itself, once; a queue each would be 720 MiB
        assert await metric(node.api, "replay_subscribers") == 40


@pytest.mark.parametrize("way", ["", "lines", "format=openai", "resumed", "many"])
async def test_a_reader_that_reads_nothing_holds_no_more_than_its_buffer_and_an_event(make_node, upstream, way):
    # given a generation of 30 MB in events of 150 kB
    node = await make_node(write_deadline_s=60, heal_window_s=0)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    for _ in range(200):
        await call.say("x" * 150_000)
    await call.finish()
    second = (await node.api.log(id))[1].last_event_id
    before = rss_bytes(node.pid)

    # when many ask for it and read nothing
    urls = {"many": f"{node.url}/events?generation={id}", "resumed": node.api.events_url(id, after=second)}
    url = urls.get(way) or node.api.events_url(id) + (f"?{way}" if "=" in way else "")
    accept = {"Accept": "application/x-ndjson"} if way == "lines" else {}
    readers = [await read(url, receive_buffer=4096, **accept) for _ in range(20)]
    for reader in readers:
        await reader.has(b" 200 ")
        reader.stop_reading()

    async def subscribers() -> float:
        return await metric(node.api, "replay_subscribers")

    await eventually("the readers", subscribers, lambda count: count == len(readers))

    # then each costs little: what was made for one of them is everybody's
    held = len(readers) * (65_536 + 160_000)
    assert rss_bytes(node.pid) - before < 2 * held + (4 << 20)  # of what was made once, the process may keep the room
    # and has everything when it reads on
    readers[0].go_on_reading()
    await readers[0].ended()
    assert readers[0].clean
    assert readers[0].body.count(b"x" * 150_000) == 200 - (way == "resumed")
    for reader in readers:
        reader.transport.abort()


async def test_a_stalled_reader_is_cut_when_its_deadline_has_passed(make_node, upstream):
    # given a reader that stops reading, and one that goes on
    node = await make_node(write_deadline_s=1)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    idle = await stalled(node.api, id)
    busy = await read(node.api.events_url(id))
    await busy.has(b"event: live")
    begun = time.monotonic()
    await fill_kernel(call, node.api, id)

    # then the node gives it up after the deadline, and not before
    async def aborts() -> float:
        return await metric(node.api, "replay_slow_reader_aborts_total")

    await eventually("the abort", aborts, lambda count: count == 1)
    assert 0.9 < time.monotonic() - begun < 5
    assert await metric(node.api, "replay_subscribers") == 1

    # and it finds a response that was cut, not ended, while the other has everything
    idle.go_on_reading()
    await idle.ended()
    assert not idle.clean
    await call.say("after")
    await call.finish()
    await busy.ended()
    assert busy.clean
    assert_whole(busy.received)

    # and goes on exactly where it was cut
    cursor = idle.received[-1].last_event_id
    rest = await read(node.api.events_url(id), Last_Event_ID=cursor)
    await rest.ended()
    assert idle.received + rest.received == busy.received


@pytest.mark.parametrize("ended", [False, True], ids=["while it goes on", "when it has ended"])
async def test_a_slow_reader_that_reads_on_before_its_deadline_gets_everything(make_node, upstream, ended):
    # given a reader that has not read for a while, and by far not everything
    node = await make_node(write_deadline_s=8)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    slow = await stalled(node.api, id)
    for index in range(3):
        await fill_kernel(call, node.api, id)
        await call.say(f"word{index} ")
    if ended:
        await call.finish()
        await node.api.ended(id)
    assert len(slow.received) == 1  # the start

    # when it reads on, then it has everything, once and in order, and a clean end
    slow.go_on_reading()
    if not ended:
        await slow.has(b"word2")
        await call.say("live again")
        await slow.has(b"live again")
        await call.finish()
    await slow.ended()
    assert slow.clean
    assert_whole(slow.received)
    assert slow.received == await node.api.log(id)
    assert await metric(node.api, "replay_slow_reader_aborts_total") == 0


async def test_a_reader_that_takes_little_at_a_time_gets_everything(make_node, upstream):
    # given a reader that pauses after every read, of a generation that has ended and one that goes on
    node = await make_node(write_deadline_s=5, write_buffer_bytes=4096)
    upstream.script = generate(6000, text="{} " + "y" * 1000)
    id = (await node.api.start())["id"]
    slow = await read(node.api.events_url(id), receive_buffer=131_072)
    while not slow.gone.is_set():
        slow.stop_reading()
        await asyncio.sleep(0.001)
        slow.go_on_reading()
        await asyncio.sleep(0.001)
    assert slow.clean
    assert slow.received == await node.api.log(id)
    assert await metric(node.api, "replay_slow_reader_aborts_total") == 0


async def test_readers_that_vanish_in_the_middle_of_a_broadcast_disturb_nobody(node, upstream):
    # given a hundred readers, half of which leave one after the other while tokens are sent to all
    id = (await node.api.start())["id"]
    call = await upstream.called()
    chance = random.Random(2)
    async with crowd(node.api.events_url(id), 100) as readers:
        leaving = chance.sample(readers, 50)
        for index, reader in enumerate(leaving):
            await call.say(f"{index} ")
            reader.transport.abort()
        await call.finish()
        staying = [reader for reader in readers if reader not in leaving]
        for reader in staying:
            await reader.ended()

        # then the others have everything, and nothing is left of those
        log = await node.api.log(id)
        assert all(reader.clean and reader.received == log for reader in staying)
    await eventually("no reader", lambda: metric(node.api, "replay_subscribers"), lambda count: count == 0)
    assert "Traceback" not in node.stderr


# Connections to Valkey.


async def test_a_thousand_readers_cost_valkey_no_connection(make_node, valkey, upstream):
    # given one reader at the node that produces, and one at a node that follows
    allow_open_files(8192)
    producing, following = await asyncio.gather(make_node(), make_node())
    id = (await producing.api.start())["id"]
    call = await upstream.called()

    async def clients() -> int:
        async with valkey.client() as client:
            return int((await client.info("clients"))["connected_clients"])

    for node in (producing, following):
        async with crowd(node.api.events_url(id), 1):
            few = await clients()
        commands_before = await _processed(valkey)

        # when there are a thousand, then Valkey has no more connections, nor more to do
        async with crowd(node.api.events_url(id), 1000) as readers:
            assert await clients() == few
            asked = await _processed(valkey) - commands_before
            before = await _processed(valkey)
            await call.say("to everybody ")
            for reader in readers:
                await reader.has(b"to everybody")
            for_a_token = await _processed(valkey) - before
        print(f"{few} connections; {asked} commands to let 1000 in, {for_a_token} for a token to 1000")
        assert for_a_token < 100


async def _processed(valkey) -> int:
    async with valkey.client() as client:
        return int((await client.info("stats"))["total_commands_processed"])


# HTTP/1.0.


async def test_http_1_0_gets_a_stream_without_chunks(node, upstream):
    id = (await node.api.start())["id"]
    call = await upstream.called()
    reader = await read(node.api.events_url(id), version="1.0")
    await reader.has(b"event: live")
    await call.say("a")
    await call.finish()
    await reader.ended()
    assert reader.head.startswith(b"HTTP/1.0 200 ")
    assert b"transfer-encoding" not in reader.head.lower()
    assert not reader.reset  # ended, not cut
    assert reader.received == await node.api.log(id)


@pytest.mark.parametrize("cut_by", ["drain", "write deadline", "outage"])
async def test_http_1_0_sees_a_reset_where_a_stream_is_cut(make_node, valkey, upstream, cut_by):
    # given a reader who knows no chunks, for whom the end of the connection is the end of the response
    node = await make_node(write_deadline_s=0.5)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    if cut_by == "outage":
        valkey.kill()
        reader = await read(node.api.events_url(id), version="1.0")
    else:
        reader = await read(node.api.events_url(id), version="1.0", receive_buffer=4096)
        await reader.has(b"event: live")
    if cut_by == "drain":
        other = await make_node()
        foreign = (await other.api.start())["id"]
        theirs = await upstream.called()
        reader = await read(node.api.events_url(foreign), version="1.0")
        await reader.has(b"event: live")
        node.terminate()
    elif cut_by == "write deadline":
        reader.stop_reading()
        await fill_kernel(call, node.api, id)

        async def aborts() -> float:
            return await metric(node.api, "replay_slow_reader_aborts_total")

        await eventually("the abort", aborts, lambda count: count == 1)
        reader.go_on_reading()

    # then it can tell that this was not the end
    await reader.ended()
    assert reader.reset
    if cut_by == "drain":
        await theirs.finish()
    if cut_by == "outage":
        valkey.start()


def test_the_words_of_these_tests_have_every_length_of_utf_8():
    lengths = {len(character.encode()) for character in itertools.chain.from_iterable(WORDS)}
    assert lengths == {1, 2, 3, 4}
