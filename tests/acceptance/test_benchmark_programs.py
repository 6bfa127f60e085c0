"""The benchmarks' programs, held against servers whose behaviour is known, and against the clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.programs import (
    STAMP,
    Floor,
    Load,
    ProgramFailed,
    Subscribers,
    Upstream,
    compiled,
    get,
    paced,
    post,
)
from benchmarks.recording import PARTS, part_of
from support.api import text_of
from support.deadlines import DEADLINE_S, within
from support.http1 import open_stream, request, reset_on_close
from support.ports import free_port
from support.sse import messages

REPOSITORY = Path(__file__).parents[2]

ASK = get("/")
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
PLAIN = OK + b"Connection: close\r\n\r\n"
NOT_EVENTS = [b": keep-alive\n\n", b"retry: 5\n\n", b"event: token\nid\n\n", b"\n\n", b":\r\n\r\n", b"database: 1\n\n"]

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    """A server on this port, which answers every request so and closes the connection."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def saying(whole: bytes) -> Answer:
    """An answer of these bytes."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(whole)
        await writer.drain()

    return answer


def cut(data: bytes, chance: random.Random, longest: int) -> list[bytes]:
    """The same bytes in pieces of any length."""
    pieces, at = [], 0
    while at < len(data):
        end = at + chance.randint(1, longest)
        pieces.append(data[at:end])
        at = end
    return pieces


def coded(body: bytes, chance: random.Random) -> bytes:
    """A body in the chunked transfer coding, with all that it allows."""
    chunks = [
        b"%X%b\r\n%b\r\n" % (len(piece), extension, piece)
        for piece in cut(body, chance, 60)
        for extension in [chance.choice([b"", b"", b';name=0a"b"'])]
    ]
    return b"".join(chunks) + b"000\r\n" + chance.choice([b"", b"Trailer: 1\r\nOther: 2\r\n"]) + b"\r\n"


def stream(ids: Iterable[int]) -> bytes:
    """A body with these ids."""
    return b"".join(b"data: {}\nid: 17-%d\n\n" % id for id in ids)


# The load generator.


@pytest.mark.parametrize(("seed", "id"), [(1, "1700000000000-%d"), (2, "%d"), (3, "gen-0a1b-%d")])
@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_load_counts_what_came_however_it_was_cut(framing, id, seed):
    chance = random.Random(seed)
    blocks: list[bytes] = []
    for number in range(200):
        line_end = chance.choice([b"\n", b"\r\n"])
        text = chance.choice([b"mail@example.org @12@ @", b"x" * chance.randrange(3000), b"\xe2\x80\xa8", b""])
        lines = [b"event: token", b"data: " + text + b"@%d@" % time.monotonic_ns()]
        lines += [b": a comment", b"data:", b"datum: 1"][: chance.randint(0, 3)]
        lines.append(b"id: " + (id % number).encode())
        blocks += [line_end.join([*lines, b"", b""]), *chance.choices(NOT_EVENTS, k=chance.randrange(3))]
    body = b"".join(blocks) + b"data: never dispatched\n"
    assert len(messages(body)) == 200  # as another parser has it

    async def answer(writer: asyncio.StreamWriter) -> None:
        mine = random.Random(chance.random())  # each connection is cut elsewhere
        whole = CHUNKED + coded(body, mine) if framing == "chunked" else PLAIN + body
        for piece in cut(whole, mine, 300):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(answer) as port, Load(port, [Subscribers(ASK, 6)], sample=3, target=200) as load:
        done = await load.until("the end of all", lambda mark: mark.ended + mark.closed == 6)
        latency = await load.latency()
        end = await load.stop()

    assert (done.ended, done.closed) == ((6, 0) if framing == "chunked" else (0, 6))
    assert (end.least, end.most, end.events, end.complete) == (200, 200, 1200, 6)
    assert (end.ids, end.holes, end.doubles, end.reorders) == (600, 0, 0, 0)
    assert latency.count == 600
    assert done.complete_at_s is not None
    assert done.complete_at_s <= done.at_s
    if framing == "close":
        assert end.bytes == 6 * len(PLAIN + body)


@pytest.mark.parametrize(
    ("ids", "holes", "doubles", "reorders"),
    [
        ([5, 6, 7, 8], 0, 0, 0),
        ([1, 2, 4], 1, 0, 0),
        ([1, 2, 6], 3, 0, 0),
        ([1, 2, 2, 3], 0, 1, 0),
        ([1, 1, 2], 0, 1, 0),
        ([1, 3, 2, 4], 0, 0, 1),
        ([5, 4, 6], 0, 0, 1),
        ([1, 2, 5, 3, 3, 6], 1, 1, 1),
        ([1, 10**12, 10**12 + 1], 10**12 - 2, 0, 0),
    ],
)
async def test_load_tells_holes_doubles_and_reorders(ids, holes, doubles, reorders):
    async with serving(saying(PLAIN + stream(ids))) as port:
        async with Load(port, [Subscribers(ASK, 2)], sample=1) as load:
            await load.until("the end", lambda mark: mark.closed == 2)
            end = await load.stop()
        async with Load(port, [Subscribers(ASK, 2)], sample=1, contiguous=False) as load:
            await load.until("the end", lambda mark: mark.closed == 2)
            careless = await load.stop()

    assert (end.holes, end.doubles, end.reorders, end.ids) == (holes, doubles, reorders, len(ids))
    assert (careless.holes, careless.doubles, careless.reorders, careless.ids) == (0, 0, 0, len(ids))


async def test_load_takes_no_id_of_live_for_an_event_s():
    body = stream([1, 2]) + b"event: live\ndata: {}\nid: 17-2\n\n" + stream([3])
    async with serving(saying(PLAIN + body)) as port, Load(port, [Subscribers(ASK, 1)], sample=1) as load:
        await load.until("the end", lambda mark: mark.closed == 1)
        end = await load.stop()

    assert (end.events, end.ids, end.holes, end.doubles, end.reorders) == (4, 3, 0, 0, 0)


async def test_load_finds_in_random_ids_what_a_naive_model_finds():
    chance = random.Random(7)
    rows = []
    for _ in range(40):
        ids = [0, *range(1, 400)]
        for _ in range(chance.randrange(12)):
            place = chance.randrange(1, len(ids))
            fault = chance.choice(["hole", "double", "reorder"])
            if fault == "double":
                ids.insert(place, chance.choice(ids[:place]))
            else:
                taken = ids.pop(place)
                if fault == "reorder":
                    ids.insert(chance.randrange(1, len(ids) + 1), taken)
        rows.append(ids)
    unsaid = iter(rows)

    async def answer(writer: asyncio.StreamWriter) -> None:
        await saying(PLAIN + stream(next(unsaid)))(writer)

    async with serving(answer) as port, Load(port, [Subscribers(ASK, len(rows))], sample=len(rows)) as load:
        await load.until("the end", lambda mark: mark.closed == len(rows))
        end = await load.stop()

    holes = sum(len(set(range(max(ids))) - set(ids)) for ids in rows)
    doubles = sum(len(ids) - len(set(ids)) for ids in rows)
    late = [(ids, place) for ids in rows for place in range(1, len(ids)) if ids[place] < max(ids[:place])]
    reorders = sum(ids[place] not in ids[:place] for ids, place in late)
    assert (end.holes, end.doubles, end.reorders) == (holes, doubles, reorders)
    assert min(holes, doubles, reorders) > 0


async def test_load_without_ids_says_so():
    async with (
        serving(saying(PLAIN + b"data: 1\n\ndata: 2\n\n")) as port,
        Load(port, [Subscribers(ASK, 3)], sample=3) as load,
    ):
        await load.until("the end", lambda mark: mark.closed == 3)
        end = await load.stop()

    assert (end.events, end.ids, end.holes) == (6, 0, 0)


async def test_load_measures_the_time_since_the_stamp():
    async def answer(writer: asyncio.StreamWriter) -> None:
        now = time.monotonic_ns()
        await saying(PLAIN + b"".join(b"data: @%d@\n\n" % (now - ms * 10**6) for ms in range(10, 1010, 10)))(writer)

    began = time.monotonic()
    async with serving(answer) as port, Load(port, [Subscribers(ASK, 1)]) as load:
        await load.until("the end", lambda mark: mark.closed == 1)
        latency = await load.latency()
        again = await load.latency()
    took_us = (time.monotonic() - began) * 1e6

    assert latency.count == 100
    assert 510_000 * 0.99 <= latency.p50_us <= (510_000 + took_us) * 1.01
    assert 1_000_000 * 0.99 <= latency.p99_us <= (1_000_000 + took_us) * 1.01
    assert 1_000_000 <= latency.max_us <= 1_000_000 + took_us
    assert (again.count, again.p50_us, again.p99_us, again.max_us) == (0, 0, 0, 0)


async def test_load_tells_who_was_refused():
    async with Load(free_port(), [Subscribers(ASK, 5)]) as load:
        mark = await load.until("all to be refused", lambda mark: mark.refused == 5)
        end = await load.stop()

    assert (mark.connected, mark.answered, mark.connected_at_s, mark.first_byte_max_s) == (0, 0, None, None)
    assert (end.least, end.most) == (0, 0)


async def test_load_tells_how_connections_ended():
    async def reset(writer: asyncio.StreamWriter) -> None:
        await saying(CHUNKED + b"3\r\n:\n\n\r\n")(writer)
        reset_on_close(writer.get_extra_info("socket"))

    endings = iter(
        [
            *[saying(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno")] * 1,
            *[saying(CHUNKED + b"3\r\n:\n\n\r\n")] * 2,
            *[saying(CHUNKED + b"3\r\n:\n\n\r\n0\r\n\r\n")] * 3,
            *[reset] * 4,
        ]
    )

    async def answer(writer: asyncio.StreamWriter) -> None:
        await next(endings)(writer)

    async with serving(answer) as port, Load(port, [Subscribers(ASK, 10)], sample=5) as load:
        mark = await load.until(
            "the end of all", lambda mark: mark.wrong_status + mark.closed + mark.ended + mark.reset == 10
        )

    assert (mark.connected, mark.answered) == (10, 9)
    assert (mark.wrong_status, mark.closed, mark.ended, mark.reset) == (1, 2, 3, 4)
    assert (mark.events, mark.answered_at_s) == (0, None)
    assert mark.connected_at_s is not None


async def test_load_asks_in_different_ways_and_at_a_rate():
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            asked.append(await reader.readuntil(b"\r\n\r\n") + await reader.read(len(b'{"a": 1}')))
            await saying(PLAIN)(writer)

    kinds = [Subscribers(post("/one", {"a": 1}), 4), Subscribers(post("/two", {"a": 2}, {"X": "y"}), 6)]
    began = time.monotonic()
    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Load(port, kinds, connect_per_second=50) as load:
            mark = await load.until("the end", lambda mark: mark.closed == 10)

    assert mark.connected_at_s is not None
    assert mark.connected_at_s - began >= 9 / 50
    assert sorted(asked) == sorted(kind.request for kind in kinds for _ in range(kind.connections))


async def test_load_stalls_and_closes_connections():
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(contextlib.AsyncExitStack())
        floor = await server.enter_async_context(Floor(b"data: 1\n\n", per_second=1000, events=300))
        load = await stack.enter_async_context(Load(floor.port, [Subscribers(ASK, 20)], sample=4, target=300))
        await load.until("all to be answered", lambda mark: mark.answered == 20)
        assert (await load.stall(3), await load.close(5)) == (3, 5)
        left = await load.mark()
        await floor.until("them to be gone", lambda mark: mark.connections == 15)
        await floor.go()
        await floor.until("the end", lambda mark: mark.done_at_s)
        done = await load.until("all others to be complete", lambda mark: mark.complete == 12)
        assert await load.stall(100) == 8  # but not those that are checked closely
        await server.aclose()
        gone = await load.until("nobody to be connected", lambda mark: mark.closed + mark.reset == 15)
        end = await load.stop()

    assert (left.stalled, left.left) == (3, 5)
    assert (done.events, done.complete_at_s) == (12 * 300, None)
    assert gone.stalled == 0
    assert (end.least, end.most) == (0, 300)


async def test_load_reads_a_thousand_connections():
    async with (
        Floor(b"data: " + STAMP + b"\nid: 1-1\n\n", per_second=20, events=10) as floor,
        Load(floor.port, [Subscribers(ASK, 1000)], sample=50, target=10, contiguous=False) as load,
    ):
        await load.until("all to be answered", lambda mark: mark.answered == 1000)
        await floor.go()
        await load.until("all to be complete", lambda mark: mark.complete == 1000)
        latency, end = await load.latency(), await load.stop()

    assert (end.least, end.most, end.events) == (10, 10, 10_000)
    assert latency.count == 500


async def test_caller_that_does_not_wait_for_its_answer_leaves_it_to_nobody():
    async with Load(free_port(), [Subscribers(ASK, 1)]) as load:
        impatient = asyncio.create_task(load.mark())
        await asyncio.sleep(0)  # it has asked
        impatient.cancel()
        latency, mark = await asyncio.gather(load.latency(), load.mark())

    assert (latency.count, mark.connections) == (0, 1)


# The floor.


async def test_floor_sends_exactly_what_it_says():
    event = b"data: " + STAMP + b"\nid: 1-1\n\n"
    began_ns = time.monotonic_ns()
    async with Floor(event, per_second=100, events=10, batch=4) as floor:
        readers = [await open_stream(f"http://127.0.0.1:{floor.port}/") for _ in range(3)]
        went = time.monotonic()
        await floor.go()
        mark = await floor.until("the end", lambda mark: mark.done_at_s)
        for reader in readers:
            while len(reader.body) < 10 * len(event):
                assert await within("more", reader.read())
        for reader in readers:
            reader.hang_up()
        await floor.until("nobody to be connected", lambda mark: mark.connections == 0)

    assert (mark.events, mark.sends, mark.bytes, mark.dropped) == (10, 9, 30 * len(event), 0)
    assert mark.done_at_s is not None
    assert mark.done_at_s - went >= 10 / 100
    for reader in readers:
        assert re.sub(rb"@\d{19}@", STAMP, reader.body) == event * 10
        stamps = [int(stamp) for stamp in re.findall(rb"@(\d+)@", reader.body)]
        moments = [began_ns, *stamps, time.monotonic_ns()]
        assert moments == sorted(moments)
        assert len(set(stamps)) == 3  # one for each send


async def test_floor_drops_who_does_not_read():
    async with Floor(b"data: " + b"x" * 50_000 + b"\n\n", per_second=1000, events=500) as floor:
        reader = await open_stream(f"http://127.0.0.1:{floor.port}/", receive_buffer=10_000)
        await floor.go()
        mark = await floor.until("the end", lambda mark: mark.done_at_s)
        reader.hang_up()

    assert (mark.dropped, mark.connections) == (1, 0)


# The model server.


def asks(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": 'say "model": "x"'}], "stream": True}


async def read_chunks(reader: asyncio.StreamReader) -> list[bytes]:
    """The chunks of one answer, as they were framed."""
    head = await within("a head", reader.readuntil(b"\r\n\r\n"))
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    chunks = []
    while size := int(await within("a chunk", reader.readline()), 16):
        chunks.append(await reader.readexactly(size))
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return chunks


@pytest.mark.parametrize("model", ["paced-0-20", "paced-0-20-plain", "paced-500-20-stamped", "paced-0-0"])
async def test_upstream_says_what_a_real_one_says(model):
    tokens = int(model.split("-")[2])
    async with Upstream() as upstream:
        reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        answers = []
        for _ in range(2):  # on one connection
            writer.write(post("/v1/chat/completions", asks(model)))
            answers.append(await read_chunks(reader))
        writer.close()
        mark = await upstream.mark()

    ids = set()
    for events in answers:
        assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") for event in events)
        assert events.pop() == b"data: [DONE]\n\n"
        chunks = [json.loads(event[6:]) for event in events]
        assert {(each["object"], each["model"], type(each["created"])) for each in chunks} == {
            ("chat.completion.chunk", model, int)
        }
        ids.update(each["id"] for each in chunks)
        choices = [each["choices"][0] for each in chunks]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in choices] == [None] * (tokens + 1) + ["stop"]
        assert choices[-1]["delta"] == {}
        shape = r" @\d{19}@" if model.endswith("stamped") else r" [a-z]{3,4}"
        assert all(re.fullmatch(shape, choice["delta"]["content"]) for choice in choices[1:-1])
    assert len(ids) == 2
    assert (mark.chunks, mark.streams, mark.finished, mark.aborted) == (2 * (tokens + 3), 0, 2, 0)


async def test_upstream_keeps_its_pace():
    body, rate = asks(paced(200, 200, stamped=True)), 200
    asked = time.monotonic()
    async with Upstream() as upstream:
        url = f"{upstream.url}/chat/completions"
        answers = await asyncio.gather(*(request("POST", url, json_body=body) for _ in range(10)))
    took_s = time.monotonic() - asked

    for answer in answers:
        stamps_s = [int(stamp) / 1e9 for stamp in re.findall(rb"@(\d{19})@", answer.body)]
        assert len(stamps_s) == 200
        assert stamps_s == sorted(stamps_s)
        # Each is as late as the machine was busy, and then it catches up: some are in time at any pace but another.
        begins_s = [stamp - turn / rate for turn, stamp in enumerate(stamps_s)]
        assert stamps_s[-1] >= min(begins_s) + 199 / rate - 1e-6
        assert abs(min(begins_s[100:]) - min(begins_s[:100])) < 0.25  # at half the pace, or twice, it would be 0.5
    assert took_s >= 199 / rate


async def test_streams_of_upstream_do_not_run_in_step():
    async with Upstream(hold=True) as upstream:
        url, body = f"{upstream.url}/chat/completions", asks(paced(5, 1, stamped=True))
        waiting = [asyncio.create_task(request("POST", url, json_body=body)) for _ in range(20)]
        await upstream.until("all to be held", lambda mark: mark.held == 20)
        await upstream.go()
        answers = await asyncio.gather(*waiting)

    firsts = [int(stamp) / 1e9 for answer in answers for stamp in re.findall(rb"@(\d{19})@", answer.body)]
    assert len(firsts) == 20
    assert max(firsts) - min(firsts) > 0.05  # of a turn of 0.2 s


async def test_upstream_holds_until_it_is_told():
    async with Upstream(hold=True) as upstream:
        body = post("/v1/chat/completions", asks(paced(0, 5)))
        async with Load(upstream.port, [Subscribers(body, 20)], contiguous=False) as load:
            await upstream.until("all to be held", lambda mark: mark.held == 20)
            held = await load.until("all to have begun", lambda mark: mark.events == 20)
            await upstream.go()
            end = await load.until("the end", lambda mark: mark.ended == 20)
        async with Load(upstream.port, [Subscribers(body, 1)]) as load:  # it holds no more
            await load.until("the end", lambda mark: mark.ended == 1)
        await upstream.hold()
        async with Load(upstream.port, [Subscribers(body, 1)]):
            await upstream.until("it to be held", lambda mark: mark.held == 1)
        mark = await upstream.until("it to be forgotten", lambda mark: mark.streams == 0)

    assert (held.ended, end.events) == (0, 20 * 8)
    assert (mark.held, mark.finished, mark.aborted) == (0, 21, 1)


async def test_upstream_waits_for_a_slow_reader_and_loses_nothing():
    async with Upstream() as upstream:
        data = json.dumps(asks(paced(0, 20_000))).encode()
        slow = await open_stream(f"{upstream.url}/chat/completions", method="POST", body=data, receive_buffer=4096)
        mark = await upstream.mark()
        answer = await slow.to_end()

    assert mark.streams == 1
    assert (answer.clean, len(messages(answer.body))) == (True, 20_003)


async def test_upstream_lists_its_models_and_refuses_others():
    async with Upstream() as upstream:
        models = await request("GET", f"{upstream.url}/models")
        refused = await request("POST", f"{upstream.url}/chat/completions", json_body=asks("gpt-4o"))
        unknown = await request("GET", f"{upstream.url}/nothing")

    assert models.json()["data"][0]["object"] == "model"
    assert [answer.status for answer in (models, refused, unknown)] == [200, 404, 404]
    assert "paced-50-200" in refused.json()["error"]["message"]


# All together.


async def test_node_delivers_all_events_to_all_readers(make_node):
    async with Upstream(hold=True) as upstream:
        node = await make_node(upstream_url=upstream.url)
        id = (await node.api.start({"prompt": "Hi", "model": paced(100, 100, stamped=True)}))["id"]
        async with Load(node.port, [Subscribers(get(f"/generations/{id}/events"), 50)], sample=50) as load:
            await load.until("all to be answered", lambda mark: mark.answered == 50)
            await upstream.go()
            await load.until("the end of all", lambda mark: mark.ended == 50)
            latency, end = await load.latency(), await load.stop()
        log = await node.api.log(id)

    assert (end.holes, end.doubles, end.reorders) == (0, 0, 0)
    assert end.ids == 50 * len(log)
    assert end.least == end.most >= len(log)
    assert latency.count == 50 * 100
    assert latency.max_us > latency.p50_us > 0
    assert len(re.findall(r" @\d{19}@", text_of(log))) == 100


# What they are as programs.


@pytest.mark.parametrize(
    ("name", "configuration"),
    [
        ("load", b"port 1\nsubscribers 1 1\nxstart\n"),
        ("floor", b"per_second 1\nevents 1\nevent 1\nxstart\n"),
        ("upstream", b"start\n"),
    ],
)
@pytest.mark.parametrize("also", ["started", "not started"])
def test_program_ends_with_its_stdin(name, configuration, also):
    said = configuration if also == "started" else configuration[:3]

    run = subprocess.run([compiled(name)], input=said, capture_output=True, timeout=DEADLINE_S, check=False)

    assert (run.returncode, run.stderr) == (0, b"")
    assert len(run.stdout.splitlines()) == (also == "started")


async def test_program_that_gives_up_says_why():
    with pytest.raises(ProgramFailed, match="load: expected an IPv4 address, got 'localhost'"):
        async with Load(1, [Subscribers(ASK, 1)], host="localhost"):
            pass
    async with serving(saying(CHUNKED + b"what?")) as port:
        with pytest.raises(ProgramFailed, match="connection 0: expected the size of a chunk, got byte 0x77"):
            async with Load(port, [Subscribers(ASK, 1)]) as load:
                await load.until("the end", lambda mark: mark.ended)
    with pytest.raises(ProgramFailed, match=r"not within 0.1 s: a miracle; now UpstreamMark\("):
        async with Upstream() as upstream:
            await upstream.until("a miracle", lambda mark: mark.streams, seconds=0.1)


def test_machine_without_a_compiler_is_told_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    compiled.cache_clear()

    with pytest.raises(ProgramFailed, match="apt-get install --no-install-recommends gcc libc6-dev"):
        compiled("load")


def test_parts_of_a_profile_are_files_that_there_are():
    named = {
        f"replay/{folder}/{name}.py"
        for pattern in PARTS.values()
        for folder, names in re.findall(r"\(replay/(\w+)/\(?([\w|]+)\)?\\.py", pattern)
        for name in names.split("|")
    }
    assert len(named) > 10
    assert [path for path in sorted(named) if not (REPOSITORY / path).exists()] == []
    for path in named:
        assert part_of(["run (asyncio/runners.py:1)", f"call ({path}:1)"]) in PARTS
