"""`replay.Client` and `replay.AsyncClient` against real nodes, through cuts, restarts and lost answers.

Every test is one test for both. The blocking client takes each of its steps in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

import pytest
from support.deadlines import DEADLINE_S, within
from support.fault_proxy import FaultProxy
from support.upstream import USAGE, generate, say

import replay
from replay.errors import (
    GenerationExists,
    GenerationNotFound,
    IdempotencyKeyReused,
    InvalidEventId,
    InvalidRequest,
    InvalidSetting,
    ReplayError,
)

TEXT = "word0 👩‍👩‍👧‍👦 \u2028\r\n\x85 end"


class Threaded:
    """`Client` behind the interface of `AsyncClient`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._client = replay.Client(*arguments, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **options: Any) -> Any:
            return await asyncio.to_thread(getattr(self._client, name), *arguments, **options)

        return call

    def follow(self, *arguments: Any, **options: Any) -> AsyncIterator[replay.Event]:
        return _steps(self._client.follow(*arguments, **options))

    def list(self, **options: Any) -> AsyncIterator[replay.Generation]:
        return _steps(self._client.list(**options))


async def _steps(iterator: Any) -> AsyncIterator[Any]:
    while (item := await asyncio.to_thread(next, iterator, None)) is not None:
        yield item


@pytest.fixture(params=[Threaded, replay.AsyncClient], ids=["Client", "AsyncClient"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    """Make a client of a URL: `connect(node.url)`."""
    async with contextlib.AsyncExitStack() as stack:

        def make(url: str | None = None, **options: Any) -> Any:
            client = request.param(url, **options)
            stack.push_async_callback(client.close)
            return client

        yield make


async def read(events: AsyncIterator[replay.Event], seconds: float = DEADLINE_S) -> list[replay.Event]:
    """All events, up to the end."""

    async def collect() -> list[replay.Event]:
        return [event async for event in events]

    return await within("the end of a generation", collect(), seconds)


async def until(events: AsyncIterator[replay.Event], kind: type[replay.Event]) -> replay.Event:
    """The next event of a kind."""

    async def find() -> replay.Event:
        return await anext(event async for event in events if isinstance(event, kind))

    return await within(f"a {kind.__name__}", find())


def said(events: list[replay.Event]) -> str:
    return "".join(event.content for event in events if isinstance(event, replay.Token))


def logged(events: list[replay.Event]) -> list[dict[str, Any]]:
    """The log as the client has shown it, without what is about the connection."""
    return [event.raw for event in events if event.event_id is not None]


async def log_of(api: Any, id: str) -> list[dict[str, Any]]:
    """The log as another client of another form has it."""
    return [{"id": message.last_event_id, **message.json()} for message in await api.log(id)]


# Following.


async def test_events_have_their_kinds(connect, service, upstream):
    # given a generation that has said something besides its text
    async def script(call):
        await call.send(call.chunk({"delta": {"role": "assistant", "reasoning_content": "Hm"}}))
        await call.say(TEXT)
        await call.finish(usage=USAGE)

    upstream.script = script
    id = await service.run(metadata={"a": 1})
    # when
    events = await read(connect(service.url).follow(id))
    # then
    start, thought, token, *_, end = events
    assert isinstance(start, replay.Start)
    assert (start.generation_id, start.model) == (id, "test-model")
    assert isinstance(thought, replay.Delta)
    assert thought.choices[0]["delta"]["reasoning_content"] == "Hm"
    assert isinstance(token, replay.Token)
    assert (token.content, token.index) == (TEXT, 2)
    assert isinstance(end, replay.End)
    assert (end.status, end.finish_reason, end.usage, end.total_tokens) == ("completed", "stop", USAGE, 1)
    assert logged(events) == await log_of(service, id)


@pytest.mark.parametrize("seed", range(3))
async def test_every_event_once_through_cuts_anywhere(seed, connect, service, upstream):
    # given a wire that breaks again and again, after any number of bytes
    random_bytes = random.Random(seed)

    async def cut() -> None:
        while True:
            network.cut_replies_after(random_bytes.randrange(1, 3000))
            await network.reply_cut()

    upstream.script = generate(150, per_second=150, text="wörd{} ")
    async with FaultProxy(service.url) as network:
        cutting = asyncio.create_task(cut())
        # when
        client = connect(network.url, retry_for=DEADLINE_S)
        generation = await within("a start", client.start("Hi", model="test-model"))
        events = await read(client.follow(generation.id), 2 * DEADLINE_S)
        cutting.cancel()
    # then
    assert network.accepted > 3
    assert logged(events) == await log_of(service, generation.id)
    assert said(events) == "".join(f"wörd{n} " for n in range(150))
    assert len(upstream.calls) == 1


async def test_a_follower_survives_the_loss_of_nodes(connect, make_node, upstream):
    # given a reader at another node than the producing one, that has read a token
    producing, reading = await make_node(), await make_node()
    id = (await producing.api.start())["id"]
    call = await upstream.called()
    lost: list[ReplayError] = []
    events = connect(reading.url).follow(id, on_lost=lambda error, pause_s: lost.append(error))
    await call.say("one ")
    first = await until(events, replay.Token)
    # when that node is killed and started again, and the model goes on
    reading.kill()
    await call.say("two ")
    await reading.start()
    second = await until(events, replay.Token)
    # and when the producing one is killed
    producing.kill()
    rest = await read(events)
    # then every event was shown once, and the reader knows what happened
    log = await log_of(reading.api, id)
    assert logged([first, second, *rest]) == log[1:]
    assert (said([first, second]), rest[-1].status, rest[-1].error["code"]) == ("one two ", "interrupted", "node_lost")
    assert lost
    assert all(isinstance(error, replay.Unreachable) for error in lost)


async def test_a_silent_connection_is_made_anew(connect, service, upstream):
    # given a network that drops every packet, and tells nobody
    async with FaultProxy(service.url) as network:
        lost = asyncio.Event()
        loop = asyncio.get_running_loop()
        client = connect(network.url, silence_timeout=0.2)
        generation = await client.start("Hi", model="test-model")
        call = await upstream.called()
        await call.say("one ")
        events = client.follow(generation.id, on_lost=lambda *_: loop.call_soon_threadsafe(lost.set))
        await until(events, replay.Token)
        network.stall()
        reading = asyncio.ensure_future(read(events))
        await call.say("two ")
        await call.finish()
        # when the silence has been noticed, and the network is back
        await within("a connection that is given up", lost.wait())
        network.release()
        # then
        assert said(await reading) == "two "


async def test_following_goes_on_behind_an_event(connect, service, upstream):
    upstream.script = say("a", "b", "c")
    id = await service.run()
    log = await log_of(service, id)
    client = connect(service.url)
    for place, event in enumerate(log, 1):
        assert logged(await read(client.follow(id, after=event["id"]))) == log[place:]
    assert logged(await read(client.follow(id, after="-1"))) == log


async def test_a_cursor_of_another_log_is_told_by_a_reset(connect, service, upstream):
    upstream.script = say("a")
    one, other = await service.run(), await service.run()
    cursor = (await service.generation(one))["last_event_id"]
    events = await read(connect(service.url).follow(other, after=cursor))
    assert isinstance(events[0], replay.Reset)
    assert events[0].asked == cursor
    assert logged(events) == await log_of(service, other)


async def test_live_says_that_the_past_has_been_shown(connect, service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("one ")
    await service.has(id, 2)
    events = connect(service.url).follow(id)
    past = [await within("an event", anext(events)) for _ in range(3)]
    assert [type(event) for event in past] == [replay.Start, replay.Token, replay.Live]
    await call.finish()
    await read(events)


async def test_a_follower_gives_up_where_it_is_told_to(connect, service, upstream):
    async with FaultProxy(service.url) as network:
        id = (await service.start())["id"]
        events = connect(network.url).follow(id, give_up_after=0.3)
        await until(events, replay.Live)
        await network.refuse()
        network.cut()
        with pytest.raises(replay.Unreachable, match="no answer from http"):
            await read(events)


# Starting.


async def test_a_lost_answer_never_starts_a_second_generation(connect, service, upstream):
    # given a start whose answer is on its way
    metadata = {"mark": secrets.token_hex()}
    async with FaultProxy(service.url) as network:
        network.hold_replies()
        starting = asyncio.ensure_future(connect(network.url).start("Hi", model="test-model", metadata=metadata))
        await network.reply_held()
        # when it is lost
        network.cut()
        network.release()
        # then the client is given the generation that was started
        generation = await within("a start", starting)
    known = (await service.get("/generations")).json()["generations"]
    assert [each["id"] for each in known if each["metadata"] == metadata] == [generation.id]
    await upstream.called()
    assert len(upstream.calls) == 1
    await service.post(f"/generations/{generation.id}/cancel")


async def test_a_start_waits_for_a_service_that_is_away(connect, service, upstream):
    async with FaultProxy(service.url) as network:
        await network.refuse()
        client = connect(network.url)
        starting = asyncio.ensure_future(client.start("Hi", model="test-model"))
        await network.accept()
        generation = await within("a start", starting)
        assert (await client.cancel(generation.id)).id == generation.id


async def test_all_that_is_given_arrives(connect, service, upstream):
    upstream.script = say("ok")
    client, id = connect(service.url), secrets.token_hex()
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    generation = await client.start(
        messages=messages, model="other-model", id=id, ttl=60, metadata={"a": 1}, temperature=0, seed=7
    )
    assert (generation.id, generation.model, generation.metadata) == (id, "other-model", {"a": 1})
    ended = await client.wait(id)
    assert 0 < ended.expires_at - ended.ended <= 61
    asked = upstream.calls[-1].request
    assert (asked["messages"], asked["temperature"], asked["seed"]) == (messages, 0, 7)


async def test_the_same_key_is_the_same_generation(connect, service, upstream):
    upstream.script = say("ok")
    client, key = connect(service.url), secrets.token_hex()
    first = await client.start("Hi", idempotency_key=key)
    second = await client.start("Hi", idempotency_key=key)
    assert first.id == second.id
    with pytest.raises(IdempotencyKeyReused):
        await client.start("Something else", idempotency_key=key)
    await client.wait(first.id)


# The other calls.


async def test_what_was_said_in_all_its_forms(connect, service, upstream):
    upstream.script = say("Hello ", TEXT, usage=USAGE)
    id = await service.run(metadata={"a": 1})
    client = connect(service.url)
    transcript = await client.transcript(id)
    assert transcript.raw == await service.transcript(id)
    assert (transcript.text, transcript.status, transcript.usage) == ("Hello " + TEXT, "completed", USAGE)
    assert await client.text(id) == transcript.text
    assert await client.markdown(id) == transcript.text + "\n"


async def test_a_transcript_can_wait_for_the_end(connect, service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("one ")
    await service.has(id, 2)
    client = connect(service.url)
    assert (await client.transcript(id, wait=0.01)).status == "streaming"
    waiting = asyncio.ensure_future(client.text(id, wait=DEADLINE_S))
    await call.say("two")
    await call.finish()
    assert await within("a transcript", waiting) == "one two"


async def test_a_wait_ends_with_the_generation_also_through_an_outage(connect, service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    async with FaultProxy(service.url) as network:
        # given somebody who waits
        network.hold_requests()
        waiting = asyncio.ensure_future(connect(network.url).wait(id))
        await network.request_held()
        # when the service is away for a while, and the model goes on
        await network.refuse()
        network.cut()
        network.release()
        await call.say("one ")
        await call.cut()
        await network.accept()
        # then
        generation = await within("the end", waiting)
    assert (generation.status, generation.error["code"]) == ("failed", "upstream_truncated")
    assert generation.terminal


async def test_a_wait_can_have_an_end(connect, service, upstream):
    id = (await service.start())["id"]
    with pytest.raises(TimeoutError, match=id):
        await connect(service.url).wait(id, timeout=0.1)


async def test_a_list_goes_through_all_pages(connect, service, upstream):
    # given more generations than a page holds, among those of other tests
    upstream.script = say("ok")
    job = secrets.token_hex(8)
    started = [await service.run(metadata={"job": job}) for _ in range(110)]
    client = connect(service.url)

    async def listed(**query: Any) -> list[str]:
        return [generation.id async for generation in client.list(metadata={"job": job}, **query)]

    # then
    assert await listed() == started[::-1]
    assert await listed(limit=105) == started[:-106:-1]
    assert await listed(limit=103, status=("completed", "cancelled")) == started[:-104:-1]
    with pytest.raises(InvalidRequest):
        [generation async for generation in client.list(status="happy")]


async def test_a_list_can_be_filtered(connect, service, upstream):
    # given
    upstream.script = say("ok")
    job = secrets.token_hex(8)
    ids = [await service.run(metadata={"job": f"{job} {n}", "n": n}) for n in range(3)]
    created = [(await service.generation(id))["created"] for id in ids]
    client = connect(service.url)

    async def listed(**filters: Any) -> list[str]:
        return [generation.id async for generation in client.list(q=job.upper(), **filters)]

    # then
    assert await listed() == ids[::-1]
    assert await listed(metadata={"n": "1", "job": f"{job} 1"}) == ids[1:2]
    assert await listed(model="test-model", status="completed", since=created[1]) == ids[:0:-1]
    assert await listed(until=datetime.fromtimestamp(created[1])) == ids[1::-1]
    assert await listed(model="another") == []


async def test_cancelling_keeps_what_was_said(connect, service, upstream):
    client = connect(service.url)
    generation = await client.start("Hi", model="test-model")
    call = await upstream.called()
    await call.say("one ")
    await service.has(generation.id, 2)
    cancelled = await client.cancel(generation.id)
    assert (cancelled.status, cancelled.error) == ("cancelled", None)
    assert (await client.cancel(generation.id)).status == "cancelled"
    assert await client.text(generation.id) == "one "
    await call.hung_up()


async def test_deleting_leaves_nothing(connect, service, upstream):
    upstream.script = say("ok")
    id = await service.run()
    client = connect(service.url)
    assert await client.delete(id) is None
    for call in (client.delete, client.generation, client.transcript, client.text, client.cancel, client.wait):
        with pytest.raises(GenerationNotFound):
            await call(id)
    with pytest.raises(GenerationNotFound):
        await read(client.follow(id))


async def test_deleting_is_done_although_the_answer_is_lost(connect, service, upstream):
    upstream.script = say("ok")
    id = await service.run()
    async with FaultProxy(service.url) as network:
        network.hold_replies()
        deleting = asyncio.ensure_future(connect(network.url).delete(id))
        await network.reply_held()
        network.cut()
        network.release()
        assert await within("a deletion", deleting) is None


async def test_refusals_are_raised_by_their_names(connect, service, upstream):
    upstream.script = say("ok")
    client = connect(service.url)
    id = (await client.start("Hi", model="test-model")).id
    with pytest.raises(GenerationExists):
        await client.start("Hi", id=id)
    with pytest.raises(InvalidRequest, match="messages"):
        await client.start()
    with pytest.raises(InvalidEventId):
        await read(client.follow(id, after="yesterday"))


async def test_what_is_not_the_service_is_told_apart(connect, service, upstream):
    with pytest.raises(replay.UnexpectedAnswer, match="404"):
        await connect(upstream.url).generation("g")
    with pytest.raises(replay.UnexpectedAnswer):
        await read(connect(upstream.url).follow("g"))
    with pytest.raises(InvalidSetting):
        connect("127.0.0.1:8080")


async def test_a_service_that_is_away_is_told_in_time(connect, service):
    async with FaultProxy(service.url) as network:
        await network.refuse()
        with pytest.raises(replay.Unreachable):
            await connect(network.url, retry_for=0.2).generation("g")


async def test_where_the_service_is_stands_in_the_environment(connect, service, upstream, monkeypatch):
    id = (await service.start())["id"]
    monkeypatch.setenv("REPLAY_URL", service.url + "/")
    assert (await connect().generation(id)).id == id
    monkeypatch.delenv("REPLAY_URL")
    with replay.Client() as client:
        assert client.url == "http://127.0.0.1:8080"


async def test_headers_go_with_every_request(connect):
    # given a server that does nothing but listen
    heads: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = connect(f"http://127.0.0.1:{port}/behind", headers={"Authorization": "Bearer mine"}, retry_for=0)
        # when
        for call in (client.start("Hi"), client.generation("g"), read(client.follow("g", give_up_after=0))):
            with pytest.raises(replay.Unreachable):
                await call
    # then
    assert [head.split(b" ")[1] for head in heads] == [
        b"/behind/generations",
        b"/behind/generations/g",
        b"/behind/generations/g/events",
    ]
    assert all(b"Authorization: Bearer mine\r\n" in head for head in heads)


def test_the_service_starts_without_the_client_and_the_client_without_the_service():
    probe = "import sys, replay; assert 'replay.client' not in sys.modules; replay.Client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert not {"aiohttp", "uvloop", "orjson", "valkey", "rich", "openai"} & set(loaded)
