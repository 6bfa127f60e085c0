"""What the activity costs: it is trimmed and expires, is found at once, and does not grow with tokens."""

from __future__ import annotations

import json
import re
import time

import pytest
from support.activity import (
    KEPT,
    KEY,
    LIFE,
    contiguous,
    follow,
    kept,
    many_at_once,
    of,
    opened,
    settled,
    until_live,
    written,
)
from support.api import event_id
from support.deadlines import DEADLINE_S, eventually, within
from support.logs import expiries, ids
from support.sse import messages, streaming
from support.upstream import generate, say
from support.valkey import ValkeyServer


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
    # given an activity log that is longer than it should be
    await fill(valkey, 15_000)
    node = await make_node()
    await opened(node.api)
    # when a good deal happens
    upstream.script = say("a")
    await many_at_once([node.api.run] * 350, limit=20)
    # then
    await eventually("the activity to be trimmed", lambda: length(valkey), lambda events: events <= 1.25 * KEPT)
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


async def test_cost_does_not_grow_with_tokens(make_node, valkey, upstream, activity_wire):
    node = await make_node(valkey_url=activity_wire.url)
    async with follow(node.api) as source:
        await source.event("live")
        costs = []
        for tokens in (10, 1000):
            appends, events = activity_wire.appends, await length(valkey)
            upstream.script = generate(tokens, per_second=None)
            id = await node.api.run()
            assert (await of(source, id, "ended"))["tokens"] == tokens
            await of(source, id, "first_token")
            costs.append((activity_wire.appends - appends, await length(valkey) - events))
    assert costs[0][1] == costs[1][1] == 3
    assert max(appends for appends, _ in costs) <= 3
