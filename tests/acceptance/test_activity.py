"""`GET /feed`: the activity of all generations, as one log that every node writes and anybody may follow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import pytest
from support.activity import (
    LIFE,
    PATIENT,
    WHOLE,
    by_generation,
    follow,
    happened,
    kept,
    many_at_once,
    of,
    settled,
    until_written,
    written,
)
from support.deadlines import eventually
from support.sse import streaming
from support.upstream import USAGE, Call, say
from support.valkey_wires import ValkeyWires


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
            assert by_generation(source.events)[id] == ["created", "ended"]


async def test_answer_without_visible_text_has_no_first_token(service, upstream):
    async with follow(service) as source:
        await source.event("live")
        upstream.script = say()
        id = await service.run()
        assert (await of(source, id, "ended"))["status"] == "completed"
        assert by_generation(source.events)[id] == ["created", "ended"]


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
    told = by_generation(await kept(service))
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
        assert by_generation(await kept(api))[id] == expected


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
    told = by_generation(await kept(service))
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
        assert by_generation(await written(valkey))[id] == ["created", "ended"]


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
    assert by_generation(await written(valkey))[id] == [*LIFE]


async def test_end_that_its_node_could_not_tell_any_more_is_told_all_the_same(
    make_node, upstream, valkey, activity_wire
):
    # given a node that dies when the end stands, and before it has told it
    doomed = await make_node(valkey_url=activity_wire.url)
    other = await make_node()
    async with follow(other.api) as source:
        await source.event("live")
        id = (await doomed.api.start())["id"]
        call = await upstream.called()
        await call.say("a")
        await of(source, id, "first_token")
        activity_wire.hold_next_append()
        await call.finish()
        await activity_wire.request_held()
        await other.api.ended(id)
        # when
        doomed.kill()
        await activity_wire.lose_what_is_held()
        # then
        assert (await of(source, id, "ended", 5))["status"] == "completed"


async def test_life_of_which_its_node_could_tell_nothing_is_told_by_another(make_node, upstream, valkey, activity_wire):
    # given a node that dies before it has told anything of a generation that has spoken
    doomed = await make_node(valkey_url=activity_wire.url)
    other = await make_node()
    async with follow(other.api) as source:
        await source.event("live")
        activity_wire.hold_next_append()
        starting = asyncio.create_task(doomed.api.post("/generations", {"prompt": "Hi", "replay": {"id": "untold"}}))
        await activity_wire.request_held()
        # when
        doomed.kill()
        await activity_wire.lose_what_is_held()
        # then
        assert (await of(source, "untold", "ended", 5))["error"]["code"] == "node_lost"
    with contextlib.suppress(OSError, EOFError):
        await starting
    assert by_generation(await written(valkey))["untold"] == ["created", "ended"]


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
    assert by_generation(await written(valkey))[id] == [*LIFE]


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
