"""The cursor over several generations, and the events that carry it."""

from __future__ import annotations

import json
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.sse import Message, messages

from replay.errors import InvalidEventId
from replay.model.event import EventId, number
from replay.model.generation import End, Start, Status
from replay.model.log import Log
from replay.wire.events import SSE, Recording, encode_end, encode_start
from replay.wire.multiplexing import Cursor, NoEvent, encode, notice

LARGEST = 2**64 - 1

_IDS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=20)
_EVENT_IDS = st.builds(EventId, st.integers(0, LARGEST), st.integers(0, LARGEST))
_STANDS = st.sampled_from(NoEvent) | _EVENT_IDS
_PLACES = st.dictionaries(_IDS, _STANDS, min_size=1, max_size=8)


def spelt(cursor: Cursor) -> str:
    return bytes(cursor).decode("ascii")


def cursor_over(places: dict[str, EventId | NoEvent]) -> Cursor:
    return Cursor(list(places), list(places.values()))


# The cursor.


@given(places=_PLACES)
def test_cursor_is_read_as_it_was_written(places):
    cursor = Cursor.parse(spelt(cursor_over(places)), list(places))
    assert cursor.positions == list(places.values())
    assert spelt(cursor) == spelt(cursor_over(places))


@given(places=_PLACES, moves=st.lists(st.tuples(st.integers(0, 7), _STANDS), max_size=10))
def test_moved_cursor_is_the_cursor_of_where_it_was_moved_to(places, moves):
    ids = list(places)
    cursor = Cursor(ids)
    positions: list[EventId | NoEvent] = [NoEvent.BEFORE] * len(ids)
    for place, position in moves:
        positions[place % len(ids)] = position
        cursor.move(place % len(ids), position)
    assert Cursor.parse(spelt(cursor), ids).positions == positions


@given(places=_PLACES)
def test_cursor_travels_unchanged_in_a_header_in_an_id_field_and_in_a_url(places):
    # no space, no `+`, `&`, `#` or `%`, and nothing that a proxy or an EventSource would touch
    assert re.fullmatch(r"[-0-9a-z.,:]+", spelt(cursor_over(places)))


def test_cursor_over_as_many_as_are_allowed_fits_into_a_header():
    # proxies take 4 to 8 kB for a header line
    ids = [f"{place:0128}" for place in range(100)]
    assert len(spelt(Cursor(ids, [EventId(1_763_701_200_123, 2_000_000)] * 100))) < 2048
    assert len(spelt(Cursor(ids, [EventId(LARGEST, LARGEST)] * 100))) < 4000


@given(places=st.dictionaries(_IDS, _STANDS, min_size=2, max_size=6), data=st.data())
def test_cursor_of_other_generations_is_refused(places, data):
    ids = list(places)
    others = data.draw(
        st.sampled_from([ids[1:], ids[:-1], ids[::-1], [*ids, "more"], [*ids[:-1], ids[-1] + "x"], [], [",".join(ids)]])
    )
    with pytest.raises(InvalidEventId):
        Cursor.parse(spelt(cursor_over(places)), others)


NAMES = spelt(Cursor(["a", "b"])).partition(":")[0]
WELL_FORMED = f"{NAMES}:1.0,2.1"


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        "-1",
        "0",
        "1763701200123-4",
        NAMES,
        f"{NAMES}:",
        f"{NAMES}:-",
        f"{NAMES}:,",
        f"{NAMES}:-,",
        f"{NAMES}:-,-,",
        f"{NAMES}:-,-,-",
        f"{NAMES}:-,,-",
        f"{NAMES}:1.0,ff,2.1",
        f"{NAMES}:--,-",
        f"{NAMES}:xx,x",
        f"{NAMES}:1,2",
        f"{NAMES}:1.,2.0",
        f"{NAMES}:.1,2.0",
        f"{NAMES}:1.0.0,2.0",
        f"{NAMES}:1-0,2-0",
        f"{NAMES}:g.0,2.0",
        f"{NAMES}:A.0,2.0",
        f"{NAMES}:1.00000000000000000,2.0",
        f"{NAMES}:{'1' * 17}.0,2.0",
        f"{NAMES}:1.0,2.1\n",
        f" {WELL_FORMED}",
        f"{WELL_FORMED} ",
        f"{WELL_FORMED}\0",
        WELL_FORMED.upper(),
        WELL_FORMED.replace(":", "::"),
        WELL_FORMED[1:],
        "0" * 16 + WELL_FORMED[16:],
        f"{NAMES}:１.0,2.0",
        f"{NAMES}:+1.0,2.0",
        f"{NAMES}:1_0.0,2.0",
        "x" * 1_000_000,
        NAMES + ":" + "-," * 1_000_000,
    ],
    ids=lambda text: repr(text)[:40],
)
def test_anything_else_is_refused(malformed):
    with pytest.raises(InvalidEventId) as caught:
        Cursor.parse(malformed, ["a", "b"])
    assert len(str(caught.value)) < 400  # an answer, not an echo of what was sent


@given(text=st.text() | st.text("0123456789abcdef.,x-:", max_size=60).map(lambda rest: f"{NAMES}:{rest}"))
@example(text=WELL_FORMED)
def test_no_text_is_read_as_something_that_cannot_be_written(text):
    try:
        cursor = Cursor.parse(text, ["a", "b"])
    except InvalidEventId:
        return
    assert len(cursor.positions) == 2
    assert all(isinstance(position, NoEvent) or max(position) <= LARGEST for position in cursor.positions)
    assert Cursor.parse(spelt(cursor), ["a", "b"]).positions == cursor.positions


# The events.


def log_of(id: str, words: list[str], *, ms: int = 1000) -> Recording:
    """A generation that has ended."""
    start = Start(generation_id=id, model="m", node="n", run="r", ttl_ms=1000)
    whole = json.dumps({"choices": [{"index": 0, "delta": {"content": "x"}}]}).encode()
    texts = [b"t" + json.dumps(word).encode()[1:-1] for word in words]
    end = encode_end(End(status=Status.COMPLETED))
    log = Log()
    for place, entry in enumerate([encode_start(start), b"T" + whole, *texts, end]):
        log.extend(number([entry], after=log.last_id, now_ms=ms + place))
    return Recording(log)


@given(words=st.lists(st.lists(st.text(max_size=5), max_size=6), min_size=1, max_size=4), data=st.data())
def test_every_event_is_the_generations_own_and_its_id_is_where_every_reader_stands(words, data):
    # given generations whose events are taken in any order, some at a time
    recordings = [log_of(f"g{place}", said) for place, said in enumerate(words)]
    ids = [f"g{place}" for place in range(len(words))]
    cursor, body = Cursor(ids), b""
    positions: list[EventId | NoEvent] = [NoEvent.BEFORE] * len(ids)
    left = dict.fromkeys(range(len(ids)), 0)
    expected: list[tuple[Message, list[EventId | NoEvent]]] = []
    while left:
        place = data.draw(st.sampled_from(sorted(left)))
        recording, start = recordings[place], left[place]
        max_bytes = data.draw(st.integers(1, 600))
        # when
        blocks, stop = encode(recording, start, cursor, place, max_bytes)
        # then there is at least one, and no more than reach that size
        assert blocks.rfind(b"\n\n", 0, -2) + 2 < max_bytes or stop == start + 1
        assert len(blocks) >= max_bytes or stop == len(recording.log)
        body += blocks
        for message, event in zip(
            messages(SSE.encode(recording, start, stop)), recording.log.events(start, stop), strict=True
        ):
            positions[place] = event.id
            expected.append((message, list(positions)))
        left[place] = stop
        if stop == len(recording.log):
            del left[place]

    # then
    told = messages(body)
    assert [message.event for message in told] == [message.event for message, _ in expected]
    for message, (alone, standing) in zip(told, expected, strict=True):
        data_, data_alone = message.json(), alone.json()
        id = data_.pop("generation_id")
        assert id in ids
        data_alone.pop("generation_id", None)  # a start has it anyway
        assert data_ == data_alone
        assert Cursor.parse(message.last_event_id, ids).positions == standing
    assert b"\r" not in body


def test_notice_names_its_generation_and_leaves_the_cursor_unless_it_is_given_one():
    (message,) = messages(notice("expired", "g"), "before")
    assert (message.event, message.json()) == ("expired", {"type": "expired", "generation_id": "g"})
    assert message.last_event_id == "before"
    cursor = Cursor(["g"], [EventId(1, 2)])
    (message,) = messages(notice("snapshot", "g", cursor, text="a"), "before")
    assert message.json() == {"type": "snapshot", "generation_id": "g", "text": "a"}
    assert message.last_event_id == spelt(cursor)
