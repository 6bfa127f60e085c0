"""One reader's connection, from the end of the request's headers to the end of the stream.

A subscriber is always in one of three conditions:

    behind    it stands somewhere in the log and pulls what comes after, as fast as its transport takes it
              or as slowly as it asked for (`speed`, `batch_ms`)
    full      its transport holds more than the high-water mark; nothing is written until the transport
              has drained, which has a deadline
    live      it has everything; the feed writes to it

A response ends cleanly after `end` and is cut in every other case: some clients take a clean end for the end
of the generation and would not come back.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from replay.live.counters import Counters
from replay.live.encoding import Encoding
from replay.live.feed import Feed
from replay.live.stream_connection import Handover, StreamConnection

logger = logging.getLogger(__name__)

# Segments written in one turn of the loop, so that one late joiner does not hold up the others.
_SEGMENTS_PER_TURN = 2


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a subscriber wants its events; by default as fast as they come."""

    speed: float | None = None  # recorded pauses are divided by this; live events are not held back
    batch_s: float = 0.0  # at most one write per so many seconds


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one connection is to be sent."""

    encoding: Encoding
    head: bytes  # the response's status line and headers
    preface: bytes  # goes into the first block that carries data: `retry:`, and a `reset` or a `snapshot`
    next_seq: int  # of the first event that is sent
    pace: Pace
    buffer_bytes: int
    deadline_s: float


class Subscriber(StreamConnection):
    """One reader's connection to one feed: behind, full or live."""

    __slots__ = (
        "_batch_stop",
        "_feed",
        "_first_written",
        "_last_written",
        "_live",
        "_next",
        "_on_gone",
        "_pace",
        "_preface",
        "_recorded",
        "_start",
        "_timer",
        "_told_live",
        "encoding",
    )

    def __init__(
        self, feed: Feed, delivery: Delivery, counters: Counters, on_gone: Callable[[Subscriber], None]
    ) -> None:
        super().__init__(counters, delivery.encoding.framing, deadline_s=delivery.deadline_s)
        self.encoding = delivery.encoding
        self._feed = feed
        self._on_gone = on_gone
        self._next = self._start = delivery.next_seq  # the seq of the next event to write
        self._recorded = len(feed.log)  # what comes after these is live, and not paced
        self._preface = delivery.preface
        self._pace = delivery.pace
        self._batch_stop = 0  # how far the batch goes that is being written
        self._live = False
        self._told_live = False
        self._timer: asyncio.TimerHandle | None = None  # the pace's next step
        self._first_written: float | None = None
        self._last_written = self._loop.time()

    def take_over(self, handover: Handover, delivery: Delivery) -> None:
        """Take the connection over, answer the request, and begin."""
        self._take(handover, delivery.buffer_bytes)
        self._feed.add(self)
        self.write(delivery.head)
        if self._feed.invalid:
            self.abort()
        else:
            self.pump()

    # What comes from the feed.

    def pump(self) -> None:
        """Write what may be written now of what the subscriber lacks."""
        if self._live:
            self._next = len(self._feed.log)
            self._finish_if_complete()
            return
        for _ in range(_SEGMENTS_PER_TURN):
            if self._full or self._transport is None:
                return
            if self._next < self._feed.log.first:
                self.abort()  # what comes next is not kept any more; its reader is told so when it comes back
                return
            stop = self._reach()
            if self._next >= stop:
                break
            try:
                data, self._next = self._feed.segment(self.encoding, self._next, stop)
            except Exception:
                logger.exception("events could not be encoded", extra={"generation": self._feed.generation_id})
                self.abort()
                return
            self._send(data)
        else:
            self._leave_to_others()
            return
        if self._next == len(self._feed.log) and not self._full:
            self._caught_up()

    def _send(self, data: bytes) -> None:
        self._last_written = self._loop.time()
        if self._first_written is None:
            self._first_written = self._last_written
        if data and self._preface:
            preface, self._preface = self.encoding.framed(self._preface), b""
            self._write_both(preface, data)
        else:
            self.write(data)

    def _reach(self) -> int:
        """How far the pace lets it read now; sets the timer for the rest."""
        if self._next < self._batch_stop:
            return self._batch_stop  # what was due a moment ago still is
        now = self._loop.time()
        if self._pace.batch_s and self._first_written is not None and now < self._last_written + self._pace.batch_s:
            self._set_timer(self._last_written + self._pace.batch_s)
            return self._next
        stop = self._played(now)
        if self._pace.batch_s:
            self._batch_stop = stop
        return stop

    def _played(self, now: float) -> int:
        """How far a recording that is played at `speed` has come."""
        events = self._feed.log
        if self._pace.speed is None or len(events) > self._recorded or self._start >= len(events):
            return len(events)
        began = self._first_written or now
        first_ms = events.times[self._start]
        stop = bisect_right(events.times, first_ms + (now - began) * 1000 * self._pace.speed)
        if stop < len(events):
            self._set_timer(began + (events.times[stop] - first_ms) / 1000 / self._pace.speed)
        return stop

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self.pump)

    def _caught_up(self) -> None:
        if self._finish_if_complete():
            return
        if not self._told_live:
            self._told_live = True
            last_id = self._feed.log.last_id
            data = {"last_event_id": None if last_id is None else str(last_id)}
            notice = self.encoding.format.notice("live", data, self._feed.cursor)
            self._send(self.encoding.framed(notice) if notice else b"")
        if not self._pace.batch_s and not self._full:
            self._live = True
            self._counters.catch_ups += 1
            self._feed.go_live(self)

    def _finish_if_complete(self) -> bool:
        if not self._feed.log.complete or self._transport is None:
            return False
        self._finish(clean=not self.encoding.format.cut_unless_completed or self._feed.completed)
        return True

    def keep_alive(self, now: float, silence: float) -> None:
        """Write a sign of life if the subscriber has heard nothing for that long."""
        if now - self._last_written >= silence and not self._full:
            self._last_written = now
            self.write(self.encoding.framed(self.encoding.format.keepalive))

    # What comes from the transport.

    def pause_writing(self) -> None:
        """Fall behind: the transport is full."""
        super().pause_writing()
        if self._live:
            self._live = False
            self._next = self._feed.shown  # what fills the transport ends here
            self._feed.fall_behind(self)

    def drained(self) -> None:
        """Write on: there is room for more."""
        self.pump()

    def left(self) -> None:
        """Follow no more."""
        self._feed.remove(self)
        self._on_gone(self)

    def _cancel_timers(self) -> None:
        super()._cancel_timers()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
