"""Event ids: what is one, and how new events get theirs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.errors import InvalidEventId
from replay.model.event import Entry, Event, EventId, Kind, number

LARGEST = 2**64 - 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-0", EventId(0, 0)),
        ("1763701200123-58", EventId(1763701200123, 58)),
        ("007-01", EventId(7, 1)),
        (f"{LARGEST}-{LARGEST}", EventId(LARGEST, LARGEST)),
    ],
)
def test_event_id_is_two_integers(text, expected):
    assert EventId.parse(text) == expected


RUBBISH = (
    *("", "-", "1", "1-", "-1", "-1-2", "1--2", "1-2-3", "1-2\n", "\n1-2", " 1-2", "1-2 ", "1 -2", "1-2\0"),
    *("a-b", "1-b", "0x1-2", "1.0-2", "1e3-2", "+1-2", "1-+2", "1_0-2", "*", "$", "+", "null", "undefined", "gen_1-2"),
    *("١-٢", "1\uff0d2", "1\u20132", "²-1"),  # digits and dashes of other scripts
    *(f"{LARGEST + 1}-0", f"0-{LARGEST + 1}", "1" * 21 + "-0"),
)
ENDLESS = ("0" * 5000 + "1-0", "9" * 100_000)


@pytest.mark.parametrize("text", RUBBISH)
def test_anything_else_is_no_event_id(text):
    with pytest.raises(InvalidEventId, match="event id"):
        EventId.parse(text)


@pytest.mark.parametrize("text", ENDLESS, ids=["zeros", "nines"])
def test_endless_event_id_is_refused_in_a_few_words(text):
    with pytest.raises(InvalidEventId) as caught:
        EventId.parse(text)
    assert len(str(caught.value)) < 300


@given(ms=st.integers(0, LARGEST), seq=st.integers(0, LARGEST))
def test_event_id_reads_as_it_is_written(ms, seq):
    event_id = EventId(ms, seq)
    assert EventId.parse(str(event_id)) == event_id
    assert str(event_id) == f"{ms}-{seq}"


@given(text=st.text(max_size=30))
def test_parse_returns_an_id_that_fits_or_refuses(text):
    try:
        event_id = EventId.parse(text)
    except InvalidEventId:
        return
    assert 0 <= event_id.ms <= LARGEST
    assert 0 <= event_id.seq <= LARGEST


def test_event_ids_have_the_order_of_their_log():
    assert EventId(5, 9) < EventId(6, 10) < EventId(6, 11)


def test_first_event_is_number_0():
    assert number([b"s1", b"t2"], after=None, now_ms=7) == [
        Event(EventId(7, 0), b"s1"),
        Event(EventId(7, 1), b"t2"),
    ]


def test_nothing_to_number_is_nothing():
    assert number([], after=EventId(1, 1), now_ms=7) == []


@given(
    batches=st.lists(
        st.tuples(st.integers(0, 50), st.lists(st.binary(min_size=1, max_size=3), max_size=4)), max_size=12
    )
)
def test_numbers_are_contiguous_and_times_never_go_back(batches):
    # given a clock that jumps as it likes
    events: list[Event] = []
    for now_ms, entries in batches:
        # when
        events += number(entries, after=events[-1].id if events else None, now_ms=now_ms)
    # then
    assert [event.id.seq for event in events] == list(range(len(events)))
    assert [event.id.ms for event in events] == sorted(event.id.ms for event in events)
    assert [event.entry for event in events] == [entry for _, entries in batches for entry in entries]


@given(after_ms=st.integers(0, 100), now_ms=st.integers(0, 100))
def test_time_is_the_clocks_where_the_clock_is_ahead(after_ms, now_ms):
    (event,) = number([b"t"], after=EventId(after_ms, 3), now_ms=now_ms)
    assert event.id == EventId(max(after_ms, now_ms), 4)


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (Entry.START, Kind.START),
        (Entry.TOKEN, Kind.TOKEN),
        (Entry.WHOLE_TOKEN, Kind.TOKEN),
        (Entry.DELTA, Kind.DELTA),
        (Entry.WHOLE_DELTA, Kind.DELTA),
        (Entry.END, Kind.END),
    ],
)
def test_kind_is_told_by_the_first_byte(entry, kind):
    assert Event(EventId(1, 1), entry + b"whatever").kind is kind
    assert kind.value in ("start", "token", "delta", "end")
