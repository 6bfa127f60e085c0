"""The log in memory, against a plain list of events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.model.event import Entry, Event, EventId, number
from replay.model.log import EVENT_OVERHEAD, Hole, Log

_ENTRIES = st.tuples(
    st.sampled_from([Entry.TOKEN, Entry.DELTA, Entry.WHOLE_TOKEN, Entry.WHOLE_DELTA]), st.binary(max_size=3)
).map(b"".join)
# Batches, each with how many ms it comes after the one before; events of one batch share their time.
_BATCHES = st.lists(st.tuples(st.integers(0, 3), st.lists(_ENTRIES, max_size=5)), max_size=8)


def fill(batches: list[tuple[int, list[bytes]]]) -> tuple[Log, list[Event]]:
    """A log, and the same events as a list."""
    log, events = Log(), []
    now_ms = 100
    for pause_ms, entries in [(0, [b"s{}"]), *batches]:
        now_ms += pause_ms
        batch = number(entries, after=log.last_id, now_ms=now_ms)
        log.extend(batch)
        events += batch
    return log, events


@given(batches=_BATCHES)
def test_log_holds_what_a_list_holds(batches):
    log, events = fill(batches)
    assert list(log.events(0)) == events
    assert len(log) == len(events)
    assert log.size == sum(len(event.entry) + EVENT_OVERHEAD for event in events)
    assert log.last_id == events[-1].id
    assert [log.event_id(seq) for seq in range(len(log))] == [event.id for event in events]


@given(batches=_BATCHES, start=st.integers(0, 40), stop=st.none() | st.integers(0, 40))
def test_stretch_of_a_log_is_a_slice_of_the_list(batches, start, stop):
    log, events = fill(batches)
    assert list(log.events(start, stop)) == events[start:stop]


@given(batches=_BATCHES, ms=st.integers(95, 130))
def test_since_is_the_first_event_at_or_after_a_time(batches, ms):
    log, events = fill(batches)
    later = [event.id.seq for event in events if event.id.ms >= ms]
    assert log.since(ms) == (later[0] if later else len(events))


@given(batches=_BATCHES, event_id=st.builds(EventId, st.integers(98, 125), st.integers(0, 40)))
def test_log_holds_exactly_the_ids_of_its_events(batches, event_id):
    log, events = fill(batches)
    assert log.holds(event_id) == (event_id in [event.id for event in events])
    assert all(log.holds(event.id) for event in events)


@given(batches=_BATCHES, seq=st.integers(0, 40))
def test_last_whole_chunk_is_the_one_before_or_at_a_place(batches, seq):
    log, events = fill(batches)
    wholes = [event.id.seq for event in events[: seq + 1] if event.entry[:1] in (b"T", b"D")]
    assert log.last_whole(seq) == (wholes[-1] if wholes else -1)


@given(batches=_BATCHES, stop=st.none() | st.integers(0, 40))
def test_token_times_are_the_times_of_tokens(batches, stop):
    log, events = fill(batches)
    assert log.token_times(stop) == [event.id.ms for event in events[:stop] if event.kind.value == "token"]


def test_empty_log_has_no_last_event():
    log = Log()
    assert (log.last_id, len(log), log.complete, list(log.events(0)), log.since(0)) == (None, 0, False, [], 0)
    assert not log.holds(EventId(0, 0))


@pytest.mark.parametrize("seqs", [[3], [5, 6], [0], [1], [0, 1, 2]])
def test_event_that_does_not_follow_the_last_is_a_hole_and_changes_nothing(seqs):
    # given a log of two events
    log, events = fill([(1, [b"ta"])])
    size = log.size
    # when
    with pytest.raises(Hole):
        log.extend([Event(EventId(200, seq), b"tx") for seq in seqs])
    # then
    assert list(log.events(0)) == events
    assert log.size == size


def test_hole_inside_a_batch_is_seen():
    log = Log()
    with pytest.raises(Hole, match="event 2 after event 0"):
        log.extend([Event(EventId(1, 0), b"s"), Event(EventId(1, 2), b"t")])


def test_log_is_complete_with_its_end():
    log, _ = fill([(0, [b"ta"])])
    assert not log.complete
    log.extend(number([b"e{}"], after=log.last_id, now_ms=0))
    assert log.complete


@pytest.mark.parametrize("ms", [0, 2**53 + 1, 2**63, 2**64 - 1])
def test_any_time_that_an_id_can_have_fits(ms):
    log = Log()
    log.extend([Event(EventId(ms, 0), b"s")])
    assert log.last_id == EventId(ms, 0)
