"""The contract's "Generations": starting, reading, cancelling and deleting them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from urllib.parse import urljoin

import pytest
from support.api import TERMINAL, assert_problem, event_id, text_of
from support.deadlines import eventually
from support.http1 import request
from support.samples import SAMPLES
from support.sse import messages, streaming
from support.upstream import USAGE, play, say
from support.v1 import CHAT


def sse_post(api, body):
    """POST /generations whose answer is the event stream."""
    return api.open("/generations", body, {"Accept": "text/event-stream"})


# Starting.


async def test_all_parameters_of_a_chat_request_are_passed_to_the_upstream(service, upstream):
    # given a request with known, unknown and nested parameters, and our own
    parameters = {
        "temperature": 0.5,
        "max_tokens": 7,
        "stop": ["a", "b"],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "logit_bias": {"1": -100},
        "x_vendor": {"nested": [1, None, "é"]},
    }

    # when a generation is started with them
    await service.start(CHAT | parameters, metadata={"k": "v"})

    # then the upstream gets all of them, as a stream, and nothing of ours
    call = await upstream.called()
    assert call.path == "/v1/chat/completions"
    assert call.request["messages"] == CHAT["messages"]
    assert {name: call.request[name] for name in parameters} == parameters
    assert call.request["stream"] is True
    assert "replay" not in call.request


async def test_metadata_of_the_request_is_kept_as_the_generations_and_goes_to_the_upstream(service, upstream):
    kept = await service.start(CHAT | {"metadata": {"user": "u1"}})
    own = await service.start(CHAT | {"metadata": {"user": "u1"}}, metadata={"job": 7})
    assert (kept["metadata"], own["metadata"]) == ({"user": "u1"}, {"job": 7})
    for _ in (kept, own):
        assert (await upstream.called()).request["metadata"] == {"user": "u1"}


async def test_a_prompt_is_sent_as_one_user_message(service, upstream):
    await service.start({"prompt": "What is Valkey?", "model": "test-model"})
    call = await upstream.called()
    assert call.request["messages"] == [{"role": "user", "content": "What is Valkey?"}]
    assert "prompt" not in call.request


async def test_without_a_model_the_first_of_the_upstream_is_taken(service, upstream):
    generation = await service.start({"prompt": "Hi"})
    call = await upstream.called()
    assert call.request["model"] == "test-model"
    await call.finish()
    assert (await service.ended(generation["id"]))["model"] == "test-model"


async def test_started_generation_is_answered_with_201_location_and_the_object(service, upstream):
    answer = await service.post("/generations", CHAT)
    assert answer.status == 201
    assert answer.media_type == "application/json"
    generation = answer.json()
    service.started.append(generation["id"])
    found = await request("GET", urljoin(service.at("/generations"), answer.headers["location"]))
    assert found.json()["id"] == generation["id"]
    assert generation["status"] in ("queued", "streaming")


async def test_an_id_of_our_own_has_128_random_bits(service, upstream):
    upstream.script = say("Hi")
    ids = {(await service.start())["id"] for _ in range(5)}
    assert len(ids) == 5
    assert all(re.fullmatch(r"gen_[A-Za-z0-9_-]{22,124}", id) for id in ids)  # 22 base64 digits hold 128 bits


@pytest.mark.parametrize("shape", ["a", "A-z_0", "x" * 100])
async def test_the_client_may_choose_the_id(service, upstream, shape):
    upstream.script = say("Hi")
    id = f"{shape}{time.time_ns()}".ljust(128, "_")
    assert (await service.start(id=id))["id"] == id
    assert (await service.ended(id))["status"] == "completed"


@pytest.mark.parametrize("id", ["", "a b", "a/b", "ä", "a.b", "x" * 129, "a\n", 7, ["a"]])
async def test_an_id_of_another_form_is_refused(service, upstream, id):
    assert_problem(await service.post("/generations", CHAT | {"replay": {"id": id}}), 400)
    assert upstream.calls == []


async def test_a_taken_id_is_a_409_problem_on_every_node(service, other_service, upstream):
    upstream.script = say("first")
    id = await service.run()
    for api in (service, other_service):
        assert_problem(await api.post("/generations", CHAT | {"replay": {"id": id}}), 409, "generation_exists")
    assert len(upstream.calls) == 1
    assert (await service.transcript(id))["text"] == "first"


async def test_of_racing_starts_with_one_id_exactly_one_wins(service, other_service, upstream):
    upstream.script = say("Hi")
    body = CHAT | {"replay": {"id": f"race_{time.time_ns()}"}}
    answers = await asyncio.gather(*(api.post("/generations", body) for api in [service, other_service] * 4))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7
    await service.ended(body["replay"]["id"])
    assert len(upstream.calls) == 1


async def test_post_that_accepts_events_is_answered_with_the_stream_at_once(service, upstream):
    # when a generation is started with Accept: text/event-stream
    stream = await sse_post(service, CHAT)
    call = await upstream.called()

    # then the answer is its event stream, while the model has not said a word
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    await stream.until(b"event: start")
    await call.say("Hel")
    await stream.until(b"Hel")
    await call.finish()
    answer = await stream.to_end()
    assert answer.clean
    events = messages(answer.body)
    id = events[0].json()["generation_id"]
    assert [event for event in events if event.event != "live"] == await service.log(id)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"7", b'"x"', b"null", b"\xff{}", b"{}", b'{"model":"m"}', b'{"prompt":7}', b'{"messages":"x"}'],
)
async def test_a_body_that_is_no_request_is_a_400_problem(service, upstream, body):
    answer = await service.post("/generations", headers={"Content-Type": "application/json"}, body=body)
    assert_problem(answer, 400)
    assert upstream.calls == []


@pytest.mark.parametrize("replay", [7, {"ttl": "x"}, {"ttl": -1}, {"abandon_after": "x"}, {"metadata": 7}])
async def test_replay_options_that_cannot_be_read_are_a_400_problem(service, upstream, replay):
    assert_problem(await service.post("/generations", CHAT | {"replay": replay}), 400)
    assert upstream.calls == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_a_413_problem(make_node, upstream, chunked):
    node = await make_node(max_body_bytes=2000)
    body = json.dumps(CHAT | {"user": "x" * 3000}).encode()
    headers = {"Content-Type": "application/json"}
    if chunked:
        headers["Transfer-Encoding"] = "chunked"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    answer = await node.api.post("/generations", headers=headers, body=body)
    assert_problem(answer, 413, "body_too_large")
    assert upstream.calls == []


async def test_bodies_up_to_8_mib_are_taken(service, upstream):
    upstream.script = say("Hi")
    big = CHAT | {"user": "x" * (8 * 1024 * 1024 - 200)}
    answer = await service.post("/generations", big)
    assert answer.status == 201
    await service.ended(answer.json()["id"])
    big["user"] += "x" * 400
    assert_problem(await service.post("/generations", big), 413, "body_too_large")


async def test_an_unknown_path_is_a_404_problem_and_a_wrong_method_a_405(service):
    assert_problem(await service.get("/nowhere"), 404)
    assert_problem(await request("PUT", service.at("/generations"), body=b"{}"), 405)


# The generation object.


async def test_object_follows_the_generation_from_queued_to_its_end(service, upstream):
    # given a generation whose upstream has not answered
    before = time.time()
    started = await service.start(CHAT, metadata={"user": "u1", "n": [1]})
    id = started["id"]
    call = await upstream.called()
    generation = await service.generation(id)
    assert generation["status"] == "queued"
    assert generation["model"] == "test-model"
    assert generation["metadata"] == {"user": "u1", "n": [1]}
    assert before - 0.1 <= generation["created"] <= time.time() + 0.1
    assert generation["events"] == 1
    assert event_id(generation["last_event_id"])[1] == 0

    # when it speaks, then it is streaming
    await call.say("Hel")
    generation = await service.has(id, 2)
    assert generation["status"] == "streaming"
    assert event_id(generation["last_event_id"])[1] == 1

    # when it has ended, then finish reason, usage, error and the time of the end are there too
    await call.finish("stop", USAGE)
    generation = await service.ended(id)
    log = await service.log(id)
    assert generation["status"] == "completed"
    assert (generation["finish_reason"], generation["usage"], generation["error"]) == ("stop", USAGE, None)
    assert before - 0.1 <= generation["created"] <= generation["ended"] <= time.time() + 0.1
    assert generation["events"] == len(log)
    assert generation["last_event_id"] == log[-1].last_event_id
    assert set(generation) >= {"subscribers", "expires_at", "links"}


async def test_object_is_the_same_on_every_node(service, other_service, upstream):
    id = (await service.start(CHAT, metadata={"k": "v"}))["id"]
    call = await upstream.called()
    await call.say("a")
    await service.has(id, 2)
    running = await other_service.has(id, 2)
    assert (running["status"], running["metadata"]) == ("streaming", {"k": "v"})
    await call.finish("stop", USAGE)
    here, there = await service.ended(id), await other_service.ended(id)
    for name in ("id", "status", "model", "created", "last_event_id", "events", "metadata", "usage", "ended"):
        assert here[name] == there[name]


async def test_a_terminal_status_never_changes(service, upstream):
    upstream.script = say("a")
    id = await service.run()
    before = await service.generation(id)
    await service.post(f"/generations/{id}/cancel")
    after = await service.generation(id)
    assert before == after
    assert after["status"] == "completed"


async def test_links_lead_where_they_say(service, upstream):
    upstream.script = say("a")
    id = await service.run()
    links = (await service.generation(id))["links"]
    urls = {name: urljoin(service.at(f"/generations/{id}"), links[name]) for name in links}
    assert (await request("GET", urls["self"])).json()["id"] == id
    assert (await request("GET", urls["events"])).media_type == "text/event-stream"
    assert (await request("GET", urls["transcript"])).json()["text"] == "a"
    assert (await request("POST", urls["cancel"])).json()["id"] == id


async def test_subscribers_are_counted_while_they_watch(service, upstream):
    id = (await service.start())["id"]
    assert (await service.generation(id))["subscribers"] == 0
    async with service.source(id) as first, service.source(id) as second:
        await first.event("live")
        await second.event("live")
        await service.has_subscribers(id, 2)
    await service.has_subscribers(id, 0)


async def test_ttl_counts_from_the_end(service, upstream):
    upstream.script = say("a")
    generation = await service.generation(await service.run(None, ttl=600))
    assert generation["expires_at"] == pytest.approx(generation["ended"] + 600, abs=2)


async def test_running_generation_outlives_its_ttl(service, upstream):
    # given a generation with a ttl of one second, that is silent and speaks by turns for longer
    id = (await service.start(ttl=1))["id"]
    call = await upstream.called()
    await call.say("a")
    await asyncio.sleep(1.6)
    await call.say("b")
    await asyncio.sleep(0.3)
    await call.finish()

    # then it is whole at its end, and gone a second later
    assert (await service.ended(id))["status"] == "completed"
    assert text_of(await service.log(id)) == "ab"
    gone = await eventually("a 404", lambda: service.get(f"/generations/{id}"), lambda a: a.status == 404, 4)
    assert_problem(gone, 404)


async def test_an_unknown_generation_is_a_404_problem_everywhere(service):
    for method, path in [("GET", ""), ("GET", "/transcript"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")]:
        assert_problem(await request(method, service.at(f"/generations/gen_nobody{path}")), 404)


# Hanging up, abandoning.


async def test_a_client_that_hangs_up_never_cancels(service, upstream):
    # given a generation whose starter and whose only reader both hang up
    stream = await sse_post(service, CHAT)
    call = await upstream.called()
    await call.say("a")
    body = await stream.until(b"event: token")
    id = messages(body)[0].json()["generation_id"]
    async with streaming(service.events_url(id)) as reader:
        await reader.until(b"event: live")
        stream.hang_up()
    await service.has_subscribers(id, 0)

    # then the upstream is still listened to
    await call.say("b")
    await call.finish()
    assert (await service.ended(id))["status"] == "completed"
    assert text_of(await service.log(id)) == "ab"
    assert not call.disconnected.is_set()


async def test_a_generation_that_nobody_ever_watched_is_abandoned(service, upstream):
    id = (await service.start(abandon_after=0.5))["id"]
    call = await upstream.called()
    await call.say("a")
    generation = await service.ended(id)
    assert generation["status"] == "cancelled"
    assert generation["error"]["code"] == "abandoned"
    await call.hung_up()
    assert text_of(await service.log(id)) == "a"


async def test_a_generation_is_abandoned_only_after_its_last_reader_on_any_node_has_left(make_node, upstream):
    # given a generation that is watched on another node than the one that produces it
    producing, watching = await make_node(), await make_node()
    id = (await producing.api.start(abandon_after=1))["id"]
    call = await upstream.called()
    async with watching.api.source(id) as source:
        await source.event("live")
        await asyncio.sleep(2)
        await call.say("still here")
        await source.event("token")
        assert (await producing.api.generation(id))["status"] == "streaming"

    # when that reader leaves, then it is abandoned, and not before its time
    left = time.monotonic()
    generation = await producing.api.ended(id)
    assert time.monotonic() - left > 0.5
    assert (generation["status"], generation["error"]["code"]) == ("cancelled", "abandoned")
    await call.hung_up()


async def test_without_abandon_after_nobody_need_watch(service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    await asyncio.sleep(0.5)
    await call.finish()
    assert (await service.ended(id))["status"] == "completed"


# Cancelling.


@pytest.mark.parametrize("where", ["on its node", "on another node"])
async def test_cancel_stops_the_upstream_call_and_keeps_the_text(service, other_service, upstream, where):
    # given a running generation with readers on both nodes
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("partial")
    api = service if where == "on its node" else other_service
    async with service.source(id) as here, other_service.source(id) as there:
        await here.event("token")
        await there.event("token")

        # when it is cancelled
        answer = await api.post(f"/generations/{id}/cancel")

        # then the upstream is let go, the readers are told, and the text stays
        assert (answer.status, answer.json()["id"]) == (200, id)
        await call.hung_up()
        for source in (here, there):
            end = (await source.event("end")).json()
            assert (end["status"], end["error"]) == ("cancelled", None)
    for node in (service, other_service):
        generation = await node.ended(id)
        assert (generation["status"], generation["error"]) == ("cancelled", None)
        assert (await node.transcript(id))["text"] == "partial"


async def test_cancel_before_the_first_word(service, upstream):
    id = (await service.start())["id"]
    call = await upstream.called()
    await service.post(f"/generations/{id}/cancel")
    await call.hung_up()
    assert (await service.ended(id))["status"] == "cancelled"
    assert [event.event for event in await service.log(id)] == ["start", "end"]


async def test_cancel_is_idempotent(service, other_service, upstream):
    id = (await service.start())["id"]
    await upstream.called()
    answers = await asyncio.gather(*(api.post(f"/generations/{id}/cancel") for api in [service, other_service] * 3))
    answers += [await api.post(f"/generations/{id}/cancel") for api in (service, other_service)]
    assert {answer.status for answer in answers} == {200}
    assert {answer.json()["id"] for answer in answers} == {id}
    assert answers[-1].json()["status"] == "cancelled"
    assert [event.event for event in await service.log(id)] == ["start", "end"]


@pytest.mark.parametrize("number", ["02", "21"])
async def test_cancel_of_an_ended_generation_changes_nothing(service, other_service, upstream, number):
    upstream.script = play(next(sample for name, sample in SAMPLES.items() if name.startswith(number)))
    id = await service.run()
    before = await service.generation(id)
    for api in (service, other_service):
        answer = await api.post(f"/generations/{id}/cancel")
        assert answer.status == 200
        assert answer.json()["status"] == before["status"]
    assert (await service.generation(id))["last_event_id"] == before["last_event_id"]


# Deleting.


@pytest.mark.parametrize("where", ["on its node", "on another node"])
async def test_delete_removes_every_trace_on_every_node(make_node, upstream, where):
    # given a generation that has ended and that both nodes have served
    nodes = [(await make_node()).api for _ in range(2)]
    upstream.script = say("secret")
    kept, id = await nodes[0].run(), await nodes[0].run()
    log, _ = [await api.log(id) for api in nodes]

    # when it is deleted
    deleting = nodes[0] if where == "on its node" else nodes[1]
    answer = await deleting.delete(f"/generations/{id}")
    assert (answer.status, answer.body) == (204, b"")

    # then nothing is left of it anywhere, and a second time there is nothing to delete
    for api in nodes:
        await eventually("a 404", lambda api=api: api.get(f"/generations/{id}"), lambda a: a.status == 404, 2)
        assert_problem(await api.read(id), 404)
        assert_problem(await api.read(id, {"Last-Event-ID": log[1].last_event_id}), 404)
        assert_problem(await api.read(id, {"Last-Event-ID": log[-1].last_event_id}), 404)
        assert_problem(await api.get(f"/generations/{id}/transcript"), 404)
        assert [g["id"] for g in (await api.get("/generations")).json()["generations"]] == [kept]
        assert_problem(await api.delete(f"/generations/{id}"), 404)
        assert_problem(await api.post(f"/generations/{id}/cancel"), 404)


@pytest.mark.parametrize("where", ["on its node", "on another node"])
async def test_delete_of_a_running_generation_ends_it_for_its_readers(service, other_service, upstream, where):
    # given a running generation with readers on both nodes
    id = (await service.start())["id"]
    call = await upstream.called()
    await call.say("a")
    api = service if where == "on its node" else other_service
    async with service.source(id) as here, other_service.source(id) as there:
        await here.event("token")
        await there.event("token")

        # when it is deleted
        assert (await api.delete(f"/generations/{id}")).status == 204

        # then the upstream is let go, the readers get the end, and find nothing when they come back
        await call.hung_up()
        for source in (here, there):
            end = (await source.event("end")).json()
            assert end["status"] == "cancelled"
    for node in (service, other_service):
        await eventually("a 404", lambda node=node: node.get(f"/generations/{id}"), lambda a: a.status == 404, 2)
        assert_problem(await node.read(id), 404)
        assert_problem(await node.delete(f"/generations/{id}"), 404)


async def test_the_id_of_a_deleted_generation_can_be_taken_again(service, other_service, upstream):
    # given a deleted generation that both nodes have served
    upstream.script = say("old")
    id = await service.run(None, id=f"again_{time.time_ns()}")
    await other_service.log(id)
    await service.delete(f"/generations/{id}")

    # when another takes its id, then every node shows the new one, and the old one's cursor is unknown
    upstream.script = say("new", "er")
    assert await other_service.run(None, id=id) == id
    for api in (service, other_service):
        assert text_of(await api.log(id)) == "newer"
    assert set(TERMINAL) >= {(await service.generation(id))["status"]}
