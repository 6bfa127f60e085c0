"""A response that somebody has an id of: followed from any event on, cancelled, deleted, its input listed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from support.api import Api
from support.deadlines import within
from support.fault_proxy import FaultProxy
from support.http1 import Stream, open_stream
from support.responses import (
    BACKGROUND,
    becomes,
    begin,
    events_after,
    events_of,
    following,
    response,
    run,
    shows,
    text_in,
    types,
)
from support.upstream import say
from support.v1 import INPUT, RESPONSES_PATH, ask, asking, assert_refused, id_of, new_id, opened, opening
from support.valkey_wires import ValkeyWires

# Resuming.


async def test_after_every_event_of_an_ended_response_come_exactly_those_after_it(world):
    # given a response that has everything, and has ended
    world.upstream.script = world.everything
    live = await ask(world.here, INPUT, stream=True)
    id, events = id_of(live), events_of(live)
    assert len(events) > 20

    # when its events are asked for after each of them, then exactly the others come
    for api in (world.here, world.there):
        assert await events_after(api, id) == events
        for after in range(len(events)):
            answer = await (await following(api, id, after)).to_end()
            assert events_of(answer, after=after) == events[after + 1 :]
            assert live.body.endswith(answer.body)

        # and after the last of them, and what is beyond it, nothing
        for after in (len(events) - 1, len(events), 1000, 2**31):
            answer = await (await following(api, id, after)).to_end()
            assert (answer.status, answer.media_type, answer.body, answer.clean) == (
                200,
                "text/event-stream",
                b"",
                True,
            )


@pytest.mark.parametrize("background", [False, True], ids=["", "background"])
async def test_after_every_event_of_a_running_response_come_those_after_it_and_then_the_rest(world, background):
    # given a response whose upstream sends one thing after the other
    id = new_id()
    body = INPUT | {"background": background, "stream": True, "replay": {"id": id}}
    starting = opening(world.here, body)
    call = await world.upstream.called()
    readers: list[tuple[int, Stream]] = []
    expected = ["created"] if background else []
    for sent, (payload, names) in enumerate(world.steps, 1):
        await world.send(call, payload)
        await world.here.has(id, 1 + sent)
        expected += [name for name in names if not (background and name == "created")]

        # when others come in at any event of which they may know, then they get those after it
        for after in range(-1, len(expected)):
            api = world.there if (after + sent) % 2 else world.here
            reader = await following(api, id, after if after >= 0 else None)
            assert reader.status == 200, await reader.to_end()
            assert types(await shows(reader, len(expected) - after - 1)) == expected[after + 1 :]
            readers.append((after, reader))

        # and what nobody can know of yet is no event of it
        for after in (len(expected), len(expected) + 7):
            for api in (world.here, world.there):
                assert_refused(await (await following(api, id, after)).to_end(), 400, "invalid_request", str(after))
    await call.done()

    # then each of them gets all the rest, and nothing else
    events = events_of(await (await starting).to_end())
    assert types(events) == [*expected, *world.ending]
    for after, reader in readers:
        assert events_of(await reader.to_end(), after=after) == events[after + 1 :]
    assert await events_after(world.there, id) == events


async def test_what_is_no_number_is_no_place_to_go_on_from(world):
    world.upstream.script = world.says("a")
    id = await run(world.here)
    for text in ("-1", "-0", "1.5", "x", "1e3", "+1", " 1", "", "²", "99999999999", "null", "0x1"):
        answer = await world.here.get(f"{RESPONSES_PATH}/{id}", stream="true", starting_after=text)
        assert_refused(answer, 400, "invalid_request", f"starting_after={text!r}: expected an integer from 0 to ")


async def test_without_stream_a_place_to_go_on_from_means_nothing(world):
    world.upstream.script = world.says("a")
    id = await run(world.here)
    found = await response(world.here, id)
    for query in ({"starting_after": 1}, {"stream": "false"}, {"stream": "false", "starting_after": 3}):
        answer = await world.here.get(f"{RESPONSES_PATH}/{id}", **query)
        assert (answer.media_type, answer.json()) == ("application/json", found)


async def resume_in_pieces(
    proxies: list[FaultProxy], id: str, chance: random.Random
) -> tuple[list[dict[str, Any]], int]:
    """Read a response through wires that are cut again and again; its events, and how many reads it took."""
    events: list[dict[str, Any]] = []
    for reads in range(1, 1000):
        proxy = chance.choice(proxies)
        proxy.cut_replies_after(chance.randrange(1, 6000))
        after = events[-1]["sequence_number"] if events else None
        query = "?stream=true" + ("" if after is None else f"&starting_after={after}")
        with contextlib.suppress(OSError):  # cut before the head was there
            stream = await open_stream(f"{proxy.url}{RESPONSES_PATH}/{id}{query}")
            assert stream.status == 200, await stream.to_end()
            answer = await stream.to_end()
            events += events_of(answer, after=-1 if after is None else after, clean=answer.clean)
            if answer.clean:
                return events, reads
    raise AssertionError(f"not through after {reads} reads, with {len(events)} events")


@pytest.mark.parametrize("seed", range(2))
async def test_a_reader_that_is_cut_at_any_byte_loses_nothing_and_gets_nothing_twice(world, seed):
    # given readers behind wires that break, at a response that runs
    chance = random.Random(seed)
    world.upstream.script = world.speaks(150, per_second=200)
    async with FaultProxy(world.here.url) as near, FaultProxy(world.there.url) as far:
        id = await begin(world.here)
        live, reads = await within("a broken reader", resume_in_pieces([near, far], id, chance), 20)

        # then they have all of it, while it runs and afterwards
        events = await events_after(world.here, id)
        assert live == events
        assert reads > 5
        recorded, reads = await within("a broken reader", resume_in_pieces([near, far], id, chance), 20)
        assert recorded == events
        assert reads > 5
    assert "".join(event["delta"] for event in events if "delta" in event) == "".join(f"word{n} " for n in range(150))


async def test_a_reader_goes_on_at_a_node_that_has_not_heard_of_its_last_event(make_node, valkey, upstream):
    # given two nodes that show a response, of which one does not hear of anything new any more
    async with ValkeyWires(valkey.url) as wires:
        node, deaf = await asyncio.gather(make_node(), make_node(valkey_url=wires.url))
        stream = await opened(node.api, BACKGROUND)
        id = id_of(stream)
        call = await upstream.called()
        await call.say("a")
        other = await following(deaf.api, id)
        await shows(other, 5)
        wires.channels.hold_replies()
        await call.say("b")
        *_, last = await shows(stream, 6)

        # when a reader that knows more goes on there, then it gets what comes after it
        reader = await following(deaf.api, id, last["sequence_number"])
        assert reader.status == 200
        await call.say("c")
        await call.finish()
        events = events_of(await stream.to_end())
        assert events_of(await reader.to_end(), after=5) == events[6:]
        assert events_of(await other.to_end()) == events


# Cancelling and deleting.


async def test_a_cancelled_response_ends_cleanly_and_without_a_word(world):
    # given readers of a response that has begun
    id = await begin(world.here)
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await world.began(id)
    readers = [await following(api, id) for api in (world.here, world.there)]
    before = await shows(readers[0], 5)

    # when it is cancelled, at another node than its own
    answer = await world.there.post(f"{RESPONSES_PATH}/{id}/cancel")
    assert answer.status == 200
    assert (answer.json()["id"], answer.json()["status"]) == (id, "cancelled")
    await call.hung_up()

    # then no event says so
    for reader in readers:
        assert events_of(await reader.to_end()) == before
    for api in (world.here, world.there):
        assert await events_after(api, id) == before
        assert await events_after(api, id, 2) == before[3:]

    # but the response does
    for api in (world.here, world.there):
        found = await response(api, id)
        assert (found["status"], found["error"], found["completed_at"]) == ("cancelled", None, None)
        assert [item["status"] for item in found["output"]] == ["incomplete"]
        generation = await api.generation(id)
        assert (generation["status"], generation["error"]) == ("cancelled", None)

    # and to cancel it again changes nothing
    for api in (world.here, world.there):
        again = await api.post(f"{RESPONSES_PATH}/{id}/cancel")
        assert (again.status, again.json()) == (200, answer.json())
    assert len(world.upstream.calls) == 1


@pytest.mark.parametrize("end", ["", "cancelled", "failed"])
async def test_a_response_that_is_not_complete_has_what_was_said_until_now(world, end):
    id = await begin(world.here)
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await world.began(id)
    if end == "cancelled":
        await world.there.post(f"{RESPONSES_PATH}/{id}/cancel")
    elif end:
        await call.cut()
    for api in (world.here, world.there):
        assert text_in(await becomes(api, id, end or "in_progress")) == "Val"
        assert (await api.transcript(id))["text"] == "Val"


async def test_a_response_is_cancelled_before_its_upstream_answers(world):
    stream = await opened(world.here, BACKGROUND)
    id = id_of(stream)
    call = await world.upstream.called()
    answer = await world.there.post(f"{RESPONSES_PATH}/{id}/cancel")
    assert (answer.status, answer.json()["status"], answer.json()["output"]) == (200, "cancelled", [])
    await call.hung_up()
    assert types(events_of(await stream.to_end())) == ["created"]
    assert (await response(world.here, id))["status"] == "cancelled"


async def test_to_cancel_what_has_ended_changes_nothing(world):
    world.upstream.script = world.says("Val", "key")
    id = await run(world.here)
    found = await response(world.here, id)
    for api in (world.here, world.there):
        answer = await api.post(f"{RESPONSES_PATH}/{id}/cancel")
        assert (answer.status, answer.json()) == (200, found)


async def test_who_waits_for_the_whole_of_a_cancelled_response_is_told(world):
    # given a call that waits, and an upstream that has begun
    id = new_id()
    waiting = asking(world.here, INPUT | {"replay": {"id": id}})
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await world.began(id)
    await world.there.post(f"{RESPONSES_PATH}/{id}/cancel")
    answer = await waiting
    assert (answer.status, answer.json()["status"]) == (200, "cancelled")


async def test_a_deleted_response_is_gone(world):
    world.upstream.script = world.says("Val", "key")
    id = await run(world.here)
    answer = await world.there.delete(f"{RESPONSES_PATH}/{id}")
    assert (answer.status, answer.media_type) == (200, "application/json")
    assert answer.json() == {"id": id, "object": "response", "deleted": True}
    assert answer.headers["x-request-id"]
    for api in (world.here, world.there):
        await assert_unknown(api, id)
        assert (await api.get(f"/generations/{id}")).status == 404


async def test_to_delete_a_running_response_cancels_it(world):
    id = await begin(world.here)
    call = await world.upstream.called()
    await world.speak(call, "Val")
    await world.began(id)
    readers = [await following(api, id) for api in (world.here, world.there)]
    for reader in readers:
        await shows(reader, 5)
    assert (await world.there.delete(f"{RESPONSES_PATH}/{id}")).status == 200
    await call.hung_up()
    for reader in readers:
        assert len(events_of(await reader.to_end())) == 5
    for api in (world.here, world.there):
        await assert_unknown(api, id)


@pytest.mark.parametrize("id", ["gen_unknown", "resp_67c9fdcecf488190bdd9a0409de3a1ec", "not.an.id", "x" * 200])
async def test_what_was_never_started_is_unknown(service, id):
    await assert_unknown(service, id)


async def assert_unknown(api: Api, id: str) -> None:
    for answer in (
        await api.get(f"{RESPONSES_PATH}/{id}"),
        await api.get(f"{RESPONSES_PATH}/{id}", stream="true"),
        await api.get(f"{RESPONSES_PATH}/{id}", stream="true", starting_after=3),
        await api.get(f"{RESPONSES_PATH}/{id}/input_items"),
        await api.post(f"{RESPONSES_PATH}/{id}/cancel"),
        await api.delete(f"{RESPONSES_PATH}/{id}"),
    ):
        assert_refused(answer, 404, "generation_not_found")


# Input items.


async def test_a_text_is_listed_as_the_message_it_is(world):
    world.upstream.script = world.says("a")
    id = await run(world.here)
    for api in (world.here, world.there):
        answer = await api.get(f"{RESPONSES_PATH}/{id}/input_items")
        assert (answer.status, answer.media_type) == (200, "application/json")
        listed = answer.json()
        (item,) = listed["data"]
        assert item.pop("id")
        content = [{"type": "input_text", "text": "Hi"}]
        assert (item["type"], item["role"], item["content"]) == ("message", "user", content)
        assert (listed["object"], listed["has_more"]) == ("list", False)


@pytest.mark.parametrize("content", ["Hi", [{"type": "input_text", "text": "Hi"}]], ids=["a text", "parts"])
async def test_a_message_is_listed_as_one_however_it_was_written(service, upstream, content):
    # the type may be left out of a request's message, but the official client needs it in a list
    upstream.script = say("a")
    id = await run(service, INPUT | {"input": [{"role": "user", "content": content}]})
    (item,) = (await service.get(f"{RESPONSES_PATH}/{id}/input_items")).json()["data"]
    assert (item["type"], item["role"], item["content"]) == (
        *("message", "user"),
        [{"type": "input_text", "text": "Hi"}],
    )


async def test_items_are_listed_in_pages_in_both_orders(world):
    # given a response to a conversation
    given = [
        {"role": "user", "content": "How is it in Paris?"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "So?"}]},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Sure?"},
    ]
    world.upstream.script = world.says("a")
    id = await run(world.here, INPUT | {"input": given})
    path = f"{RESPONSES_PATH}/{id}/input_items"
    listed = (await world.here.get(path, order="asc")).json()
    items = listed["data"]
    assert [item.get("type") for item in items] == [
        *("message", "function_call", "function_call_output", "message", "message", "message")
    ]
    for item, each in zip(items, given, strict=True):
        assert {**each, "type": item["type"], "content": ...}.items() <= {**item, "content": ...}.items()
    assert items[0]["content"] == [{"type": "input_text", "text": "How is it in Paris?"}]
    assert items[4]["content"] == [{"type": "output_text", "text": "It rains."}]
    ids = [item["id"] for item in items]
    assert len(set(ids)) == len(given)
    assert (listed["first_id"], listed["last_id"]) == (ids[0], ids[-1])

    # then they can be read in pages, newest first where nothing else is said
    for order, expected in (("asc", ids), ("desc", ids[::-1]), (None, ids[::-1])):
        found: list[str] = []
        for _ in range(3):
            page = (await world.there.get(path, order=order, limit=2, after=found[-1] if found else None)).json()
            found += [item["id"] for item in page["data"]]
            assert page["has_more"] == (len(found) < len(ids))
        assert found == expected
    for wrong in ({"limit": 0}, {"limit": "x"}, {"limit": 101}, {"order": "up"}, {"after": "unknown"}):
        assert_refused(await world.here.get(path, **wrong), 400, "invalid_request")
