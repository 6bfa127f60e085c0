"""The activity of all generations: a log of what becomes of them, which every node writes and anybody may follow.

It is a log like a generation's, with as many writers as there are nodes (`activity_writer.py`); it loses its beginning,
and never ends. It is written after the fact: what a generation's own log says counts. Its URL is `/feed`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from replay.errors import StoreUnavailable
from replay.live.activity_writer import KEPT, ActivityWriter
from replay.live.clock import now_ms
from replay.live.feed import Feed
from replay.live.follower import Follower
from replay.model.event import EventId
from replay.model.generation import End, Start
from replay.model.trimmed_log import TrimmedLog
from replay.store import ACTIVITY_LOG, EventStore
from replay.wire import activity as wire
from replay.wire.events import Format

_WRITTEN_S = 2.0
_PAGE = 1000


class Activity:
    """This node's part in it: writes what happens here, and follows what happens anywhere, once somebody asks."""

    def __init__(self, store: EventStore, *, lost_after_s: float) -> None:
        self._store = store
        self._lost_after_s = lost_after_s
        self._writer = ActivityWriter(store)
        self._follower: Follower | None = None
        self._log = TrimmedLog(KEPT)  # what the follower's feed has
        self._loading: asyncio.Task[None] | None = None
        self._missed = False  # deletions may not have been heard, or in vain

    def start(self) -> None:
        """Begin to write."""
        self._store.on_missed.append(self._note_missed)
        self._writer.start()

    # Writing.

    def created(self, start: Start, created_ms: int) -> None:
        """Have it written that a generation was started."""
        self._writer.write(created_ms, wire.created(start, created_ms), wire.deleted(start))

    def first_token(self, start: Start, created_ms: int, at_ms: int) -> None:
        """Have it written that a generation has begun to speak."""
        self._writer.write(at_ms, wire.first_token(start, created_ms, at_ms), wire.deleted(start))

    async def ended(self, start: Start, created_ms: int, at_ms: int, end: End) -> bool:
        """Have it written that a generation has ended; returns when that and all before it is: whether it is.

        It is written, too, when its caller is cancelled.
        """
        written = self._writer.write(at_ms, wire.ended(start, created_ms, at_ms, end), wire.deleted(start))
        return await asyncio.shield(written)

    async def has_lost(self) -> bool:
        """Whether Valkey has come back without something that was written; raises StoreUnavailable."""
        return await self._writer.has_lost()

    async def oldest_ms(self) -> int:
        """Return when the oldest event that is kept was written, 0 when none was forgotten; raises StoreUnavailable."""
        (bounds,) = await self._store.bounds([ACTIVITY_LOG])
        return bounds.first.id.ms if bounds is not None and bounds.first.id.seq else 0

    async def take_out(self, start: Start, ended_ms: int) -> None:
        """Leave no trace of an ended generation that is being deleted; raises StoreUnavailable.

        Whatever is reported of it from now on, on whichever node, is not written.
        """
        deletion = wire.deleted(start)
        written = self._writer.write(max(now_ms(), ended_ms), deletion, deletion)
        try:
            async with asyncio.timeout(_WRITTEN_S):
                stands = await asyncio.shield(written)
        except TimeoutError:
            stands = False
        if not stands:
            raise StoreUnavailable("Valkey has not taken what became of other generations yet")
        await self.open()
        await self._store.erase(ACTIVITY_LOG, self._log.find(wire.mark_of(start.generation_id)))

    def forget(self, generation_id: str) -> None:
        """Forget what happened to a generation that was deleted somewhere, and tell whoever follows."""
        self._missed |= self._is_loading  # it may have been read a moment ago
        feed = self._follower.feed if self._follower is not None else None
        if feed is not None and self._log.erase(wire.mark_of(generation_id)):
            feed.forget_segments()
            for format in (wire.ACTIVITY_EVENTS, wire.ACTIVITY_WITH_PROGRESS, wire.ACTIVITY_LINES):
                feed.send_notice(format, "deleted", {"generation_id": generation_id})

    # Following.

    async def last_id(self) -> EventId | None:
        """Return the id of the last event so far, None where there is none; raises StoreUnavailable."""
        last = await self._store.last(ACTIVITY_LOG)
        return None if last is None else last.id

    async def open(self) -> Feed:
        """Return the feed of all that Valkey has now, followed from now on; raises StoreUnavailable.

        It is opened once for all who ask meanwhile; a caller that is cancelled takes nobody along.
        """
        while True:
            if self._follower is None or self._follower.feed.invalid:
                if not self._is_loading:
                    self._loading = asyncio.create_task(self._open(), name="open the activity")
                assert self._loading is not None, "just begun"
                await asyncio.shield(self._loading)
            feed = await self._bring_up_to_date()
            if not feed.invalid:
                return feed

    @property
    def _is_loading(self) -> bool:
        return self._loading is not None and not self._loading.done()

    async def _open(self) -> None:
        if self._follower is not None:
            await self._follower.stop()
        log = TrimmedLog(KEPT)
        follower = Follower(self._store, Feed(ACTIVITY_LOG, log), lost_after_s=self._lost_after_s)
        try:
            await follower.listen()
            await follower.catch_up()
        except BaseException:
            await follower.stop()
            raise
        self._follower, self._log = follower, log

    async def _bring_up_to_date(self) -> Feed:
        """Know what Valkey knows now, and no more than that."""
        assert self._follower is not None, "it is opened first"
        follower, log = self._follower, self._log
        (bounds,) = await self._store.bounds([ACTIVITY_LOG])
        if bounds is not None and bounds.last.id.seq >= len(log):
            await follower.catch_up()
        elif bounds is not None and not log.holds(bounds.last.id):
            follower.feed.invalidate()  # Valkey has lost it, and it has grown again
        if bounds is not None and not follower.feed.invalid:
            log.forget_before(bounds.first.id.seq)
            await self._make_up_for_missed()
        return follower.feed

    async def _make_up_for_missed(self) -> None:
        """Forget what was deleted and not heard of: whatever is here and not in Valkey any more."""
        if not self._missed:
            return
        self._missed = False
        ids: list[EventId] = []
        try:
            while events := await self._store.read(ACTIVITY_LOG, after=ids[-1] if ids else None, limit=_PAGE):
                ids += [event.id for event in events]
        except StoreUnavailable:
            self._missed = True
            raise
        known = set(ids)
        here = self._log.events(ids[0].seq, ids[-1].seq) if ids else ()
        gone = {wire.generation_id_of(event.entry) for event in here if event.id not in known}
        for generation_id in gone:
            if generation_id is not None:
                self.forget(generation_id)

    def _note_missed(self) -> None:
        self._missed = True

    def has_subscribers(self, format: Format) -> bool:
        """Whether anybody here follows it in that format."""
        return self._follower is not None and self._follower.feed.has_subscribers(format)

    def pass_on(self, format: Format, name: str, data: dict[str, Any]) -> None:
        """Send who follows it in that format something that is not in it."""
        if self._follower is not None:
            self._follower.feed.send_notice(format, name, data)

    async def look(self) -> None:
        """Read what a quiet channel may have swallowed, and whether deletions were missed; raises StoreUnavailable."""
        if self._follower is not None and not self._follower.feed.invalid:
            await self._follower.look(asyncio.get_running_loop().time())
            await self._make_up_for_missed()

    def keep_alive(self, silence: float) -> None:
        """Write keep-alives where nothing was written for that long."""
        if self._follower is not None:
            self._follower.feed.keep_alive(asyncio.get_running_loop().time(), silence)

    async def stop(self) -> None:
        """Write what is left, and follow no more."""
        await self._writer.stop()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        if self._follower is not None:
            await self._follower.stop()
