"""What a call asks, when it asks again, and what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from replay.client import Client, UnexpectedAnswer, UnknownProblem, Unreachable, calls
from replay.client.backoff import Backoff
from replay.client.exchange import Answer, Lost, Outcome, Request
from replay.client.problems import retry_after_s
from replay.errors import (
    Draining,
    GenerationNotFound,
    IdempotencyKeyReused,
    InvalidRequest,
    InvalidSetting,
    ReplayError,
    StoreUnavailable,
    UpstreamUnreachable,
)

GENERATION = {
    "id": "g",
    "status": "queued",
    "model": "m",
    "created": 1.0,
    "last_event_id": "1-0",
    "events": 1,
    "subscribers": 0,
    "metadata": {},
    "expires_at": None,
    "a_newer_member": 7,
}
CUT = Lost("cut")


def answer(body: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, {"Content-Type": "application/json", **headers}, json.dumps(body).encode())


def problem(status: int, code: str, **headers: str) -> Answer:
    return answer(
        {"code": code, "detail": f"why {code}"}, status, **{"Content-Type": "application/problem+json"}, **headers
    )


def play(call: calls.Call[Any], *outcomes: Outcome) -> tuple[Any, list[calls.Try]]:
    """The result of a call that has these outcomes, and what it did for it."""
    tries = [next(call)]
    for outcome in outcomes:
        try:
            tries.append(call.send(outcome))
        except StopIteration as done:
            assert len(tries) == len(outcomes)
            return done.value, tries
    raise AssertionError(f"asks for more: {tries[-1]}")


def backoff(give_up_after_s: float | None = 10.0) -> Backoff:
    return Backoff(give_up_after_s, clock=lambda: 0.0, jitter=lambda: 1.0)


def start(key: str | None = None, **parameters: Any) -> calls.Call[Any]:
    return calls.start(parameters, "Hi", None, options={"id": "g", "ttl": None}, idempotency_key=key, backoff=backoff())


def test_a_start_says_what_was_given_and_nothing_else():
    _, (asked,) = play(start(temperature=0, model=None), answer(GENERATION, 201))
    assert json.loads(asked.request.body or b"") == {"prompt": "Hi", "temperature": 0, "replay": {"id": "g"}}


def test_a_start_is_made_again_under_its_own_key():
    # when an answer is lost, and the next try meets a node that is shutting down
    generation, tries = play(start(), CUT, problem(503, "draining", **{"Retry-After": "1"}), answer(GENERATION))
    # then the same request is sent again, under one key, and not at once
    assert generation.id == "g"
    assert tries[0].request == tries[1].request == tries[2].request
    assert [each.after_s for each in tries] == [0.0, 0.1, 1.2]
    # and another start has another key
    _, (other,) = play(start(), answer(GENERATION))
    assert other.request.headers["Idempotency-Key"] != tries[0].request.headers["Idempotency-Key"]


def test_a_start_keeps_the_callers_key():
    _, (asked,) = play(start("report-42"), answer(GENERATION))
    assert asked.request.headers["Idempotency-Key"] == "report-42"


@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\r\nX-Evil: 1"])
def test_a_key_that_no_header_can_hold_is_refused(key):
    with pytest.raises(InvalidRequest):
        start(key)


def test_what_a_newer_service_sends_besides_is_in_raw():
    generation, _ = play(calls.generation("g", backoff()), answer(GENERATION))
    assert generation.raw["a_newer_member"] == 7
    assert not generation.terminal


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (problem(400, "invalid_request"), InvalidRequest),
        (problem(404, "generation_not_found"), GenerationNotFound),
        (problem(422, "idempotency_key_reused"), IdempotencyKeyReused),
        (problem(502, "upstream_unreachable"), UpstreamUnreachable),
        (problem(500, "internal_error"), ReplayError),
        (answer({"error": "no"}, 404), UnexpectedAnswer),
        (answer({}, 302), UnexpectedAnswer),
        (answer([]), UnexpectedAnswer),
        (answer({"id": "g"}), UnexpectedAnswer),
        (Answer(200, {}, b"<html>"), UnexpectedAnswer),
    ],
)
def test_a_refusal_is_raised_as_what_it_is_and_at_once(outcome, error):
    call = calls.generation("g", backoff())
    next(call)
    with pytest.raises(error) as raised:
        call.send(outcome)
    assert type(raised.value) is error


def test_an_unknown_code_keeps_all_that_was_said():
    call = calls.generation("g", backoff())
    next(call)
    with pytest.raises(UnknownProblem, match="why teapot") as raised:
        call.send(problem(418, "teapot"))
    assert (raised.value.status, raised.value.code, raised.value.detail) == (418, "teapot", "why teapot")


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (CUT, Unreachable),
        (problem(503, "draining"), Draining),
        (problem(503, "store_unavailable"), StoreUnavailable),
        (Answer(502, {"Content-Type": "text/html"}, b""), Unreachable),
    ],
)
def test_what_may_pass_is_raised_when_patience_ends(outcome, error):
    call = calls.generation("g", backoff(0.25))
    assert [next(call).after_s, call.send(outcome).after_s, call.send(outcome).after_s] == [0.0, 0.1, 0.2]
    with pytest.raises(error):
        call.send(outcome)


def test_a_delete_that_finds_nothing_after_a_lost_answer_is_done():
    result, tries = play(calls.delete("g", backoff()), CUT, problem(404, "generation_not_found"))
    assert (result, len(tries)) == (None, 2)


def test_a_delete_that_finds_nothing_is_an_error():
    call = calls.delete("g", backoff())
    next(call)
    with pytest.raises(GenerationNotFound):
        call.send(problem(404, "generation_not_found"))


def status(text: str) -> Answer:
    return Answer(200, {"Replay-Status": text}, b"what it has said")


def test_a_wait_asks_until_the_generation_has_ended():
    ended = answer({**GENERATION, "status": "failed"})
    generation, tries = play(calls.wait("g", None), status("streaming"), CUT, status("failed"), ended)
    assert generation.terminal
    assert [each.request.query.get("wait") for each in tries] == ["60.000000"] * 3 + [None]


def test_a_page_of_another_server_is_no_transcript():
    for call in (calls.wait("g", None), calls.text("g", None, backoff())):
        next(call)
        with pytest.raises(UnexpectedAnswer):
            call.send(Answer(200, {"Content-Type": "text/html"}, b"<html>"))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://host", "http://", "http://host:99999", "http://[", "http://a\nb"]
)
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(InvalidSetting, match="url"):
        Client(url)


def test_a_wait_ends_in_time():
    # given a clock that goes on by what is waited for
    now = 0.0
    call = calls.wait("g", 70.0, clock=lambda: now)
    # when
    asked = [next(call)]
    now = 60.0
    asked.append(call.send(status("streaming")))
    now = 70.0
    with pytest.raises(TimeoutError):
        call.send(status("streaming"))
    # then
    assert [each.request.query["wait"] for each in asked] == ["60.000000", "10.000000"]


def list_all(pages: Callable[[Request], Answer], limit: int | None) -> list[str]:
    listing, found = calls.Listing({"status": "failed,cancelled"}, limit=limit), []
    while not listing.complete:
        call = listing.page(backoff())
        page, _ = play(listing.page(backoff()), pages(next(call).request))
        found += [generation.id for generation in listing.take(page)]
    return found


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, 250), (0, 0), (1, 1), (99, 99), (200, 200), (250, 250), (900, 250)]
)
def test_a_list_goes_through_pages_also_short_and_empty_ones(limit, expected):
    asked: list[int] = []

    def pages(request: Request) -> Answer:
        assert request.query["status"] == "failed,cancelled"
        size, before = int(request.query["limit"]), int(request.query.get("before", "0"))
        asked.append(size)
        if len(asked) % 3 == 2:  # of a rare status
            return answer({"generations": [], "next": str(before)})
        stop = min(250, before + max(1, size - 1))
        page = [{**GENERATION, "id": str(number)} for number in range(before, stop)]
        return answer({"generations": page, "next": None if stop == 250 else str(stop)})

    assert list_all(pages, limit) == [str(number) for number in range(expected)]
    assert all(size <= 100 for size in asked)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:09 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 9.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT", "Date": "Wed, 21 Oct 2026 07:28:09 GMT"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_whoever_answers_may_say_when_to_come_back(headers, seconds):
    assert retry_after_s(Answer(503, headers, b"")) == seconds


def test_pauses_stay_bounded_however_long_it_takes():
    waiting = Backoff(None, jitter=lambda: 1.0)
    assert [waiting.pause_s() for _ in range(5000)][-1] == 5.0
