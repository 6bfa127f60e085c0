"""Acknowledged before shown, one order, one writer: with replies of Valkey that are held, lost, late, or refusals."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

import pytest
from support.api import Api, assert_problem, text_of
from support.crowd import rss_bytes
from support.deadlines import eventually
from support.logs import assert_whole, commands, ids, stored, stored_ids
from support.sse import messages, streaming
from support.upstream import generate, say
from support.valkey import ValkeyServer
from support.valkey_wires import ValkeyWires

CHAT = {"prompt": "Hi", "model": "test-model"}


@pytest.fixture
async def wires(valkey: ValkeyServer) -> AsyncIterator[ValkeyWires]:
    """The wires between a node and Valkey, each with faults of its own."""
    async with ValkeyWires(valkey.url) as wires:
        yield wires


async def turned(api: Api) -> None:
    """Return when the node has done, and its readers have been sent, whatever it had to do before this."""
    assert (await api.get("/healthz")).status == 200  # needs no Valkey


# Acknowledged before shown.


@pytest.mark.parametrize(
    ("query", "accept"),
    [({}, "text/event-stream"), ({}, "application/x-ndjson"), ({"format": "openai"}, "text/event-stream")],
    ids=["events", "ndjson", "openai"],
)
async def test_reader_is_shown_nothing_before_valkey_acknowledges(node, valkey, valkey_proxy, upstream, query, accept):
    # given a reader that has everything
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.say("seen")
    async with streaming(node.api.events_url(id, **query), {"Accept": accept}) as stream:
        await stream.until(b"seen")
        await turned(node.api)
        receiving = asyncio.create_task(stream.until(b"unseen"))

        # when an append is executed, and nobody has been told
        valkey_proxy.hold_replies()
        await call.say("unseen")
        await eventually("the append", lambda: stored(valkey, id), lambda log: b"unseen" in log[-1][1])
        await turned(node.api)

        # then the reader has not been told either, until the node is
        assert b"unseen" not in stream.body
        valkey_proxy.release()
        await receiving


async def test_reader_is_not_told_the_end_before_valkey_acknowledges_it(node, valkey, valkey_proxy, upstream):
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.send(call.chunk({"delta": {}, "finish_reason": "stop"}))
    await node.api.has(id, 2)
    async with streaming(node.api.events_url(id)) as stream:
        await stream.until(b"event: live")
        ending = asyncio.create_task(stream.to_end())
        valkey_proxy.hold_replies()
        await call.done()
        await eventually("the end in Valkey", lambda: stored(valkey, id), lambda log: log[-1][1][:1] == b"e")
        await turned(node.api)
        assert b"event: end" not in stream.body
        assert not ending.done()
        valkey_proxy.release()
        assert (await ending).clean


async def test_a_start_is_not_answered_before_valkey_acknowledges_it(make_node, valkey, wires, upstream):
    node = await make_node(valkey_url=wires.url)
    wires.appends.hold_replies()
    starting = asyncio.create_task(node.api.post("/generations", CHAT | {"replay": {"id": "chosen"}}))
    await eventually("the start in Valkey", lambda: stored(valkey, "chosen"))
    await turned(node.api)
    assert not starting.done()
    assert not upstream.calls  # nothing is generated that could not be recorded
    wires.appends.release()
    assert (await starting).status == 201


# Lost and late replies.


async def test_appends_that_were_executed_and_never_confirmed_stand_once(make_node, valkey, valkey_proxy, upstream):
    # given readers here and on another node
    here, there = await asyncio.gather(make_node(), make_node())
    id = (await here.api.start())["id"]
    call = await upstream.called()
    async with here.api.source(id) as mine, there.api.source(id) as other:
        # when append after append is executed, and its reply is lost with the connection
        for place in range(5):
            await call.say("said ")
            for source in (mine, other):
                await source.event("token")
            valkey_proxy.hold_replies()
            await call.say("lost ")
            await eventually("the append", lambda: stored(valkey, id), lambda log, n=place: len(log) == 2 * n + 3)
            valkey_proxy.cut()
            valkey_proxy.release()
            for source in (mine, other):
                await source.event("token")
        await call.finish()

        # then the log has every event once, and so has everybody who reads it
        for source in (mine, other):
            await source.event("end")
            assert_whole(source.received)
            assert text_of(source.received) == "said lost " * 5
            assert ids(source.received) == await stored_ids(valkey, id)


async def test_an_end_that_was_executed_and_never_confirmed_stands_once(node, valkey, valkey_proxy, upstream):
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.send(call.chunk({"delta": {}, "finish_reason": "stop"}))
    async with node.api.source(id) as source:
        await source.event("delta")
        valkey_proxy.hold_replies()
        await call.done()
        await eventually("the end in Valkey", lambda: stored(valkey, id), lambda log: log[-1][1][:1] == b"e")
        valkey_proxy.cut()
        valkey_proxy.release()
        await source.event("end")
        assert_whole(source.received)
        assert ids(source.received) == await stored_ids(valkey, id)


async def test_a_start_that_was_executed_and_never_confirmed_leaves_no_generation_without_end(
    make_node, valkey, wires, upstream
):
    # given a start that was executed, and whose reply is lost
    node = await make_node(valkey_url=wires.url)
    wires.appends.hold_replies()
    starting = asyncio.create_task(node.api.post("/generations", CHAT | {"replay": {"id": "chosen"}}))
    await eventually("the start in Valkey", lambda: stored(valkey, "chosen"))
    wires.appends.cut()
    wires.appends.release()

    # when the caller has been told that it did not work, then nothing is left of it
    assert_problem(await starting, 503, "store_unavailable")
    await eventually("no log", lambda: stored(valkey, "chosen"), lambda log: not log)
    assert not upstream.calls

    # and the id can be used
    upstream.script = say("a")
    await node.api.run(id="chosen")
    assert text_of(await node.api.log("chosen")) == "a"


async def test_stream_survives_valkey_connections_that_are_cut_again_and_again(
    make_node, valkey, valkey_proxy, upstream
):
    # given a fast generation, read on two nodes
    here, there = await asyncio.gather(make_node(), make_node())
    upstream.script = generate(600, per_second=300)
    id = (await here.api.start())["id"]
    chance = random.Random(7)
    async with here.api.source(id) as mine, there.api.source(id) as other:
        # when every connection to Valkey is cut after every few tokens
        while mine.events[-1:] == [] or mine.events[-1].event != "end":
            for _ in range(chance.randrange(5, 60)):
                if (await mine.next()).event == "end":
                    break
            valkey_proxy.cut()

        # then it has cost nothing but time
        await other.event("end")
        expected = "".join(f"word{index} " for index in range(600))
        for source in (mine, other):
            assert_whole(source.received)
            assert text_of(source.received) == expected
            assert ids(source.received) == await stored_ids(valkey, id)
            # The readers never noticed; whether they have asked again after the end is a matter of time.
            assert [seen.status for seen in source.connections] in ([200], [200, 204], [200, None])
    assert valkey_proxy.accepted > 6 * 5


@pytest.mark.parametrize("swallowed", ["requests", "replies", "both"])
async def test_stream_survives_a_valkey_that_is_silent_for_longer_than_its_timeout(
    make_node, valkey, valkey_proxy, upstream, swallowed
):
    # given a reader, and connections that stand and carry nothing
    node = await make_node(store_timeout_s=0.4, store_outage_s=60)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as source:
        await source.event("live")
        {"requests": valkey_proxy.hold_requests, "replies": valkey_proxy.hold_replies, "both": valkey_proxy.stall}[
            swallowed
        ]()
        await call.say("a")
        await call.say("b")

        # when the node has given the connections up, and tried others
        given_up = valkey_proxy.accepted + 6

        async def tries() -> int:
            return valkey_proxy.accepted

        await eventually("the node to try again", tries, lambda count: count >= given_up)
        assert text_of(source.received) == ""

        # then what was swallowed comes late, and does no harm
        valkey_proxy.release()
        await call.say("c")
        await call.finish()
        await source.event("end")
        assert text_of(source.received) == "abc"
        assert_whole(source.received)
        assert ids(source.received) == await stored_ids(valkey, id)


# Valkey is away for too long, or full.


async def test_an_outage_over_its_limit_stops_the_upstream_and_is_told_when_valkey_is_back(
    make_node, valkey, valkey_proxy, upstream
):
    # given readers here and on another node
    here, there = await asyncio.gather(
        make_node(store_outage_s=0.8, store_timeout_s=0.3), make_node(store_timeout_s=0.3)
    )
    id = (await here.api.start())["id"]
    call = await upstream.called()
    async with here.api.source(id) as mine, there.api.source(id) as other:
        await call.say("a")
        for source in (mine, other):
            await source.event("token")

        # when Valkey is silent for longer than a generation may wait
        valkey_proxy.stall()
        await call.say("b")

        # then the upstream is let go, and nobody is told an end that is not recorded
        await call.hung_up()
        await turned(here.api)
        assert [event.event for event in mine.received] == ["start", "token"]

        # until Valkey is back: then everybody is told, and told the same
        valkey_proxy.release()
        for source in (mine, other):
            end = (await source.event("end")).json()
            assert (end["status"], end["error"]["code"]) == ("failed", "store_unavailable")
            assert text_of(source.received) == "ab"  # what was said before is kept
            assert ids(source.received) == await stored_ids(valkey, id)


async def fill(valkey) -> None:
    async with valkey.client() as client:
        await client.config_set("maxmemory", "1")  # noeviction is the default policy


async def empty(valkey) -> None:
    async with valkey.client() as client:
        await client.config_set("maxmemory", "0")


async def test_a_full_valkey_is_named_in_the_answer_to_a_start(node, valkey, upstream):
    await fill(valkey)
    begun = time.monotonic()
    answer = await node.api.post("/generations", CHAT)
    assert time.monotonic() - begun < 2
    assert_problem(answer, 503)
    assert "maxmemory" in answer.json()["detail"]
    assert not upstream.calls

    # and when there is room again, so are starts possible
    await empty(valkey)
    upstream.script = say("a")
    assert text_of(await node.api.log(await node.api.run())) == "a"


async def test_a_running_generation_fails_when_valkey_stays_full(make_node, valkey, upstream):
    # given a running generation and its reader
    node = await make_node(store_outage_s=0.6)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as source:
        await call.say("a")
        await source.event("token")

        # when Valkey is full
        await fill(valkey)
        await call.say("b")

        # then the upstream is let go, and whoever asks is answered
        await call.hung_up()
        begun = time.monotonic()
        assert_problem(await node.api.post(f"/generations/{id}/cancel"), 503)
        assert (await node.api.generation(id))["status"] == "streaming"
        assert time.monotonic() - begun < 4
        assert [event.event for event in source.received] == ["start", "token"]

        # and when there is room again, the end is told
        await empty(valkey)
        end = (await source.event("end")).json()
        assert (end["status"], end["error"]["code"]) == ("failed", "store_unavailable")
        assert ids(source.received) == await stored_ids(valkey, id)


async def test_a_running_generation_survives_a_valkey_that_is_full_for_a_moment(node, valkey, upstream):
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as source:
        await source.event("live")
        before = (await commands(valkey)).get("cmdstat_evalsha", {"calls": 0})["calls"]
        await fill(valkey)
        await call.say("a")
        await eventually(
            "tries", lambda: commands(valkey), lambda stats: stats["cmdstat_evalsha"]["calls"] >= before + 2
        )
        await empty(valkey)
        await call.finish()
        await source.event("end")
        assert text_of(source.received) == "a"
        assert_whole(source.received)


async def test_starts_that_a_full_valkey_refused_leave_no_work_behind(node, valkey, upstream):
    # given many starts that were refused
    await fill(valkey)
    answers = await asyncio.gather(*(node.api.post("/generations", CHAT) for _ in range(40)))
    assert {answer.status for answer in answers} == {503}
    await turned(node.api)

    # when Valkey has been left alone for a while
    before = await commands(valkey)
    await asyncio.sleep(1.5)  # a span, not a wait: what is counted is what comes by itself
    after = await commands(valkey)

    # then nothing goes on asking it for appends
    def appends(stats) -> int:
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval", "xadd"))

    assert appends(after) - appends(before) <= 3


# The caller leaves.


CHOSEN = {"prompt": "Hi", "model": "test-model", "replay": {"id": "chosen"}}


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
async def test_a_client_that_hangs_up_while_it_starts_a_generation_does_not_cancel_it(
    make_node, valkey, wires, upstream, accept
):
    # given a start that Valkey has executed, and not confirmed yet
    node = await make_node(valkey_url=wires.url)
    wires.appends.hold_replies()
    asking = asyncio.create_task(node.api.open("/generations", CHOSEN, {"Accept": accept}))
    await eventually("the start in Valkey", lambda: stored(valkey, "chosen"))

    # when the client hangs up
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await turned(node.api)
    await turned(node.api)
    wires.appends.release()

    # then the generation goes its way
    call = await upstream.called()
    await call.say("a")
    await call.finish()
    assert (await node.api.ended("chosen"))["status"] == "completed"
    assert text_of(await node.api.log("chosen")) == "a"


async def test_a_client_that_hangs_up_on_the_stream_it_started_does_not_cancel_it(node, upstream):
    stream = await node.api.open("/generations", CHOSEN, {"Accept": "text/event-stream"})
    call = await upstream.called()
    await call.say("a")
    await stream.until(b'"a"')
    stream.hang_up()
    await turned(node.api)
    await call.say("b")
    await call.finish()
    assert (await node.api.ended("chosen"))["status"] == "completed"
    assert text_of(await node.api.log("chosen")) == "ab"
    assert messages(bytes(stream.body))[0].event == "start"


# Backpressure.


@pytest.mark.parametrize("size", [10_000, 1], ids=["long texts", "single characters"])
async def test_a_fast_upstream_is_not_read_without_bound_while_valkey_is_silent(
    make_node, valkey_proxy, upstream, size
):
    # given a silent Valkey, and an upstream that would send very much
    node = await make_node(store_timeout_s=30, store_outage_s=60)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.say("begin ")
    await node.api.has(id, 2)
    before = rss_bytes(node.pid)
    valkey_proxy.stall()
    piece = b"".join(
        b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
        b'[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % (b"x" * size)
        for _ in range(max(1, 60_000 // (size + 130)))
    )
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while sent < 200 << 20:
            await call.send_raw(piece)
            sent += len(piece)

    # when it sends as fast as it can
    flooding = asyncio.create_task(flood())

    async def progress() -> bool:
        seen = sent
        await asyncio.sleep(0.5)
        return sent == seen and seen > 0

    # then its sends block, and the node's memory is bounded by what may be pending (1 MiB) and what lies in buffers
    await eventually("the upstream's sends to block", progress, seconds=40)
    grown = rss_bytes(node.pid) - before
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    print(f"sent {sent >> 10} KiB, RSS grew by {grown >> 20} MiB")
    assert sent < 200 << 20
    assert grown < 48 << 20
    valkey_proxy.release()
