"""The generations that are kept, newest first, and those among them that somebody wants.

Nothing in Valkey leads from a status, a model or metadata to generations: an index would cost every generation some
further writes, outlive the logs that expire, and have to be repaired with them. So whoever wants some looks through
all, at the ends of their logs. One answer looks through a part, however rare its matches are, and says where to go on.
Only the live ones are few, and on a list of their own.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from replay.live.clock import now_ms
from replay.live.hub import Hub
from replay.live.producers import Producers
from replay.live.tasks import Tasks
from replay.model.event import Kind
from replay.model.generation import Generation
from replay.model.selection import Selection
from replay.store import Bounds, EventStore, Page, Row
from replay.wire.events import generation_of

_BITE = 50  # rows that are looked at in one go, on this loop and in Valkey
_MOST_BITES = 40  # for one answer: 2,000 generations, some 60 ms
_MOST_BYTES = 1 << 20  # of entries, for one answer: where metadata is large, that takes as long; 0.1 s at the worst
_SLICE = 16 << 10  # bytes of entries that are looked at before others have their turn: some 2 ms at most
_NEW_MS = 60_000  # a generation is on the list before it has a log


class Listed(NamedTuple):
    """A generation of the list, and when it expires (unix ms)."""

    generation: Generation
    expires_at_ms: int | None


class Found(NamedTuple):
    """What an answer has found, and the row to go on after; None when there is nothing more."""

    listed: list[Listed]
    next: Row | None


class Catalogue:
    """Looks for generations."""

    def __init__(self, store: EventStore, hub: Hub, producers: Producers, tasks: Tasks) -> None:
        self._store = store
        self._hub = hub
        self._producers = producers
        self._tasks = tasks
        self._turn = asyncio.Lock()  # however many lists are asked for, one is looked through at a time

    async def find(self, selection: Selection, *, before: Row | None, limit: int) -> Found:
        """The next ``limit`` that are wanted, or fewer, or none, although there may be more.

        Followed from ``next`` to ``next``, every one that was there all the time and is wanted comes once.
        """
        look = _Look(selection, limit)
        row = _first(selection, before)
        if selection.live_only:
            recent = _Live(await self._store.live_rows()).recent
        else:
            recent = partial(self._store.recent, since_ms=selection.since_ms)
        for _ in range(_MOST_BITES):
            page = await recent(before=row, limit=_BITE)
            async with self._turn:
                last = await look.at(page.rows, await self._ends(page))
            if last is not None:
                return Found(look.listed, None if page.next is None and last == page.rows[-1] else last)
            row = page.next
            if row is None:
                break
        return Found(look.listed, row)

    async def _ends(self, page: Page) -> list[Bounds | None]:
        """The ends of the logs of a page; what has no log any more is taken off the list."""
        all_bounds = await self._store.bounds(page.generation_ids)
        gone = [row for row, bounds in zip(page.rows, all_bounds, strict=True) if bounds is None and self._is_gone(row)]
        if gone and not self._hub.healing:
            # To the end, also when whoever wants the list leaves: a row may have to be put back.
            await asyncio.shield(self._tasks.run(self._store.forget(gone), name="forget"))
        return all_bounds

    def _is_gone(self, row: Row) -> bool:
        """Whether a generation without a log is neither just being started nor produced here."""
        return row.created_ms < now_ms() - _NEW_MS and row.generation_id not in self._producers


class _Look:
    """What one answer has looked at, and what it has found."""

    def __init__(self, selection: Selection, limit: int) -> None:
        self.listed: list[Listed] = []
        self._selection = selection
        self._limit = limit
        self._size = 0
        self._slice = 0

    async def at(self, rows: Sequence[Row], all_bounds: Sequence[Bounds | None]) -> Row | None:
        """Look at some more; the row that the answer ends with, where that is one of them."""
        for row, bounds in zip(rows, all_bounds, strict=True):
            if bounds is not None and bounds.first.kind is Kind.START:  # else somebody has cut the log itself
                self._take(bounds)
            if len(self.listed) == self._limit or self._size > _MOST_BYTES:
                return row
            if self._slice > _SLICE:
                self._slice = 0
                await asyncio.sleep(0)
        return None

    def _take(self, bounds: Bounds) -> None:
        self._size += bounds.size
        self._slice += bounds.size
        if self._selection.has(generation := generation_of(bounds.first, bounds.last)):
            self.listed.append(Listed(generation, bounds.expires_at_ms))


class _Live:
    """The rows of the live ones, in the pages of the list of all."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows  # in order

    async def recent(self, *, before: Row | None, limit: int) -> Page:
        stop = len(self._rows) if before is None else bisect_left(self._rows, before)
        start = max(0, stop - limit)
        rows = list(reversed(self._rows[start:stop]))
        return Page(rows, rows[-1] if start else None)


def _first(selection: Selection, before: Row | None) -> Row | None:
    """The row to begin after: the one asked for, or the first moment after the time that is wanted."""
    if selection.until_ms is None:
        return before
    after = Row(selection.until_ms + 1, "")
    return after if before is None else min(before, after)
