"""What the commands make of events, without a terminal and without a service."""

from __future__ import annotations

from typing import Any

import pytest

from replay.cli.asides import asides
from replay.cli.exits import Exit
from replay.cli.listing import age, reason
from replay.cli.progress import Progress, span
from replay.cli.showing import show
from replay.cli.status_line import column_after
from replay.cli.terminal import Terminal
from replay.client import End, Event, Generation, Reset, Token, Unreachable
from replay.errors import ReplayError


def generation(**members: Any) -> Generation:
    known: dict[str, Any] = {
        "id": "g",
        "status": "streaming",
        "model": "m",
        "created": 1.0,
        "last_event_id": "1000-0",
        "events": 1,
        "subscribers": 0,
        "metadata": {},
        "expires_at": None,
    }
    return Generation(**{**known, **members}, raw={})


def token(seq: int, ms: int = 1000, content: str = "word ") -> Token:
    return Token(event_id=f"{ms}-{seq}", content=content, index=seq, raw={})


def end(**members: Any) -> End:
    return End(event_id="3000-9", raw={}, **{"status": "completed", **members})


RESET = Reset(event_id=None, reason="unknown_event_id", asked="7-7", raw={})


class Past:
    """A client whose generation has these events."""

    def __init__(self, *events: Event) -> None:
        self._events = events

    def follow(self, generation_id: str, **_: Any) -> Any:
        yield from self._events


def shown(*events: Event) -> Exit:
    client: Any = Past(*events)
    return show(client, Terminal(), generation(), after=None, come_back="")


def test_a_log_that_begins_again_does_not_follow_itself_in_a_file(capsys):
    with pytest.raises(ReplayError, match="not the whole answer"):
        shown(token(1), RESET, token(1), end())
    assert capsys.readouterr().out == "word "


def test_a_log_that_begins_again_before_anything_was_written_is_no_harm(capsys):
    assert shown(RESET, token(1), end()) == Exit.DONE
    assert capsys.readouterr().out == "word "


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("interrupted", 1), ("cancelled", 3)])
def test_the_end_is_the_exit_code(status, code):
    assert shown(end(status=status)) == code


@pytest.mark.parametrize(
    "choices",
    [
        None,
        7,
        [None],
        [{}],
        [{"delta": 7}],
        [{"delta": {"reasoning": 7, "tool_calls": {}}}],
        [{"delta": {"tool_calls": [7, {}, {"function": 7}]}}],
        [{"index": 1, "delta": {"reasoning": "of another choice"}}],
    ],
)
def test_a_chunk_that_is_something_else_has_no_asides(choices):
    assert list(asides(choices)) == []


@pytest.mark.parametrize(
    "choice",
    [
        {"index": None, "delta": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, 7]}},
        {"index": "0", "delta": {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "x"}]}},
        {"message": {"reasoning_text": "hm", "content": "x"}},
    ],
)
def test_thoughts_are_an_aside_wherever_they_stand(choice):
    assert [(aside.heading, aside.text) for aside in asides([choice])] == [("(thinking) ", "hm")]


def test_a_tool_is_called_with_what_was_sent_as_an_object():
    (aside,) = asides([{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": {"a": "é"}}}]}}])
    assert (aside.heading, aside.text) == ("-> f ", '{"a": "é"}')


def test_a_custom_tool_is_called_with_its_input():
    (aside,) = asides([{"delta": {"tool_calls": [{"index": 0, "custom": {"name": "sql", "input": "SELECT"}}]}}])
    assert (aside.heading, aside.text) == ("-> sql ", "SELECT")


def test_a_status_line_tells_how_it_goes():
    progress = Progress(generation(status="queued"))
    assert progress.line(2500) == "queued · m · 0 tokens · 1.5 s"
    progress.take(token(1, 2000))
    assert progress.line(2500) == "streaming · m · 1 token · 1.5 s"
    progress.take(token(2, 2500))
    progress.take(token(3, 3000))
    assert progress.line(3000) == "streaming · m · 3 tokens · 2.0 tokens/s · 2.0 s"
    progress.lost(Unreachable("no answer"), 0.25)
    assert progress.line(3000).startswith("connection lost, back in 0.2 s (no answer) · m")
    progress.take(end(finish_reason="length"))
    assert progress.line(9000) == "completed (length) · m · 3 tokens · 2.0 tokens/s · 2.0 s"


def test_a_status_line_has_its_numbers_as_people_write_them():
    progress = Progress(generation())
    progress.take(token(1, 2000))
    for seq in range(2, 1235):
        progress.take(token(seq, 3000))
    assert progress.line(66_000) == "streaming · m · 1,234 tokens · 1,233.0 tokens/s · 1 min 05 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (3599.9, "59 min 59 s"), (3661, "1 h 01 min")],
)
def test_a_span_has_two_units_at_most(seconds, text):
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({}, ""),
        ({"status": "completed", "finish_reason": "stop"}, ""),
        ({"status": "completed", "finish_reason": "tool_calls"}, ""),
        ({"status": "completed", "finish_reason": "length"}, "length"),
        ({"status": "failed", "error": {"code": "upstream_error", "message": "m"}}, "upstream_error"),
        ({"status": "failed", "finish_reason": "stop", "error": {"code": "node_lost"}}, "node_lost"),
    ],
)
def test_a_reason_is_why_there_is_no_whole_answer(members, text):
    assert reason(generation(**members)) == text


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("abc", 0, 3),
        ("abc", 8, 1),
        ("ab", 8, 10),
        ("\n", 10, 0),
        ("\t", 3, 8),
        ("\t", 9, 9),
        ("語", 9, 2),
        ("語", 8, 10),
    ],
)
def test_where_a_text_leaves_the_cursor(text, column, expected):
    assert column_after(text, column, width=10) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_an_age_is_short(seconds, text):
    assert age(seconds) == text
