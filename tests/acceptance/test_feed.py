"""`GET /feed`: the activity of all generations, as one log that every node writes and anybody may follow."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
from support.api import TERMINAL, Api, assert_problem, event_id
from support.deadlines import DEADLINE_S, eventually, within
from support.fault_proxy import FaultProxy
from support.http1 import request
from support.logs import commands, expiries
from support.sse import EventSourceClient, Message, messages, read_stream, streaming
from support.upstream import USAGE, Call, ScriptedUpstream, generate, say
from support.valkey import ValkeyServer
from support.valkey_wires import ValkeyWires, command

LIFE = ("created", "first_token", "ended")
WHOLE = sorted(LIFE)
KEY = "replay:{:feed}:events"
KEPT = 10_000
PATIENT = {"lease_s": 10}  # a node that is off Valkey for a moment is not dead


# What is asked, and what comes.


def follow(api: Api, *, last_event_id: str = "", **query: Any) -> EventSourceClient:
    """An EventSource on the feed."""
    return EventSourceClient(api.at("/feed", **query), last_event_id=last_event_id)


async def until_live(api: Api, headers: Mapping[str, str] | None = None, **query: Any) -> list[Message]:
    """What one connection is told until it has caught up."""
    async with streaming(api.at("/feed", **query), headers) as stream:
        assert stream.status == 200
        body = await stream.until(b"event: live\n")
    return messages(body[: body.rfind(b"event: live\n")])


def leave_nothing_out(events: Iterable[Message]) -> bool:
    """Whether who comes back with the id of any of them, be it one of the log or not, gets all that came after it."""
    last = (-1, -1)
    for event in events:
        before = last
        last = event_id(event.last_event_id) if event.last_event_id != "-1" else before
        if last < before or (event.event in LIFE and last == before):
            return False
    return True


async def kept(api: Api) -> list[Message]:
    """All that the feed has."""
    return await until_live(api, after="-1")


def ids(events: Iterable[Message]) -> list[str]:
    return [event.last_event_id for event in events]


def lives(events: Iterable[Message]) -> dict[str, list[str]]:
    """What has happened to each generation, in order."""
    found: dict[str, list[str]] = {}
    for event in events:
        if event.event in LIFE:
            found.setdefault(event.json()["generation_id"], []).append(event.event)
    return found


def happened(events: Iterable[Message]) -> dict[str, list[str]]:
    """What has happened to each generation, in whatever order: each that has lived and ended has `WHOLE`."""
    return {id: sorted(names) for id, names in lives(events).items()}


def life_of(events: Iterable[Message], id: str) -> list[dict[str, Any]]:
    """The data of what has happened to one generation."""
    return [event.json() for event in events if event.event in LIFE and event.json()["generation_id"] == id]


async def of(source: EventSourceClient, id: str, name: str, seconds: float = DEADLINE_S) -> dict[str, Any]:
    """The event of that name about a generation, as soon as it has come."""
    while True:
        for event in source.events:
            if event.event == name:
                data: dict[str, Any] = event.json()
                if data["generation_id"] == id:
                    return data
        await source.next(seconds)


async def written(valkey: ValkeyServer) -> list[Message]:
    """The feed as it stands in Valkey, without what was taken out."""
    async with valkey.client() as client:
        entries = await client.xrange(KEY)
    found = []
    for id, fields in entries:
        name, _, data = fields[b"e"][1:].partition(b" ")
        if name:
            found.append(Message(name.decode(), data.decode(), id.decode()))
    return found


async def until_written(valkey: ValkeyServer, id: str, names: Sequence[str]) -> None:
    """Wait until so much about a generation stands in Valkey."""
    await eventually(
        f"{names} of {id}", lambda: written(valkey), lambda events: set(names) <= set(lives(events).get(id, []))
    )


async def settled(upstream: ScriptedUpstream, *apis: Api) -> None:
    """Return when everything that has happened so far on these nodes stands in the feed: a node tells in order."""
    script, upstream.script = upstream.script, say()
    for api in apis:
        async with follow(api) as source:
            await source.event("live")
            id = await eventually("a start", lambda api=api: _started(api), lambda id: id is not None)
            await of(source, id, "ended")
    upstream.script = script


async def opened(*apis: Api) -> None:
    """Let nodes begin to follow the feed while nothing happens: opening it is the subject of a test of its own."""
    for api in apis:
        await kept(api)


def contiguous(events: Sequence[Message]) -> bool:
    """Whether every seq follows the one before, and times never go back."""
    places = [event_id(event.last_event_id) for event in events]
    return all(seq == before + 1 and ms >= earlier for (earlier, before), (ms, seq) in itertools.pairwise(places))


async def many_at_once(calls: Iterable[Callable[[], Awaitable[Any]]], limit: int = 16) -> list[Any]:
    """Make many calls, so many at a time."""
    gate = asyncio.Semaphore(limit)

    async def one(call: Callable[[], Awaitable[Any]]) -> Any:
        async with gate:
            return await call()

    return await asyncio.gather(*map(one, calls))


# The wire to Valkey, for faults that hit the feed alone.


class _Tapped:
    """A reader that tells what it reads before it hands it on."""

    def __init__(self, source: asyncio.StreamReader, tell: Callable[[bytes], None]) -> None:
        self._source = source
        self._tell = tell

    async def read(self, most: int) -> bytes:
        data = await self._source.read(most)
        self._tell(data)
        return data


class FeedWire(FaultProxy):
    """A node's wire to Valkey that knows an append to the feed when it sees one."""

    _APPEND = command(KEY, "replay:{:feed}:request")
    _PUBLISHED = re.compile(rb"\r\nreplay:\{:progress\}\r\n\$(\d+)\r\n")

    def __init__(self, target_url: str) -> None:
        super().__init__(target_url)
        self.appends = 0  # to the feed
        self.published: list[int] = []  # the sizes of what was told of progress
        self._strike: Callable[[], None] | None = None

    def hold_reply_of_next_append(self) -> None:
        """Let the next append to the feed through, and no reply after that."""
        self._strike = self.hold_replies

    def hold_next_append(self) -> None:
        """Hold the next append to the feed, and what comes after it."""
        self._strike = self.hold_requests

    async def lose_what_is_held(self) -> None:
        """End all connections and take no new ones."""
        await self.refuse()
        self.cut()
        self.release()

    def _see(self, data: bytes) -> None:
        appends = data.count(self._APPEND)
        self.appends += appends
        self.published += [int(size) for size in self._PUBLISHED.findall(data)]
        if appends and self._strike is not None:
            self._strike()
            self._strike = None

    async def _pump(self, source: Any, sink: asyncio.StreamWriter, way: Any) -> None:
        await super()._pump(_Tapped(source, self._see) if way is self.requests else source, sink, way)


@pytest.fixture
async def wire(valkey: ValkeyServer) -> AsyncIterator[FeedWire]:
    async with FeedWire(valkey.url) as wire:
        yield wire


# What is told.


async def test_life_of_a_generation_is_told_as_it_happens(service, other_service, upstream):
    async with follow(service) as here, follow(other_service) as there:
        for source in (here, there):
            assert (await source.event("live")).json()["type"] == "live"

        # when it is started, then that is told before the upstream has answered
        generation = await service.start()
        id = generation["id"]
        call = await upstream.called()
        for source in (here, there):
            created = await of(source, id, "created")
            assert (
                created.items()
                >= {
                    "type": "created",
                    "generation_id": id,
                    "status": "queued",
                    "model": "test-model",
                    "created": generation["created"],
                }.items()
            )

        # when it has spoken, then that is told, once
        for word in ("a", "b", "c"):
            await call.say(word)
        for source in (here, there):
            first = await of(source, id, "first_token")
            assert (first["status"], first["model"], first["created"]) == (
                "streaming",
                "test-model",
                generation["created"],
            )
            assert first["ttft_ms"] >= 0

        # when it has ended
        await call.finish(usage=USAGE)
        end = (await service.log(id))[-1].json()
        for source in (here, there):
            ended = await of(source, id, "ended")
            told = ("status", "finish_reason", "usage", "error", "total_tokens", "ttft_ms", "duration_ms", "timestamp")
            assert {name: ended[name] for name in told} == {name: end[name] for name in told}
            assert (ended["type"], ended["model"], ended["created"]) == ("ended", "test-model", generation["created"])
            assert ended["ttft_ms"] == first["ttft_ms"]
            assert ended["tokens"] == 3
    await settled(upstream, service, other_service)
    assert happened(await kept(other_service))[id] == WHOLE


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_what_openai_s_clients_start_is_told_too(service, upstream, path):
    upstream.script = say("a")
    body: dict[str, Any] = {"model": "test-model"} | (
        {"messages": [{"role": "user", "content": "Hi"}]}
        if "chat" in path
        else {"input": "Hi"}
        if "responses" in path
        else {"prompt": "Hi"}
    )
    async with follow(service) as source:
        await source.event("live")
        assert (await service.post(path, body)).status == 200
        id = (await source.event("created")).json()["generation_id"]
        assert (await of(source, id, "ended"))["status"] == "completed"
        assert happened(source.events)[id] == WHOLE


async def test_generation_that_fails_before_its_first_word_has_no_first_token(service, upstream):
    async def refuse(call: Call) -> None:
        await call.respond(500, {"error": {"message": "no", "type": "server_error"}})

    async with follow(service) as source:
        await source.event("live")
        for script, code in ((refuse, "upstream_error"), (Call.cut, "upstream_unreachable"), (Call.done, None)):
            upstream.script = script
            id = await service.run()
            ended = await of(source, id, "ended")
            assert (ended["status"], ended["tokens"], ended["ttft_ms"]) == ("failed", 0, None)
            assert ended["error"] == (await service.generation(id))["error"]
            assert code is None or ended["error"]["code"] == code
            assert lives(source.events)[id] == ["created", "ended"]


async def test_answer_without_visible_text_has_no_first_token(service, upstream):
    async with follow(service) as source:
        await source.event("live")
        upstream.script = say()
        id = await service.run()
        assert (await of(source, id, "ended"))["status"] == "completed"
        assert lives(source.events)[id] == ["created", "ended"]


async def test_answer_that_comes_in_one_piece_is_told_in_order(service, other_service, upstream):
    # given answers that are there all at once
    async def at_once(call: Call) -> None:
        chunks = [call.chunk({"delta": {"content": word}}) for word in ("a", "b")]
        chunks.append(call.chunk({"delta": {}, "finish_reason": "stop"}))
        await call.send_raw(b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks))
        await call.send_raw(b"data: [DONE]\n\n")
        await call.done()

    upstream.script = at_once
    async with follow(other_service) as source:
        await source.event("live")
        # when
        started = await many_at_once([service.start] * 100)
        waiting = {generation["id"] for generation in started}
        while waiting:
            waiting.discard((await source.event("ended")).json()["generation_id"])
    # then
    await settled(upstream, service)
    told = lives(await kept(service))
    assert {tuple(told[generation["id"]]) for generation in started} == {LIFE}


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("spoken", [False, True])
async def test_cancelled_generation_has_one_end(service, other_service, upstream, where, spoken):
    async with follow(service) as here, follow(other_service) as there:
        for source in (here, there):
            await source.event("live")
        id = (await service.start())["id"]
        call = await upstream.called()
        if spoken:
            await call.say("a")
            await of(there, id, "first_token")
        # when it is cancelled, on one node or both at once
        apis = [service] * 3 if where == "here" else [other_service, service, other_service]
        answers = await asyncio.gather(*(api.post(f"/generations/{id}/cancel") for api in apis))
        assert {answer.status for answer in answers} == {200}
        # then
        await call.hung_up()
        for source in (here, there):
            ended = await of(source, id, "ended")
            assert (ended["status"], ended["error"], ended["tokens"]) == ("cancelled", None, int(spoken))
    await settled(upstream, service, other_service)
    expected = ["created", *(["first_token"] if spoken else []), "ended"]
    for api in (service, other_service):
        assert lives(await kept(api))[id] == expected


async def test_generation_that_many_cancel_at_once_elsewhere_has_one_end(service, other_service, upstream):
    # given generations of one node
    started = [(await service.start())["id"] for _ in range(20)]
    for _ in started:
        await upstream.called()
    # when several clients cancel each on the other one, in the same millisecond if they can
    for id in started:
        answers = await asyncio.gather(*(other_service.post(f"/generations/{id}/cancel") for _ in range(4)))
        assert {answer.status for answer in answers} == {200}
    # then
    await settled(upstream, service, other_service)
    told = lives(await kept(service))
    assert {tuple(told[id]) for id in started} == {("created", "ended")}


async def test_word_that_is_not_in_the_log_is_not_told(make_node, valkey, upstream):
    # given a generation whose first word does not reach Valkey before it is cancelled elsewhere
    async with ValkeyWires(valkey.url) as wires:
        producing = await make_node(valkey_url=wires.url, **PATIENT)
        other = await make_node()
        id = (await producing.api.start())["id"]
        call = await upstream.called()
        await until_written(valkey, id, ["created"])
        wires.appends.hold_requests()
        await call.say("a")
        await wires.appends.request_held()
        # when
        assert (await other.api.post(f"/generations/{id}/cancel")).status == 200
        wires.appends.release()
        await call.hung_up()
        # then
        assert [event.event for event in await other.api.log(id)] == ["start", "end"]
        await settled(upstream, producing.api, other.api)
        assert lives(await written(valkey))[id] == ["created", "ended"]


async def test_generation_whose_node_was_killed_has_one_end(make_node, upstream, valkey):
    # given three nodes, one of which produces
    doomed, *others = await asyncio.gather(*(make_node() for _ in range(3)))
    async with follow(others[0].api) as here, follow(others[1].api) as there:
        for source in (here, there):
            await source.event("live")
        started = [(await doomed.api.start())["id"] for _ in range(5)]
        for _ in started:
            await (await upstream.called()).say("a")
        for id in started:
            await of(here, id, "first_token")
        # when
        doomed.kill()
        # then
        for source in (here, there):
            left = set(started)
            while left:
                ended = (await source.event("ended")).json()
                assert (ended["status"], ended["error"]["code"]) == ("interrupted", "node_lost")
                assert ended["tokens"] == 1
                left.remove(ended["generation_id"])
    await settled(upstream, *(node.api for node in others))
    told = happened(await written(valkey))
    assert [told[id] for id in started] == [WHOLE] * 5


async def test_generation_whose_node_was_shut_down_has_one_end(make_node, upstream, valkey):
    leaving, staying = await asyncio.gather(make_node(), make_node())
    async with follow(staying.api) as source, streaming(leaving.api.at("/feed")) as left:
        await source.event("live")
        await left.until(b"event: live\n")
        id = (await leaving.api.start())["id"]
        await (await upstream.called()).say("a")
        await of(source, id, "first_token")
        # when
        assert await leaving.stop() == 0
        # then
        ended = await of(source, id, "ended")
        assert (ended["status"], ended["error"]["code"]) == ("interrupted", "shutdown")
        # and who has followed it there was cut off, not told that it is over
        assert not (await left.to_end()).clean
    await settled(upstream, staying.api)
    assert lives(await written(valkey))[id] == [*LIFE]


async def test_end_that_its_node_could_not_tell_any_more_is_told_all_the_same(make_node, upstream, valkey, wire):
    # given a node that dies when the end stands, and before it has told it
    doomed = await make_node(valkey_url=wire.url)
    other = await make_node()
    async with follow(other.api) as source:
        await source.event("live")
        id = (await doomed.api.start())["id"]
        call = await upstream.called()
        await call.say("a")
        await of(source, id, "first_token")
        wire.hold_next_append()
        await call.finish()
        await wire.request_held()
        await other.api.ended(id)
        # when
        doomed.kill()
        await wire.lose_what_is_held()
        # then
        assert (await of(source, id, "ended", 5))["status"] == "completed"


async def test_life_of_which_its_node_could_tell_nothing_is_told_by_another(make_node, upstream, valkey, wire):
    # given a node that dies before it has told anything of a generation that has spoken
    doomed = await make_node(valkey_url=wire.url)
    other = await make_node()
    async with follow(other.api) as source:
        await source.event("live")
        wire.hold_next_append()
        starting = asyncio.create_task(doomed.api.post("/generations", {"prompt": "Hi", "replay": {"id": "untold"}}))
        await wire.request_held()
        # when
        doomed.kill()
        await wire.lose_what_is_held()
        # then
        assert (await of(source, "untold", "ended", 5))["error"]["code"] == "node_lost"
    with contextlib.suppress(OSError, EOFError):
        await starting
    assert lives(await written(valkey))["untold"] == ["created", "ended"]


async def test_node_that_comes_back_after_another_has_told_the_end_does_not_tell_it_again(make_node, upstream, valkey):
    # given a node that is stopped until it is taken for dead
    paused, other = await asyncio.gather(make_node(), make_node())
    async with follow(other.api) as source:
        await source.event("live")
        id = (await paused.api.start())["id"]
        call = await upstream.called()
        await call.say("a")
        await of(source, id, "first_token")
        paused.pause()
        assert (await of(source, id, "ended", 10))["error"]["code"] == "node_lost"
        # when
        paused.resume()
        await call.hung_up()
        # then
        await settled(upstream, paused.api, other.api)
    assert lives(await written(valkey))[id] == [*LIFE]


async def test_cancel_whose_answer_from_valkey_was_lost_is_told(make_node, upstream, valkey):
    # given a generation that is cancelled from another node, whose connection is lost when it is done
    async with ValkeyWires(valkey.url) as wires:
        producing = await make_node(**PATIENT)
        other = await make_node(valkey_url=wires.url, **PATIENT)
        async with follow(producing.api) as source:
            await source.event("live")
            id = (await producing.api.start())["id"]
            call = await upstream.called()
            await call.say("a")
            await of(source, id, "first_token")
            wires.appends.hold_replies()
            cancelling = asyncio.create_task(other.api.post(f"/generations/{id}/cancel"))
            await eventually("the end", lambda: producing.api.generation(id), lambda g: g["status"] == "cancelled")
            wires.appends.cut()
            wires.appends.release()
            # when the client asks until it is told that it is done
            answer = await cancelling
            while answer.status != 200:
                answer = await other.api.post(f"/generations/{id}/cancel")
            assert answer.json()["status"] == "cancelled"
            # then
            assert (await of(source, id, "ended", 5))["status"] == "cancelled"
        await settled(upstream, producing.api, other.api)
        assert happened(await written(valkey))[id] == WHOLE


async def test_idempotent_start_is_told_once(service, other_service, upstream):
    upstream.script = say("a")
    body = {"prompt": "Hi", "model": "test-model"}
    async with follow(service) as source:
        await source.event("live")
        answers = [
            await api.post("/generations", body, {"Idempotency-Key": f"feed-{time.time_ns() // 10**10}"})
            for api in (service, other_service, service)
        ]
        (id,) = {answer.json()["id"] for answer in answers}
        await of(source, id, "ended")
    await settled(upstream, service, other_service)
    assert happened(await kept(service))[id] == WHOLE


# Where a reader begins, and how it goes on.


async def test_without_a_cursor_it_begins_now_and_with_minus_one_at_the_beginning(make_node, valkey, upstream):
    node, other = await asyncio.gather(make_node(), make_node())
    # given a feed of which nothing was told yet
    assert await kept(node.api) == []
    upstream.script = say("a")
    before = [await node.api.run() for _ in range(3)]
    await settled(upstream, node.api)
    for api in (node.api, other.api):
        # when
        async with follow(api) as now, follow(api, after="-1") as all_of_it:
            assert (await now.event("live")).last_event_id == (await written(valkey))[-1].last_event_id
            await all_of_it.event("live")
            id = await node.api.run()
            for name in LIFE:
                await of(now, id, name)
                await of(all_of_it, id, name)
        # then
        assert happened(now.received) == {id: WHOLE}
        assert list(lives(all_of_it.received))[:3] == before
        assert all_of_it.received == await kept(api)
        assert contiguous(all_of_it.received)
        assert event_id(all_of_it.received[0].last_event_id)[1] == 0
        assert [event.event for event in all_of_it.events if event.event not in LIFE] == ["live"]


@pytest.fixture
async def told(service: Api, upstream: ScriptedUpstream) -> list[Message]:
    """What the shared nodes' feed has, a good deal of it."""
    await opened(service)
    upstream.script = say("a", "b")
    for _ in range(4):
        await service.run()
    upstream.script = say()
    await service.run()
    await settled(upstream, service)
    return await kept(service)


async def test_every_id_leads_to_exactly_what_comes_after_it(service, other_service, told):
    for place, event in list(enumerate(told, start=1))[-15:]:
        for api in (service, other_service):
            cursor = event.last_event_id
            for headers, query in (
                ({"Last-Event-ID": cursor}, {}),
                ({}, {"after": cursor}),
                ({}, {"last_event_id": cursor}),
            ):
                rest = await until_live(api, headers, **query)
                assert rest[: len(told) - place] == told[place:], cursor
                assert [event.event for event in rest if event.event not in LIFE] == []
    headers = {"Last-Event-ID": told[-3].last_event_id}
    assert (await until_live(service, headers, after=told[-5].last_event_id))[:2] == told[-2:]


async def test_id_of_what_was_deleted_leads_to_what_comes_after_it_also_where_that_was_never_read(
    make_node, valkey, upstream
):
    # given a reader of the feed whose last event is that of a generation which is deleted then
    here, other = await make_node(), await make_node()
    upstream.script = say("a")
    for id in ("kept", "doomed"):
        await here.api.run(id=id)
        await until_written(valkey, id, LIFE)
    cursor = (await until_live(here.api, after="-1"))[-1].last_event_id
    assert (await here.api.delete("/generations/doomed")).status == 204
    await here.api.run(id="next")
    await until_written(valkey, "next", LIFE)

    # when it goes on, with a node that has read the feed before, or with one that has not
    for node in (here, other):
        rest = await until_live(node.api, {"Last-Event-ID": cursor})

        # then
        assert [(event.event, event.json()["generation_id"]) for event in rest] == [(name, "next") for name in LIFE]


async def test_source_that_is_cut_again_and_again_misses_nothing(make_node, upstream):
    here, there = await asyncio.gather(make_node(retry_ms=1), make_node(retry_ms=1))
    upstream.script = say("a")
    chance = random.Random(2)
    async with FaultProxy(here.url) as proxy, follow(here.api) as first:
        await first.event("live")
        async with EventSourceClient(f"http://127.0.0.1:{proxy.port}/feed", retry_ms=1) as source:
            await source.event("live")
            starting = asyncio.create_task(
                many_at_once([(here, there)[place % 2].api.run for place in range(60)], limit=4)
            )
            cuts = 0
            while not starting.done():
                proxy.cut_replies_after(chance.randrange(1, 3000))
                cut = asyncio.create_task(proxy.reply_cut(30))
                await asyncio.wait((cut, starting), return_when=asyncio.FIRST_COMPLETED)
                cuts += cut.done()
                cut.cancel()
                await asyncio.gather(cut, return_exceptions=True)
            proxy.cut_replies_after(1 << 40)
            for id in await starting:
                for name in LIFE:
                    await of(source, id, name)
    assert cuts > 10
    events = [event for event in source.events if event.event in LIFE]
    assert len(lives(events)) == 60
    assert {tuple(life) for life in happened(events).values()} == {tuple(WHOLE)}
    assert contiguous(events)
    assert [event for event in source.events if event.event == "reset"] == []


@pytest.mark.parametrize("unknown", ["0-0", "1-5", "other ms", "ahead", "99999999999999-3"])
async def test_unknown_cursor_is_answered_by_a_reset_and_all_that_is_kept(service, other_service, told, unknown):
    ms, seq = event_id(told[-2].last_event_id)
    cursor = {"other ms": f"{ms - 1}-{seq}", "ahead": f"{ms}-{seq + 100_000}"}.get(unknown, unknown)
    for api in (service, other_service):
        reset, *events = await until_live(api, {"Last-Event-ID": cursor})
        assert (reset.event, reset.last_event_id) == ("reset", "")
        assert reset.json() == {"type": "reset", "reason": "unknown_event_id", "asked": cursor}
        assert events == told
        lines = await lines_until_live(api, after=cursor)
        assert [line["type"] for line in lines] == ["reset", *(event.event for event in told)]


@pytest.mark.parametrize("malformed", ["abc", "1", "1-", "-", "-2", "1-2-3", "$", "0:1.1", "1" * 30 + "-1", "x" * 9000])
async def test_malformed_cursor_is_a_problem_and_ends_the_source(service, malformed):
    for headers, query in (({"Last-Event-ID": malformed}, {}), ({}, {"after": malformed})):
        assert_problem(await read_stream(service.at("/feed", **query), headers), 400)
    async with follow(service, last_event_id=malformed) as source:
        assert (await source.closed()).status == 400


async def test_what_cannot_be_asked_for_is_a_problem(service):
    for query in ({"progress": "2"}, {"progress": ""}, {"progress": "true"}):
        assert_problem(await service.get("/feed", **query), 400)
    assert_problem(await read_stream(service.at("/feed"), {"Accept": "application/json"}), 406)
    for method in ("POST", "PUT", "DELETE"):
        assert (await request(method, service.at("/feed"))).status == 405
    # the feed's log is nobody's generation
    for path in ("/generations/:feed", "/generations/:feed/events", "/generations/:feed/transcript"):
        assert_problem(await service.get(path), 404)
    assert_problem(await service.delete("/generations/:feed"), 404)
    assert_problem(await service.post("/generations", {"prompt": "Hi", "replay": {"id": ":feed"}}), 400)


async def test_head_and_body_are_an_event_stream_s(service, told):
    async with streaming(service.at("/feed", after=told[-3].last_event_id)) as stream:
        await stream.until(b"event: live\n")
        body = await stream.until(b"\n\n", after=stream.body.find(b"event: live\n"))
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["cache-control"] == "no-cache, no-transform"
    assert stream.headers["x-accel-buffering"] == "no"
    assert "replay-generation-id" not in stream.headers  # it is no generation's
    block = rb"event: (?:created|first_token|ended|live)\ndata: \{[^\r\n\0]*\}\nid: \d+-\d+\n\n"
    assert re.fullmatch(rb"retry: \d+\n(?:" + block + rb"){3}", body)


async def lines_until_live(api: Api, **query: Any) -> list[dict[str, Any]]:
    async with streaming(api.at("/feed", **query), {"Accept": "application/x-ndjson"}) as stream:
        assert (stream.status, stream.headers["content-type"]) == (200, "application/x-ndjson")
        body = await stream.until(b'"type":"live"')
    return [json.loads(line) for line in body.splitlines()[:-1]] if body.endswith(b"\n") else _whole_lines(body)


def _whole_lines(body: bytes) -> list[dict[str, Any]]:
    found = []
    for line in body.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [line for line in found if line["type"] != "live"]


async def test_lines_are_the_same_events(service, told, upstream):
    expected = [{"id": event.last_event_id, **event.json()} for event in told]
    lines = await lines_until_live(service, after="-1")
    assert lines[: len(expected)] == expected
    assert (await lines_until_live(service, after=told[-4].last_event_id))[:3] == expected[-3:]
    # and they come as it happens
    async with streaming(service.at("/feed"), {"Accept": "application/x-ndjson"}) as stream:
        await stream.until(b'"type":"live"')
        upstream.script = say("a")
        id = await service.run()
        body = await stream.until(b'"type":"ended","generation_id":"%b"' % id.encode())
    told_now = [json.loads(line) for line in body.splitlines()[:-1]]
    assert "created" in [line["type"] for line in told_now if line.get("generation_id") == id]


async def test_silence_is_filled_with_keep_alives(make_node):
    node = await make_node(keepalive_s=0.3)
    async with streaming(node.api.at("/feed")) as stream:
        await stream.until(b"event: live\n")
        body = await stream.until(b"\n:k\n:k\n:k\n", seconds=4)
        assert re.fullmatch(rb"retry: \d+\nevent: live\ndata: \{[^\n]*\}\nid: (?:-1|\d+-\d+)\n\n(?::k\n)+", body)


# List, then follow.


async def test_list_and_what_follows_it_miss_nothing(service, other_service, upstream):
    # given generations that come and go all the time on two nodes
    apis = (service, other_service)
    await opened(*apis)
    upstream.script = generate(3, per_second=100)
    over = False

    async def keep_starting(api: Api) -> list[str]:
        begun = []
        while not over:
            begun.append(await api.run())
        return begun

    starting = [asyncio.create_task(keep_starting(api)) for api in apis for _ in range(3)]
    views: list[tuple[dict[str, str], EventSourceClient]] = []
    async with contextlib.AsyncExitStack() as stack:
        for turn in range(20):
            # when the list is read, and the feed is followed from there, on either node
            lister, follower = random.Random(turn).choices(apis, k=2)
            page = (await lister.get("/generations", limit="1000")).json()
            known = {generation["id"]: generation["status"] for generation in page["generations"]}
            source = await stack.enter_async_context(follow(follower, after=page["feed_cursor"]))
            views.append((known, source))
            await source.event("live")
        over = True
        begun = {id for some in await asyncio.gather(*starting) for id in some}
        last = [await api.run() for api in apis]
        await settled(upstream, *apis)
        for _, source in views:
            for id in last:
                await of(source, id, "ended")
    # then both together know every generation, and how it has ended
    assert len(begun) > 20
    for known, source in views:
        for event in source.events:
            if event.event in LIFE:
                data = event.json()
                if known.get(data["generation_id"]) not in TERMINAL:
                    known[data["generation_id"]] = data["status"]
        assert {id: known.get(id) for id in (*begun, *last)} == dict.fromkeys((*begun, *last), "completed")
        assert [event for event in source.events if event.event == "reset"] == []


async def test_cursor_of_an_event_that_this_node_has_not_heard_of_yet_is_known(make_node, valkey, upstream):
    # given a node that follows the feed, and whose channels are slow
    async with ValkeyWires(valkey.url) as wires:
        quick = await make_node()
        slow = await make_node(valkey_url=wires.url, store_timeout_s=5)
        upstream.script = say("a")
        async with follow(slow.api) as source:
            await source.event("live")
            id = await quick.api.run()
            await settled(upstream, quick.api)
            for name in LIFE:
                await of(source, id, name)
            wires.channels.hold_replies()
            await quick.api.run()
            await wires.channels.reply_held()
            await settled(upstream, quick.api)
            told = await kept(quick.api)
            # when somebody comes with the cursor that another node, or the list, has given
            for cursor in (told[-2].last_event_id, (await slow.api.get("/generations")).json()["feed_cursor"]):
                events = await until_live(slow.api, {"Last-Event-ID": cursor})
                # then it is known
                place = ids(told).index(cursor) + 1
                assert events == told[place:]
            wires.channels.release()


# Many writers.


async def test_two_nodes_under_load_write_one_log_in_which_everything_stands_once(make_node, valkey, upstream):
    here, there = nodes = await asyncio.gather(make_node(), make_node())
    upstream.script = generate(3)
    async with follow(here.api) as first, follow(there.api) as second:
        for source in (first, second):
            await source.event("live")
        # when
        begun = time.monotonic()
        started = await many_at_once([nodes[place % 2].api.start for place in range(200)], limit=20)
        started_ids = [generation["id"] for generation in started]
        for source in (first, second):
            left = set(started_ids)
            while left:
                left.discard((await source.event("ended")).json()["generation_id"])
        print(f"200 generations in {time.monotonic() - begun:.1f} s")
    # then
    await settled(upstream, here.api, there.api)
    log = await written(valkey)
    assert {id: happened(log)[id] for id in started_ids} == dict.fromkeys(started_ids, WHOLE)
    assert contiguous(log)
    assert event_id(log[0].last_event_id)[1] == 0
    for node in nodes:
        assert await kept(node.api) == log
    for source in (first, second):
        assert source.received == log[: len(source.received)]
        assert len(source.received) >= 600


async def test_generations_that_are_cancelled_and_deleted_under_load_take_nothing_of_the_others_along(
    make_node, valkey, upstream
):
    # given two nodes that start generations, cancel some, and delete others, all at once
    nodes = await asyncio.gather(make_node(), make_node())
    fate: dict[str, str] = {}

    async def live_and_die(place: int) -> None:
        api, other = (node.api for node in (nodes if place % 2 else nodes[::-1]))
        id = (await api.start({"model": "test-model", "prompt": str(place)}))["id"]
        if place % 3 == 0:
            fate[id] = "kept"
            await api.ended(id)
        elif place % 3 == 1:
            fate[id] = "deleted here" if place % 2 else "deleted elsewhere"
            await api.ended(id)
            answer = await (api if place % 2 else other).delete(f"/generations/{id}")
            assert answer.status == 204, answer
        else:
            fate[id] = "cancelled"
            answer = await other.post(f"/generations/{id}/cancel")
            assert answer.status == 200, answer

    async def script(call: Call) -> None:
        await call.say("a")
        if int(call.request["messages"][0]["content"]) % 3 != 2:
            await call.finish()

    upstream.script = script
    # when
    await many_at_once([lambda place=place: live_and_die(place) for place in range(300)], limit=40)
    # then
    await settled(upstream, *(node.api for node in nodes))
    told = happened(await written(valkey))
    wrong = {}
    for id, what in fate.items():
        life = [name for name in told.get(id, []) if what != "cancelled" or name != "first_token"]
        if life != {"kept": WHOLE, "cancelled": ["created", "ended"]}.get(what, []):
            wrong[id] = (what, life)
    assert wrong == {}


# Lost replies.


@pytest.mark.parametrize(
    ("lost", "begun", "others"),
    [("reply", False, True), ("reply", True, False), ("request", True, True)],
    ids=["reply to its first, others go on", "reply", "request, others go on"],
)
async def test_event_whose_append_is_lost_or_whose_reply_is_told_once(
    make_node, valkey, upstream, wire, lost, begun, others
):
    # given a node that has told something before, or has not
    faulty, other = await asyncio.gather(make_node(valkey_url=wire.url, **PATIENT), make_node(**PATIENT))
    await opened(faulty.api, other.api)
    upstream.script = say("a")
    if begun:
        await faulty.api.run()
        await settled(upstream, faulty.api)
    # when what it tells next is lost on its way there, or back
    (wire.hold_reply_of_next_append if lost == "reply" else wire.hold_next_append)()
    id = "watched"
    starting = asyncio.create_task(
        faulty.api.post("/generations", {"model": "test-model", "prompt": "Hi", "replay": {"id": id}})
    )
    if lost == "reply":
        await until_written(valkey, id, ["created"])
    else:
        await wire.request_held()
    await wire.lose_what_is_held()
    between = [await other.api.run() for _ in range(2)] if others else []
    for each in between:
        await until_written(valkey, each, WHOLE)
    await wire.accept()
    # then all of it is told, once
    assert (await starting).status in (201, 503)
    await other.api.ended(id)
    await until_written(valkey, id, ["created"])
    await settled(upstream, faulty.api, other.api)
    log = await written(valkey)
    assert {each: happened(log)[each] for each in (id, *between)} == dict.fromkeys((id, *between), WHOLE)
    assert contiguous(log)
    assert await kept(faulty.api) == await kept(other.api) == log


@pytest.mark.slow
async def test_connection_that_is_lost_again_and_again_doubles_nothing_and_loses_nothing(
    make_node, valkey, valkey_proxy, upstream
):
    # given a node whose connections to Valkey end behind any number of bytes, and one that is left alone
    faulty = await make_node(**PATIENT)
    steady = await make_node(valkey_url=valkey.url, **PATIENT)
    upstream.script = say("a", "b")
    chance = random.Random(4)

    async def start(place: int) -> str:
        """Ask until it has been started, and has ended."""
        api, id = (faulty, steady)[place % 2].api, f"storm-{place}"
        body = {"model": "test-model", "prompt": "Hi", "replay": {"id": id}}

        async def attempt() -> bool:
            # A start that nobody could confirm may stand for a moment, and be taken back.
            if (await steady.api.get(f"/generations/{id}")).status == 404:
                await api.post("/generations", body)
            answer = await steady.api.get(f"/generations/{id}")
            return answer.status == 200 and answer.json()["status"] == "completed"

        await eventually(f"the end of {id}", attempt, seconds=60)
        return id

    async with follow(faulty.api) as first, follow(steady.api) as second:
        await first.event("live")
        await second.event("live")
        # when
        starting = asyncio.create_task(many_at_once([lambda n=n: start(n) for n in range(120)], limit=4))
        cuts = 0
        while not starting.done():
            # To connect takes over 3 kB of them: often it goes no further, and often enough it does.
            valkey_proxy.cut_replies_after(chance.randrange(1, 12_000))
            cut = asyncio.create_task(valkey_proxy.reply_cut(30))
            await asyncio.wait((cut, starting), return_when=asyncio.FIRST_COMPLETED)
            cuts += cut.done()
            cut.cancel()
            await asyncio.gather(cut, return_exceptions=True)
        valkey_proxy.cut_replies_after(1 << 40)
        started = await starting
        await settled(upstream, faulty.api, steady.api)
        # then
        log = await written(valkey)
        assert {id: happened(log).get(id) for id in started} == dict.fromkeys(started, WHOLE)
        assert contiguous(log)
        assert cuts > 30
        for source in (first, second):
            while ids(source.received)[-1:] != ids(log)[-1:]:
                await source.next()
            assert source.received == log


# Valkey in trouble.


async def follow_through(source: EventSourceClient, log: Callable[[], Awaitable[list[Message]]]) -> None:
    """Wait until a reader's view, from the last reset on, is what a new reader would see."""

    async def view() -> tuple[list[Message], list[Message]]:
        names = [event.event for event in source.events]
        since = len(names) - names[::-1].index("reset") if "reset" in names else 0
        return [event for event in source.events[since:] if event.event in LIFE], await log()

    await eventually("the reader to have it all", view, lambda both: both[0] == both[1])


async def test_valkey_is_killed_and_restarted_and_readers_go_on(make_node, valkey, upstream):
    nodes = await asyncio.gather(make_node(retry_ms=20), make_node(retry_ms=20))
    upstream.script = say("a")
    async with follow(nodes[0].api, after="-1") as first, follow(nodes[1].api, after="-1") as second:
        for _ in range(2):
            for node in nodes:
                await node.api.run()
            # when
            valkey.kill()
            await asyncio.to_thread(valkey.start)
            # then both readers go on
            after = [
                await eventually("a start", lambda node=node: _started(node.api), lambda id: id is not None)
                for node in nodes
            ]
            for id in after:
                for source in (first, second):
                    assert (await of(source, id, "ended"))["status"] == "completed"
        await settled(upstream, *(node.api for node in nodes))
        for source, node in zip((first, second), nodes, strict=True):
            await follow_through(source, lambda node=node: kept(node.api))
        assert await kept(nodes[0].api) == await kept(nodes[1].api) == await written(valkey)


async def _started(api: Api) -> str | None:
    answer = await api.post("/generations", {"model": "test-model", "prompt": "Hi"})
    return answer.json()["id"] if answer.status == 201 else None


@pytest.mark.parametrize("how", ["shorter", "empty"])
async def test_valkey_comes_back_with_less_and_readers_are_told(make_node, valkey, upstream, how):
    # given readers that have more than Valkey will have
    nodes = await asyncio.gather(make_node(retry_ms=20), make_node(retry_ms=20))
    await opened(*(node.api for node in nodes))
    upstream.script = say("a")
    await nodes[0].api.run()
    await settled(upstream, nodes[0].api)
    async with valkey.client() as client:
        await client.execute_command("WAITAOF", 1, 0, 5000)
    snapshot = valkey.snapshot()
    lost = [await node.api.run() for node in nodes]
    await settled(upstream, *(node.api for node in nodes))
    before = await kept(nodes[0].api)
    async with follow(nodes[0].api, after="-1") as first, follow(nodes[1].api, after="-1") as second:
        for source in (first, second):
            while source.last_event_id != before[-1].last_event_id:
                await source.next()
        # when
        if how == "shorter":
            await asyncio.to_thread(valkey.restore, snapshot)
        else:
            async with valkey.client() as client:
                await client.flushall()
        new = await eventually("a start", lambda: _started(nodes[0].api), lambda id: id is not None)
        # then they are told, and see what comes
        for source in (first, second):
            assert (await source.event("reset")).json()["asked"] == before[-1].last_event_id
            await of(source, new, "ended")
        await settled(upstream, *(node.api for node in nodes))
        for source, node in zip((first, second), nodes, strict=True):
            await follow_through(source, lambda node=node: kept(node.api))
        assert await kept(nodes[0].api) == await kept(nodes[1].api) == await written(valkey)
        # and what had just happened is told again, as its log is written again
        if how == "shorter":
            for id in lost:
                await until_written(valkey, id, LIFE)
            assert [happened(await written(valkey))[id] for id in lost] == [WHOLE] * 2


async def test_feed_that_cannot_be_opened_sends_its_reader_back(node, valkey_proxy, upstream):
    await valkey_proxy.refuse()
    valkey_proxy.cut()
    for headers in ({}, {"Last-Event-ID": "1-1"}):
        answer = await read_stream(node.api.at("/feed"), headers)
        assert (answer.status, answer.body, answer.clean) == (200, b":k\n", False)
    assert_problem(await read_stream(node.api.at("/feed", after="x")), 400)
    async with follow(node.api) as source:
        source.retry_ms = 20
        await source.connected(2)
        await valkey_proxy.accept()
        await source.event("live")
        upstream.script = say("a")
        id = await eventually("a start", lambda: _started(node.api), lambda id: id is not None)
        await of(source, id, "ended")


@pytest.mark.slow
async def test_what_the_channels_have_swallowed_is_read(make_node, valkey, upstream):
    async with ValkeyWires(valkey.url) as wires:
        telling = await make_node()
        following = await make_node(valkey_url=wires.url, store_timeout_s=10)
        upstream.script = say("a")
        async with follow(following.api) as source:
            await source.event("live")
            # when what is published is not heard
            wires.channels.hold_replies()
            id = await telling.api.run()
            # then it is seen all the same, and once
            for name in LIFE:
                await of(source, id, name)
            wires.channels.cut()
            wires.channels.release()
            again = await telling.api.run()
            for name in LIFE:
                await of(source, again, name)
            assert happened(source.received) == {id: WHOLE, again: WHOLE}
            assert contiguous(source.received)
            assert len(source.connections) == 1


@pytest.mark.parametrize("heard", ["before it is read", "while it is read"])
async def test_feed_that_is_opened_while_something_happens_is_there_whole(make_node, valkey, upstream, heard):
    # given a feed, and a node that has not followed it yet
    async with ValkeyWires(valkey.url) as wires:
        telling = await make_node()
        opening = await make_node(valkey_url=wires.url, store_timeout_s=10)
        upstream.script = say("a")
        first = await telling.api.run()
        await until_written(valkey, first, WHOLE)

        async def listeners() -> int:
            async with valkey.client() as client:
                _, count = await client.execute_command("PUBSUB", "SHARDNUMSUB", "replay:{:feed}")
            return int(count)

        # when it listens, and something happens before it has read what there is
        wire = wires.channels if heard == "before it is read" else wires.reads
        wire.hold_replies()
        async with follow(opening.api, after="-1") as source:
            await eventually("the node to listen", listeners)
            if wire is wires.reads:
                await wire.reply_held()
                before = wires.channels.replies.bytes
            second = await telling.api.run()
            await until_written(valkey, second, WHOLE)
            if wire is wires.reads:
                size = sum(len(event.data) for event in (await written(valkey))[-3:])
                await eventually(
                    "it to be heard", lambda: _value(wires.channels.replies.bytes), lambda n: n > before + size
                )
            wire.release()
            # then its reader has everything, in order, and was not sent away
            for name in LIFE:
                await of(source, second, name)
            assert happened(source.received) == {first: WHOLE, second: WHOLE}
            assert source.received == await written(valkey)
            assert len(source.connections) == 1
        # and so has everybody who comes later
        assert await kept(opening.api) == await written(valkey)


async def _value(value: int) -> int:
    return value


# What it costs.


async def fill(valkey: ValkeyServer, count: int, *, first: int = 0, size: int = 0, keep: int | None = None) -> None:
    """So many events of some earlier time, as a node would have written them; trimmed in the same moment."""
    ms = int(time.time() * 1000) - 60_000
    async with valkey.client() as client:
        pipeline = client.pipeline(transaction=True)
        for seq in range(first, first + count):
            told = {
                "type": "created",
                "generation_id": f"old-{seq}",
                "status": "queued",
                "model": "m" + "x" * size,
                "created": ms / 1000,
                "timestamp": ms / 1000,
            }
            entry = b"lcreated " + json.dumps(told, separators=(",", ":")).encode()
            pipeline.xadd(KEY, {"e": entry}, id=f"{ms}-{seq}")
        if keep is not None:
            pipeline.xtrim(KEY, maxlen=keep, approximate=False)
        pipeline.pexpire(KEY, 86_400_000)
        await pipeline.execute()


async def length(valkey: ValkeyServer) -> int:
    async with valkey.client() as client:
        found: int = await client.xlen(KEY)
    return found


@pytest.mark.slow
async def test_feed_expires_and_is_trimmed(make_node, valkey, upstream):
    # given a feed that is longer than it should be
    await fill(valkey, 15_000)
    node = await make_node()
    await opened(node.api)
    # when a good deal happens
    upstream.script = say("a")
    await many_at_once([node.api.run] * 350, limit=20)
    # then
    await eventually("the feed to be trimmed", lambda: length(valkey), lambda events: events <= 1.25 * KEPT)
    await settled(upstream, node.api)
    events = await kept(node.api)
    assert KEPT <= len(events) <= 1.25 * KEPT
    assert contiguous(events)
    assert ids(events) == ids(await written(valkey))
    # and it is one key, which expires, as all do
    left = await expiries(valkey)
    assert [key for key in left if "feed" in key] == [KEY]
    assert all(0 < ms <= 32 * 86_400_000 for ms in left.values())
    # and a cursor of what is not kept any more is told so
    reset, *rest = await until_live(node.api, after=f"{event_id(events[0].last_event_id)[0]}-7")
    assert (reset.event, rest) == ("reset", events)


async def test_beginning_of_a_feed_in_which_much_has_happened_is_found_at_once(make_node, valkey):
    await fill(valkey, 1000, first=1_000_000_000)
    node = await make_node()
    assert len(await within("all that is kept", kept(node.api), 3)) == 1000


async def test_what_was_trimmed_before_a_reader_had_it_is_not_passed_over(make_node, valkey):
    # given a reader that has all there is
    await fill(valkey, 10)
    node = await make_node()
    async with follow(node.api, after="-1") as source:
        await source.event("live")
        # when more happens than is kept, of which its node hears nothing
        await fill(valkey, 12_000, first=10, keep=KEPT)
        # then, as soon as the node looks, the reader is told that there is something that it cannot know
        while event_id(source.last_event_id)[1] < 12_009:
            await source.next()
        seqs = [event_id(event.last_event_id)[1] for event in source.events if event.event in LIFE]
        assert "reset" in [event.event for event in source.events], f"{seqs[9:11]} without a word"
        assert seqs == [*range(10), *range(2010, 12_010)]


@pytest.mark.slow
async def test_reader_that_takes_nothing_is_cut_and_resumes(make_node, valkey):
    await fill(valkey, 9000, size=2000)
    node = await make_node(write_deadline_s=0.3)
    async with streaming(node.api.at("/feed", after="-1"), receive_buffer=4096) as slow:
        await slow.until(b"id: ")

        async def aborts() -> float:
            text = (await node.api.get("/metrics")).body.decode()
            return sum(float(line.split()[1]) for line in text.splitlines() if re.match(r"replay_\w*slow\w* ", line))

        await eventually("the slow reader to be cut", aborts)
        answer = await slow.to_end()
    assert not answer.clean
    got = messages(answer.body)
    # then it goes on where it was, and on a busy machine is cut again
    async with follow(node.api, last_event_id=got[-1].last_event_id) as source:
        await source.event("live", 3 * DEADLINE_S)
        rest = [event for event in source.events if event.event in LIFE]
    assert [event_id(id)[1] for id in ids([*got, *rest])] == list(range(9000))


async def test_cost_does_not_grow_with_tokens(make_node, valkey, upstream, wire):
    node = await make_node(valkey_url=wire.url)
    async with follow(node.api) as source:
        await source.event("live")
        costs = []
        for tokens in (10, 1000):
            appends, events = wire.appends, await length(valkey)
            upstream.script = generate(tokens, per_second=None)
            id = await node.api.run()
            assert (await of(source, id, "ended"))["tokens"] == tokens
            await of(source, id, "first_token")
            costs.append((wire.appends - appends, await length(valkey) - events))
    assert costs[0][1] == costs[1][1] == 3
    assert max(appends for appends, _ in costs) <= 3


# Delete.


async def traces(valkey: ValkeyServer, id: str) -> list[str]:
    """Which keys hold anything of a generation, in their names or in what stands in them."""
    found, needle = [], id.encode()
    async with valkey.client() as client:
        async for key in client.scan_iter(count=1000):
            kind = (await client.type(key)).decode()
            if kind == "none":  # it has gone since it was listed
                continue
            value: Any = {
                "string": lambda key=key: client.get(key),
                "stream": lambda key=key: client.xrange(key),
                "hash": lambda key=key: client.hgetall(key),
                "zset": lambda key=key: client.zrange(key, 0, -1),
                "set": lambda key=key: client.smembers(key),
                "list": lambda key=key: client.lrange(key, 0, -1),
            }[kind]()
            if needle in key or needle in repr(await value).encode():
                found.append(key.decode())
    return found


@pytest.mark.parametrize("live", [False, True], ids=["ended", "live"])
async def test_deleted_generation_leaves_no_trace(make_node, valkey, upstream, live):
    # given generations on one node, and readers of the feed on both
    here, there = await asyncio.gather(make_node(), make_node())
    prefix = "to-be-deleted-"

    async def script(call: Call) -> None:
        await call.say("a")
        if not live:
            await call.finish()

    async with follow(here.api) as first, follow(there.api) as second:
        for source in (first, second):
            await source.event("live")
        upstream.script = say("a")
        others = [await here.api.run()]
        upstream.script = script
        doomed = [f"{prefix}{place}" for place in range(10)]
        await asyncio.gather(*(here.api.start(id=id) for id in doomed))
        for id in doomed:
            await until_written(valkey, id, ["created", "first_token"] if live else WHOLE)
        upstream.script = say("a")
        others.append(await there.api.run())

        # when they are deleted, here or elsewhere
        deleting = zip((here, there) * 5, doomed, strict=True)
        answers = await asyncio.gather(*(node.api.delete(f"/generations/{id}") for node, id in deleting))
        assert {answer.status for answer in answers} == {204}

        # then, once everything else that was under way is told, nothing names them
        others.append(await here.api.run())
        await settled(upstream, here.api, there.api)
        assert await traces(valkey, prefix) == []
        newcomer = await make_node()
        for node in (here, there, newcomer):
            events = await kept(node.api)
            assert [event for event in events if prefix in event.data] == []
            assert [happened(events)[id] for id in others] == [WHOLE] * 3
            assert ids(events) == ids(await written(valkey))

        # and readers were told, with a cursor that leaves nothing out, and of nothing more about them after that
        for source in (first, second):
            for name in LIFE:
                await of(source, others[-1], name)
            told = [event.json()["generation_id"] for event in source.events if event.event == "deleted"]
            assert sorted(told) == sorted(doomed)
            assert leave_nothing_out(source.events)
            for place, event in enumerate(source.events):
                if event.event == "deleted":
                    assert event.json().keys() == {"type", "generation_id"}
                    assert life_of(source.events[place:], event.json()["generation_id"]) == []


async def test_reader_whose_last_event_was_taken_out_goes_on(make_node, valkey, upstream):
    # given a reader whose cursor is an event of a generation that is deleted
    here, there = await asyncio.gather(make_node(), make_node())
    await opened(here.api)
    upstream.script = say("a")
    before, doomed, after = [await here.api.run() for _ in range(3)]
    await settled(upstream, here.api)
    cursors = [e.last_event_id for e in await kept(here.api) if e.json()["generation_id"] == doomed]
    assert (await here.api.delete(f"/generations/{doomed}")).status == 204
    log = await written(valkey)
    for api in (here.api, there.api):  # one that had it in memory, and one that has not
        for cursor in cursors:
            # when it comes back
            events = await until_live(api, after=cursor)
            # then it has what came after that, or begins anew and is told so: nothing is lost, nothing comes twice
            if events[0].event == "reset":
                assert events[1:] == log
            else:
                assert events == [event for event in log if event_id(event.last_event_id) > event_id(cursor)]
            assert happened(events)[after] == WHOLE
    assert happened(await kept(here.api))[before] == WHOLE


async def test_what_is_told_late_of_a_deleted_generation_leaves_no_trace(make_node, valkey, upstream, wire):
    # given a node that has something to tell of its generation, and cannot just now
    producing = await make_node(valkey_url=wire.url, **PATIENT)
    other = await make_node(**PATIENT)
    id = "told-too-late"
    await producing.api.start(id=id)
    call = await upstream.called()
    await until_written(valkey, id, ["created"])
    wire.hold_next_append()
    await call.say("a")
    await wire.request_held()
    await wire.lose_what_is_held()
    async with follow(other.api) as source:
        await source.event("live")
        # when the generation is deleted elsewhere meanwhile
        assert (await other.api.delete(f"/generations/{id}")).status == 204
        await wire.accept()
        # then
        await call.hung_up()
        await settled(upstream, producing.api, other.api)
        assert await traces(valkey, id) == []
        assert id not in lives(await kept(other.api))
        deleted = [event.event for event in source.events].index("deleted")
        assert life_of(source.events[deleted:], id) == []


async def test_deletion_that_a_node_has_not_heard_of_leaves_no_trace_there(make_node, valkey, upstream):
    # given a node that knows a generation's life, and hears nothing any more
    async with ValkeyWires(valkey.url) as wires:
        quick = await make_node()
        deaf = await make_node(valkey_url=wires.url, store_timeout_s=10, **PATIENT)
        upstream.script = say("a")
        async with follow(deaf.api) as source:
            await source.event("live")
            before, doomed, after = [await quick.api.run() for _ in range(3)]
            await of(source, after, "ended")
            wires.channels.hold_replies()
            # when the generation is deleted, and it hears again
            assert (await quick.api.delete(f"/generations/{doomed}")).status == 204
            await wires.channels.reply_held()
            wires.channels.cut()
            wires.channels.release()
            # then
            assert (await source.event("deleted")).json()["generation_id"] == doomed
            assert happened(await kept(deaf.api)) == {before: WHOLE, after: WHOLE}
            assert len(source.connections) == 1


async def test_deleting_works_while_a_lot_happens(service, upstream):
    # given a node on which generations come and go all the time
    upstream.script = say("a")
    doomed = await many_at_once([service.run] * 40)
    over = False

    async def keep_starting() -> list[str]:
        begun = []
        while not over:
            begun.append((await service.start())["id"])
        return begun

    starting = [asyncio.create_task(keep_starting()) for _ in range(12)]
    # when
    answers = await many_at_once([lambda id=id: service.delete(f"/generations/{id}") for id in doomed], limit=4)
    over = True
    begun = [id for some in await asyncio.gather(*starting) for id in some]
    # then
    assert {answer.status for answer in answers} == {204}
    await settled(upstream, service)
    events = await kept(service)
    assert set(doomed) & lives(events).keys() == set()
    await asyncio.gather(*(service.ended(id) for id in begun))
    await settled(upstream, service)
    told = happened(await kept(service))
    assert [told.get(id) for id in begun if told.get(id) != WHOLE] == []


# Progress.


def progress_of(source: EventSourceClient, id: str) -> list[dict[str, Any]]:
    """What was told of one live generation."""
    told = [event.json()["generations"] for event in source.events if event.event == "progress"]
    return [generations[id] for generations in told if id in generations]


async def progressed(source: EventSourceClient, id: str, accept: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The next that is told of a live generation and is acceptable."""
    while True:
        data = (await source.event("progress")).json()
        if id in data["generations"] and accept(data["generations"][id]):
            return data


async def watched(source: EventSourceClient, counts: Mapping[str, int]) -> None:
    """Wait until all nodes together have told of so many readers."""
    nodes: dict[str, dict[str, int]] = {}

    async def count() -> dict[str, int]:
        for event in source.events:
            if event.event == "progress":
                nodes[event.json()["node"]] = event.json()["watching"]
        return {id: sum(node.get(id, 0) for node in nodes.values()) for id in counts}

    await eventually(f"{counts} readers", count, lambda found: found == counts)


@pytest.mark.slow
async def test_progress_of_all_nodes_is_told_to_who_asks_for_it(service, other_service, upstream):
    async with (
        follow(service) as plain,
        follow(service, progress="1") as asking,
        follow(other_service, progress="1") as b,
    ):
        for source in (plain, asking, b):
            await source.event("live")
        # given a generation on each node, one of them with a reader on each
        one, two = [(await api.start())["id"] for api in (service, other_service)]
        calls = [await upstream.called() for _ in range(2)]
        by_id = dict(zip((one, two), calls, strict=True))
        for source in (asking, b):
            # when nothing is said yet
            for id in (one, two):
                told = await progressed(source, id, lambda data: True)
                assert told["type"] == "progress"
                assert told["generations"][id] == {"tokens": 0, "ttft_ms": None}
                assert told.keys() == {"type", "node", "generations", "watching"}
        # when words are said, then their number grows
        for call in calls:
            for _ in range(5):
                await call.say("x")
        for source in (asking, b):
            for id in (one, two):
                told = await progressed(source, id, lambda data: data["tokens"] == 5)
                assert told["generations"][id]["ttft_ms"] >= 0
        for source in (asking, b):
            for id in (one, two):
                tokens = [data["tokens"] for data in progress_of(source, id)]
                assert tokens == sorted(tokens)
        # when somebody reads them, alone or among others, then that is told
        async with (
            service.source(one) as r1,
            EventSourceClient(other_service.at("/events", generation=[one, two])) as r2,
        ):
            await r1.event("live")
            await r2.event("live")
            for source in (asking, b):
                await watched(source, {one: 2, two: 1})
        # when one has ended, then only the other is told of
        await by_id[one].finish()
        for source in (asking, b):
            await of(source, one, "ended")
            await progressed(source, two, lambda data: True)  # what comes next was told after the end
            told = await progressed(source, two, lambda data: True)
            assert one not in told["generations"]
        # and nobody was told who did not ask, and no cursor was moved beyond what was told
        assert [event for event in plain.events if event.event == "progress"] == []
        for source in (asking, b):
            assert source.received[-1].last_event_id == ids(e for e in source.events if e.event in LIFE)[-1]
            assert leave_nothing_out(source.events)
            assert lives(source.events) == lives(plain.events)


@pytest.mark.slow
async def test_progress_is_published_only_while_somebody_wants_it(make_node, valkey, upstream, wire):
    # given a node with a live generation, and a feed that nobody reads with progress
    node = await make_node(valkey_url=wire.url)
    await node.api.start()
    call = await upstream.called()
    async with follow(node.api) as plain:
        await plain.event("live")
        for _ in range(5):
            await call.say("x")
        begun, since = time.monotonic(), len(wire.published)
        await eventually("some seconds", lambda: _value(len(wire.published)), lambda told: told >= since + 2)
        # then nothing is told, only asked whether anybody listens, once a second
        assert set(wire.published) == {0}
        assert 0.8 < time.monotonic() - begun < 6
        # when somebody does
        async with follow(node.api, progress="1") as source:
            told = await source.event("progress")
            assert wire.published[-1] > 0
        # then, when they have left, that stops too
        since = len(wire.published)
        await eventually("some seconds", lambda: _value(len(wire.published)), lambda told: told >= since + 2)
        assert wire.published[-1] == 0
        assert told.json()["generations"] != {}
        assert [event for event in plain.events if event.event == "progress"] == []


async def calls_of(valkey: ValkeyServer) -> int:
    """How many commands Valkey has carried out, without those of this test."""
    stats = await commands(valkey)
    mine = ("info", "client", "hello", "auth", "select", "ping", "config")
    return sum(stat["calls"] for name, stat in stats.items() if not name.removeprefix("cmdstat_").startswith(mine))


@pytest.mark.slow
async def test_twenty_dashboards_on_fifty_live_generations_cost_valkey_no_more_than_one(make_node, valkey, upstream):
    # given fifty generations that speak on one node, and dashboards on another
    producing, showing = await asyncio.gather(make_node(), make_node())
    started = await many_at_once([producing.api.start] * 50)
    generations = [generation["id"] for generation in started]
    calls = [await upstream.called() for _ in generations]

    async def cost() -> int:
        before, begun = await calls_of(valkey), time.monotonic()
        for turn in range(6):
            await asyncio.gather(*(call.say(str(turn)) for call in calls))
            await asyncio.sleep(max(0.0, begun + 0.5 * (turn + 1) - time.monotonic()))
        return await calls_of(valkey) - before

    async with contextlib.AsyncExitStack() as stack:

        async def open_dashboard() -> None:
            feed = await stack.enter_async_context(follow(showing.api, progress="1"))
            tiles = EventSourceClient(showing.api.at("/events", generation=generations))
            await stack.enter_async_context(tiles)
            for _ in generations:
                await tiles.event("live", 2 * DEADLINE_S)
            await feed.event("progress")

        # when there is one, and then twenty
        await open_dashboard()
        one = await cost()
        await asyncio.gather(*(open_dashboard() for _ in range(19)))
        twenty = await cost()
    # then Valkey sees no difference
    assert twenty < 1.25 * one + 30, (one, twenty)
