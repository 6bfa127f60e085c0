"""`GET /events`: several generations on one connection, each exactly as a connection of its own would show it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from support.api import Api, assert_problem, text_of
from support.crowd import read as connect
from support.deadlines import DEADLINE_S, eventually, within
from support.fault_proxy import FaultProxy
from support.http1 import Answer
from support.logs import commands
from support.samples import SAMPLES
from support.sse import EventSourceClient, Message, messages, read_stream, streaming
from support.upstream import Call, Script, ScriptedUpstream, generate, play, say
from support.valkey import ValkeyServer

KINDS = ("start", "token", "delta", "end")
NEVER_WAS = "gen_that_never_was"
MOST = 100

Told = tuple[str, dict[str, Any]]  # an event's name and data

_WHOLE_BODY = re.compile(rb"(?::k\n|(?:retry: \d+\n)?event: [a-z]+\ndata: \{[^\r\n\0]*\}\n(?:id: [0-9a-z.,:-]+\n)?\n)*")


# What is asked, and what comes.


def many(api: Api, ids: Iterable[str], *, last_event_id: str = "", **query: Any) -> EventSourceClient:
    """An EventSource on several generations."""
    return EventSourceClient(url_of(api, ids, **query), last_event_id=last_event_id)


def url_of(api: Api, ids: Iterable[str], **query: Any) -> str:
    return api.at("/events", generation=list(ids), **query)


async def read_many(api: Api, ids: Iterable[str], headers: Mapping[str, str] | None = None, **query: Any) -> Answer:
    """One request, read to its end."""
    return await read_stream(url_of(api, ids, **query), headers)


def shares(events: Sequence[Message], ids: Iterable[str]) -> dict[str, list[Told]]:
    """What each generation has said, in the order in which it came."""
    found: dict[str, list[Told]] = {id: [] for id in ids}
    for event in events:
        if event.event in KINDS:
            data = event.json()
            found[data["generation_id"]].append((event.event, data))
    return found


def labelled(id: str, events: Sequence[Message]) -> list[Told]:
    """The events of a connection of its own, as they have to come among others."""
    return [(event.event, {**event.json(), "generation_id": id}) for event in events]


async def alone(api: Api, ids: Iterable[str]) -> dict[str, list[Told]]:
    """What `/generations/{id}/events` gives for each of some generations that have ended."""
    return {id: labelled(id, await api.log(id)) for id in ids}


def notices(events: Sequence[Message], kind: str) -> list[str]:
    """Which generations a notice of that kind was about."""
    return [event.json()["generation_id"] for event in events if event.event == kind]


def steps(prompt: str) -> tuple[int, float | None]:
    """`120 at 300` is 120 tokens, 300 a second."""
    tokens, _, rate = prompt.partition(" at ")
    return int(tokens), float(rate) if rate else None


async def as_prompted(call: Call) -> None:
    """A script for generations of different lengths: the prompt says how many tokens, and how fast."""
    await generate(*steps(call.request["messages"][0]["content"]), text="wörd{} ")(call)


def prompt(text: str) -> dict[str, Any]:
    return {"model": "test-model", "prompt": text}


@dataclass
class Running:
    """A generation that goes on, and the upstream's side of it."""

    id: str
    call: Call


Run = Callable[..., Awaitable[Running]]


@pytest.fixture
def run(upstream: ScriptedUpstream) -> Run:
    """Start a generation that has said some words, and says what the test says next."""

    async def start(api: Api, *words: str, **replay: Any) -> Running:
        id = (await api.start(**replay))["id"]
        call = await upstream.called()
        for word in words:
            await call.say(word)
        await api.has(id, 1 + len(words))
        return Running(id, call)

    return start


async def recorded(api: Api, upstream: ScriptedUpstream, *scripts: Script) -> list[str]:
    """Generations that have ended."""
    ids = []
    for script in scripts:
        upstream.script = script
        ids.append(await api.run())
    upstream.script = None
    return ids


async def closed_by_204(source: EventSourceClient, seconds: float = DEADLINE_S) -> None:
    """Wait until the source has stopped by itself, after a clean end."""
    source.retry_ms = 1
    last = await source.closed(seconds)
    assert last.status == 204, source.connections
    assert source.connections[-2].clean, source.connections


# Each is as it is alone.


async def test_every_event_is_that_of_its_generation_with_its_generation_id(service, other_service, upstream):
    # given recordings of all kinds: tools, reasoning, several choices, failures, other scripts
    ids = []
    for sample in SAMPLES.values():
        upstream.script = play(sample)
        ids.append(await service.run())
    # when
    for api in (service, other_service):
        answer = await read_many(api, ids)
        # then
        assert (answer.status, answer.clean) == (200, True)
        assert shares(messages(answer.body), ids) == await alone(api, ids)
        assert len(ids) > 20


async def test_head_and_body_are_an_event_stream_s(service, upstream):
    ids = await recorded(service, upstream, say("a", "b"), say("c"))
    answer = await read_many(service, [ids[0], NEVER_WAS, ids[1]])
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in answer.headers
    # `retry:` stands inside the first block that carries data, once
    assert answer.body.startswith(b"retry: ")
    assert answer.body.count(b"retry: ") == 1
    assert _WHOLE_BODY.fullmatch(answer.body)


async def test_only_an_event_stream_is_offered(service, upstream):
    ids = await recorded(service, upstream, say("a"))
    for accept in ("application/json", "application/x-ndjson", "text/html"):
        assert_problem(await read_many(service, ids, {"Accept": accept}), 406)
    for accept in ("*/*", "text/*", "text/event-stream, */*;q=0.1"):
        assert (await read_many(service, ids, {"Accept": accept})).status == 200
    assert_problem(await service.post(f"/events?generation={ids[0]}"), 405)


async def test_generations_that_go_on_come_as_they_speak_each_in_order(service, other_service, run):
    # given three, of which one runs elsewhere
    one, two, three = await run(service, "a"), await run(service), await run(other_service, "x", "y")
    ids = [one.id, two.id, three.id]
    async with many(service, ids) as here, many(other_service, ids) as there:
        for source in (here, there):
            for _ in ids:
                await source.event("live")
            # then the reader is told for each how far it has come; the cursor is left where it was
            live = {event.json()["generation_id"]: event for event in source.events if event.event == "live"}
            assert live.keys() == set(ids)
            for id, event in live.items():
                assert event.json() == {
                    "type": "live",
                    "generation_id": id,
                    "last_event_id": (await service.generation(id))["last_event_id"],
                }

        # when they speak in turns, then every word is there as soon as it is said
        for turn in range(6):
            for running in (two, three, one, three):
                await running.call.say(f"{turn} of {running.id}")
                for source in (here, there):
                    token = (await source.event("token")).json()
                    assert (token["generation_id"], token["content"]) == (running.id, f"{turn} of {running.id}")

        # when they end, one by one
        await two.call.finish()
        for source in (here, there):
            assert (await source.event("end")).json()["generation_id"] == two.id
        await one.call.say("last")
        for source in (here, there):
            assert (await source.event("token")).json()["content"] == "last"
            assert source.connections[-1].clean is None  # the others go on, and so does the connection
        await one.call.finish()
        await three.call.finish("length")

        # then the connection ends with the last of them, and the source stops by itself
        for source in (here, there):
            await closed_by_204(source)
            assert len(source.connections) == 2
            assert notices(source.events, "live").count(one.id) == 1
            assert shares(source.events, ids) == await alone(service, ids)


async def test_what_belongs_to_the_connection_leaves_the_cursor_where_it_is(service, run):
    one, two = await run(service, "a"), await run(service, "b")
    async with streaming(url_of(service, [one.id, NEVER_WAS, two.id])) as stream:
        for _ in range(2):
            await stream.until(b"event: live", after=stream.body.find(b"event: live") + 1)
        await stream.until(b"\n\n", after=stream.body.rfind(b"event: live"))
    for block in bytes(stream.body).split(b"\n\n"):
        name = re.search(rb"^event: (\w+)$", block, re.MULTILINE)
        if name is not None:
            assert (b"\nid: " in b"\n" + block) == (name[1] != b"reset")


async def test_generation_that_is_named_twice_comes_once(service, upstream):
    ids = await recorded(service, upstream, say("a"), say("b"))
    twice = await read_many(service, [ids[0], ids[1], ids[0], ids[1], ids[1]])
    assert twice.clean
    assert shares(messages(twice.body), ids) == await alone(service, ids)
    # and a cursor over both is one over either spelling
    cursor = messages(twice.body)[2].last_event_id
    for spelt in (ids, [*ids, ids[0]]):
        rest = await read_many(service, spelt, {"Last-Event-ID": cursor})
        assert messages(rest.body) == messages(twice.body)[3:]


async def test_one_generation_is_several_too(service, run):
    running = await run(service, "a")
    async with many(service, [running.id]) as source:
        await source.event("live")
        await running.call.finish()
        await closed_by_204(source)
        assert shares(source.events, [running.id]) == await alone(service, [running.id])


async def test_http_1_0_is_served_and_a_cut_is_told_from_an_end(make_node, upstream, run):
    producing, reading = await asyncio.gather(make_node(), make_node())
    ids = await recorded(producing.api, upstream, say("a", "b"), say("c"))
    reader = await connect(url_of(reading.api, ids), version="1.0")
    await reader.ended()
    assert not reader.reset
    assert shares(messages(reader.body), ids) == await alone(producing.api, ids)
    running = await run(producing.api, "d")
    reader = await connect(url_of(reading.api, [*ids, running.id]), version="1.0")
    await reader.has(b"event: live")
    reading.terminate()
    await reader.ended()
    assert reader.reset


async def test_connection_whose_generations_have_ended_serves_the_next_request(service, upstream, run):
    # given a client that keeps its connection, and asks again as soon as a response has ended
    ids = await recorded(service, upstream, say("a", "b"), say("c"))
    running = await run(service, "d")
    expected = await alone(service, ids)
    host = service.url.removeprefix("http://")
    reader, writer = await asyncio.open_connection(*host.split(":"))

    async def ask(path: str) -> tuple[int, bytes]:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head = (await within("a head", reader.readuntil(b"\r\n\r\n"))).lower()
        status = int(head.split()[1])
        if b"transfer-encoding: chunked" in head:
            body = b""
            while size := int(await within("a chunk", reader.readline()), 16):
                body += (await within("a chunk", reader.readexactly(size + 2)))[:-2]
            await reader.readline()
            return status, body
        length = re.search(rb"content-length: (\d+)", head)
        return status, await reader.readexactly(int(length[1]) if length else 0)

    try:
        for _ in range(3):
            # when
            status, body = await ask(path_of(service, ids))
            # then
            told = messages(body)
            assert (status, shares(told, ids)) == (200, expected)
            assert (await ask(path_of(service, ids, after=told[-1].last_event_id)))[0] == 204
            assert (await ask("/events"))[0] == 400
            assert (await ask(path_of(service, [NEVER_WAS])))[0] == 404
        # and one that ends while it is read is no other
        asking = asyncio.create_task(ask(path_of(service, [*ids, running.id])))
        await eventually(
            "the reader", lambda: service.generation(running.id), lambda generation: generation["subscribers"] == 1
        )
        await running.call.finish()
        status, body = await asking
        assert shares(messages(body), [*ids, running.id]) == await alone(service, [*ids, running.id])
        assert (await ask("/healthz"))[0] == 200
    finally:
        writer.close()


# Resuming.


async def resumed_everywhere(apis: Sequence[Api], ids: Sequence[str], told: Sequence[Message], **query: Any) -> None:
    """Every id of a whole reading leads to exactly the rest of each generation."""
    for api in apis:
        for place, event in enumerate(told, start=1):
            cursor = event.last_event_id
            in_header = place % 2
            headers = {"Last-Event-ID": cursor} if in_header else {}
            spelling = {} if in_header else {"after" if place % 4 else "last_event_id": cursor}
            answer = await read_many(api, ids, headers, **spelling, **query)
            if place == len(told):
                assert (answer.status, answer.body) == (204, b"")
                continue
            assert (answer.status, answer.clean) == (200, True)
            rest = messages(answer.body)
            assert all(event.event in KINDS for event in rest), (cursor, rest)
            assert shares(rest, ids) == shares(told[place:], ids), cursor


async def test_every_id_leads_to_exactly_the_rest_of_each(service, other_service, upstream):
    # given generations of different lengths, a failed one among them
    ids = await recorded(service, upstream, say("a", "b", "c", "d"), say(), play(SAMPLES_FAILED), generate(20))
    answer = await read_many(service, ids)
    told = messages(answer.body)
    assert shares(told, ids) == await alone(service, ids)
    assert len({event.last_event_id for event in told}) == len(told) > 30
    # when, then
    await resumed_everywhere((service, other_service), ids, told)


SAMPLES_FAILED = next(sample for name, sample in SAMPLES.items() if name.startswith("20"))


async def test_every_id_of_a_reading_that_happened_live_leads_to_exactly_the_rest(service, other_service, run):
    # given generations whose events have come in turns, of which one ends early, and one that does not exist
    one, two, three = await run(service), await run(other_service), await run(service)
    ids = [one.id, two.id, NEVER_WAS, three.id]
    async with many(service, ids) as source:
        for _ in range(3):
            await source.event("live")
        for turn in range(3):
            for running in (one, two, three):
                await running.call.say(str(turn))
                await source.event("token")
        await two.call.finish()
        await source.event("end")
        await one.call.say("more")
        await source.event("token")
        await three.call.finish()
        await source.event("end")
        await one.call.finish()
        await closed_by_204(source)
    told = [event for event in source.events if event.event in KINDS]
    assert notices(source.events, "expired") == [NEVER_WAS]
    await resumed_everywhere((other_service, service), ids, told)


async def test_reader_resumes_and_resumes_again_with_the_ids_it_was_given_then(service, other_service, upstream):
    ids = await recorded(service, upstream, generate(30), generate(25), generate(40))
    chance = random.Random(7)
    got: list[Message] = []
    for turn in range(200):
        api = (service, other_service)[turn % 2]
        answer = await read_many(api, ids, {"Last-Event-ID": got[-1].last_event_id} if got else {})
        if answer.status == 204:
            break
        got += messages(answer.body)[: chance.randrange(1, 12)]
    assert answer.status == 204
    assert shares(got, ids) == await alone(service, ids)


async def test_header_wins_over_the_query_and_minus_one_is_the_start(service, upstream):
    ids = await recorded(service, upstream, say("a", "b"), say("c"))
    told = messages((await read_many(service, ids)).body)
    answer = await read_many(service, ids, {"Last-Event-ID": told[4].last_event_id}, after=told[1].last_event_id)
    assert messages(answer.body) == told[5:]
    for headers, query in (({"Last-Event-ID": "-1"}, {}), ({}, {"after": "-1"}), ({}, {"last_event_id": "-1"})):
        assert messages((await read_many(service, ids, headers, **query)).body) == told


async def cut_at(proxy: FaultProxy, path: str, count: int) -> EventSourceClient:
    """An EventSource whose first connection ends behind so many bytes; what it has when it has closed itself."""
    proxy.cut_replies_after(count)
    async with EventSourceClient(f"http://127.0.0.1:{proxy.port}{path}", retry_ms=1) as source:
        await source.closed()
    return source


def path_of(api: Api, ids: Iterable[str], **query: Any) -> str:
    return url_of(api, ids, **query).removeprefix(api.url)


@pytest.mark.slow
async def test_reader_that_is_cut_at_any_byte_of_a_recording_gets_every_event_once(make_node, upstream):
    node = await make_node(retry_ms=1)
    ids = await recorded(node.api, upstream, say("Ä", "漢字", "😀"), say("\u2028", "b"), say("c"))
    expected = await alone(node.api, ids)
    async with FaultProxy(node.url) as proxy:
        for count in range(1, 2600, 13):
            source = await cut_at(proxy, path_of(node.api, [*ids, NEVER_WAS]), count)
            assert shares(source.events, ids) == expected, f"cut behind byte {count}"
            assert notices(source.events, "reset") == []
            assert set(notices(source.events, "expired")) == {NEVER_WAS}
            assert source.connections[-1].status == 204


@pytest.mark.slow
async def test_snapshots_that_are_cut_at_any_byte_add_up_to_the_whole(make_node, upstream):
    node = await make_node(retry_ms=1)
    ids = await recorded(node.api, upstream, say("a", "b", "c"), say("d", "e"))
    async with FaultProxy(node.url) as proxy:
        for count in range(200, 2400, 23):
            source = await cut_at(proxy, path_of(node.api, ids, mode="snapshot"), count)
            for id, text in zip(ids, ("abc", "de"), strict=True):
                own = [event for event in source.events if event.json()["generation_id"] == id]
                snapshots = [event.json()["text"] for event in own if event.event == "snapshot"]
                assert len(snapshots) <= 1, f"cut behind byte {count}"
                assert "".join(snapshots) + text_of(own) == text, f"cut behind byte {count}"
                assert [event.event for event in own].count("end") == 1


async def lose_connections(proxy: FaultProxy, source: EventSourceClient, chance: random.Random, seconds: float) -> int:
    """Cut the source behind any number of bytes, again and again, until it has closed itself; how often."""
    cuts = 0
    while source.ready_state != 2:
        proxy.cut_replies_after(chance.randrange(1, 20_000))
        cut = asyncio.create_task(proxy.reply_cut(seconds))
        closed = asyncio.create_task(source.closed(seconds))
        await asyncio.wait((cut, closed), return_when=asyncio.FIRST_COMPLETED)
        cuts += cut.done()
        for task in (cut, closed):
            task.cancel()
        await asyncio.gather(cut, closed, return_exceptions=True)
    return cuts


async def test_reader_of_five_that_is_cut_anywhere_resumes_each_of_them_exactly(make_node, upstream):
    # given one that runs here, one elsewhere, one that ends soon, one that will be deleted, and one that never was
    here, there = await asyncio.gather(make_node(retry_ms=1), make_node(retry_ms=1))
    upstream.script = as_prompted
    long = (await here.api.start(prompt("700 at 250")))["id"]
    away = (await there.api.start(prompt("600 at 250")))["id"]
    short = (await there.api.start(prompt("150 at 250")))["id"]
    gone = (await here.api.start(prompt("5000 at 250")))["id"]
    ids = [long, away, NEVER_WAS, gone, short]

    async with FaultProxy(here.url) as proxy, here.api.source(gone) as reference:
        # when their reader is cut at any byte, again and again, and one is deleted meanwhile
        async with EventSourceClient(f"http://127.0.0.1:{proxy.port}{path_of(here.api, ids)}", retry_ms=1) as source:
            losing = asyncio.create_task(lose_connections(proxy, source, random.Random(3), 30))
            while len(reference.received) < 300:
                await reference.next()
            assert (await there.api.delete(f"/generations/{gone}")).status == 204
            await reference.event("end")
            cuts = await within("the end of all of them", losing, 30)
        whole = labelled(gone, reference.received)

    # then it has all of each, once and in order
    told = shares(source.events, ids)
    assert cuts > 20
    assert [{id: told[id] for id in (long, away, short)}] == [await alone(there.api, (long, away, short))]
    assert notices(source.events, "reset") == []
    # what was deleted it has as far as it was there when it looked, and it was told
    assert told[gone] == whole[: len(told[gone])]
    assert told[gone] == whole or gone in notices(source.events, "expired")
    assert told[NEVER_WAS] == []
    assert set(notices(source.events, "expired")) <= {NEVER_WAS, gone}
    assert source.connections[-1].status == 204


async def test_nodes_restart_and_die_and_every_generation_comes_whole(make_node, upstream):
    # given a reader on a node that produces one of three
    doomed, producing, reading = await asyncio.gather(*(make_node(retry_ms=10) for _ in range(3)))
    over = asyncio.Event()

    async def talk(call: Call) -> None:
        place = 0
        while not over.is_set():
            await call.say(f"{place} ")
            place += 1
            await asyncio.sleep(0.01)  # the pace of a model
        await call.finish()

    upstream.script = talk
    nodes = (doomed, producing, reading)
    lost, kept, own = ids = [(await node.api.start())["id"] for node in nodes]
    async with many(producing.api, ids) as steady, many(reading.api, ids) as source:
        await source.event("token")

        # when its node is killed and started again, and then the node of another one is killed for good
        await reading.restart()
        await source.connected(2)
        await source.event("live")
        doomed.kill()

        # then both ends are told in-band, and the third goes on
        ended = {(await source.event("end")).json()["generation_id"] for _ in range(2)}
        assert ended == {lost, own}
        await source.event("token")
        over.set()
        for reader in (source, steady):
            await closed_by_204(reader)
            assert shares(reader.events, ids) == await alone(producing.api, ids)
            assert notices(reader.events, "reset") == notices(reader.events, "expired") == []
        statuses = {id: told[-1][1]["status"] for id, told in shares(source.events, ids).items()}
    assert statuses == {lost: "interrupted", own: "interrupted", kept: "completed"}


async def test_drain_cuts_the_reader_so_that_it_comes_back(make_node, run):
    producing, reading = await asyncio.gather(make_node(), make_node())
    one, two = await run(producing.api, "a"), await run(producing.api, "b")
    async with streaming(url_of(reading.api, [one.id, two.id])) as stream:
        await stream.until(b"event: live", after=(await stream.until(b"event: live")).find(b"event: live") + 1)
        stopping = asyncio.create_task(reading.stop())
        answer = await stream.to_end()
        assert not answer.clean
        assert await stopping == 0
    # and elsewhere it goes on exactly there
    cursor = messages(answer.body)[-1].last_event_id
    async with many(producing.api, [one.id, two.id], last_event_id=cursor) as source:
        for running in (one, two):
            await running.call.finish()
        await closed_by_204(source)
    assert shares([*messages(answer.body), *source.events], [one.id, two.id]) == await alone(
        producing.api, [one.id, two.id]
    )


# What is not there, or not any more.


async def test_what_is_unknown_or_expired_among_others_is_told_once_and_fails_nobody(service, other_service, upstream):
    # given one that has expired, and names that nothing can have
    upstream.script = say("x")
    expired = await service.run(None, ttl=1)
    (known,) = await recorded(service, upstream, say("a", "b"))
    await eventually("its expiry", lambda: service.get(f"/generations/{expired}"), lambda answer: answer.status == 404)
    gone = [expired, NEVER_WAS, ":feed", "a/b", "", "x" * 129, "é", "a,b", "\0"]
    for api in (service, other_service):
        # when
        answer = await read_many(api, [*gone[:3], known, *gone[3:]])
        # then
        told = messages(answer.body)
        assert (answer.status, answer.clean) == (200, True)
        assert sorted(notices(told, "expired")) == sorted(gone)
        assert all(event.json().keys() == {"type", "generation_id"} for event in told if event.event == "expired")
        assert shares(told, [known]) == await alone(service, [known])
        # and who was told is not told again
        events = [event for event in told if event.event in KINDS]
        for place, event in enumerate(events[:-1], start=1):
            rest = await read_many(
                api, [*gone[:3], known, *gone[3:]], {"Last-Event-ID": event.last_event_id.encode().decode("latin-1")}
            )
            assert messages(rest.body) == events[place:]


async def test_one_that_is_deleted_while_it_is_read_ends_and_the_others_go_on(service, other_service, run):
    one, two, three = await run(service, "a"), await run(service, "b"), await run(other_service, "c")
    ids = [one.id, two.id, three.id]
    async with many(service, ids) as source:
        for _ in ids:
            await source.event("live")
        for running, api in ((one, other_service), (three, service)):
            assert (await api.delete(f"/generations/{running.id}")).status == 204
            end = (await source.event("end")).json()
            assert (end["generation_id"], end["status"]) == (running.id, "cancelled")
        await two.call.say("more")
        await source.event("token")

        # who comes back is told in-band that they are gone
        source.retry_ms = 1
        source.cut()
        told = {(await source.event("expired")).json()["generation_id"] for _ in range(2)}
        assert told == {one.id, three.id}
        await two.call.finish()
        await closed_by_204(source)
        assert shares(source.events, [*ids])[two.id] == (await alone(service, [two.id]))[two.id]
        assert len(notices(source.events, "expired")) == 2


async def test_reader_whose_generations_have_all_ended_is_done_though_one_was_deleted_since(make_node, upstream):
    # given a reader that has everything
    node = await make_node(retry_ms=1)
    ids = await recorded(node.api, upstream, say("a"), say("b", "c"))
    told = messages((await read_many(node.api, ids)).body)
    # when one of them is deleted before it comes back
    assert (await node.api.delete(f"/generations/{ids[1]}")).status == 204
    # then it is let go, and does not come back for ever
    async with many(node.api, ids, last_event_id=told[-1].last_event_id) as source:
        assert (await source.closed(2)).status == 204
        assert shares(source.events, ids) == {id: [] for id in ids}


async def test_another_log_under_the_same_id_is_told_by_a_reset_of_that_one_only(service, other_service, upstream):
    # given a cursor over two, one of which was deleted since, and is there anew
    upstream.script = say("a", "b", "c")
    again = await service.run(None, id="watched-and-made-anew")
    steady = await service.run()
    ids = [steady, again]
    told = messages((await read_many(service, ids)).body)
    assert (await service.delete(f"/generations/{again}")).status == 204
    upstream.script = say("new")
    assert await service.run(None, id=again) == again
    expected = await alone(service, ids)
    own_ids = [event.last_event_id for event in messages((await service.read(again)).body)]
    for api in (service, other_service):
        for place, event in enumerate(told, start=1):
            # when
            answer = await read_many(api, ids, {"Last-Event-ID": event.last_event_id})
            rest = messages(answer.body)
            seen = shares(told[:place], ids)
            # then what has not changed goes on, and what has begins anew, and says so
            assert shares(rest, ids) == {steady: expected[steady][len(seen[steady]) :], again: expected[again]}
            resets = [event.json() for event in rest if event.event == "reset"]
            assert len(resets) == bool(seen[again])
            for reset in resets:
                assert (reset["generation_id"], reset["reason"]) == (again, "unknown_event_id")
                assert reset["asked"] not in own_ids
            # and the ids that follow are good
            (last,) = rest[-1:]
            assert (await read_many(api, ids, {"Last-Event-ID": last.last_event_id})).status == 204


async def test_generation_that_came_after_it_was_told_as_gone_is_shown_whole(service, upstream):
    # given a reader that was told of one that it is not there
    (known,) = await recorded(service, upstream, say("a"))
    late = "watched-before-it-was-there"
    told = messages((await read_many(service, [late, known])).body)
    assert notices(told, "expired") == [late]
    # when it is there after all
    upstream.script = say("b")
    await service.run(None, id=late)
    # then
    answer = await read_many(service, [late, known], {"Last-Event-ID": told[-1].last_event_id})
    assert shares(messages(answer.body), [late, known]) == {**(await alone(service, [late])), known: []}


# Snapshots.


async def test_snapshots_are_the_transcripts_so_far_and_then_the_exact_tails(service, other_service, run, upstream):
    one, two = await run(service, "a", "b"), await run(other_service)
    (three,) = await recorded(service, upstream, say("c"))
    ids = [one.id, two.id, three]
    for api in (service, other_service):
        async with many(api, ids, mode="snapshot") as source:
            # when
            names: list[str] = []
            while names.count("live") < 2 or "end" not in names:
                names.append((await source.next()).event)
            # then
            found = {event.json()["generation_id"]: event for event in source.events if event.event == "snapshot"}
            assert {id: event.json()["text"] for id, event in found.items()} == {one.id: "ab", two.id: "", three: "c"}
            for id in (one.id, two.id):
                transcript = await service.transcript(id)
                data = found[id].json()
                for name in ("id", "status", "model", "created", "text", "message", "last_event_id"):
                    assert data[name] == transcript[name]
            assert (await alone(service, [three]))[three][-1:] == shares(source.events, ids)[three]

            # and who comes back goes on there
            source.retry_ms = 1
            source.cut()
            for _ in range(2):
                await source.event("live")
            assert [event.event for event in source.events].count("snapshot") == 3
            assert shares(source.events, ids)[one.id] == []

    async with many(service, ids, mode="snapshot") as source:
        await source.event("live")
        await source.event("live")
        await one.call.say("d")
        await one.call.finish()
        await two.call.finish()
        await closed_by_204(source)
        whole = await alone(service, ids)
        told = shares(source.events, ids)
        assert told == {one.id: whole[one.id][3:], two.id: whole[two.id][1:], three: whole[three][-1:]}


async def test_live_comes_behind_the_snapshot_of_one_that_is_alone(service, run):
    one = await run(service, "a")
    async with many(service, [one.id], mode="snapshot") as source:
        live = await source.event("live")
        assert [event.event for event in source.events] == ["snapshot", "live"]
        assert live.last_event_id == source.events[0].last_event_id


async def test_a_cursor_wins_over_snapshots(service, upstream):
    ids = await recorded(service, upstream, say("a", "b"), say("c"))
    told = messages((await read_many(service, ids)).body)
    for place in (0, 3, 5):
        for headers, query in (
            ({"Last-Event-ID": told[place].last_event_id}, {}),
            ({}, {"after": told[place].last_event_id}),
        ):
            answer = await read_many(service, ids, headers, mode="snapshot", **query)
            assert messages(answer.body) == told[place + 1 :]
    assert messages((await read_many(service, ids, mode="snapshot", after="-1")).body) == told


# Limits, and bad input.


async def test_a_hundred_are_read_at_once_and_one_more_is_refused(service, other_service, upstream):
    # given a hundred, with the longest names there can be
    upstream.script = generate(5)
    ids = [f"{place:03}-" + "x" * 124 for place in range(MOST)]
    for place in range(0, MOST, 20):
        await asyncio.gather(*(service.start(id=id) for id in ids[place : place + 20]))
    await asyncio.gather(*(service.ended(id) for id in ids))
    assert len(path_of(service, ids)) > 13_000
    expected = await alone(service, ids)
    for api in (service, other_service):
        # when
        answer = await read_many(api, [*ids, *ids[:5]])
        told = messages(answer.body)
        # then
        assert (answer.status, answer.clean) == (200, True)
        assert shares(told, ids) == expected
        # and it is resumed as any other, be the cursor in a header or in the URL
        for place in (0, 17, len(told) // 2, len(told) - 2):
            cursor = told[place].last_event_id
            for headers, query in (({"Last-Event-ID": cursor}, {}), ({}, {"after": cursor})):
                rest = await read_many(api, ids, headers, **query)
                assert shares(messages(rest.body), ids) == shares(told[place + 1 :], ids)
        assert (await read_many(api, ids, {"Last-Event-ID": told[-1].last_event_id})).status == 204
        assert_problem(await read_many(api, [*ids, NEVER_WAS]), 400, "invalid_request")
        assert_problem(await read_many(api, [*ids, NEVER_WAS], {"Last-Event-ID": told[3].last_event_id}), 400)


@pytest.mark.slow
async def test_a_hundred_that_go_on_come_whole_through_one_connection(service, other_service, upstream):
    upstream.script = generate(10, per_second=10)
    started = [await (service, other_service)[place % 2].start() for place in range(MOST)]
    ids = [generation["id"] for generation in started]
    async with many(service, ids) as source:
        await closed_by_204(source, 20)
    assert shares(source.events, ids) == await alone(other_service, ids)
    assert len(source.connections) == 2


async def test_none_and_only_unknown_ones_are_problems(service, other_service):
    for api in (service, other_service):
        assert_problem(await api.get("/events"), 400, "invalid_request")
        assert_problem(await api.get("/events", generations="a"), 400, "invalid_request")
        assert_problem(await read_many(api, [NEVER_WAS]), 404, "generation_not_found")
        assert_problem(await read_many(api, [NEVER_WAS, "x" * 200, ":feed", ":progress"]), 404, "generation_not_found")
        assert_problem(await read_many(api, [""]), 404, "generation_not_found")
        assert_problem(await read_many(api, [NEVER_WAS], after="-1"), 404, "generation_not_found")


async def test_cursors_of_something_else_are_problems_and_end_the_source(service, upstream):
    one, two, three = await recorded(service, upstream, say("a"), say("b"), say("c"))
    ids = [one, two]
    own = messages((await read_many(service, ids)).body)[3].last_event_id
    other = messages((await read_many(service, [one, three])).body)[3].last_event_id
    turned = messages((await read_many(service, [two, one])).body)[3].last_event_id
    more = messages((await read_many(service, [one, two, three])).body)[3].last_event_id
    single = messages((await service.read(one)).body)[1].last_event_id
    wrong = [other, turned, more, single, own + "x", own[:-1] + ",1.1", own[:20], "abc", "-2", "0", "1-1", own.upper()]
    for cursor in wrong:
        for headers, query in (
            ({"Last-Event-ID": cursor}, {}),
            ({}, {"after": cursor}),
            ({}, {"last_event_id": cursor}),
        ):
            assert_problem(await read_many(service, ids, headers, **query), 400)
    for cursor in (other, "nonsense"):
        async with many(service, ids, last_event_id=cursor) as source:
            assert (await source.closed()).status == 400
    # a bundle's cursor is none of a single generation's
    assert_problem(await service.read(one, {"Last-Event-ID": own}), 400)
    assert_problem(await read_many(service, ids, mode="snapshots"), 400)


async def talk_raw(port: int, data: bytes) -> Answer:
    """Send these bytes, and read what is answered, while they are sent: a client that does not wait its turn."""

    def exchange() -> bytes:
        received = b""
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:

            def send() -> None:
                with contextlib.suppress(OSError):
                    connection.sendall(data)

            sender = threading.Thread(target=send)
            sender.start()
            with contextlib.suppress(ConnectionError):
                while piece := connection.recv(65_536):
                    received += piece
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            sender.join()
        return received

    received = await within("an answer", asyncio.to_thread(exchange), DEADLINE_S + 5)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1."), received[:300]
    lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Answer(int(lines[0].split()[1]), fields, body, clean=len(body) == int(fields["content-length"]))


HOST = b"Host: localhost\r\n"
RUBBISH = {
    "URL of 10 MB": b"GET /events?" + b"generation=abcdefgh&" * 500_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "id of 10 MB": b"GET /events?generation=" + b"x" * 10_000_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "URL of 40 kB": b"GET /events?" + b"generation=abcdefgh&" * 2000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "header of 10 MB": b"GET /events?generation=a HTTP/1.1\r\n"
    + HOST
    + b"Last-Event-ID: "
    + b"1" * 10_000_000
    + b"\r\n\r\n",
    "cursor of 40 kB": b"GET /events?generation=a HTTP/1.1\r\n"
    + HOST
    + b"Last-Event-ID: "
    + b"1," * 20_000
    + b"\r\n\r\n",
    "10 MB and no line": b"x" * 10_000_000,
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(range(256)) * 4 + b"\r\n\r\n",
    "NUL": b"\0" * 1000 + b"\r\n\r\n",
    "version 9": b"GET /events?generation=a HTTP/9.9\r\n" + HOST + b"\r\n",
    "no method": b" /events?generation=a HTTP/1.1\r\n" + HOST + b"\r\n",
    "no URL": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
    "header without a colon": b"GET /events?generation=a HTTP/1.1\r\n" + HOST + b"rubbish\r\n\r\n",
    "length that is none": b"GET /events?generation=a HTTP/1.1\r\n" + HOST + b"Content-Length: x\r\n\r\n",
    "two lengths": b"GET /events HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "NUL in a header": b"GET /events?generation=a HTTP/1.1\r\n" + HOST + b"Last-Event-ID: 1\x00-1\r\n\r\n",
    "CR in a header": b"GET /events?generation=a HTTP/1.1\r\n" + HOST + b"Last-Event-ID: 1\r-1\r\n\r\n",
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("rubbish", RUBBISH)
async def test_what_cannot_be_read_gets_a_problem_document(service, rubbish):
    port = int(service.url.rpartition(":")[2])
    answer = await talk_raw(port, RUBBISH[rubbish])
    assert_problem(answer, 400, "invalid_request")
    assert answer.clean
    assert len(answer.body) < 2000
    assert (await service.get("/healthz")).status == 200


ODD = {
    "percent and no digits": b"GET /events?generation=%ZZ%0 HTTP/1.1\r\n",
    "encoded NUL": b"GET /events?generation=%00 HTTP/1.1\r\n",
    "bytes that are no UTF-8": b"GET /events?generation=%ff%fe HTTP/1.1\r\n",
    "raw bytes": b"GET /events?generation=\xff\xfe HTTP/1.1\r\n",
    "id of 20 kB": b"GET /events?generation=" + b"x" * 20_000 + b" HTTP/1.1\r\n",
    "line feeds": b"GET /events?generation=a%0d%0aevent:x HTTP/1.1\r\n",
}


@pytest.mark.parametrize("odd", ODD)
async def test_what_can_be_read_and_names_nothing_gets_a_problem_document_too(service, odd):
    port = int(service.url.rpartition(":")[2])
    answer = await talk_raw(port, ODD[odd] + HOST + b"Connection: close\r\n\r\n")
    assert answer.status in (400, 404)
    assert_problem(answer, answer.status)


async def test_odd_names_are_told_back_without_breaking_the_stream(service, upstream):
    (known,) = await recorded(service, upstream, say("a"))
    odd = ["a\r\n\r\ndata: x", "\0", "\u2028", '"', "😀", "data: x\n\n", "\ud7ff"]
    answer = await read_many(service, [*odd, known])
    assert _WHOLE_BODY.fullmatch(answer.body)
    assert notices(messages(answer.body), "expired") == odd
    assert shares(messages(answer.body), [known]) == await alone(service, [known])


# Slow, silent and absent readers.


async def test_reader_that_takes_nothing_is_cut_and_resumes_each(make_node, run):
    # given a reader that takes nothing, and one that does
    node = await make_node(write_deadline_s=0.3)
    one, two = await run(node.api, "a"), await run(node.api, "b")
    ids = [one.id, two.id]

    async def slow_aborts() -> float:
        text = (await node.api.get("/metrics")).body.decode()
        return sum(float(line.split()[1]) for line in text.splitlines() if re.match(r"replay_\w*slow\w* ", line))

    assert await slow_aborts() == 0
    async with streaming(url_of(node.api, ids), receive_buffer=4096) as slow, many(node.api, ids) as quick:
        await slow.until(b"event: live")
        for _ in ids:
            await quick.event("live")

        # when more is said than fits in between
        for number in range(40):
            for running in (one, two):
                await running.call.say(f"{number} " + "x" * (150 << 10))
        for running in (one, two):
            await running.call.finish()

        # then the quick one is not held up, and the slow one finds its connection aborted
        await closed_by_204(quick)
        await eventually("the slow reader to be cut", slow_aborts)
        answer = await slow.to_end()
        assert not answer.clean
        got = [event for event in messages(answer.body) if event.event in KINDS]
        assert len(got) < len(quick.received)

        # and what it missed comes when it comes back
        rest = await read_many(node.api, ids, {"Last-Event-ID": got[-1].last_event_id})
        assert shares([*got, *messages(rest.body)], ids) == shares(quick.events, ids) == await alone(node.api, ids)


async def test_silence_is_filled_with_keep_alives_once_per_connection(make_node, run):
    # given a reader of several that all think
    node = await make_node(keepalive_s=0.3)
    generations = [await run(node.api, "a") for _ in range(5)]
    async with streaming(url_of(node.api, [running.id for running in generations])) as stream:
        for _ in generations:
            live = bytes(stream.body).rfind(b"event: live")
            await stream.until(b"event: live", after=live + 1)
        # when
        begun, after = time.monotonic(), len(stream.body)
        for _ in range(4):
            after = (await stream.until(b"\n:k\n", after=max(0, after - 1))).find(b"\n:k\n", max(0, after - 1)) + 4
        # then there is a sign of life in time, and no more than one for all of them
        elapsed = time.monotonic() - begun
        assert elapsed < 4 * 1.0
        await generations[2].call.say("b")
        body = await stream.until(b'"content":"b"')
        assert _WHOLE_BODY.fullmatch(body[: body.rfind(b"\n\n") + 2])
        assert body.count(b"\n:k\n") <= (time.monotonic() - begun) / 0.3 + 2


async def test_reader_of_several_counts_as_a_subscriber_of_each(service, other_service, run):
    one, two = await run(service, "a"), await run(other_service, "b")

    async def counts(api: Api) -> list[int]:
        return [(await api.generation(running.id))["subscribers"] for running in (one, two)]

    async with many(service, [one.id, two.id]) as first:
        await first.event("live")
        for api in (service, other_service):
            await eventually("a subscriber of each", lambda api=api: counts(api), lambda found: found == [1, 1])
        async with many(other_service, [NEVER_WAS, one.id, one.id]) as second, other_service.source(two.id) as third:
            await second.event("live")
            await third.event("live")
            for api in (service, other_service):
                await eventually("two of each", lambda api=api: counts(api), lambda found: found == [2, 2])
    for api in (service, other_service):
        await eventually("nobody", lambda api=api: counts(api), lambda found: found == [0, 0])


@pytest.mark.slow
async def test_generation_that_is_read_among_others_is_not_abandoned(service, other_service, run):
    # given three that may be left alone for a second, of which a reader elsewhere reads two
    one, two, unwatched = [await run(service, "a", abandon_after=1) for _ in range(3)]
    async with many(other_service, [one.id, two.id]) as source:
        await source.event("live")
        # when the third has been given up, and as much time again has passed
        end = await service.ended(unwatched.id)
        assert (end["status"], end["error"]["code"]) == ("cancelled", "abandoned")
        later = await run(service, "a", abandon_after=1)
        await service.ended(later.id)
        # then those that are read go on
        for running in (one, two):
            await running.call.say("b")
            await source.event("token")
    # and are given up once the reader has left
    for running in (one, two):
        assert (await service.ended(running.id))["error"]["code"] == "abandoned"


# Valkey.


@pytest.mark.slow
async def test_valkey_is_cut_off_again_and_again_and_every_reader_has_everything_once(
    make_node, valkey_proxy, upstream
):
    here, there = await asyncio.gather(make_node(retry_ms=10), make_node(retry_ms=10))
    upstream.script = generate(300, per_second=150, text="wörd{} ")
    ids = [(await node.api.start())["id"] for node in (here, there, here)]
    async with many(here.api, [*ids, NEVER_WAS]) as first, many(there.api, [*ids, NEVER_WAS]) as second:
        for place in range(60, 600, 90):
            while len(first.received) < place:
                await first.next()
            valkey_proxy.cut()
        for source in (first, second):
            assert (await source.closed()).status == 204
            assert shares(source.events, ids) == await alone(here.api, ids)
            assert notices(source.events, "reset") == []
            assert set(notices(source.events, "expired")) <= {NEVER_WAS}


@pytest.mark.slow
async def test_valkey_is_killed_and_restarted_and_every_reader_has_everything_once(make_node, valkey, upstream):
    here, there = await asyncio.gather(make_node(retry_ms=10), make_node(retry_ms=10))
    upstream.script = generate(500, per_second=200, text="wörd{} ")
    ids = [(await node.api.start())["id"] for node in (here, there)]
    async with many(here.api, ids) as first, many(there.api, ids) as second:
        while len(first.received) < 200:
            await first.next()
        valkey.kill()
        await asyncio.to_thread(valkey.start)
        for source in (first, second):
            await closed_by_204(source, 20)
            assert notices(source.events, "expired") == notices(source.events, "reset") == []
            assert shares(source.events, ids) == await alone(here.api, ids)


async def test_while_valkey_is_away_readers_are_told_to_come_back(node, valkey_proxy, upstream):
    ids = await recorded(node.api, upstream, say("a"), say("b"))
    cursor = messages((await read_many(node.api, ids)).body)[1].last_event_id
    # when
    await valkey_proxy.refuse()
    valkey_proxy.cut()
    # then, whatever is asked for
    for wanted in ([NEVER_WAS], [ids[0], NEVER_WAS]):
        answer = await read_many(node.api, wanted)
        assert (answer.status, answer.body, answer.clean) == (200, b":k\n", False)
        assert answer.headers["content-type"].startswith("text/event-stream")
    answer = await read_many(node.api, ids, {"Last-Event-ID": cursor})
    assert (answer.status, answer.body, answer.clean) == (200, b":k\n", False)
    # and what is wrong with the request is told all the same
    assert_problem(await read_many(node.api, ids, {"Last-Event-ID": "nonsense"}), 400)
    # and a reader that waits has everything as soon as Valkey is back
    async with many(node.api, [*ids, NEVER_WAS]) as source:
        source.retry_ms = 20
        await source.connected(2)
        await valkey_proxy.accept()
        await closed_by_204(source)
        assert shares(source.events, ids) == await alone(node.api, ids)
        assert set(notices(source.events, "expired")) == {NEVER_WAS}


async def footprint(valkey: ValkeyServer) -> tuple[int, int]:
    """How many connections the nodes have to Valkey, and how many subscriptions."""
    async with valkey.client() as client:
        clients = [entry for entry in await client.client_list() if entry["name"].startswith("replay-")]
    return len(clients), sum(int(entry["ssub"]) for entry in clients)


async def calls_of(valkey: ValkeyServer) -> int:
    """How many commands Valkey has carried out, without those of this test."""
    stats = await commands(valkey)
    mine = ("info", "client", "hello", "auth", "select", "ping", "config")
    return sum(stat["calls"] for name, stat in stats.items() if not name.removeprefix("cmdstat_").startswith(mine))


@pytest.mark.slow
async def test_fifty_readers_of_the_same_twenty_cost_valkey_what_one_costs(make_node, valkey, run):
    # given twenty that run on one node, and are read on the other
    producing, reading = await asyncio.gather(make_node(), make_node())
    generations = [await run(producing.api, "a") for _ in range(20)]
    ids = [running.id for running in generations]

    async def cost(sources: Sequence[EventSourceClient]) -> int:
        """What Valkey is asked in two seconds in which each generation says ten words."""
        before, begun = await calls_of(valkey), time.monotonic()
        for turn in range(10):
            await asyncio.gather(*(running.call.say(str(turn)) for running in generations))
            for source in sources:
                for _ in ids:
                    await source.event("token")
            await asyncio.sleep(max(0.0, begun + 0.2 * (turn + 1) - time.monotonic()))
        return await calls_of(valkey) - before

    async with contextlib.AsyncExitStack() as stack:
        # when there is one reader, and then fifty
        sources = [await stack.enter_async_context(many(reading.api, ids))]
        for _ in ids:
            await sources[0].event("live")
        one, one_costs = await footprint(valkey), await cost(sources)
        for _ in range(49):
            order = random.Random(len(sources)).sample(ids, len(ids))
            sources.append(await stack.enter_async_context(many(reading.api, order)))
        for source in sources[1:]:
            for _ in ids:
                await source.event("live")
        fifty, fifty_cost = await footprint(valkey), await cost(sources)

    # then Valkey sees no difference
    assert fifty == one
    assert fifty_cost < 1.25 * one_costs + 20, (one_costs, fifty_cost)
