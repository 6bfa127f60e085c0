"""A follower shows every event once, however its connections are cut and its lines are torn."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.client import End, Event, Live, Reset, Start, Token, UnexpectedAnswer, Unreachable
from replay.client.backoff import Backoff
from replay.client.events import NotAnEvent, read_event
from replay.client.exchange import Answer, Lost
from replay.client.following import Following
from replay.errors import GenerationNotFound, InvalidEventId

HEADERS = {"Content-Type": "application/x-ndjson"}
CUT = Lost("cut")


def log(tokens: int) -> list[dict[str, object]]:
    """A whole log, as objects of lines."""
    start = {"id": "1000-0", "type": "start", "generation_id": "g", "model": "m", "created": 1.0}
    texts = (
        {"id": f"{1000 + n}-{n}", "type": "token", "content": f"é\u2028{n} ", "index": n} for n in range(1, tokens)
    )
    end = {"id": f"{1000 + tokens}-{tokens}", "type": "end", "status": "completed"}
    return [start, *texts, end]


def lines_after(events: list[dict[str, object]], cursor: str | None) -> bytes:
    """What the service sends for a cursor."""
    ids = [event["id"] for event in events]
    rest = events[ids.index(cursor) + 1 :] if cursor else events
    return b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in rest)


def following(**options: object) -> Following:
    return Following("g", **options)  # type: ignore[arg-type]


def generation(last_event_id: str, status: str) -> Answer:
    """The answer to a look at the generation."""
    known = {"id": "g", "status": status, "model": "m", "created": 1.0, "last_event_id": last_event_id, "events": 3}
    body = {**known, "subscribers": 0, "metadata": {}, "expires_at": None}
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())


@given(
    tokens=st.integers(1, 12),
    cuts=st.lists(st.integers(0, 400), max_size=20),
    piece=st.integers(1, 300),
)
def test_every_event_once_through_cuts_and_torn_lines(tokens, cuts, piece):
    # given a log, and connections of which all but the last are cut after so many bytes
    events, shown = log(tokens), []
    reader = following()
    for length in (*cuts, None):
        # when each sends what follows the cursor, keep-alives before the lines, torn into pieces
        cursor = reader.connect().headers.get("Last-Event-ID")
        body = lines_after(events, cursor).replace(b"{", b"  {")[:length]
        for place in range(0, len(body), piece):
            shown += reader.take(body[place : place + piece])
        if reader.complete:
            break
    # then
    assert reader.complete
    assert [event.raw for event in shown] == events


def test_an_event_says_what_its_line_says():
    start, token, end = (read_event(json.dumps(event).encode()) for event in log(2))
    assert start == Start(event_id="1000-0", raw=start.raw, generation_id="g", model="m", created=1.0)
    assert isinstance(token, Token)
    assert (token.content, token.index, token.time_ms) == ("é\u20281 ", 1, 1001)
    assert isinstance(end, End)
    assert (end.status, end.error, end.ttft_ms) == ("completed", None, None)


def test_an_event_of_an_unknown_kind_is_shown_as_such():
    event = read_event(b'{"id":"7-1","type":"picture","url":"x"}')
    assert type(event) is Event
    assert (event.event_id, event.raw["url"]) == ("7-1", "x")


@pytest.mark.parametrize("line", [b'{"id":"7-1","ty', b"[]", b"7", b"<html>", b'{"type":"token","id":"7-1"}', b"\xff"])
def test_a_line_that_is_no_event_is_told_apart(line):
    with pytest.raises(NotAnEvent):
        read_event(line)


def test_notices_do_not_move_the_cursor():
    # given
    reader = following()
    list(reader.take(lines_after(log(2)[:1], None)))
    # when
    shown = list(reader.take(b'{"id":"1000-0","type":"live","last_event_id":"1000-0"}\n'))
    shown += reader.take(b'{"type":"reset","reason":"unknown_event_id","asked":"1000-0"}\n')
    # then
    assert [(type(event), event.event_id) for event in shown] == [(Live, None), (Reset, None)]
    assert reader.connect().headers["Last-Event-ID"] == "1000-0"


def test_what_follows_the_end_is_not_shown():
    reader = following()
    shown = list(reader.take(lines_after(log(2), None) * 2))
    assert [event.raw for event in shown] == log(2)


def test_a_clean_and_empty_answer_behind_the_end_is_the_end():
    # given a cursor that is the end's
    reader = following(after="1002-2")
    reader.connect()
    reader.ended()
    # when
    assert reader.question().path == "/generations/g"
    reader.settle(generation("1002-2", "completed"))
    # then
    assert reader.complete


@pytest.mark.parametrize("outcome", [generation("1002-2", "streaming"), generation("1003-3", "completed"), CUT])
def test_a_clean_and_empty_answer_anywhere_else_is_a_cut(outcome):
    reader = following(after="1002-2")
    reader.connect()
    reader.ended()
    reader.settle(outcome)
    assert not reader.complete


def test_only_a_clean_and_empty_answer_is_doubted():
    # given a connection that is cut, and one that has brought no more than a keep-alive
    reader = following(after="1002-2")
    reader.connect()
    assert reader.question() is None
    list(reader.take(b" "))
    reader.ended()
    # then
    assert reader.question() is None


@pytest.mark.parametrize("outcome", [CUT, Answer(502, {}, b"<html>"), Answer(500, {}, b""), Answer(429, {}, b"")])
def test_what_may_pass_is_waited_for(outcome):
    # given
    told = []
    reader = following(on_lost=lambda error, pause_s: told.append(pause_s), backoff=Backoff(None, jitter=lambda: 1.0))
    # when
    pauses = [reader.pause_s(outcome) for _ in range(8)]
    # then
    assert pauses == told == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_an_event_makes_the_next_pause_short_and_a_notice_does_not():
    reader = following(backoff=Backoff(None, jitter=lambda: 1.0))
    [reader.pause_s(CUT) for _ in range(5)]
    list(reader.take(b'{"id":"1000-0","type":"live","last_event_id":"1000-0"}\n'))
    assert reader.pause_s(CUT) == 3.2
    list(reader.take(lines_after(log(2)[:1], None)))
    assert reader.pause_s(CUT) == 0.1


def test_a_missing_generation_is_an_error():
    problem = json.dumps({"code": "generation_not_found", "detail": "gone"}).encode()
    with pytest.raises(GenerationNotFound, match="gone"):
        following().pause_s(Answer(404, {"Content-Type": "application/problem+json"}, problem))


def test_patience_has_an_end_where_one_is_set():
    # given a service that was last there at 0
    now = 0.0
    reader = following(backoff=Backoff(10.0, clock=lambda: now, jitter=lambda: 1.0))
    reader.pause_s(CUT)
    # when it comes back, and goes again
    now = 9.0
    list(reader.take(b'{"id":"1000-0","type":"live","last_event_id":"1000-0"}\n'))
    now = 100.0
    reader.pause_s(CUT)
    now = 110.0
    # then it is the second outage that counts
    with pytest.raises(Unreachable):
        reader.pause_s(CUT)


def test_only_a_stream_of_events_is_read():
    reader = following()
    assert reader.accepts(200, HEADERS)
    assert not reader.accepts(503, HEADERS)
    with pytest.raises(UnexpectedAnswer):
        reader.accepts(200, {"Content-Type": "text/html"})


@pytest.mark.parametrize("after", ["x", "1-", "1-2\r\nX-Evil: 1", "１-２", ""])
def test_a_cursor_that_is_none_is_refused_at_once(after):
    with pytest.raises(InvalidEventId):
        following(after=after)


@pytest.mark.parametrize("id", ["", "..", "a/b", "a?b", "é", "x" * 129])
def test_an_id_that_is_none_leads_nowhere(id):
    with pytest.raises(GenerationNotFound):
        Following(id)
