"""Where a reader of the activity begins, and how it goes on: with a cursor, without, cut, or from a list."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from typing import Any

import pytest
from support.activity import (
    LIFE,
    WHOLE,
    by_generation,
    contiguous,
    follow,
    happened,
    kept,
    many_at_once,
    of,
    opened,
    settled,
    until_live,
    until_written,
    written,
)
from support.api import TERMINAL, Api, assert_problem, event_id
from support.fault_proxy import FaultProxy
from support.http1 import request
from support.logs import ids
from support.sse import EventSourceClient, Message, read_stream, streaming
from support.upstream import ScriptedUpstream, generate, say
from support.valkey_wires import ValkeyWires

# Where a reader begins, and how it goes on.


async def test_without_a_cursor_it_begins_now_and_with_minus_one_at_the_beginning(make_node, valkey, upstream):
    node, other = await asyncio.gather(make_node(), make_node())
    # given an activity log in which nothing stands yet
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
        assert list(by_generation(all_of_it.received))[:3] == before
        assert all_of_it.received == await kept(api)
        assert contiguous(all_of_it.received)
        assert event_id(all_of_it.received[0].last_event_id)[1] == 0
        assert [event.event for event in all_of_it.events if event.event not in LIFE] == ["live"]


@pytest.fixture
async def told(service: Api, upstream: ScriptedUpstream) -> list[Message]:
    """What the shared nodes' activity log has, a good deal of it."""
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
    # given a reader of the activity whose last event is that of a generation which is deleted then
    here, other = await make_node(), await make_node()
    upstream.script = say("a")
    for id in ("kept", "doomed"):
        await here.api.run(id=id)
        await until_written(valkey, id, LIFE)
    cursor = (await until_live(here.api, after="-1"))[-1].last_event_id
    assert (await here.api.delete("/generations/doomed")).status == 204
    await here.api.run(id="next")
    await until_written(valkey, "next", LIFE)

    # when it goes on, with a node that has read the activity before, or with one that has not
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
    assert len(by_generation(events)) == 60
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
    # the activity log is nobody's generation
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
            # when the list is read, and the activity is followed from there, on either node
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
    # given a node that follows the activity, and whose channels are slow
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
