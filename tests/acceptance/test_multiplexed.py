"""`GET /events`: several generations on one connection, each exactly as a connection of its own would show it."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from support.api import Api, assert_problem
from support.crowd import read as connect
from support.deadlines import eventually, within
from support.multiplexed import (
    KINDS,
    NEVER_WAS,
    WHOLE_BODY,
    alone,
    closed_by_204,
    many,
    notices,
    path_of,
    read_many,
    recorded,
    shares,
    url_of,
)
from support.running import begin
from support.samples import SAMPLES
from support.sse import messages, streaming
from support.upstream import play, say

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
    assert WHOLE_BODY.fullmatch(answer.body)


async def test_only_an_event_stream_is_offered(service, upstream):
    ids = await recorded(service, upstream, say("a"))
    for accept in ("application/json", "application/x-ndjson", "text/html"):
        assert_problem(await read_many(service, ids, {"Accept": accept}), 406)
    for accept in ("*/*", "text/*", "text/event-stream, */*;q=0.1"):
        assert (await read_many(service, ids, {"Accept": accept})).status == 200
    assert_problem(await service.post(f"/events?generation={ids[0]}"), 405)


async def test_generations_that_go_on_come_as_they_speak_each_in_order(service, other_service, upstream):
    # given three, of which one runs elsewhere
    one, two, three = (
        await begin(service, upstream, "a"),
        await begin(service, upstream),
        await begin(other_service, upstream, "x", "y"),
    )
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


async def test_what_belongs_to_the_connection_leaves_the_cursor_where_it_is(service, upstream):
    one, two = await begin(service, upstream, "a"), await begin(service, upstream, "b")
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


async def test_one_generation_is_several_too(service, upstream):
    running = await begin(service, upstream, "a")
    async with many(service, [running.id]) as source:
        await source.event("live")
        await running.call.finish()
        await closed_by_204(source)
        assert shares(source.events, [running.id]) == await alone(service, [running.id])


async def test_http_1_0_is_served_and_a_cut_is_told_from_an_end(make_node, upstream):
    producing, reading = await asyncio.gather(make_node(), make_node())
    ids = await recorded(producing.api, upstream, say("a", "b"), say("c"))
    reader = await connect(url_of(reading.api, ids), version="1.0")
    await reader.ended()
    assert not reader.reset
    assert shares(messages(reader.body), ids) == await alone(producing.api, ids)
    running = await begin(producing.api, upstream, "d")
    reader = await connect(url_of(reading.api, [*ids, running.id]), version="1.0")
    await reader.has(b"event: live")
    reading.terminate()
    await reader.ended()
    assert reader.reset


async def test_connection_whose_generations_have_ended_serves_the_next_request(service, upstream):
    # given a client that keeps its connection, and asks again as soon as a response has ended
    ids = await recorded(service, upstream, say("a", "b"), say("c"))
    running = await begin(service, upstream, "d")
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


# Snapshots.


async def test_snapshots_are_the_transcripts_so_far_and_then_the_exact_tails(service, other_service, upstream):
    one, two = await begin(service, upstream, "a", "b"), await begin(other_service, upstream)
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


async def test_live_comes_behind_the_snapshot_of_one_that_is_alone(service, upstream):
    one = await begin(service, upstream, "a")
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


# Slow, silent and absent readers.


async def test_reader_that_takes_nothing_is_cut_and_resumes_each(make_node, upstream):
    # given a reader that takes nothing, and one that does
    node = await make_node(write_deadline_s=0.3)
    one, two = await begin(node.api, upstream, "a"), await begin(node.api, upstream, "b")
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


async def test_silence_is_filled_with_keep_alives_once_per_connection(make_node, upstream):
    # given a reader of several that all think
    node = await make_node(keepalive_s=0.3)
    generations = [await begin(node.api, upstream, "a") for _ in range(5)]
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
        assert WHOLE_BODY.fullmatch(body[: body.rfind(b"\n\n") + 2])
        assert body.count(b"\n:k\n") <= (time.monotonic() - begun) / 0.3 + 2


async def test_reader_of_several_counts_as_a_subscriber_of_each(service, other_service, upstream):
    one, two = await begin(service, upstream, "a"), await begin(other_service, upstream, "b")

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
async def test_generation_that_is_read_among_others_is_not_abandoned(service, other_service, upstream):
    # given three that may be left alone for a second, of which a reader elsewhere reads two
    one, two, unwatched = [await begin(service, upstream, "a", abandon_after=1) for _ in range(3)]
    async with many(other_service, [one.id, two.id]) as source:
        await source.event("live")
        # when the third has been given up, and as much time again has passed
        end = await service.ended(unwatched.id)
        assert (end["status"], end["error"]["code"]) == ("cancelled", "abandoned")
        later = await begin(service, upstream, "a", abandon_after=1)
        await service.ended(later.id)
        # then those that are read go on
        for running in (one, two):
            await running.call.say("b")
            await source.event("token")
    # and are given up once the reader has left
    for running in (one, two):
        assert (await service.ended(running.id))["error"]["code"] == "abandoned"
