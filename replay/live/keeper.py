"""Keeps ends that were written from here to logs of other nodes: whoever writes an end repairs it if it is lost."""

from __future__ import annotations

import logging

from replay.config import Settings
from replay.live.counters import Counters
from replay.live.feed import Feed
from replay.live.tasks import Tasks
from replay.live.writer import Fenced, Writer
from replay.store import EventStore

logger = logging.getLogger(__name__)


class Keeper:
    """Stands ready to repair logs whose producer is elsewhere, each for as long as their producer would."""

    def __init__(self, store: EventStore, settings: Settings, counters: Counters, tasks: Tasks) -> None:
        self._store = store
        self._settings = settings
        self._counters = counters
        self._tasks = tasks
        self._writers: set[Writer] = set()

    def keep(self, feed: Feed) -> None:
        """Keep an ended log."""
        self._tasks.run(self._keep(feed), name=f"keep {feed.generation_id}")

    async def _keep(self, feed: Feed) -> None:
        settings = self._settings
        writer = Writer(
            self._store,
            feed,
            self._counters,
            ttl_ms=feed.start.ttl_ms,
            max_pending_bytes=settings.max_pending_bytes,
            heal_window_s=settings.heal_window_s,
            outage_s=settings.store_outage_s,
        )
        self._writers.add(writer)
        try:
            await writer.keep()
        except Fenced:
            logger.info("log is gone", extra={"generation": feed.generation_id})
        finally:
            self._writers.discard(writer)

    def check(self, generation_id: str | None = None) -> None:
        """Compare one log, or all of them, with what was acknowledged."""
        for writer in self._writers:
            if generation_id in (None, writer.generation_id):
                writer.check()
