"""The one writer of a generation.

Entries are numbered when they are put, wait as pending, and are appended batch by batch, one append in flight.
Every append compares the log's end with the last acknowledged event, so its result is one of:

    acknowledged    the batch is shown to the readers, and not before
    shorter         Valkey has lost events (crash without fsync, failover); they are still here, and are appended
                    again with the same ids, so that every reader's cursor stays valid
    fenced          somebody else has written, or the log was deleted: this writer has lost and stops
    unavailable     nobody knows; the same append is tried again until Valkey answers
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from replay.errors import StoreRefused, StoreUnavailable
from replay.live.counters import Counters
from replay.live.feed import Feed
from replay.live.repair import BATCH_EVENTS, append_again, batch_length
from replay.model.event import Event, EventId, Kind, number
from replay.store import BURIED_MS, EventStore

logger = logging.getLogger(__name__)

_PENDING_OVERHEAD = 256  # bytes that a pending event takes beside its entry
_LONGEST_PAUSE_S = 5.0
_LONG_S = 0.002  # in which no other generation of this node has moved
_REFUSED_PAUSE_S = 0.25  # before asking a full or read-only Valkey again


class Fenced(Exception):
    """The log is not this writer's any more."""


class Writer:
    """Appends to one log, and to the feed what was acknowledged."""

    def __init__(
        self,
        store: EventStore,
        feed: Feed,
        counters: Counters,
        *,
        ttl_ms: int,
        max_pending_bytes: int,
        heal_window_s: float,
        outage_s: float,
    ) -> None:
        self._store = store
        self._feed = feed
        self._counters = counters
        self._ttl_ms = ttl_ms
        self._max_pending_bytes = max_pending_bytes
        self._heal_window_s = heal_window_s
        self._outage_s = outage_s
        self._on_outage: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Event] = deque()
        self._pending_bytes = 0
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._began = self._renewed = self._settled = self._loop.time()
        self._down_since: float | None = None
        self._shown_in_s = 0.0  # how long the last batch took to be written to its readers

    @property
    def generation_id(self) -> str:
        """Whose log it is."""
        return self._feed.generation_id

    @property
    def last_id(self) -> EventId | None:
        """The id of the newest event, acknowledged or not."""
        return self._pending[-1].id if self._pending else self._feed.log.last_id

    @property
    def size(self) -> int:
        """About how many bytes of memory all events take, acknowledged or not."""
        return self._feed.log.size + self._pending_bytes

    def now_ms(self) -> int:
        """The time for what happens now, unix ms: since the log's beginning, by a clock that nobody sets."""
        return self._feed.log.times[0] + int((self._loop.time() - self._began) * 1000)

    def put(self, entry: bytes, *, ms: int | None = None) -> EventId:
        """Accept an entry; it is appended as soon as can be."""
        (event,) = number([entry], after=self.last_id, now_ms=self.now_ms() if ms is None else ms)
        self._pending.append(event)
        self._pending_bytes += len(entry) + _PENDING_OVERHEAD
        if self._pending_bytes > self._max_pending_bytes:
            self._room.clear()
        self._work.set()
        return event.id

    async def room(self) -> None:
        """Wait until what is pending is below its limit."""
        await self._room.wait()

    @property
    def quiet_for_s(self) -> float:
        """Seconds since the log was last seen as it should be."""
        return self._loop.time() - self._settled

    def check(self) -> None:
        """Compare the log with what was acknowledged, and repair it."""
        self._work.set()

    async def renew(self) -> None:
        """Push the log's expiry ahead while the upstream is silent; at most every quarter of the ttl."""
        if self.renewal_due and not self._feed.log.complete:
            await self._store.expire(self._feed.generation_id, self._ttl_ms)
            self._renewed = self._loop.time()

    @property
    def renewal_due(self) -> bool:
        """Whether a quarter of the ttl has passed since it was last set."""
        return self._loop.time() - self._renewed >= self._ttl_ms / 4000

    async def run(self, on_outage: Callable[[], None]) -> None:
        """Append until the end is acknowledged; raises Fenced.

        ``on_outage`` is called, more than once, when Valkey has been away for longer than `outage_s`.
        """
        self._on_outage = on_outage
        try:
            while not self._feed.log.complete:
                await self._work.wait()
                await self._settle_pending()
                if self._shown_in_s > _LONG_S:
                    # Thousands of readers: as much time for everybody else, and then one write for what came meanwhile.
                    await asyncio.sleep(self._shown_in_s)
        finally:
            self._on_outage = None  # it is its owner's: the two, and their log, would live until the next collection

    async def keep(self) -> None:
        """Stand ready to repair an ended log for a while, or until it expires; raises Fenced."""
        self._pending.clear()  # what somebody else's end has cut off
        self._pending_bytes = 0
        deadline = self._loop.time() + min(self._heal_window_s, self._ttl_ms / 1000)
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._work.wait()
            except TimeoutError:
                return
            await self._settle_pending()

    async def _settle_pending(self) -> None:
        self._work.clear()
        await self._commit(self._next_batch())
        if self._pending:
            self._work.set()

    def _next_batch(self) -> list[Event]:
        """What is appended next; it stays pending until it is settled."""
        batch = list(islice(self._pending, BATCH_EVENTS))
        return batch[: batch_length([event.entry for event in batch])]

    async def _commit(self, batch: list[Event]) -> None:
        rest = batch
        while True:
            try:
                began = time.perf_counter()  # uvloop's clock counts whole ms
                after, ttl_ms = self._feed.log.last_id, self._ttl_for(rest)
                refused = await self._store.append(self._feed.generation_id, rest, after=after, ttl_ms=ttl_ms)
                if refused is None:
                    self._counters.append_seconds.add(time.perf_counter() - began)
                    break
                rest = await self._reconcile(refused.last, rest)
            except StoreUnavailable as error:
                await self._wait_out(error)
        self._down_since = None
        self._settled = self._loop.time()
        self._renewed = self._settled if ttl_ms else self._renewed
        self._acknowledge(rest)

    def _acknowledge(self, events: Sequence[Event]) -> None:
        """Show what Valkey has acknowledged, and make room for more."""
        for event in events:
            self._pending.popleft()
            self._pending_bytes -= len(event.entry) + _PENDING_OVERHEAD
        if self._pending_bytes <= self._max_pending_bytes:
            self._room.set()
        if events:
            began = time.perf_counter()
            self._feed.extend(events)  # acknowledged: only now may anyone see them
            self._shown_in_s = time.perf_counter() - began

    def _ttl_for(self, batch: Sequence[Event]) -> int:
        """The ttl to set with an append: at the end, and whenever it is due."""
        return self._ttl_ms if (batch and batch[-1].kind is Kind.END) or self.renewal_due else 0

    async def _reconcile(self, last: Event | None, batch: list[Event]) -> list[Event]:
        """Make the log end as the feed does, and return what is left of the batch; raises Fenced."""
        if last is not None and last in batch:  # a part of the batch has survived a crash
            done = batch.index(last) + 1
            self._acknowledge(batch[:done])
            return batch[done:]
        if last is None and self._away_for_s * 1000 > self._ttl_ms + BURIED_MS:
            raise Fenced  # somebody may have ended it, and nobody would remember
        if not await append_again(self._store, self._feed, last, self._counters):
            raise Fenced
        return batch

    @property
    def _away_for_s(self) -> float:
        return 0.0 if self._down_since is None else self._loop.time() - self._down_since

    async def _wait_out(self, error: StoreUnavailable) -> None:
        """Wait until another try is worth it."""
        if self._down_since is None:
            self._down_since = self._loop.time()
            logger.warning("append failed", extra={"generation": self._feed.generation_id, "reason": error.in_full})
        left = self._outage_s - self._away_for_s
        if left <= 0:
            if self._on_outage is not None:
                self._on_outage()
            left = _LONGEST_PAUSE_S
        pause = min(left, _LONGEST_PAUSE_S)
        if isinstance(error, StoreRefused):
            await asyncio.sleep(min(pause, _REFUSED_PAUSE_S))
        else:
            await self._store.wait_up(pause)
            # A server that accepts connections and fails every command must not be asked in a tight loop.
            await asyncio.sleep(0.01)
