"""Valkey is killed, and comes back shorter than it was: the producer puts the lost events back, under the same ids."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.api import Api, text_of
from support.deadlines import eventually
from support.logs import assert_whole, expiries, ids, stored, stored_ids
from support.sse import Message
from support.upstream import Call, say
from support.valkey import ValkeyServer
from support.valkey_wires import ValkeyWires


def set_back(valkey: ValkeyServer, snapshot: Path | None) -> None:
    """kill -9, and a start with what was on disk at that moment; None is an empty disk."""
    if snapshot is None:
        valkey.kill()
        shutil.rmtree(valkey.directory / "appendonlydir")
        valkey.start()
    else:
        valkey.restore(snapshot)


async def cold(make_node: Any, id: str) -> list[Message]:
    """The log as a node shows it that has never seen it before."""
    node = await make_node()
    return await node.api.log(id)


async def listed(api: Api) -> list[str]:
    """The ids on the list; none while it cannot be asked."""
    answer = await api.get("/generations")
    return [generation["id"] for generation in answer.json()["generations"]] if answer.status == 200 else []


async def speak(call: Call, api: Api, id: str, *texts: str) -> None:
    """Say, and wait until it is acknowledged."""
    events = (await api.generation(id))["events"]
    for text in texts:
        await call.say(text)
    await api.has(id, events + len(texts))


lost = pytest.mark.parametrize("lost", ["some", "all but the start", "everything"])


@lost
async def test_everybody_has_the_same_events_when_valkey_comes_back_shorter(make_node, valkey, upstream, lost):
    # given a generation and its readers, here and on another node
    here, there = await asyncio.gather(make_node(), make_node())
    snapshots: dict[str, Path | None] = {"everything": None}
    id = (await here.api.start())["id"]
    call = await upstream.called()
    snapshots["all but the start"] = valkey.snapshot()
    await speak(call, here.api, id, "a ", "b ")
    snapshots["some"] = valkey.snapshot()
    async with here.api.source(id) as mine, there.api.source(id) as other:
        await speak(call, here.api, id, "c ", "d ")
        for source in (mine, other):
            for _ in range(4):
                cursor = (await source.event("token")).last_event_id

        # when Valkey is killed and has forgotten events that they have seen
        set_back(valkey, snapshots[lost])
        await call.say("e ")

        # then readers from before, on either node, go on after what they have seen
        async with (
            here.api.source(id, last_event_id=cursor) as mine_again,
            there.api.source(id, last_event_id=cursor) as other_again,
        ):
            await call.say("f ")
            await call.finish()
            for source in (mine, other, mine_again, other_again):
                await source.event("end")

            # and everybody has the same: who stayed, who came back, who comes later, and Valkey
            assert_whole(mine.received)
            assert text_of(mine.received) == "a b c d e f "
            assert other.received == mine.received
            for source in (mine_again, other_again):
                assert [event for event in source.events if event.event == "reset"] == []
                assert source.received == mine.received[5:]
        assert await stored_ids(valkey, id) == ids(mine.received)
        assert await cold(make_node, id) == mine.received


@lost
async def test_lost_events_are_put_back_while_the_model_is_silent(make_node, valkey, upstream, lost):
    # given a generation whose model says nothing more for now
    node = await make_node()
    id = (await node.api.start())["id"]
    call = await upstream.called()
    only_start = valkey.snapshot()
    await speak(call, node.api, id, "a ", "b ")
    some = valkey.snapshot()
    await speak(call, node.api, id, "c ")
    before = await stored(valkey, id)

    # when Valkey comes back shorter, then the log is as it was, and will expire as it would have
    set_back(valkey, {"some": some, "all but the start": only_start, "everything": None}[lost])
    await eventually("the lost events", lambda: stored(valkey, id), lambda log: log == before)
    assert (await expiries(valkey))[f"replay:{{{id}}}:events"] > 0
    assert (await node.api.generation(id))["status"] == "streaming"
    await eventually("the generation to be listed", lambda: listed(node.api), lambda found: found == [id])

    # and so it is when a node looks for it that has never seen it, after its producer's death
    other = await make_node()
    node.kill()
    assert (await other.api.ended(id))["error"]["code"] == "node_lost"
    log = await other.api.log(id)
    assert_whole(log)
    assert ids(log)[:-1] == [name for name, _ in before]


@lost
async def test_a_generation_that_had_just_ended_is_whole_again(make_node, valkey, upstream, lost):
    # given a generation that has ended, the end of which Valkey's disk never saw
    here, there = await asyncio.gather(make_node(), make_node())
    id = (await here.api.start())["id"]
    call = await upstream.called()
    only_start = valkey.snapshot()
    await speak(call, here.api, id, "a ", "b ")
    some = valkey.snapshot()
    async with here.api.source(id) as mine, there.api.source(id) as other:
        await other.event("live")
        await call.say("c ")
        await call.finish()
        await other.event("end")
        await mine.event("end")
    whole = mine.received
    cursor = whole[2].last_event_id

    # when Valkey is killed
    set_back(valkey, {"some": some, "all but the start": only_start, "everything": None}[lost])

    # then nobody who comes meanwhile or later gets anything else
    async with here.api.source(id) as first, there.api.source(id, last_event_id=cursor) as second:
        await first.event("end")
        await second.event("end")
        assert first.received == whole
        assert second.received == whole[3:]
        assert [event.event for event in second.events if event.event == "reset"] == []
    await eventually("the repair", lambda: stored_ids(valkey, id), lambda found: found == ids(whole))
    assert await cold(make_node, id) == whole
    assert (await there.api.generation(id))["status"] == "completed"
    assert (await expiries(valkey))[f"replay:{{{id}}}:events"] > 0


async def test_a_generation_that_had_just_ended_is_listed_again(make_node, valkey, upstream):
    node = await make_node()
    upstream.script = say("a")
    id = await node.api.run()
    set_back(valkey, None)
    await eventually("the repair", lambda: stored(valkey, id), lambda log: log and log[-1][1][:1] == b"e")
    await eventually("the generation to be listed", lambda: listed(node.api), lambda found: found == [id], seconds=4)


@pytest.mark.parametrize("ended_by", ["cancel", "cancel on another node", "node_lost"])
async def test_an_end_from_outside_is_not_lost_with_valkeys_last_second(make_node, valkey, upstream, ended_by):
    # given a generation that somebody else than its producer has ended, and readers who know
    producing, ending = await asyncio.gather(make_node(), make_node())
    id = (await producing.api.start())["id"]
    call = await upstream.called()
    await speak(call, producing.api, id, "a ")
    snapshot = valkey.snapshot()
    async with ending.api.source(id) as source:
        await source.event("live")
        if ended_by == "node_lost":
            producing.kill()
        else:
            node = producing if ended_by == "cancel" else ending
            assert (await node.api.post(f"/generations/{id}/cancel")).status == 200
        await source.event("end")

    # when Valkey comes back without that end
    valkey.restore(snapshot)

    # then it is ended again, with the end that was shown
    newcomer = await make_node()
    await eventually("the end", lambda: stored_ids(valkey, id), lambda found: found == ids(source.received), seconds=6)
    assert (await newcomer.api.ended(id))["status"] in ("cancelled", "interrupted")
    assert await newcomer.api.log(id) == source.received


async def test_an_id_that_was_deleted_and_used_again_is_put_back_too(make_node, valkey, upstream):
    # given an id that was deleted and is used again, the second use of which Valkey's disk never saw
    node = await make_node()
    upstream.script = say("first")
    await node.api.run(id="chosen")
    assert (await node.api.delete("/generations/chosen")).status == 204
    snapshot = valkey.snapshot()
    upstream.script = None
    await node.api.start(id="chosen")
    call = await upstream.called()
    async with node.api.source("chosen") as source:
        await call.say("second ")
        await source.event("token")

        # when Valkey comes back without it, then it goes on
        valkey.restore(snapshot)
        await call.say("use")
        await call.finish()
        await source.event("end")
        assert text_of(source.received) == "second use"
        assert_whole(source.received)
        assert await stored_ids(valkey, "chosen") == ids(source.received)


async def test_an_id_that_was_used_again_outlives_the_heal_window_of_its_first_use(make_node, upstream):
    # given an id that is in use again while its first use may still be repaired
    node = await make_node(heal_window_s=0.5, lease_s=0.5)
    upstream.script = say("first")
    await node.api.run(id="chosen")
    assert (await node.api.delete("/generations/chosen")).status == 204
    upstream.script = None
    await node.api.start(id="chosen")
    call = await upstream.called()

    # when the first use's repair is over, and the node has looked for orphans several times
    await asyncio.sleep(1.5)  # a span that has to pass: nothing must happen in it

    # then the second use goes on, and nobody has ended it
    await call.say("second")
    await call.finish()
    await node.api.ended("chosen")
    log = await node.api.log("chosen")
    assert [event.event for event in log] == ["start", "token", "delta", "end"]
    assert log[-1].json()["status"] == "completed"


async def test_reader_that_comes_before_the_repair_is_sent_away_to_come_back(make_node, valkey, upstream):
    # given a reader on one node of a generation that another produces, which Valkey has lost
    async with ValkeyWires(valkey.url) as ours, ValkeyWires(valkey.url) as theirs:
        producing, watching = await asyncio.gather(make_node(valkey_url=theirs.url), make_node(valkey_url=ours.url))
        id = (await producing.api.start())["id"]
        call = await upstream.called()
        await call.say("a")
        async with watching.api.source(id) as source:
            cursor = (await source.event("token")).last_event_id
            for wires in (ours, theirs):
                await wires.appends.refuse()
                wires.appends.cut()
            set_back(valkey, None)

            # when the nodes can read it again, and not yet append, so that nothing is repaired
            async def reads() -> int:
                return ours.reads.connections

            await eventually("the connection for reading", reads)
            async with watching.api.source(id, last_event_id=cursor) as again:
                await again.connected(times=3)

                # then nobody is told that it does not exist, and all go on when it is repaired
                assert {connection.status for connection in again.connections[:2]} <= {200, None}
                for wires in (ours, theirs):
                    await wires.appends.accept()
                await call.say("b")
                await call.finish()
                for reader in (source, again):
                    await reader.event("end")
                assert text_of(source.received) == "ab"
                assert again.received == source.received[2:]


async def test_reader_that_comes_late_does_not_cut_off_those_who_wait_for_the_repair(make_node, valkey, upstream):
    # given a reader who waits, since Valkey came back without the log, and its producer has not come back yet
    async with ValkeyWires(valkey.url) as wires:
        producing, watching = await asyncio.gather(make_node(valkey_url=wires.url, lease_s=8), make_node(lease_s=8))
        id = (await producing.api.start())["id"]
        call = await upstream.called()
        await call.say("a")
        async with watching.api.source(id) as source:
            await source.event("token")
            for proxy in wires.kinds.values():
                await proxy.refuse()
                proxy.cut()
            set_back(valkey, None)
            await eventually("Valkey", lambda: watching.api.get("/readyz"), lambda answer: answer.status == 200)
            await asyncio.sleep(4)  # the outage of one node's network, shorter than what a log may be missing

            # when another reader comes, and then the producer does
            async with watching.api.source(id, last_event_id=source.last_event_id) as late:
                await late.connected(1)
                for proxy in wires.kinds.values():
                    await proxy.accept()
                await call.say("b")
                await call.finish()

                # then both have everything
                for reader in (source, late):
                    await reader.event("end")
                assert text_of(source.received) == "ab"
                assert late.received == source.received[2:]
                assert len(source.connections) == 1


async def test_a_log_that_expired_while_valkey_was_silent_is_put_back(make_node, valkey, upstream):
    # given a running generation that is kept for a second only, with readers on two nodes
    here, there = await asyncio.gather(make_node(), make_node())
    id = (await here.api.start(ttl=1))["id"]
    call = await upstream.called()
    async with here.api.source(id) as mine, there.api.source(id) as other:
        await call.say("before ")
        for source in (mine, other):
            await source.event("token")

        # when nothing can renew its expiry for longer than that
        valkey.pause()
        await asyncio.sleep(1.5)
        valkey.resume()
        await call.say("after")
        await call.finish()

        # then it has lost nothing
        for source in (mine, other):
            await source.event("end")
            assert text_of(source.received) == "before after"
            assert_whole(source.received)


async def test_a_deleted_generation_stays_deleted_when_valkey_comes_back_without_it(make_node, valkey, upstream):
    # given a live generation that is deleted, with its producer still there
    node = await make_node()
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await speak(call, node.api, id, "a ")
    assert (await node.api.delete(f"/generations/{id}")).status == 204

    # when Valkey is killed and comes back, then nobody puts it back
    valkey.kill()
    valkey.start()
    await eventually("Valkey", lambda: node.api.get("/readyz"), lambda answer: answer.status == 200)
    await eventually("404", lambda: node.api.get(f"/generations/{id}"), lambda answer: answer.status == 404)
    assert await stored(valkey, id) == []


async def test_a_log_that_was_lost_with_its_producer_ends_for_its_readers(make_node, valkey, upstream):
    # given a reader on one node of a generation that another produces
    producing, watching = await asyncio.gather(make_node(), make_node())
    id = (await producing.api.start())["id"]
    call = await upstream.called()
    async with watching.api.source(id) as source:
        await call.say("a")
        await source.event("token")

        # when both Valkey's data and the producer are gone, then the reader is told, and has lost nothing
        producing.kill()
        set_back(valkey, None)
        end = (await source.event("end")).json()
        assert (end["status"], end["error"]["code"]) == ("interrupted", "node_lost")
        assert_whole(source.received)
    assert await watching.api.log(id) == source.received


async def test_a_part_of_an_append_survives_and_the_rest_is_put_back(make_node, valkey, upstream):
    # given a log of which Valkey has kept a part, in the middle of what was appended in one go
    node = await make_node()
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as source:
        await call.send_raw(
            b"".join(
                b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
                b'[{"index":0,"delta":{"content":"%d "},"finish_reason":null}]}\n\n' % place
                for place in range(40)
            )
        )
        for _ in range(40):
            await source.event("token")
        key, kept = f"replay:{{{id}}}:events", (await stored(valkey, id))[:20]
        async with valkey.client() as client, client.pipeline(transaction=True) as together:
            together.delete(key)
            for name, entry in kept:
                together.xadd(key, {"e": entry}, id=name)
            together.expire(key, 1000)
            await together.execute()

        # when the model goes on, then nothing is missing
        await call.say("on ")
        await call.finish()
        await source.event("end")
    assert text_of(source.received) == "".join(f"{place} " for place in range(40)) + "on "
    assert await stored_ids(valkey, id) == ids(source.received)
    assert_whole(source.received)


@pytest.mark.slow
async def test_many_generations_are_all_whole_after_valkey_was_killed_three_times(make_node, valkey, upstream):
    # given thirty generations on two nodes, each read on the other
    nodes = await asyncio.gather(make_node(), make_node())

    async def slowly(call: Call) -> None:
        for place in range(60):
            await call.say(f"{place} ")
            await asyncio.sleep(0.05)  # the pace of a model
        await call.finish()

    upstream.script = slowly
    started = [(nodes[n % 2], nodes[1 - n % 2], (await nodes[n % 2].api.start())["id"]) for n in range(30)]
    sources = [reading.api.source(id) for _, reading, id in started]
    for source in sources:
        await source.__aenter__()
    try:
        # when Valkey is set back twice and killed once on the way
        for lose in (True, False, True):
            snapshot = valkey.snapshot()
            seen = len(sources[0].received)
            while len(sources[0].received) < seen + 12:
                await sources[0].next()
            valkey.restore(snapshot) if lose else (valkey.kill(), valkey.start())

        # then each is whole, for who stayed and for who comes
        newcomer = await make_node()
        for (_, _, id), source in zip(started, sources, strict=True):
            await source.event("end", seconds=20)
            assert_whole(source.received)
            assert text_of(source.received) == "".join(f"{place} " for place in range(60))
            assert await newcomer.api.log(id) == source.received
    finally:
        for source in sources:
            await source.close()
