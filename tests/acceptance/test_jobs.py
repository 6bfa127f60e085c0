"""`Replay-Job`: one static header, under which each request of a job is answered once."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from support.api import assert_problem, text_of
from support.upstream import generate, say
from support.v1 import CALLS, CHAT, CHAT_PATH, id_of

EVERYWHERE = {"generations": ("/generations", CHAT), **CALLS}


@pytest.fixture
def job() -> dict[str, str]:
    return {"Replay-Job": f"job-{uuid.uuid4()}"}


@pytest.mark.parametrize("name", EVERYWHERE)
async def test_the_same_body_attaches_and_another_starts_its_own(service, other_service, upstream, job, name):
    path, body = EVERYWHERE[name]
    upstream.script = say("a")
    steps = [body, body | {"seed": 1}, body | {"seed": 2}]
    first = [id_of(await service.post(path, step, job)) for step in steps]
    again = [id_of(await other_service.post(path, step, job)) for step in reversed(steps)]
    assert again == first[::-1]
    assert len(set(first)) == 3
    assert len(upstream.calls) == 3


@pytest.mark.parametrize("name", ["chat", "a legacy one", "a response"])
@pytest.mark.parametrize("first", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("header", ["Replay-Job", "Idempotency-Key"])
async def test_how_the_answer_is_sent_is_no_part_of_the_body(service, upstream, header, name, first):
    path, body = EVERYWHERE[name]
    key = {header: uuid.uuid4().hex}
    upstream.script = say("Hel", "lo")
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    asked = [body | streamed, body | {"stream": False}, body, body | {"stream": True}]
    answers = [await service.post(path, each, key) for each in (asked if first else asked[::-1])]
    assert len({id_of(answer) for answer in answers}) == 1
    assert {answer.media_type for answer in answers} == {"text/event-stream", "application/json"}
    assert all(b"Hel" in answer.body for answer in answers)
    assert len(upstream.calls) == 1


async def test_a_page_that_asks_by_its_url_may_name_a_job(service, upstream, job):
    upstream.script = say("a")
    asked = [await service.get("/v1/completions/stream", job, prompt=text) for text in ("x", "y", "x")]
    ids = [id_of(answer) for answer in asked]
    assert ids[0] == ids[2] != ids[1]


async def test_of_racing_calls_one_starts(service, other_service, upstream, job):
    upstream.script = say("Hi")
    answers = await asyncio.gather(*(api.post("/generations", CHAT, job) for api in [service, other_service] * 6))
    assert sorted(answer.status for answer in answers) == [200] * 11 + [201]
    await service.ended(id_of(answers[0]))
    assert len(upstream.calls) == 1


async def test_another_job_and_a_key_of_the_same_name_start_their_own(service, upstream, job):
    upstream.script = say("a")
    others = [job, {"Replay-Job": job["Replay-Job"] + "x"}, {"Idempotency-Key": job["Replay-Job"]}, {}]
    assert len({id_of(await service.post(CHAT_PATH, CHAT, each)) for each in others}) == 4


async def test_the_calls_of_another_path_are_another_step(service, upstream, job):
    upstream.script = say("a")
    ids = {id_of(await service.post(path, CHAT, job)) for path in ("/generations", CHAT_PATH)}
    assert len(ids) == 2


async def test_a_step_that_failed_begins_anew(service, other_service, upstream, job):
    async def break_off(call):
        await call.say("a word")
        await call.cut()

    upstream.script = break_off
    failed = id_of(await service.post(CHAT_PATH, CHAT, job))
    upstream.script = generate(3)
    answer = await other_service.post(CHAT_PATH, CHAT, job)
    assert (answer.status, answer.headers["replay-previous-generation-id"]) == (200, failed)
    assert text_of(await service.log(id_of(answer))) == "word0 word1 word2 "


@pytest.mark.parametrize("value", ["", "k" * 256, "ä", "a\tb"], ids=["empty", "too long", "not ASCII", "a tab"])
async def test_what_is_no_key_is_refused(service, upstream, value):
    answer = await service.post("/generations", CHAT, {"Replay-Job": value})
    assert_problem(answer, 400, "invalid_request")
    assert "Replay-Job: expected 1 to 255 characters of printable ASCII" in answer.json()["detail"]
    assert upstream.calls == []


async def test_a_job_and_a_key_together_are_refused(service, upstream, job):
    for path, body in EVERYWHERE.values():
        answer = await service.post(path, body, job | {"Idempotency-Key": "k"})
        assert answer.status == 400
        assert "expected one of them" in answer.body.decode()
    assert upstream.calls == []
