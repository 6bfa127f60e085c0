"""How often a feed encodes, counted: once for each format, however many read; and how much it writes at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_streams import START, STARTED_MS

from replay.live.encoding import SEGMENT, Encoding
from replay.live.feed import Feed
from replay.model.event import Entry, number
from replay.model.trimmed_log import TrimmedLog
from replay.wire.activity import ACTIVITY_EVENTS
from replay.wire.events import NDJSON, SSE, Format, Recording, encode_start
from replay.wire.framing import CHUNKED, UNTIL_CLOSE

BATCHES = (1, 1, 5, 1, 3, 1)  # events that were acknowledged together


class Encodes:
    """A format that counts how often each event is encoded."""

    def __init__(self, format: Format) -> None:
        self._format = format
        self.by_seq: Counter[int] = Counter()
        self.format = replace(format, encode=self._encode)

    def _encode(self, recording: Recording, start: int, stop: int) -> bytes:
        self.by_seq.update(range(start, stop))
        return self._format.encode(recording, start, stop)


class Reader:
    """Takes what it is sent."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.taken: list[bytes] = []

    def pump(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.taken.append(data)

    def keep_alive(self, now: float, silence: float) -> None:
        pass

    def abort(self) -> None:
        pass


def say(feed: Feed, events: int) -> None:
    entries = [b"%b word %d" % (Entry.TOKEN, place) for place in range(events)] if feed.log.entries else []
    feed.extend(number(entries or [encode_start(START)], after=feed.log.last_id, now_ms=STARTED_MS))


def begun() -> Feed:
    """A feed whose log has the events that say how the others are encoded."""
    feed = Feed(START.generation_id)
    say(feed, 1)
    whole = b'%b{"id":"c","choices":[{"index":0,"delta":{"content":"Hel"}}]}' % Entry.WHOLE_TOKEN
    feed.extend(number([whole], after=feed.log.last_id, now_ms=STARTED_MS))
    return feed


@pytest.mark.parametrize("readers", [1, 50])
async def test_event_is_encoded_once_for_each_face_however_many_read(readers):
    feed, sse, lines = begun(), Encodes(SSE), Encodes(NDJSON)
    known = len(feed.log)
    everybody = [Reader(Encoding(encodes.format, CHUNKED)) for encodes in (sse, lines) for _ in range(readers)]
    for reader in everybody:
        feed.add(reader)
        feed.go_live(reader)

    for batch in BATCHES:
        say(feed, batch)

    once = Counter(range(known, known + sum(BATCHES)))
    assert sse.by_seq == lines.by_seq == once
    for first in (everybody[0], everybody[-1]):
        alike = [reader.taken for reader in everybody if reader.encoding == first.encoding]
        assert len(alike) == readers
        assert {len(taken) for taken in alike} == {len(BATCHES)}
        # Not only equal: nobody has a copy of their own.
        assert all(mine is theirs for taken in alike for mine, theirs in zip(taken, first.taken, strict=True))


async def test_face_that_nobody_reads_is_not_encoded():
    feed, sse, lines = begun(), Encodes(SSE), Encodes(NDJSON)
    gone, here = Reader(Encoding(lines.format, CHUNKED)), Reader(Encoding(sse.format, CHUNKED))
    for reader in (gone, here):
        feed.add(reader)
        feed.go_live(reader)
    feed.remove(gone)

    say(feed, 7)

    assert (sse.by_seq.total(), lines.by_seq.total()) == (7, 0)


async def test_late_joiners_share_what_was_encoded_for_the_first_of_them():
    feed, sse = begun(), Encodes(SSE)
    encoding = Encoding(sse.format, CHUNKED)
    say(feed, 3 * SEGMENT - len(feed.log))

    read = []
    for _ in range(20):
        place = 0
        while place < len(feed.log):
            data, place = feed.segment(encoding, place, len(feed.log))
            read.append(data)

    assert sse.by_seq == Counter(range(3 * SEGMENT))
    assert len(read) == 20 * 3
    assert len({id(data) for data in read}) == 3


# Pieces.


@given(
    sizes=st.lists(st.sampled_from([1, 30, 900, 5000]), min_size=1, max_size=3 * SEGMENT),
    piece_bytes=st.sampled_from([1, 512, 4096]),
    starts=st.lists(st.floats(0, 1), max_size=6),
)
@settings(max_examples=50, deadline=None)
async def test_pieces_are_whole_events_and_no_larger_than_they_may_be_unless_it_is_one(sizes, piece_bytes, starts):
    # given a log of small and large events, and readers who begin anywhere
    feed, encoding = begun(), Encoding(SSE, UNTIL_CLOSE, piece_bytes=piece_bytes)
    feed.extend(number([b"t" + b"x" * size for size in sizes], after=feed.log.last_id, now_ms=STARTED_MS))
    length = len(feed.log)
    for start in (0, *(int(part * length) for part in starts), 0):
        # when
        place, pieces = start, []
        while place < length:
            before = place
            data, place = feed.segment(encoding, place, length)
            pieces.append(data)
            # then
            assert len(data) <= piece_bytes or place == before + 1
        assert b"".join(pieces) == SSE.encode(feed.recording, start, length)


async def test_late_joiners_share_pieces_that_are_cut_by_their_size_too():
    feed, sse = begun(), Encodes(SSE)
    encoding = Encoding(sse.format, CHUNKED, piece_bytes=1000)
    feed.extend(number([b"t" + b"x" * 900] * (2 * SEGMENT - 2), after=feed.log.last_id, now_ms=STARTED_MS))

    read = []
    for start in (*[0] * 20, 100, SEGMENT):
        place = start
        while place < len(feed.log):
            data, place = feed.segment(encoding, place, len(feed.log))
            read.append(id(data))

    assert sse.by_seq.total() <= len(feed.log) + 5  # the first were tried together
    assert len(set(read)) <= 2 * SEGMENT


class Slow(Reader):
    """Takes no more than one write."""

    def __init__(self, encoding: Encoding, feed: Feed) -> None:
        super().__init__(encoding)
        self.feed = feed
        self.seq: int | None = None

    def write(self, data: bytes) -> None:
        super().write(data)
        self.feed.fall_behind(self)
        self.seq = self.feed.shown


async def test_live_reader_whom_a_part_of_a_batch_has_filled_gets_no_more_and_knows_where_it_was_cut_off():
    feed, encoding = begun(), Encoding(SSE, UNTIL_CLOSE, piece_bytes=1000)
    known, slow, fast = len(feed.log), Slow(encoding, feed), Reader(encoding)
    for reader in (slow, fast):
        feed.add(reader)
        feed.go_live(reader)

    feed.extend(number([b"t" + b"x" * 300] * 10, after=feed.log.last_id, now_ms=STARTED_MS))

    whole = SSE.encode(feed.recording, known, len(feed.log))
    assert b"".join(fast.taken) == whole
    assert all(len(data) <= 1000 for data in fast.taken)
    assert slow.taken == fast.taken[:1]
    assert slow.seq is not None
    assert b"".join(slow.taken) + SSE.encode(feed.recording, slow.seq, len(feed.log)) == whole


async def test_segments_of_a_log_that_loses_its_beginning_are_lost_with_it():
    feed = Feed("activity", TrimmedLog(SEGMENT))
    encoding = Encoding(ACTIVITY_EVENTS, CHUNKED)
    for _ in range(20):
        feed.extend(number([b'lcreated {"type":"created"}'] * SEGMENT, after=feed.log.last_id, now_ms=STARTED_MS))
        place = feed.log.first
        while place < len(feed.log):
            _, place = feed.segment(encoding, place, len(feed.log))

    assert feed.size - Feed("empty").size < 5 * len(
        ACTIVITY_EVENTS.encode(feed.recording, len(feed.log) - SEGMENT, len(feed.log))
    )
