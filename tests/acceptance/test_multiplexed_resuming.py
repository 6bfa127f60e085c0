"""A multiplexed stream that was cut, or has lost a generation, goes on exactly where each of its tracks was."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from support.api import Api, text_of
from support.deadlines import eventually, within
from support.fault_proxy import FaultProxy
from support.multiplexed import (
    KINDS,
    NEVER_WAS,
    alone,
    closed_by_204,
    labelled,
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
from support.sse import EventSourceClient, Message, messages, streaming
from support.upstream import Call, generate, play, say

# What is asked.


def steps(prompt: str) -> tuple[int, float | None]:
    """`120 at 300` is 120 tokens, 300 a second."""
    tokens, _, rate = prompt.partition(" at ")
    return int(tokens), float(rate) if rate else None


async def as_prompted(call: Call) -> None:
    """A script for generations of different lengths: the prompt says how many tokens, and how fast."""
    await generate(*steps(call.request["messages"][0]["content"]), text="wörd{} ")(call)


def prompt(text: str) -> dict[str, Any]:
    return {"model": "test-model", "prompt": text}


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


async def test_every_id_of_a_reading_that_happened_live_leads_to_exactly_the_rest(service, other_service, upstream):
    # given generations whose events have come in turns, of which one ends early, and one that does not exist
    one, two, three = (
        await begin(service, upstream),
        await begin(other_service, upstream),
        await begin(service, upstream),
    )
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
    """An EventSource whose first connection ends after so many bytes; what it has when it has closed itself."""
    proxy.cut_replies_after(count)
    async with EventSourceClient(f"http://127.0.0.1:{proxy.port}{path}", retry_ms=1) as source:
        await source.closed()
    return source


@pytest.mark.slow
async def test_reader_that_is_cut_at_any_byte_of_a_recording_gets_every_event_once(make_node, upstream):
    node = await make_node(retry_ms=1)
    ids = await recorded(node.api, upstream, say("Ä", "漢字", "😀"), say("\u2028", "b"), say("c"))
    expected = await alone(node.api, ids)
    async with FaultProxy(node.url) as proxy:
        for count in range(1, 2600, 13):
            source = await cut_at(proxy, path_of(node.api, [*ids, NEVER_WAS]), count)
            assert shares(source.events, ids) == expected, f"cut after byte {count}"
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
                assert len(snapshots) <= 1, f"cut after byte {count}"
                assert "".join(snapshots) + text_of(own) == text, f"cut after byte {count}"
                assert [event.event for event in own].count("end") == 1


async def lose_connections(proxy: FaultProxy, source: EventSourceClient, chance: random.Random, seconds: float) -> int:
    """Cut the source after any number of bytes, again and again, until it has closed itself; how often."""
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


async def test_drain_cuts_the_reader_so_that_it_comes_back(make_node, upstream):
    producing, reading = await asyncio.gather(make_node(), make_node())
    one, two = await begin(producing.api, upstream, "a"), await begin(producing.api, upstream, "b")
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


async def test_one_that_is_deleted_while_it_is_read_ends_and_the_others_go_on(service, other_service, upstream):
    one, two, three = (
        await begin(service, upstream, "a"),
        await begin(service, upstream, "b"),
        await begin(other_service, upstream, "c"),
    )
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
