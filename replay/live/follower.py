"""Keeps a feed equal to a log that another node writes.

Listen, then read, then apply what the channel brings. Known events are skipped; a hole is filled by reading
the log from the last known event, and so is whatever a silent channel may have swallowed: a lost last message has
no successor that would show the hole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from replay.errors import StoreUnavailable
from replay.live.feed import Feed
from replay.model.event import Event, Kind
from replay.model.log import Hole
from replay.store import EventStore

logger = logging.getLogger(__name__)

_PAGE = 256  # events a read: larger pages hold up the other readers for longer, and cost no less


class Follower:
    """The Listener of one feed. `load` first; then the feed follows until `close`."""

    def __init__(self, store: EventStore, feed: Feed, *, lost_after_s: float) -> None:
        self.feed = feed
        self._store = store
        self._lost_after_s = lost_after_s  # how long a log may be shorter than the feed before that is final
        self._reading: asyncio.Task[None] | None = None
        self._again = False  # something was heard while reading
        self._quiet_since = asyncio.get_running_loop().time()
        self._short_since: float | None = None
        self._listening = False

    async def load(self) -> None:
        """Fill the feed with all there is, and follow the log if it goes on; raises StoreUnavailable."""
        last = await self._store.last(self.feed.generation_id)
        if last is not None and last.kind is not Kind.END:
            await self.listen()
        await self.catch_up()

    async def listen(self) -> None:
        """Hear of what is appended from here on; raises StoreUnavailable."""
        self._listening = True
        await self._store.listen(self.feed.generation_id, self)

    async def catch_up(self) -> None:
        """Read what the log has beyond the feed; raises StoreUnavailable.

        One read serves all who ask meanwhile, and goes on when one of them is cancelled.
        """
        self._again = True
        if self._reading is None:
            self._reading = self._start_reading()
        # One of several who wait may be cancelled; the others still want the answer.
        await asyncio.shield(self._reading)

    def _start_reading(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._read(), name=f"follow {self.feed.generation_id}")

    async def _read(self) -> None:
        try:
            await self._read_on()
        finally:
            self._reading = None  # a task keeps its error, and that all it has passed through: this, and the feed

    async def _read_on(self) -> None:
        """Read page by page, until nothing was heard meanwhile."""
        feed = self.feed
        while self._again and not feed.invalid:
            self._again = False
            while True:
                events = await self._store.read(feed.generation_id, after=feed.log.last_id, limit=_PAGE)
                if await self._was_trimmed(events):
                    logger.info("log was trimmed before it was read", extra={"generation": feed.generation_id})
                    feed.invalidate()
                    break
                try:
                    self._apply(feed.log.without_holes(events))
                except Hole as hole:  # the log itself does not go on where the feed ends: it is another one
                    logger.warning("log was replaced", extra={"generation": feed.generation_id, "hole": str(hole)})
                    feed.invalidate()
                if len(events) < _PAGE or feed.invalid:
                    break
        if feed.log.complete:
            self.close()

    async def _was_trimmed(self, events: Sequence[Event]) -> bool:
        """Whether a hole before these is not what was taken out of the log, but where the log begins now."""
        expected = len(self.feed.log)
        if not events or not self.feed.log.entries or events[0].id.seq <= expected:
            return False
        (bounds,) = await self._store.bounds([self.feed.generation_id])
        return bounds is None or bounds.first.id.seq > expected

    def _apply(self, events: Sequence[Event]) -> None:
        """Extend the feed by what it does not have; cut everybody off where it has something else."""
        feed = self.feed
        length = len(feed.log)
        if events and events[0].id.seq == length:  # as nearly always, and with thousands
            feed.extend(events)
            return
        fresh = [event for event in events if event.id.seq >= length]
        if any(not feed.log.holds(event.id) for event in events if event.id.seq < length):
            logger.warning("log was replaced", extra={"generation": feed.generation_id})
            feed.invalidate()
        elif fresh:
            feed.extend(fresh)

    def heard(self, events: Sequence[Event]) -> None:
        """Apply a batch from the channel, or read the log where it shows a hole.

        Also while the log is being read: it may be gone before that is done.
        """
        self._quiet_since = asyncio.get_running_loop().time()
        if events and events[0].id.seq > len(self.feed.log):
            self.start_catch_up()  # what came before them was missed, or is still being read
        else:
            self._apply(events)
        if self.feed.log.complete:
            self.close()

    def deleted(self) -> None:
        """Cut off whoever waits for an end that was missed: it came just before the log was deleted."""
        if not self.feed.log.complete:
            self.feed.invalidate()

    def reconnected(self) -> None:
        """Read the log: whatever the channel brought meanwhile was missed."""
        self.start_catch_up()

    def start_catch_up(self) -> None:
        """Catch up in the background."""
        self._again = True
        if self._reading is None:
            self._reading = self._start_reading()
            self._reading.add_done_callback(_note_failure)

    async def look(self, now: float) -> None:
        """Read what a quiet channel may have swallowed, and give up a log that stays lost; raises StoreUnavailable."""
        feed = self.feed
        if feed.log.complete or now - self._quiet_since < 1.0:
            return
        self._quiet_since = now
        last = await self._store.last(feed.generation_id)
        if last is not None and last.id.seq >= len(feed.log):
            self._short_since = None
            await self.catch_up()
        elif last is not None and not feed.log.holds(last.id):
            feed.invalidate()
        elif (None if last is None else last.id) == feed.log.last_id:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now  # Valkey lost events; their producer is about to append them again
        elif now - self._short_since > self._lost_after_s:
            logger.warning("log was lost with its producer", extra={"generation": feed.generation_id})
            feed.invalidate()

    def close(self) -> None:
        """Follow no more."""
        if self._listening:
            self._listening = False
            self._store.unlisten(self.feed.generation_id)

    async def stop(self) -> None:
        """Follow no more, and wait until nothing is under way."""
        self.close()
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _note_failure(reading: asyncio.Task[None]) -> None:
    error = None if reading.cancelled() else reading.exception()
    if isinstance(error, StoreUnavailable):
        logger.info("catch-up failed", extra={"reason": error.in_full})
    elif error is not None:
        logger.error("catch-up failed", exc_info=error)
