"""The writer of the activity log against a log in memory that may be lost, and grow again, in every way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from replay.errors import StoreUnavailable
from replay.live import activity_writer
from replay.live.activity_writer import ActivityWriter
from replay.model.event import Event, EventId
from replay.store import Refused

DAY_MS = 86_400_000


class Log:
    """The part of a store that a writer of the activity uses."""

    def __init__(self) -> None:
        self.on_reconnect: list[object] = []
        self.events: list[Event] = []
        self.calls = 0

    async def read(self, name: str, *, after: EventId | None, limit: int) -> list[Event]:
        self._count()
        return [event for event in self.events if after is None or event.id > after][:limit]

    async def append(
        self, name: str, events: Sequence[Event], *, after: EventId | None, ttl_ms: int = 0
    ) -> Refused | None:
        self._count()
        last = self.events[-1] if self.events else None
        if (last.id if last else None) != after:
            return Refused(last)
        self.events += events
        return None

    async def trim(self, name: str, keep: int) -> None:
        pass

    async def wait_up(self, seconds: float) -> bool:
        return True

    def _count(self) -> None:
        self.calls += 1
        if self.calls > 200:
            raise asyncio.CancelledError("it asks for ever")

    def add(self, count: int, *, ms: int, seq: int = 0) -> None:
        """What other nodes have written."""
        self.events += [Event(EventId(ms, seq + number), b"l%d of others" % number) for number in range(count)]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
async def write(log):
    writer = ActivityWriter(log)  # type: ignore[arg-type]
    writer.start()

    async def write(entry: bytes, at_ms: int) -> bool:
        async with asyncio.timeout(5):
            return await writer.write(at_ms, entry, b"deletion of " + entry)

    yield write
    await writer.stop()


NOW = 1_800_000_000_000
LOST = {
    "and is empty": [],
    "and has less": [(2, NOW + DAY_MS)],
    "and has grown again": [(9, NOW + DAY_MS + 1)],
    "and has grown again with lower ids": [(9, NOW)],
    "and has grown again just as far": [(4, NOW)],
    "and has grown again with the same ids": [(4, NOW + DAY_MS)],
}


@pytest.mark.parametrize("name", LOST)
async def test_a_log_that_was_lost_is_read_anew(log, write, monkeypatch, name):
    # given a writer whose clock was a day ahead when it wrote something
    monkeypatch.setattr(activity_writer, "now_ms", lambda: NOW + DAY_MS)
    for number in range(4):
        assert await write(b"lbefore %d" % number, NOW)

    # when the log is lost in silence, and others have written something since
    monkeypatch.setattr(activity_writer, "now_ms", lambda: NOW)
    log.events = []
    for count, ms in LOST[name]:
        log.add(count, ms=ms)
    there = list(log.events)

    # then what is written next stands after that, once, after a few questions
    log.calls = 0
    assert await write(b"lafter", NOW)
    assert [event.entry for event in log.events] == [*(event.entry for event in there), b"lafter"]
    assert [event.id.seq for event in log.events] == list(range(len(log.events)))
    assert log.calls < 10


async def test_what_stands_already_is_not_written_again(log, write):
    for _ in range(3):
        assert await write(b"lonce", NOW)
    assert [event.entry for event in log.events] == [b"lonce"]


async def test_what_others_have_written_is_not_written_again(log, write):
    log.add(5, ms=NOW)
    assert await write(b"l3 of others", NOW)
    assert await write(b"lnew", NOW)
    log.events += [Event(EventId(NOW + 1, 6), b"lrace")]
    assert await write(b"lrace", NOW)
    assert await write(b"llast", NOW)
    assert [event.entry for event in log.events[5:]] == [b"lnew", b"lrace", b"llast"]


async def test_what_was_deleted_is_left_out(log, write):
    log.events += [Event(EventId(NOW, 0), b"deletion of lgone")]
    assert await write(b"lgone", NOW)
    assert len(log.events) == 1


async def test_what_happened_before_all_that_is_known_is_looked_for(log, write):
    log.events += [Event(EventId(NOW - 10, 0), b"lold"), Event(EventId(NOW, 1), b"lnew")]
    assert await write(b"lnew", NOW)
    assert await write(b"lold", NOW - 10)
    assert len(log.events) == 2


async def test_a_store_that_is_away_is_waited_for(log, write, monkeypatch):
    append, failures = log.append, iter([StoreUnavailable("away")] * 3)

    async def failing(*args, **options):
        for failure in failures:
            raise failure
        return await append(*args, **options)

    monkeypatch.setattr(log, "append", failing)
    assert await write(b"lpatient", NOW)
    assert [event.entry for event in log.events] == [b"lpatient"]
