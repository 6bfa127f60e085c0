"""What goes wrong, and how the contract says it is told: upstreams, Valkey, nodes."""

from __future__ import annotations

import asyncio
import json
import random
import time

import pytest
from support.api import assert_problem, event_id, text_of
from support.deadlines import eventually
from support.fault_proxy import FaultProxy
from support.ports import free_port
from support.sse import messages, streaming
from support.upstream import generate, say

ERROR = {"message": "the model is on fire", "type": "server_error", "param": None, "code": "on_fire"}


async def failure(api, id) -> dict:
    """The error of a generation that must have failed."""
    generation = await api.ended(id)
    assert generation["status"] == "failed"
    assert isinstance(generation["error"]["message"], str)
    end = (await api.log(id))[-1].json()
    assert (end["status"], end["error"]) == ("failed", generation["error"])
    return generation["error"]


# The upstream fails.


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize(
    ("body", "message"),
    [({"error": ERROR}, "on fire"), ({"detail": "no such thing"}, ""), (b"<h1>oops</h1>", "")],
    ids=["openai", "detail", "html"],
)
async def test_an_error_status_is_an_upstream_error(service, upstream, status, body, message):
    upstream.script = lambda call: call.respond(status, body)
    error = await failure(service, await service.run())
    assert error["code"] == "upstream_error"
    assert message in error["message"]


@pytest.mark.parametrize(
    "error",
    [ERROR, "the model is on fire", {"message": "the model is on fire"}],
    ids=["object", "string", "short object"],
)
@pytest.mark.parametrize(
    "place", ["first", "mid-stream", "after the finish reason", "in a chunk", "in the finish chunk"]
)
async def test_an_error_in_the_stream_is_an_upstream_error(service, upstream, error, place):
    async def fail(call):
        if place != "first":
            await call.say("partial")
        if place == "after the finish reason":
            await call.send(call.chunk({"delta": {}, "finish_reason": "stop"}))
        if place == "in a chunk":
            await call.send(call.chunk({"delta": {}}, error=error))
        elif place == "in the finish chunk":
            await call.send(call.chunk({"delta": {}, "finish_reason": "stop"}, error=error))
        else:
            await call.send({"error": error})
        await call.send_raw(b"data: [DONE]\n\n")
        await call.done()

    upstream.script = fail
    id = await service.run()
    told = await failure(service, id)
    assert told["code"] == "upstream_error"
    assert "the model is on fire" in told["message"]
    assert text_of(await service.log(id)) == ("" if place == "first" else "partial")


async def test_an_error_that_is_null_is_none(service, upstream):
    async def harmless(call):
        await call.send(call.chunk({"delta": {"content": "a"}}, error=None))
        await call.finish()

    upstream.script = harmless
    assert (await service.ended(await service.run()))["status"] == "completed"


@pytest.mark.parametrize(
    "body",
    [
        b"data: not json\n\n",
        b"data: [1]\n\n",
        b"data: 42\n\n",
        b'data: {"choices": 7}\n\n',
        b'data: {"choices": ["x"]}\n\n',
    ],
)
async def test_what_is_not_the_protocol_is_upstream_invalid(service, upstream, body):
    async def babble(call):
        await call.say("partial")
        await call.send_raw(body)
        await call.finish()

    upstream.script = babble
    id = await service.run()
    assert (await failure(service, id))["code"] == "upstream_invalid"
    assert text_of(await service.log(id)) == "partial"


async def test_a_page_instead_of_a_stream_is_upstream_invalid(service, upstream):
    upstream.script = lambda call: call.respond(200, b"<html>Welcome</html>", {"content-type": "text/html"})
    assert (await failure(service, await service.run()))["code"] == "upstream_invalid"


@pytest.mark.parametrize("how", ["clean end", "clean end after [DONE]", "cut", "nothing at all", "cut in a line"])
async def test_a_stream_that_stops_without_a_finish_reason_is_truncated(service, upstream, how):
    async def stop(call):
        if how != "nothing at all":
            await call.say("partial")
        if how == "clean end after [DONE]":
            await call.send_raw(b"data: [DONE]\n\n")
        if how == "cut in a line":
            await call.send_raw(b'data: {"choices":[{"index":0,"delta":{"content":"never')
        await (call.cut() if how.startswith("cut") else call.done())

    upstream.script = stop
    id = await service.run()
    assert (await failure(service, id))["code"] == "upstream_truncated"
    assert text_of(await service.log(id)) == ("" if how == "nothing at all" else "partial")


async def test_a_cut_after_the_finish_reason_is_no_failure(service, upstream):
    # the finish reason was said; what is missing is [DONE], which proves nothing
    async def stop(call):
        await call.say("a")
        await call.send(call.chunk({"delta": {}, "finish_reason": "stop"}))
        await call.done()

    upstream.script = stop
    assert (await service.ended(await service.run()))["status"] == "completed"


async def test_nobody_at_the_upstream_is_unreachable(make_node):
    node = await make_node(upstream_url=f"http://127.0.0.1:{free_port()}/v1")
    assert (await failure(node.api, await node.api.run()))["code"] == "upstream_unreachable"


async def test_an_upstream_whose_name_nobody_knows_is_unreachable(make_node):
    node = await make_node(upstream_url="http://upstream.invalid/v1")
    assert (await failure(node.api, await node.api.run()))["code"] == "upstream_unreachable"


async def test_a_connection_that_is_cut_before_the_answer_is_no_timeout(service, upstream):
    upstream.script = lambda call: call.cut()
    error = await failure(service, await service.run())
    assert error["code"] in ("upstream_unreachable", "upstream_truncated", "upstream_error")


async def test_a_silent_upstream_is_a_timeout(make_node, upstream):
    # given one that never answers, one that never speaks, and one that stops speaking
    node = await make_node(upstream_idle_timeout_s=0.4)
    ids = [(await node.api.start())["id"] for _ in range(3)]
    calls = [await upstream.called() for _ in ids]
    await calls[1].answer()
    await calls[2].say("partial")

    # then each is a timeout, and is let go
    for id in ids:
        assert (await failure(node.api, id))["code"] == "upstream_timeout"
    for call in calls:
        await call.hung_up()


async def test_comments_of_the_upstream_are_signs_of_life(make_node, upstream):
    node = await make_node(upstream_idle_timeout_s=0.4)

    async def think(call):
        for _ in range(8):
            await call.send_raw(b":\n\n")
            await asyncio.sleep(0.15)
        await call.say("a")
        await call.finish()

    upstream.script = think
    generation = await node.api.ended(await node.api.run())
    assert generation["status"] == "completed"


async def test_an_upstream_that_comes_back_in_time_is_tried_again(make_node, upstream):
    # given an upstream that is too busy once
    node = await make_node(upstream_retries=2)
    body = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": None}}

    async def busy_once(call):
        if len(upstream.calls) == 1:
            await call.respond(429, body, {"content-type": "application/json", "retry-after": "0"})
        else:
            await say("a")(call)

    upstream.script = busy_once
    generation = await node.api.ended(await node.api.run())
    assert generation["status"] == "completed"
    assert len(upstream.calls) == 2


async def test_a_log_over_its_limit_ends_as_limit_exceeded(make_node, upstream):
    node = await make_node(max_generation_bytes=4000)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    upstream_gone = asyncio.create_task(call.hung_up())
    for _ in range(100):
        if upstream_gone.done():
            break
        try:
            await call.say("x" * 100)
        except ConnectionError:
            break
        await asyncio.sleep(0.005)
    assert (await failure(node.api, id))["code"] == "limit_exceeded"
    await upstream_gone
    assert text_of(await node.api.log(id)).startswith("x" * 100)


async def test_an_endless_line_ends_as_a_failure(make_node, upstream):
    node = await make_node(max_chunk_bytes=2000)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.say("partial")
    await call.send_raw(b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 5000)
    assert (await failure(node.api, id))["code"] in ("limit_exceeded", "upstream_invalid")
    assert text_of(await node.api.log(id)) == "partial"
    await call.hung_up()


# Valkey is away.


@pytest.mark.parametrize("fault", ["killed", "hanging"])
async def test_events_are_answered_by_a_comment_and_an_abort_while_valkey_is_away(node, valkey, upstream, fault):
    # given a generation that has ended and one that runs, and then no Valkey
    upstream.script = say("a")
    ended = await node.api.run()
    upstream.script = None
    running = (await node.api.start())["id"]
    await upstream.called()
    valkey.kill() if fault == "killed" else valkey.pause()

    # when their events are asked for, or those of an unknown one, with and without a cursor
    async def settled():
        return await node.api.read("gen_unknown")

    await eventually("the outage to be noticed", settled, lambda answer: answer.status == 200)
    for id in (ended, running, "gen_unknown"):
        for headers, query in (({}, {}), ({"Last-Event-ID": "1-1"}, {}), ({}, {"format": "openai"})):
            answer = await node.api.read(id, headers, **query)

            # then it is 200, the headers, one line, and an abort
            assert answer.status == 200
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["cache-control"] == "no-cache, no-transform"
            assert answer.body == b":k\n"
            assert not answer.clean
    valkey.resume() if fault == "hanging" else valkey.start()


async def test_source_that_comes_while_valkey_is_away_gets_everything_when_it_is_back(node, valkey, upstream):
    # given a recorded generation, and no Valkey
    upstream.script = say("a", "b")
    id = await node.api.run()
    log = await node.api.log(id)
    valkey.kill()

    # when a browser comes, then it keeps trying, and has all of it as soon as Valkey is back
    async with node.api.source(id) as source:
        await source.connected(times=3)
        assert source.events == []
        valkey.start()
        await source.event("end")
        assert source.received == log
        assert {connection.status for connection in source.connections} == {200}


async def test_other_requests_are_503_problems_while_valkey_is_away(node, valkey, upstream):
    upstream.script = say("a")
    id = await node.api.run()
    valkey.kill()
    for method, path in [("GET", ""), ("GET", "/transcript"), ("POST", "/cancel"), ("DELETE", "")]:
        call = node.api.post if method == "POST" else node.api.delete if method == "DELETE" else node.api.get
        assert_problem(await call(f"/generations/{id}{path}"), 503)
    assert_problem(await node.api.get("/generations"), 503)
    assert_problem(await node.api.post("/generations", {"prompt": "Hi", "model": "m"}), 503)
    valkey.start()
    await eventually("the generation", lambda: node.api.get(f"/generations/{id}"), lambda a: a.status == 200)
    assert len(upstream.calls) == 1


async def test_running_generation_survives_an_outage_of_valkey(node, valkey, upstream):
    # given a reader of a running generation
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as source:
        await call.say("a")
        await source.event("token")

        # when Valkey dies, the model goes on, and Valkey comes back
        valkey.kill()
        await call.say("b")
        await call.say("c")
        seen = len(source.received)
        valkey.start()

        # then nothing is lost, and nothing doubled, for those who watched and for those who come later
        await call.say("d")
        await call.finish()
        await source.event("end")
        assert seen == 2  # nothing was shown that had not been acknowledged
        assert text_of(source.received) == "abcd"
        assert source.received == await node.api.log(id)


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_reply_of_valkey_that_is_lost_doubles_nothing(node, valkey_proxy: FaultProxy, upstream, count):
    # given a running generation
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as source:
        await call.say("a")
        await source.event("token")

        # when an append is executed, and its reply is cut
        valkey_proxy.cut_replies_after(count)
        await call.say("b")
        await valkey_proxy.reply_cut()
        await call.say("c")
        await call.finish()
        await source.event("end")

        # then every event is there once
        assert text_of(source.received) == "abc"
        log = await node.api.log(id)
        assert source.received == log
        assert [event.json()["type"] for event in log] == ["start", "token", "token", "token", "delta", "end"]


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_lost_or_doubled_whatever_happens_to_the_wires(make_node, valkey_proxy, upstream, seed):
    # given a generation with readers on two nodes, all of them behind a bad network
    chance = random.Random(seed)
    producing, watching = await make_node(), await make_node()
    words = [f"word{number} " for number in range(300)]
    upstream.script = generate(len(words), per_second=150)
    id = (await producing.api.start())["id"]
    async with producing.api.source(id) as here, watching.api.source(id) as there:
        # when connections are cut, held and refused at random while it runs
        for _ in range(20):
            await asyncio.sleep(chance.uniform(0.02, 0.15))
            match chance.randrange(6):
                case 0:
                    valkey_proxy.cut()
                case 1:
                    valkey_proxy.cut_replies_after(chance.randrange(200))
                case 2:
                    valkey_proxy.stall()
                    await asyncio.sleep(chance.uniform(0, 0.2))
                    valkey_proxy.release()
                case 3:
                    await valkey_proxy.refuse()
                    valkey_proxy.cut()
                    await asyncio.sleep(chance.uniform(0, 0.2))
                    await valkey_proxy.accept()
                case 4:
                    here.cut()
                case 5:
                    there.cut()
        await here.event("end")
        await there.event("end")

        # then both readers have seen exactly the log, and the log is what the model said
        async with producing.api.source(id) as again:
            await again.event("end")
        log = again.received
        assert text_of(log) == "".join(words)
        assert [event_id(event.last_event_id)[1] for event in log] == list(range(len(log)))
        assert here.received == there.received == log
        assert json.loads(log[-1].data)["status"] == "completed"


async def test_valkey_that_comes_back_shorter_is_healed_with_the_same_ids(node, valkey, upstream):
    # given a log of which Valkey has lost the last acknowledged events
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as source:
        await call.say("a")
        await source.event("token")
        snapshot = valkey.snapshot()
        await call.say("b")
        await call.say("c")
        await source.event("token")
        last = await source.event("token")
        valkey.restore(snapshot)

        # when the model goes on
        await call.say("d")
        await call.finish()
        await source.event("end")

        # then the log is whole again, under the ids that readers have seen
        assert text_of(source.received) == "abcd"
        assert source.received == await node.api.log(id)
        rest = messages((await node.api.read(id, {"Last-Event-ID": last.last_event_id})).body)
        assert rest == source.received[-len(rest) :]
        assert rest[0].json()["content"] == "d"


async def test_a_generation_fails_when_valkey_stays_away(make_node, valkey, upstream):
    # given a running generation, and an outage that is longer than it may be
    node = await make_node(store_outage_s=0.5, store_timeout_s=0.3)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.say("a")
    await node.api.has(id, 2)
    valkey.kill()
    await call.say("b")

    # then the upstream is let go, and the end says why as soon as it can be written
    await call.hung_up()
    valkey.start()
    await eventually("Valkey", lambda: node.api.get(f"/generations/{id}"), lambda answer: answer.status == 200)
    assert (await failure(node.api, id))["code"] == "store_unavailable"


# A node is gone.


async def test_reader_of_a_killed_node_is_told_on_another(make_node, upstream):
    # given a reader on one node of a generation that another produces
    lease = 1
    producing, watching = await make_node(lease_s=lease), await make_node(lease_s=lease)
    id = (await producing.api.start())["id"]
    call = await upstream.called()
    async with watching.api.source(id) as source:
        await call.say("partial")
        await source.event("token")

        # when the producing node is killed
        producing.kill()
        killed = time.monotonic()

        # then the reader gets an end within the lease (and the time that looking takes)
        end = (await source.event("end")).json()
        assert time.monotonic() - killed < 2 * lease + 1
        assert (end["status"], end["error"]["code"]) == ("interrupted", "node_lost")
        assert text_of(source.received) == "partial"
    generation = await watching.api.generation(id)
    assert (generation["status"], generation["error"]["code"]) == ("interrupted", "node_lost")


async def test_source_on_a_killed_node_gets_the_end_when_the_node_is_back(node, upstream):
    # given a reader on the only node
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as source:
        await call.say("partial")
        await source.event("token")

        # when the node is killed and started again
        await node.restart()

        # then the reader comes back by itself and is told, once
        end = (await source.event("end")).json()
        assert (end["status"], end["error"]["code"]) == ("interrupted", "node_lost")
        assert source.received == await node.api.log(id)


async def test_reader_that_moves_to_another_node_misses_nothing(make_node, upstream):
    # given a reader on a node that does not produce
    producing, here, there = [await make_node() for _ in range(3)]
    upstream.script = generate(150, per_second=150)
    id = (await producing.api.start())["id"]
    async with here.api.source(id) as first:
        for _ in range(20):
            await first.next()
        here.kill()  # the reader's own node dies, under load

    # when it goes on elsewhere from its cursor
    async with there.api.source(id, last_event_id=first.last_event_id) as second:
        await second.event("end")

    # then both parts together are the log
    assert first.received + second.received == await producing.api.log(id)


async def test_a_paused_node_cannot_write_behind_the_end(make_node, upstream):
    # given a node that is paused for longer than its lease, so that another ends its generation
    producing, watching = await make_node(), await make_node()
    id = (await producing.api.start())["id"]
    call = await upstream.called()
    await call.say("a")
    async with watching.api.source(id) as source:
        await source.event("token")
        producing.pause()
        await source.event("end")

    # when it wakes up and the model goes on
    producing.resume()
    await call.say("late")

    # then it gives up, and the end stays the last event, on every node
    await call.hung_up()
    for api in (watching.api, producing.api):
        log = await api.log(id)
        assert log == source.received
        assert [event.event for event in log] == ["start", "token", "end"]
    assert (await producing.api.generation(id))["status"] == "interrupted"


async def test_cancel_of_a_generation_whose_node_is_gone_ends_it(make_node, upstream):
    producing, other = await make_node(), await make_node()
    id = (await producing.api.start())["id"]
    await upstream.called()
    producing.kill()
    answer = await other.api.post(f"/generations/{id}/cancel")
    assert answer.status == 200
    assert (await other.api.ended(id))["status"] in ("cancelled", "interrupted")


async def test_readers_of_other_generations_are_not_disturbed_by_a_dead_node(make_node, upstream):
    dying, living = await make_node(), await make_node()
    await dying.api.start()
    await upstream.called()
    id = (await living.api.start())["id"]
    call = await upstream.called()
    async with streaming(living.api.events_url(id)) as stream:
        await stream.until(b"event: live")
        dying.kill()
        await asyncio.sleep(1.5)  # past the lease
        await call.say("a")
        await call.finish()
        answer = await stream.to_end()
    assert answer.clean
    assert json.loads(messages(answer.body)[-1].data)["status"] == "completed"
