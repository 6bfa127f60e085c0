"""What a request asks for."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given
from hypothesis import strategies as st

from replay.errors import GenerationNotFound, InvalidRequest, NotAcceptable
from replay.http import negotiation

STREAM, LINES, PAGE = "text/event-stream", "application/x-ndjson", "application/json"
OFFERS = (STREAM, LINES, PAGE)


def asking(query: str = "", **headers: str) -> web.Request:
    return make_mocked_request("GET", f"/x?{query}", headers=headers)


# Accept.


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, STREAM),
        ("*/*", STREAM),
        ("", STREAM),
        (STREAM, STREAM),
        (LINES, LINES),
        (PAGE, PAGE),
        ("Application/JSON", PAGE),
        ("application/json; charset=utf-8", PAGE),
        ("application/*", LINES),
        ("text/*, application/json;q=0.9", STREAM),
        ("application/json, text/event-stream", STREAM),  # both alike: the earlier offer
        ("application/json, text/event-stream;q=0.9", PAGE),
        ("application/json;q=0.2, text/event-stream ; q=0.1", PAGE),
        ("application/json;q=0.2,text/event-stream;Q=0.1", PAGE),
        ("text/html, application/json;q=0.9, */*;q=0.8", PAGE),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", STREAM),
        ("*/*, text/event-stream;q=0", LINES),  # the most specific range decides
        ("application/*;q=0.5, application/json;q=0.1, text/event-stream;q=0.3", LINES),
        ("text/event-stream;q=abc, application/json", PAGE),
        (",, application/json ,", PAGE),
        ("text/html;level=1, application/json", PAGE),
    ],
)
def test_offer_that_is_liked_best_is_taken(accept, expected):
    request = asking() if accept is None else asking(Accept=accept)
    assert negotiation.accepted(request, OFFERS) == expected


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", "text/event-stream;q=0", "application/json;q=0.0", "json"])
def test_nothing_that_was_asked_for_can_be_served(accept):
    with pytest.raises(NotAcceptable, match="expected one of text/event-stream"):
        negotiation.accepted(asking(Accept=accept), OFFERS)


def test_several_accept_headers_are_one_list():
    headers = [("Accept", "text/html"), ("Accept", "application/json")]
    assert negotiation.accepted(make_mocked_request("GET", "/", headers=headers), OFFERS) == PAGE


@given(accept=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_any_accept_header_is_answered_with_an_offer_or_refused(accept):
    with contextlib.suppress(NotAcceptable):
        assert negotiation.accepted(asking(Accept=accept), OFFERS) in OFFERS


# Times.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1763701200123", 1763701200123),
        ("2025-11-21T05:00:00Z", 1763701200000),
        ("2025-11-21T05:00:00.123Z", 1763701200123),
        ("2025-11-21T05:00:00.123456Z", 1763701200124),  # at or after: the next whole ms
        ("2025-11-21T05:00:00", 1763701200000),
        ("2025-11-21 05:00:00", 1763701200000),
        ("2025-11-21T06:00:00+01:00", 1763701200000),
        ("2025-11-21T06:00:00 01:00", 1763701200000),  # what becomes of a bare plus sign in a query
        ("2025-11-20T23:30:00-05:30", 1763701200000),
        ("20251121T050000Z", 1763701200000),
        ("2025-11-21", 1763683200000),
        ("1969-12-31T23:59:59Z", -1000),
    ],
)
def test_time_is_unix_ms_or_iso_8601(text, expected):
    assert negotiation.time_ms(asking("since=" + quote(text)), "since") == expected


@given(ms=st.integers(0, 4_000_000_000_000))
@example(ms=258_927)
@example(ms=2_186_715_443_701)
def test_every_ms_is_read_exactly(ms):
    text = datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000).isoformat()
    assert negotiation.time_ms(asking("since=" + quote(text)), "since") == ms


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "yesterday", "-1", "1.5", "1e3", "0x10", "T", "٣", "\0", "9" * 17, "1763701200123-1"),
        *("25:00", "2025-13-01", "2025-11-21T25:00:00Z", "2025-11-21T05:00:00ZZ", "2025-11-21T05:00:00+99:00"),
    ],
)
def test_anything_else_is_no_time(text):
    with pytest.raises(InvalidRequest, match=r"since=.*expected unix ms or ISO 8601"):
        negotiation.time_ms(asking("since=" + quote(text)), "since")


@given(text=st.text(max_size=30) | st.from_regex(r"[0-9T:+Z. -]{0,40}"))
def test_any_text_is_a_time_or_refused(text):
    with contextlib.suppress(InvalidRequest):
        assert isinstance(negotiation.time_ms(asking("since=" + quote(text, errors="replace")), "since"), int)


def test_time_that_is_not_asked_for_is_none():
    assert negotiation.time_ms(asking(), "since") is None


# Numbers.


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("1", 1), ("60", 60), ("0.5", 0.5), ("1e1", 10), (".5", 0.5)])
def test_number_in_its_range_is_read(text, expected):
    assert negotiation.number(asking("wait=" + text), "wait", least=0, most=60) == expected


@pytest.mark.parametrize("text", ["", "x", "-0.1", "60.1", "nan", "inf", "-inf", "1e999", "1,5", "0x1", "null", "1 2"])
def test_number_out_of_its_range_names_the_range(text):
    with pytest.raises(InvalidRequest, match=r"wait=.*expected a number from 0 to 60"):
        negotiation.number(asking("wait=" + quote(text)), "wait", least=0, most=60)


def test_range_is_named_as_people_write_numbers():
    with pytest.raises(InvalidRequest, match=r"speed=.*expected a number from 0\.001 to 1000000$"):
        negotiation.number(asking("speed=0"), "speed", least=0.001, most=1e6)


def test_number_that_is_not_asked_for_is_none():
    assert negotiation.number(asking(), "wait", least=0, most=60) is None


def limit(text: str) -> int:
    return negotiation.integer(asking("limit=" + quote(text)), "limit", least=1, most=1000, default=50)


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("1000", 1000), ("0007", 7)])
def test_integer_in_its_range_is_read(text, expected):
    assert limit(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "1001", "-1", "+1", "1.0", "1e2", "x", "٣", "²", "1_0", " 1", "10" * 9, "9" * 5000]
)
def test_integer_out_of_its_range_names_the_range(text):
    with pytest.raises(InvalidRequest, match=r"limit=.*expected an integer from 1 to 1000"):
        limit(text)


@pytest.mark.parametrize("zeros", [15, 17, 19, 25, 5000])
def test_integer_beyond_its_range_is_refused_behind_any_number_of_zeros(zeros):
    with pytest.raises(InvalidRequest):
        limit("0" * zeros + "1" + "0000")


def test_integer_that_is_not_asked_for_is_the_default():
    assert negotiation.integer(asking(), "limit", least=1, most=1000, default=50) == 50


@given(text=st.text("0123456789", max_size=30))
def test_integer_is_never_out_of_its_range(text):
    try:
        value = limit(text)
    except InvalidRequest:
        assert len(text) > 10 or not text or not 1 <= int(text) <= 1000
    else:
        assert 1 <= value <= 1000


# The generation in the path.


def named(text: str) -> web.Request:
    return make_mocked_request("GET", "/", match_info={"id": text})


@pytest.mark.parametrize("text", ["a", "gen_1", "A-z_09", "x" * 128])
def test_generation_id_in_the_path_is_taken(text):
    assert negotiation.generation_id_of(named(text)) == text


@pytest.mark.parametrize("text", ["", "x" * 129, "a b", "a/b", "a.b", "ä", "a\n", "{a}", "a\0", "x" * 100_000])
def test_what_can_be_no_generation_is_not_found(text):
    with pytest.raises(GenerationNotFound) as caught:
        negotiation.generation_id_of(named(text))
    assert len(str(caught.value)) < 300
