"""Writes what has happened on this node into the activity log, which every node writes.

1. An entry is made of a generation's own log alone, so whoever reports the same writes the same bytes.
2. A writer has digests of what stands in the log since the oldest thing that it ever had to write happened, and leaves
   out what stands there already, and what is of a generation whose deletion stands there: an entry too, without a name.
3. It appends the rest exactly after the last event it knows; when another node was faster it reads on, and tries again.
4. So anything may be reported any number of times, by any number of nodes, also after an answer was lost, and stands
   there once.

Each event is read once, whatever the clocks say: a node whose clock is ahead gives all events after its own a time that
is ahead, too, and "since" is then nearly everything.
"""

from __future__ import annotations

import asyncio
import hashlib
from itertools import islice
from typing import NamedTuple

from replay.errors import StoreUnavailable
from replay.live.clock import now_ms
from replay.model.event import Event, EventId, number
from replay.store import ACTIVITY_LOG, EventStore

KEPT = 10_000  # events; a reader that has missed more gets a `reset`, and begins anew
_TTL_MS = 31 * 86_400_000  # since the last event
_BATCH = 500
_PAGE = 1000
_TRIM_EVERY = KEPT // 10  # events, whoever has appended them
_PAUSE_S = 0.25
_MOST_WAITING = 100_000  # protects from a Valkey that takes everything but this


class Report(NamedTuple):
    """An entry to be written."""

    at_ms: int  # when it happened
    entry: bytes
    deletion: bytes  # the entry that says that the generation was deleted
    written: asyncio.Future[bool]  # whether it stands, or would if the generation were not deleted


class _Digests:
    """What stands in the log after a time, as digests."""

    def __init__(self, since: EventId) -> None:
        self.since = since
        self.last: EventId | None = None  # where the log ends; None where it has nothing, or nothing was read yet
        self._seqs: dict[bytes, int] = {}

    def has(self, entry: bytes) -> bool:
        """Whether an entry stands there."""
        return _digest(entry) in self._seqs

    def add(self, events: list[Event]) -> None:
        """Take up events in their order, but for those that are there already."""
        if not events:
            return
        self._seqs |= {_digest(event.entry): event.id.seq for event in events}
        self.last = events[-1].id if self.last is None else max(self.last, events[-1].id)
        if len(self._seqs) > 2 * KEPT:
            oldest = self.last.seq - KEPT - 2 * _TRIM_EVERY  # what is older was trimmed away
            self._seqs = {digest: seq for digest, seq in self._seqs.items() if seq >= oldest}


def _digest(entry: bytes) -> bytes:
    return hashlib.blake2b(entry, digest_size=16).digest()


class ActivityWriter:
    """This node's writer."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._waiting: dict[bytes, Report] = {}  # by entry: what is reported twice waits once
        self._work = asyncio.Event()
        self._digests: _Digests | None = None  # None before the first report, and where the log was lost
        self._last_before_outage: EventId | None = None  # where it ended when Valkey was away
        self._trim_due = True
        self._writing: asyncio.Task[None] | None = None

    def write(self, at_ms: int, entry: bytes, deletion: bytes) -> asyncio.Future[bool]:
        """Have an entry written after everything that was reported before; the future is its `Report.written`."""
        report = self._waiting.get(entry)
        if report is None:
            report = Report(at_ms, entry, deletion, asyncio.get_running_loop().create_future())
            if len(self._waiting) >= _MOST_WAITING:
                self._settle(next(iter(self._waiting.values())), written=False)
            self._waiting[entry] = report
            self._work.set()
        return report.written

    def start(self) -> None:
        """Begin to write."""
        self._store.on_reconnect.append(self._note_reconnect)
        self._writing = asyncio.create_task(self._write(), name="write the activity")

    async def stop(self) -> None:
        """Write what is left, if that is quickly done, and no more."""
        if self._writing is None:
            return
        if self._waiting:
            await asyncio.wait([report.written for report in self._waiting.values()], timeout=_PAUSE_S)
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)

    def _note_reconnect(self) -> None:
        if self._last_before_outage is None and self._digests is not None:
            self._last_before_outage = self._digests.last

    async def has_lost(self) -> bool:
        """Whether Valkey has been away and has come back without something that stood there."""
        last = self._last_before_outage
        if last is None:
            return False
        before_it = EventId(last.ms, last.seq - 1) if last.seq else None
        there = await self._store.read(ACTIVITY_LOG, after=before_it, limit=1)
        self._last_before_outage = None
        if there and there[0].id == last:
            return False
        self._digests = None
        return True

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._waiting:
                try:
                    await self._append(list(islice(self._waiting.values(), _BATCH)))
                except StoreUnavailable:
                    await self._store.wait_up(_PAUSE_S)
                    await asyncio.sleep(_PAUSE_S / 10)  # it may answer, and refuse

    async def _append(self, batch: list[Report]) -> None:
        since = EventId(min(report.at_ms for report in batch) - 1, 0)
        while True:
            digests = await self._digests_since(since)
            fresh = [
                report.entry for report in batch if not (digests.has(report.entry) or digests.has(report.deletion))
            ]
            # An event never stands before what it reports happened, however wrong this node's clock is.
            events = number(fresh, after=digests.last, now_ms=max(now_ms(), *(report.at_ms for report in batch)))
            # Nothing to append is a question, too: whether the log still ends where it is thought to.
            refused = await self._store.append(ACTIVITY_LOG, events, after=digests.last, ttl_ms=_TTL_MS)
            if refused is None:
                break
            await self._catch_up(digests, refused.last)
        before = digests.last
        digests.add(events)
        if events:
            self._trim_due |= before is None or events[-1].id.seq // _TRIM_EVERY > before.seq // _TRIM_EVERY
        for report in batch:
            self._settle(report, written=True)
        if self._trim_due:
            await self._store.trim(ACTIVITY_LOG, KEPT)
            self._trim_due = False

    async def _digests_since(self, since: EventId) -> _Digests:
        """What the log has since a time, and since all that it was asked for before."""
        digests = self._digests
        if digests is None:
            digests = self._digests = _Digests(since)
            await self._read(digests, since)
        elif since < digests.since:
            await self._read(digests, since, until=digests.since)
            digests.since = since
        return digests

    async def _catch_up(self, digests: _Digests, last: Event | None) -> None:
        """Know what the log has got meanwhile; it ends with an event that was not expected."""
        before = digests.last
        if last is not None and (before is None or last.id > before):
            await self._read(digests, before or digests.since)
            digests.last = digests.last or last.id  # all it has may be older
        if digests.last == before:
            self._digests = None  # it was lost, and may have grown again

    async def _read(self, digests: _Digests, after: EventId, *, until: EventId | None = None) -> None:
        while True:
            events = await self._store.read(ACTIVITY_LOG, after=after, limit=_PAGE)
            digests.add(events)
            if len(events) < _PAGE or (until is not None and events[-1].id >= until):
                return
            after = events[-1].id

    def _settle(self, report: Report, *, written: bool) -> None:
        self._waiting.pop(report.entry, None)
        if not report.written.done():
            report.written.set_result(written)
