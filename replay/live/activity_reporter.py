"""Reports the activity of generations, from the first event of their logs to the last.

A generation is on the list of live ones, under the node that reports it, until its end is written. That node reports
the end whoever has put it. Should it not come to that, whoever finds the generation on the list reports all of it
again, which adds what is missing (see `activity_writer.py`), and takes it off.
"""

from __future__ import annotations

import asyncio

from replay.live.activity import Activity
from replay.live.feed import Feed
from replay.live.tasks import Tasks
from replay.store import EventStore


class ActivityReporter:
    """What this node reports."""

    def __init__(self, store: EventStore, activity: Activity, tasks: Tasks) -> None:
        self._store = store
        self._activity = activity
        self._tasks = tasks
        self._reporting: dict[Feed, asyncio.Task[None]] = {}

    def report(self, feed: Feed) -> None:
        """Report a generation that is produced here, as it goes on."""
        self._start(feed, since_ms=0)

    async def report_again(self, feeds: list[Feed]) -> None:
        """Valkey was away: report again what it has lost, and take off the list what is written.

        Raises StoreUnavailable.
        """
        since_ms = await self._activity.oldest_ms()
        lost = await self._activity.has_lost()
        for feed in feeds:
            if lost:
                self._start(feed, since_ms=since_ms)
            elif feed not in self._reporting:
                await self._take_off(feed)

    def _start(self, feed: Feed, *, since_ms: int) -> None:
        self.give_up(feed)
        reporting = self._reporting[feed] = self._tasks.run(
            self._report(feed, since_ms=since_ms), name=f"report {feed.generation_id}"
        )
        reporting.add_done_callback(lambda _: self._reporting.get(feed) is reporting and self._reporting.pop(feed))

    def give_up(self, feed: Feed) -> None:
        """Report no more of a generation."""
        if feed in self._reporting:
            self._reporting[feed].cancel()

    async def report_ended(self, feed: Feed) -> None:
        """Report all of an ended generation that nobody else will report; raises StoreUnavailable."""
        await self._report(feed, since_ms=await self._activity.oldest_ms())

    async def _report(self, feed: Feed, *, since_ms: int) -> None:
        """Report all, but for what was before ``since_ms``: it may have been written, and forgotten."""
        start, created_ms = feed.start, feed.log.times[0]
        if created_ms > since_ms:
            self._activity.created(start, created_ms)
        first_token = await feed.wait_token()
        if first_token is not None and first_token.ms > since_ms:
            self._activity.first_token(start, created_ms, first_token.ms)
        await feed.wait_end(None)
        if feed.end is not None and await self._activity.ended(start, created_ms, feed.log.times[-1], feed.end):
            await self._take_off(feed)

    async def _take_off(self, feed: Feed) -> None:
        """Take a generation whose end is written off the list of live ones."""
        await self._store.unregister(feed.generation_id)
        if feed.start.digest is not None and feed.log.complete:
            await self._store.forget_try(feed.start.digest, feed.generation_id)

    async def wait_written(self, timeout: float) -> None:
        """Wait until everything is written, but not for longer than that."""
        if self._reporting:
            await asyncio.wait(self._reporting.values(), timeout=timeout)
