"""The last part of a log in memory, against a plain list of all its events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.model.event import Event, EventId, number
from replay.model.log import Hole
from replay.model.trimmed_log import ERASED, TrimmedLog

KEEP = 5

_ENTRIES = st.sampled_from([b"la", b"lb", b"lab", ERASED])
# Batches, each with how many ms it comes after the one before; events of one batch share their time.
_BATCHES = st.lists(st.tuples(st.integers(0, 3), st.lists(_ENTRIES, min_size=1, max_size=6)), max_size=8)
_WITHOUT_ERASED = _BATCHES.map(
    lambda batches: [
        (pause_ms, [entry for entry in entries if entry != ERASED] or [b"la"]) for pause_ms, entries in batches
    ]
)
_FIRST = st.sampled_from([0, 1, 7, 10_000_000])  # the seq with which it begins
_PLACES = st.integers(-3, 45)  # beside the first


def fill(first: int, batches: list[tuple[int, list[bytes]]]) -> tuple[TrimmedLog, list[Event]]:
    """A trimmed log, and all its events as a list."""
    log, events, last = TrimmedLog(KEEP), [], EventId(100, first - 1)
    for pause_ms, entries in batches:
        batch = number(entries, after=last, now_ms=last.ms + pause_ms)
        log.extend(batch)
        events += batch
        last = batch[-1].id
    return log, events


@given(first=_FIRST, batches=_BATCHES)
def test_tail_holds_the_last_of_what_a_list_holds(first, batches):
    log, events = fill(first, batches)
    here = list(log.events(0))
    assert here == events[len(events) - len(here) :]
    assert len(here) >= min(KEEP, len(events))
    assert log.last_id == (events[-1].id if events else None)


@given(batches=st.lists(st.tuples(st.just(1), st.lists(_ENTRIES, min_size=1, max_size=KEEP)), min_size=20, max_size=40))
def test_tail_does_not_grow_without_bound(batches):
    log, _ = fill(0, batches)
    assert len(list(log.events(0))) <= 2 * KEEP
    assert len(log.times) == len(log.entries)


@given(first=_FIRST, batches=_BATCHES)
def test_length_is_that_of_the_whole_log(first, batches):
    log, events = fill(first, batches)
    assert len(log) == (events[-1].id.seq + 1 if events else 0)


@given(first=_FIRST, batches=_BATCHES, start=_PLACES, stop=st.none() | _PLACES)
def test_stretch_of_a_tail_is_what_the_list_has_there(first, batches, start, stop):
    log, events = fill(first, batches)
    start = max(0, first + start)
    stop = None if stop is None else max(0, first + stop)
    expected = [
        event for event in events if event.id.seq >= max(start, log.first) and (stop is None or event.id.seq < stop)
    ]
    assert list(log.events(start, stop)) == expected


@given(first=_FIRST, batches=_BATCHES, ms=st.integers(95, 130))
def test_since_is_the_seq_of_the_first_event_here_at_or_after_a_time(first, batches, ms):
    log, _ = fill(first, batches)
    later = [event.id.seq for event in log.events(0) if event.id.ms >= ms]
    assert log.since(ms) == (later[0] if later else len(log))


@given(first=_FIRST, batches=_BATCHES, max_bytes=st.integers(1, 12), data=st.data())
def test_reach_is_as_many_events_of_a_tail_as_so_many_bytes_hold_and_at_least_one(first, batches, max_bytes, data):
    log, _ = fill(first, batches)
    if not log.entries:
        return
    start = data.draw(st.integers(log.first, len(log) - 1))
    stop = data.draw(st.integers(start + 1, len(log)))
    reached = log.reach(start, stop, max_bytes)
    sizes = [len(event.entry) for event in log.events(start, stop)]
    fitting = [count for count in range(1, len(sizes) + 1) if sum(sizes[:count]) <= max_bytes]
    assert reached == start + max(fitting, default=1)


@given(first=_FIRST, batches=_WITHOUT_ERASED, ms=st.integers(98, 130), seq=_PLACES)
def test_tail_holds_exactly_the_ids_of_the_events_that_are_here(first, batches, ms, seq):
    log, _ = fill(first, batches)
    here = [event.id for event in log.events(0)]
    assert all(log.holds(event_id) for event_id in here)
    assert [log.event_id(event_id.seq) for event_id in here] == here
    event_id = EventId(ms, max(0, first + seq))
    assert log.holds(event_id) == (event_id in here)


@given(first=_FIRST, batches=_BATCHES, mark=st.sampled_from([b"a", b"b", b"c"]))
def test_what_is_erased_leaves_its_place_and_nothing_else(first, batches, mark):
    log, _ = fill(first, batches)
    before = list(log.events(0))
    erased = log.erase(mark)
    assert erased == any(mark in event.entry for event in before)
    assert list(log.events(0)) == [Event(event.id, ERASED) if mark in event.entry else event for event in before]
    assert not log.erase(mark)


@given(first=_FIRST, batches=_BATCHES, mark=st.sampled_from([b"a", b"b", b"c"]))
def test_events_with_a_mark_are_found(first, batches, mark):
    log, _ = fill(first, batches)
    assert log.find(mark) == [event.id for event in log.events(0) if mark in event.entry]


@given(first=_FIRST, batches=_BATCHES, place=_PLACES)
def test_what_stands_before_a_place_is_forgotten_but_for_the_last_event(first, batches, place):
    log, _ = fill(first, batches)
    before, length, last_id = list(log.events(0)), len(log), log.last_id
    log.forget_before(first + place)
    kept = [event for event in before if event.id.seq >= first + place]
    assert list(log.events(0)) == (kept or before[-1:])
    assert (len(log), log.last_id) == (length, last_id)


@given(first=_FIRST, batches=_BATCHES, gone=st.sets(st.integers(0, 47)), known=st.integers(0, 48))
def test_what_the_store_has_lost_in_between_is_filled(first, batches, gone, known):
    # given a log of which a trimmed one has the first part, and of whose rest the store has given some away
    _, events = fill(first, batches)
    head, log = events[:known], TrimmedLog(1000)
    log.extend(head)
    rest = [event for place, event in enumerate(events[known:]) if place not in gone]
    # when
    log.extend(log.without_holes(rest))
    # then every event is in its place, what is missing is known to be, and times never go back
    here = list(log.events(0))
    assert [event for event in here if event.entry != ERASED] == [
        event for event in head + rest if event.entry != ERASED
    ]
    assert all(log.holds(event.id) for event in head + rest)
    assert [event.id.seq for event in here] == list(range(log.first, len(log)))
    assert [event.id.ms for event in here] == sorted(event.id.ms for event in here)
    assert log.last_id == ((head + rest)[-1].id if head + rest else None)


@given(first=_FIRST, batches=_WITHOUT_ERASED, gone=st.sets(st.integers(1, 46)), ms=st.integers(98, 130), seq=_PLACES)
def test_id_of_what_the_store_has_lost_in_between_is_held_and_none_that_it_cannot_have_had(
    first, batches, gone, ms, seq
):
    # given a trimmed log that was read when some of the events, but neither the first nor the last, had been taken out
    _, events = fill(first, batches)
    kept = [event for place, event in enumerate(events) if place not in gone or place == len(events) - 1]
    log = TrimmedLog(1000)
    log.extend(log.without_holes(kept))
    # then
    assert all(log.holds(event.id) for event in events)
    here = {event.id for event in kept}
    before = [each.ms for each in here if each.seq < first + seq]
    after = [each.ms for each in here if each.seq > first + seq]
    if before and after and not max(before) <= ms <= min(after):
        assert not log.holds(EventId(ms, first + seq))


def test_empty_tail_has_no_last_event_and_takes_any_first():
    log = TrimmedLog(KEEP)
    assert (log.last_id, len(log), log.complete, list(log.events(0))) == (None, 0, False, [])
    assert not log.holds(EventId(0, 0))
    assert log.without_holes([]) == []
    log.extend([])
    assert log.last_id is None
    event = Event(EventId(5, 77), b"la")
    assert list(log.without_holes([event])) == [event]
    log.extend([event])
    assert (log.last_id, len(log), list(log.events(0))) == (event.id, 78, [event])


@pytest.mark.parametrize("seqs", [[6], [0], [1], [9, 10], [3, 4], [4]])
def test_event_that_does_not_follow_the_last_is_a_hole_and_changes_nothing(seqs):
    # given the events 2, 3 and 4
    log, events = fill(2, [(1, [b"la", b"lb", b"lc"])])
    assert log.last_id == EventId(101, 4)
    # when
    with pytest.raises(Hole):
        log.extend([Event(EventId(200, seq), b"lx") for seq in seqs])
    # then
    assert list(log.events(0)) == events


def test_hole_inside_a_batch_is_seen():
    with pytest.raises(Hole, match="event 9 after event 7"):
        TrimmedLog(KEEP).extend([Event(EventId(1, 7), b"la"), Event(EventId(1, 9), b"lb")])


def test_tail_is_never_complete():
    log, _ = fill(0, [(1, [b"lended {}"]), (1, [b"e{}"])])
    assert not log.complete


def test_event_that_was_erased_is_still_a_place_to_go_on_from():
    log, events = fill(0, [(1, [b"la", b"lb"]), (2, [b"la"])])
    log.erase(b"a")
    assert all(log.holds(event.id) for event in events)
    assert [event.entry for event in log.events(0)] == [ERASED, b"lb", ERASED]
