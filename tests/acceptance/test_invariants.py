"""The seven invariants of the design, each held against real processes that are killed, paused and told to stop.

What single connections do wrong is in `tests/integration`; here whole processes go.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from support.api import TERMINAL, Api, text_of
from support.crowd import crowd
from support.deadlines import eventually
from support.logs import assert_whole, expiries, ids, stored, stored_ids
from support.sse import EventSourceClient, streaming
from support.upstream import generate, say
from support.valkey_wires import ValkeyWires, command


@contextlib.asynccontextmanager
async def sources(api: Api, id: str, count: int, *, after: str = "") -> AsyncIterator[list[EventSourceClient]]:
    """So many EventSources that have caught up."""
    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(api.source(id, last_event_id=after)) for _ in range(count)]
        for source in opened:
            await source.event("live")
        yield opened


async def all_end(readers: Sequence[EventSourceClient], seconds: float = 10) -> list[dict]:
    """The `end` of each; nobody may be left waiting."""
    return [message.json() for message in [await source.event("end", seconds) for source in readers]]


# 1. Acknowledged before shown.


async def test_what_a_killed_node_has_shown_is_shown_again_by_another(make_node, valkey, upstream):
    # given a fast generation, and readers at the node that produces it
    other = await make_node()
    chance = random.Random(4)
    for _ in range(3):
        node = await make_node()
        upstream.script = generate(5000, per_second=1500)
        id = (await node.api.start())["id"]
        async with crowd(node.api.events_url(id), 5) as readers:
            await readers[0].has(b'"index":%d}' % chance.randrange(20, 200))

            # when the node is killed at any moment
            node.kill()
            for reader in readers:
                await reader.ended()

        # then everything that anybody was shown is in the log, in this order
        await other.api.ended(id)
        log = await other.api.log(id)
        assert_whole(log)
        for reader in readers:
            assert reader.received == log[: len(reader.received)]
            assert not reader.clean
        assert ids(log) == await stored_ids(valkey, id)


# 2. One order, and 3. one writer.


async def test_a_paused_node_adopts_the_end_that_another_wrote(make_node, valkey, upstream):
    # given a node with readers of its own, and a model in full flow
    lease_s = 1
    paused, other = await asyncio.gather(make_node(lease_s=lease_s), make_node(lease_s=lease_s))
    id = (await paused.api.start())["id"]
    call = await upstream.called()
    async with sources(paused.api, id, 5) as own, sources(other.api, id, 5) as others:
        for place in range(20):
            await call.say(f"{place} ")
        await other.api.has(id, 21)

        # when it is stopped for longer than its lease, while the model talks on, and the other has ended its generation
        paused.pause()
        stopped = time.monotonic()
        for place in range(20, 30):
            await call.say(f"{place} ")
        ends = await all_end(others)
        assert time.monotonic() - stopped < 2 * lease_s + 1
        assert {(end["status"], end["error"]["code"]) for end in ends} == {("interrupted", "node_lost")}
        log = await stored(valkey, id)
        paused.resume()

        # then it writes nothing after that end, and its own readers get exactly that end
        assert await all_end(own) == ends
        await call.hung_up()
        for source in (*own, *others):
            assert_whole(source.received)
            assert source.received == others[0].received
        assert await stored(valkey, id) == log
        assert (await paused.api.generation(id))["status"] == "interrupted"
        assert await paused.api.log(id) == others[0].received


async def test_a_node_that_was_paused_within_its_lease_goes_on(make_node, upstream):
    # given a node that is stopped for a moment
    node, other = await asyncio.gather(make_node(lease_s=4), make_node(lease_s=4))
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as own, other.api.source(id) as there:
        await there.event("live")
        node.pause()
        await call.say("said meanwhile")
        await asyncio.sleep(1)  # a span: shorter than the lease, longer than the store's timeout
        node.resume()
        await call.finish()
        for source in (own, there):
            assert (await source.event("end")).json()["status"] == "completed"
            assert text_of(source.received) == "said meanwhile"
            assert_whole(source.received)


@pytest.mark.parametrize("behind", [0, 3], ids=["settled", "with appends under way"])
async def test_an_end_that_a_paused_node_adopts_comes_after_all_it_had_appended(make_node, valkey, upstream, behind):
    # given a node that is stopped while replies to its appends are under way
    async with ValkeyWires(valkey.url) as wires:
        paused, other = await asyncio.gather(make_node(valkey_url=wires.url), make_node())
        id = (await paused.api.start())["id"]
        call = await upstream.called()
        async with paused.api.source(id) as own, other.api.source(id) as there:
            await call.say("acknowledged ")
            await own.event("token")
            await there.event("token")
            if behind:
                wires.appends.hold_replies()
                await call.say("executed, and never confirmed ")
                await there.event("token")
            paused.pause()
            wires.appends.release()
            await there.event("end")
            paused.resume()

            # then its readers get everything that stands before the end, and the end
            await own.event("end")
            assert own.received == there.received
            assert ids(own.received) == await stored_ids(valkey, id)
            assert_whole(own.received)


# 4. One end, and nobody waits for one that cannot come.


async def test_every_reader_of_a_killed_node_is_told_within_the_lease(make_node, valkey, upstream):
    # given generations of a node, with readers here, on another node, and none
    lease_s = 1
    dying, other = await asyncio.gather(make_node(lease_s=lease_s), make_node(lease_s=lease_s))
    started = [(await dying.api.start())["id"] for _ in range(10)]
    calls = [await upstream.called() for _ in started]
    for call in calls:
        await call.say("partial")
    for id in started:
        await other.api.has(id, 2)
    async with sources(dying.api, started[0], 10) as own, sources(other.api, started[0], 10) as others:
        # when it is killed
        dying.kill()
        killed = time.monotonic()

        # then all readers elsewhere are told within the lease, and the time to look
        ends = await all_end(others)
        assert time.monotonic() - killed < 2 * lease_s + 1
        assert {(end["status"], end["error"]["code"]) for end in ends} == {("interrupted", "node_lost")}
        assert {text_of(source.received) for source in others} == {"partial"}

        # and those who were at the dead node find the same elsewhere
        for source in own:
            async with other.api.source(started[0], last_event_id=source.last_event_id) as moved:
                await moved.event("end")
                assert source.received + moved.received == others[0].received

    # and so have the generations that nobody watched
    for id in started:
        generation = await other.api.ended(id, seconds=2 * lease_s)
        assert (generation["status"], generation["error"]["code"]) == ("interrupted", "node_lost")
        log = await other.api.log(id)
        assert_whole(log)
        assert ids(log) == await stored_ids(valkey, id)


async def test_several_nodes_that_see_a_death_write_one_end(make_node, valkey, upstream):
    # given five nodes, of which one dies with twenty generations
    nodes = await asyncio.gather(*(make_node(lease_s=0.6) for _ in range(4)))
    dying = await make_node(lease_s=0.6)
    started = [(await dying.api.start())["id"] for _ in range(20)]
    for _ in started:
        await (await upstream.called()).say("a")
    for id in started:
        await nodes[0].api.has(id, 2)
    dying.kill()

    # then each generation has one end, whoever wrote it
    for id in started:
        await nodes[0].api.ended(id)
    logs = [await nodes[1].api.log(id) for id in started]
    await asyncio.sleep(0.6)  # a span in which nothing more may be written
    for id, log in zip(started, logs, strict=True):
        assert_whole(log)
        assert ids(log) == await stored_ids(valkey, id)


async def test_a_single_node_that_was_killed_shows_its_generations_as_interrupted_at_once(
    start_node, tmp_path, upstream
):
    # given a node with a Valkey of its own, and a lease of half a minute
    node = await start_node(data_dir=tmp_path / "data", upstream_url=upstream.url, lease_s=30, retry_ms=50)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as source:
        await call.say("shown")
        await source.event("token")

        # when it is killed and started again
        node.kill()
        await node.start()

        # then nobody waits for that lease: no other node can be using this Valkey
        end = (await source.event("end", seconds=4)).json()
        assert (end["status"], end["error"]["code"]) == ("interrupted", "node_lost")
        assert source.received == await node.api.log(id)
        assert_whole(source.received)


async def test_a_valkey_that_is_away_is_not_taken_for_the_death_of_a_node(make_node, valkey, upstream):
    # given two nodes with a short lease, and a Valkey that is stopped for longer than that
    nodes = await asyncio.gather(*(make_node(lease_s=0.5) for _ in range(2)))
    started = [(await nodes[n % 2].api.start())["id"] for n in range(6)]
    calls = [await upstream.called() for _ in started]
    for how in ("paused", "killed"):
        for call in calls:
            await call.say("a")
        valkey.pause() if how == "paused" else valkey.kill()
        await asyncio.sleep(1.3)  # the outage: every lease has run out in it
        valkey.resume() if how == "paused" else valkey.start()
        await eventually("Valkey", lambda: nodes[0].api.get("/readyz"), lambda answer: answer.status == 200)
        await asyncio.sleep(1)  # two leases, in which nobody may be taken for dead

    # then all generations go on
    for call in calls:
        await call.finish()
    for id in started:
        assert (await nodes[0].api.ended(id))["status"] == "completed"
        assert text_of(await nodes[0].api.log(id)) == "aa"


# 5. Readers cost themselves, and 6. Valkey's load does not grow with subscribers: tests/integration/test_readers.py.


# 7. Nothing lives for ever.


async def test_every_key_has_an_expiry_at_every_moment(make_node, valkey, upstream):
    # given generations that start, run, end, are cancelled, deleted, watched and retried, on two nodes
    nodes = await asyncio.gather(make_node(), make_node())
    seen: dict[str, int] = {}
    over = asyncio.Event()

    async def look() -> None:
        while not over.is_set():
            found = await expiries(valkey)
            seen.update(found)
            assert [key for key, left in found.items() if left < 0] == []

    async def live(n: int) -> None:
        node, other = nodes[n % 2], nodes[1 - n % 2]
        answer = await node.api.post("/generations", {"prompt": "Hi", "model": "m"}, {"Idempotency-Key": f"key {n}"})
        id = answer.json()["id"]
        async with other.api.source(id) as source:
            await source.event("token")
            if n % 5 == 1:
                await other.api.post(f"/generations/{id}/cancel")
            elif n % 5 == 2:
                await node.api.delete(f"/generations/{id}")
            await source.event("end")

    looking = asyncio.create_task(look())
    upstream.script = generate(40, per_second=40)
    await asyncio.gather(*(live(n) for n in range(20)))
    nodes[0].kill()
    await asyncio.sleep(0.2)
    over.set()
    await looking

    # then at no moment was there a key without one, and of each kind there were some
    kinds = {"idempotency", "live", "recent", "nodes", "node"}
    assert kinds <= {key.split(":")[1] for key in seen}
    logs = [left for key, left in seen.items() if key.startswith("replay:{gen_") and key.endswith(":events")]
    assert 16 <= len(logs) <= 20  # those that are deleted as soon as they begin may go unseen
    assert max(logs) <= 86_400_000
    assert 0 < seen["replay:{:feed}:events"] <= 31 * 86_400_000


@pytest.mark.parametrize(
    "before", [("PEXPIRE", "replay:live"), ("PEXPIRE", "replay:recent"), ("PEXPIRE", "replay:nodes")], ids=" ".join
)
async def test_every_key_has_an_expiry_when_a_node_dies_between_two_commands(make_node, valkey, upstream, before):
    # given a Valkey that has nothing yet, and a node that goes away for good in the middle of what it has to say
    async with ValkeyWires(valkey.url) as wires:
        wires.cut_requests_before(command(*before))
        with contextlib.suppress(AssertionError):  # a node that does not come up tells nothing
            node = await make_node(valkey_url=wires.url)
            await node.api.post("/generations", {"prompt": "Hi", "model": "m"})
        with contextlib.suppress(AssertionError):  # a node that never says this cannot die before it
            await wires.requests_cut(seconds=3)

        # then nothing is left that would stay
        await asyncio.sleep(0.1)
        assert [key for key, left in (await expiries(valkey)).items() if left < 0] == []


async def test_what_has_expired_is_gone_everywhere(make_node, valkey, upstream):
    # given a generation that is kept for a second after its end
    nodes = await asyncio.gather(make_node(heal_window_s=0.5), make_node())
    upstream.script = say("a")
    id = await nodes[0].api.run(ttl=1)
    assert await nodes[1].api.log(id) == await nodes[0].api.log(id)

    # when that is over, then both nodes have forgotten it, also what they had in memory
    for node in nodes:
        await eventually("404", lambda api=node.api: api.get(f"/generations/{id}"), lambda answer: answer.status == 404)
        assert (await node.api.read(id)).status == 404
    async with valkey.client() as client:
        assert [key async for key in client.scan_iter() if id.encode() in key] == []


# Going away on purpose.


async def test_readers_of_a_draining_node_go_on_exactly_elsewhere_under_load(make_node, upstream):
    # given a node that follows a fast generation for many readers, and produces one of its own
    producing = await make_node()
    draining = await make_node(drain_grace_s=5, drain_spread_s=0.5)
    upstream.script = generate(900, per_second=300)
    theirs = (await producing.api.start())["id"]
    await producing.api.has(theirs, 2)
    upstream.script = None
    mine = (await draining.api.start())["id"]
    call = await upstream.called()
    async with crowd(draining.api.events_url(theirs), 30) as readers, draining.api.source(mine) as own:
        await readers[0].has(b'"index":100}')

        # when it is told to stop, and its own generation finishes within the grace
        draining.terminate()
        await eventually("not to be ready", lambda: draining.api.get("/readyz"), lambda answer: answer.status == 503)
        await call.say("to the end")
        await call.finish()
        end = (await own.event("end")).json()
        assert end["status"] == "completed"
        assert own.connections[0].clean is not False
        for reader in readers:
            await reader.ended()
        assert await draining.wait() == 0

    # then the readers of the others' generation were cut, not ended, and spread over a while
    assert not any(reader.clean for reader in readers)
    cut = sorted(reader.arrivals[-1][0] for reader in readers)
    assert cut[-1] - cut[0] > 0.2

    # and each goes on elsewhere, exactly where it was
    await producing.api.ended(theirs)
    log = await producing.api.log(theirs)
    assert_whole(log)
    for reader in readers:
        cursor = reader.received[-1].last_event_id
        async with producing.api.source(theirs, last_event_id=cursor) as moved:
            await moved.event("end")
            assert reader.received + moved.received == log


async def test_a_second_sigterm_stops_at_once_and_ends_nobodys_stream_cleanly(make_node, upstream):
    # given a node that waits for its generation, with readers
    node, other = await asyncio.gather(make_node(drain_grace_s=60), make_node())
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.say("partial")
    async with streaming(node.api.events_url(id)) as stream:
        await stream.until(b"partial")
        node.terminate()
        await eventually("not to be ready", lambda: node.api.get("/readyz"), lambda answer: answer.status == 503)

        # when it is told again
        node.terminate()
        told = time.monotonic()
        code = await node.wait(5)

        # then it is gone at once, says that this was not a clean drain, and its readers were cut
        assert time.monotonic() - told < 3
        assert code != 0
        assert not (await stream.to_end()).clean
    generation = await other.api.ended(id)
    assert generation["status"] == "interrupted"
    assert generation["status"] in TERMINAL
    assert text_of(await other.api.log(id)) == "partial"
