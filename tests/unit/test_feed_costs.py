"""How often a feed encodes, counted: once for each face, however many read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from chunk_streams import START, STARTED_MS

from replay.live.feed import SEGMENT, Channel, Feed
from replay.model.event import Entry, number
from replay.wire.events import NDJSON, SSE, Face, Recording, encode_start

BATCHES = (1, 1, 5, 1, 3, 1)  # events that were acknowledged together


class Encodes:
    """A face that counts how often each event is encoded."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self.by_place: Counter[int] = Counter()
        self.face = replace(face, encode=self._encode)

    def _encode(self, recording: Recording, start: int, stop: int) -> bytes:
        self.by_place.update(range(start, stop))
        return self._face.encode(recording, start, stop)


class Reader:
    """Takes what it is sent."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
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
    everybody = [Reader(Channel(encodes.face, chunked=True)) for encodes in (sse, lines) for _ in range(readers)]
    for reader in everybody:
        feed.add(reader)
        feed.go_live(reader)

    for batch in BATCHES:
        say(feed, batch)

    once = Counter(range(known, known + sum(BATCHES)))
    assert sse.by_place == lines.by_place == once
    for first in (everybody[0], everybody[-1]):
        alike = [reader.taken for reader in everybody if reader.channel == first.channel]
        assert len(alike) == readers
        assert {len(taken) for taken in alike} == {len(BATCHES)}
        # Not only equal: nobody has a copy of their own.
        assert all(mine is theirs for taken in alike for mine, theirs in zip(taken, first.taken, strict=True))


async def test_face_that_nobody_reads_is_not_encoded():
    feed, sse, lines = begun(), Encodes(SSE), Encodes(NDJSON)
    gone, here = Reader(Channel(lines.face, chunked=True)), Reader(Channel(sse.face, chunked=True))
    for reader in (gone, here):
        feed.add(reader)
        feed.go_live(reader)
    feed.remove(gone)

    say(feed, 7)

    assert (sse.by_place.total(), lines.by_place.total()) == (7, 0)


async def test_late_joiners_share_what_was_encoded_for_the_first_of_them():
    feed, sse = begun(), Encodes(SSE)
    channel = Channel(sse.face, chunked=True)
    say(feed, 3 * SEGMENT - len(feed.log))

    read = []
    for _ in range(20):
        place = 0
        while place < len(feed.log):
            data, place = feed.segment(channel, place, len(feed.log))
            read.append(data)

    assert sse.by_place == Counter(range(3 * SEGMENT))
    assert len(read) == 20 * 3
    assert len({id(data) for data in read}) == 3
