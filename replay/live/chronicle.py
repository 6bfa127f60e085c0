"""The life of all generations: a log that every node writes and anybody may follow.

It is a log like a generation's, with as many writers as there are nodes (`scribe.py`); it loses its beginning, and
never ends. It is told after the fact: what a generation's own log says counts.
"""

from __future__ import annotations

import asyncio
from typing import Any

from replay.errors import StoreUnavailable
from replay.live.feed import Feed, now_ms
from replay.live.follower import Follower
from replay.live.scribe import KEPT, Scribe
from replay.model.event import EventId
from replay.model.generation import End, Start
from replay.model.tail import Tail
from replay.store import CHRONICLE, EventStore
from replay.wire import feed as wire
from replay.wire.events import Face

_TOLD_S = 2.0
_PAGE = 1000


class Chronicle:
    """This node's part in it: tells what happens here, and follows what happens anywhere, once somebody asks."""

    def __init__(self, store: EventStore, *, patience_s: float) -> None:
        self._store = store
        self._patience_s = patience_s
        self._scribe = Scribe(store)
        self._follower: Follower | None = None
        self._tail = Tail(KEPT)  # what the follower's feed has
        self._opening: asyncio.Task[None] | None = None
        self._missed = False  # deletions may not have been heard, or in vain

    def start(self) -> None:
        """Begin to tell."""
        self._store.on_missed.append(self._note_missed)
        self._scribe.start()

    # Telling.

    def created(self, start: Start, created_ms: int) -> None:
        """A generation was started."""
        self._scribe.tell(created_ms, wire.created(start, created_ms), wire.deleted(start))

    def first_token(self, start: Start, created_ms: int, at_ms: int) -> None:
        """A generation has begun to speak."""
        self._scribe.tell(at_ms, wire.first_token(start, created_ms, at_ms), wire.deleted(start))

    async def ended(self, start: Start, created_ms: int, at_ms: int, end: End) -> bool:
        """A generation has ended; returns when that is written, and all that was told before: whether it is."""
        told = self._scribe.tell(at_ms, wire.ended(start, created_ms, at_ms, end), wire.deleted(start))
        return await asyncio.shield(told)

    async def has_lost(self) -> bool:
        """Whether Valkey has been away and has come back without something that was told; raises StoreUnavailable."""
        return await self._scribe.has_lost()

    async def oldest_ms(self) -> int:
        """When the oldest event that is kept was told; 0 when nothing was forgotten yet."""
        (ends,) = await self._store.ends([CHRONICLE])
        return ends.first.id.ms if ends is not None and ends.first.id.seq else 0

    async def take_out(self, start: Start, ended_ms: int) -> None:
        """Leave no trace of an ended generation that is being deleted; raises StoreUnavailable.

        Whatever is told of it from now on, on whichever node, is not written.
        """
        grave = wire.deleted(start)
        told = self._scribe.tell(max(now_ms(), ended_ms), grave, grave)
        try:
            async with asyncio.timeout(_TOLD_S):
                stands = await asyncio.shield(told)
        except TimeoutError:
            stands = False
        if not stands:
            raise StoreUnavailable("Valkey has not taken what was told of other generations yet")
        await self.open()
        await self._store.erase(CHRONICLE, self._tail.find(wire.mark_of(start.generation_id)))

    def forget(self, generation_id: str) -> None:
        """A generation was deleted somewhere: do not keep what happened to it."""
        self._missed |= self._is_opening  # it may have been read a moment ago
        feed = self._follower.feed if self._follower is not None else None
        if feed is not None and self._tail.erase(wire.mark_of(generation_id)):
            feed.forget_segments()
            for face in (wire.FEED, wire.FEED_WITH_PROGRESS, wire.FEED_LINES):
                feed.tell(face, "deleted", {"generation_id": generation_id})

    # Following.

    async def last_id(self) -> EventId | None:
        """The last event so far; None where there is none."""
        last = await self._store.last(CHRONICLE)
        return None if last is None else last.id

    async def open(self) -> Feed:
        """The feed of all that Valkey has now, followed from now on; raises StoreUnavailable."""
        while True:
            if self._follower is None or self._follower.feed.invalid:
                if not self._is_opening:
                    self._opening = asyncio.create_task(self._open())
                assert self._opening is not None
                await asyncio.shield(self._opening)
            feed = await self._bring_up_to_date()
            if not feed.invalid:
                return feed

    @property
    def _is_opening(self) -> bool:
        return self._opening is not None and not self._opening.done()

    async def _open(self) -> None:
        if self._follower is not None:
            await self._follower.stop()
        tail = Tail(KEPT)
        follower = Follower(self._store, Feed(CHRONICLE, tail), patience_s=self._patience_s)
        try:
            await follower.listen()
            await follower.catch_up()
        except BaseException:
            await follower.stop()
            raise
        self._follower, self._tail = follower, tail

    async def _bring_up_to_date(self) -> Feed:
        """Know what Valkey knows now, and no more than that."""
        assert self._follower is not None
        follower, tail = self._follower, self._tail
        (ends,) = await self._store.ends([CHRONICLE])
        if ends is not None and ends.last.id.seq >= len(tail):
            await follower.catch_up()
        elif ends is not None and not tail.holds(ends.last.id):
            follower.feed.invalidate()  # Valkey has lost it, and it has grown again
        if ends is not None and not follower.feed.invalid:
            tail.forget_before(ends.first.id.seq)
            await self._make_up_for_missed()
        return follower.feed

    async def _make_up_for_missed(self) -> None:
        """Forget what was deleted and not heard of: whatever is here and not in Valkey any more."""
        if not self._missed:
            return
        self._missed = False
        kept: list[EventId] = []
        try:
            while events := await self._store.read(CHRONICLE, after=kept[-1] if kept else None, limit=_PAGE):
                kept += [event.id for event in events]
        except StoreUnavailable:
            self._missed = True
            raise
        known = set(kept)
        here = self._tail.events(kept[0].seq, kept[-1].seq) if kept else ()
        gone = {wire.generation_of(event.entry) for event in here if event.id not in known}
        for generation_id in gone:
            if generation_id is not None:
                self.forget(generation_id)

    def _note_missed(self) -> None:
        self._missed = True

    def is_read_with(self, face: Face) -> bool:
        """Whether anybody here follows it in that form."""
        return self._follower is not None and self._follower.feed.is_read_with(face)

    def pass_on(self, face: Face, name: str, data: dict[str, Any]) -> None:
        """Tell who follows it in that form something that is not in it."""
        if self._follower is not None:
            self._follower.feed.tell(face, name, data)

    async def look(self) -> None:
        """The slow safety read."""
        if self._follower is not None and not self._follower.feed.invalid:
            await self._follower.look(asyncio.get_running_loop().time())
            await self._make_up_for_missed()

    def keep_alive(self, silence: float) -> None:
        """Write keep-alives where nothing was written for that long."""
        if self._follower is not None:
            self._follower.feed.keep_alive(asyncio.get_running_loop().time(), silence)

    async def stop(self) -> None:
        """Tell what is left, and follow no more."""
        await self._scribe.stop()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._follower is not None:
            await self._follower.stop()
