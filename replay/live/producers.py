"""The generations this node produces: what runs, what of it has to be looked at from time to time, and its drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from replay.config import Settings
from replay.errors import Shutdown
from replay.live.activity_reporter import ActivityReporter
from replay.live.counters import Counters
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.producer import Producer
from replay.live.repair import list_again
from replay.live.tasks import Tasks
from replay.model.event import Event
from replay.model.generation import Status
from replay.redaction import Redaction
from replay.store import EventStore
from replay.upstream import Call, Upstream

logger = logging.getLogger(__name__)

_QUIET_S = 5.0  # seconds without an append after which a producer compares its log
_CHECKS_AT_ONCE = 50
_BETWEEN_CHECKS_S = 0.01


class Producers:
    """Runs what is produced here."""

    def __init__(
        self,
        store: EventStore,
        hub: Hub,
        reporter: ActivityReporter,
        upstream: Upstream,
        settings: Settings,
        counters: Counters,
        tasks: Tasks,
        *,
        redaction: Redaction,
    ) -> None:
        self.draining = False
        self._store = store
        self._hub = hub
        self._upstream = upstream
        self._settings = settings
        self._counters = counters
        self._reporter = reporter
        self._tasks = tasks
        self._redaction = redaction
        self._running: dict[str, Producer] = {}
        hub.on_lag = self.check

    def __len__(self) -> int:
        return sum(not producer.feed.log.complete for producer in self._running.values())

    @property
    def full(self) -> bool:
        """Whether no more may be started; counting takes long only where there are many."""
        most = self._settings.max_generations
        return len(self._running) >= most and len(self) >= most

    def __iter__(self) -> Iterator[Producer]:
        return iter(self._running.values())

    def __contains__(self, generation_id: str) -> bool:
        return generation_id in self._running

    def get(self, feed: Feed) -> Producer | None:
        """Who produces this feed, if it is somebody here."""
        producer = self._running.get(feed.generation_id)
        return producer if producer is not None and producer.feed is feed else None

    def live(self, generation_id: str) -> Feed | None:
        """The feed of a generation that is being produced here, even if Valkey has lost its log for now."""
        producer = self._running.get(generation_id)
        if producer is None or producer.feed.log.complete or producer.feed.invalid:
            return None
        return producer.feed

    def produce(self, feed: Feed, call: Call) -> None:
        """Call the upstream for a generation whose `start` is acknowledged."""
        producer = Producer(
            call,
            feed=feed,
            store=self._store,
            upstream=self._upstream,
            settings=self._settings,
            counters=self._counters,
            redaction=self._redaction.beside(call.secrets),
        )
        self._hub.produce(feed)
        self._running[feed.generation_id] = producer
        self._counters.started += 1
        start = feed.start
        logger.info("generation started", extra={"generation": feed.generation_id, "model": start.model})
        if start.notice:
            logger.warning(start.notice, extra={"generation": feed.generation_id})
        self._reporter.report(feed)
        self._tasks.run(self._run(producer), name=f"produce {feed.generation_id}")

    async def _run(self, producer: Producer) -> None:
        """Run a producer until its log needs no repair any more, and let go of it."""
        feed = producer.feed
        watching = asyncio.create_task(self._note_end(feed), name=f"end of {feed.generation_id}")
        try:
            await producer.run()
        finally:
            watching.cancel()
            if not feed.log.complete:
                self._reporter.give_up(feed)
            if self.get(feed) is producer:  # the id may be in use again
                del self._running[producer.generation_id]
            self._hub.settle(feed)

    async def _note_end(self, feed: Feed) -> None:
        await feed.wait_end(None)
        end = feed.end
        if feed.invalid or end is None:
            return
        self._counters.count_end(end.status.value)
        logger.info(
            "generation ended",
            extra={
                "generation": feed.generation_id,
                "status": end.status.value,
                "events": len(feed.log),
                "error": end.error and end.error["code"],
            },
        )

    async def answered(self, feed: Feed) -> None:
        """Wait until the first words of a generation, or its end without any, as long as somebody may wait for a head.

        An upstream that has accepted the call will hardly refuse it: it is waited for no longer than for a keep-alive.
        """
        producer = self.get(feed)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.head_patience_s):
                if producer is not None:
                    await producer.answered.wait()
                await feed.wait_change(1, self._settings.keepalive_s)

    def notified(self, generation_id: str, events: list[Event]) -> None:
        """Tell a producer what another node has appended to its log."""
        if producer := self._running.get(generation_id):
            producer.notified(events)

    # What has to be looked at from time to time.

    def check(self, generation_id: str | None = None) -> None:
        """Compare one log with what was acknowledged, or all of them, as when Valkey was away."""
        if generation_id is not None:
            if producer := self._running.get(generation_id):
                producer.check()
            return
        for producer in self._running.values():
            producer.check()

    async def look(self) -> None:
        """Compare the logs of silent producers: a notification may have been missed."""
        quiet_s = _QUIET_S if self._store.hears else 1.0
        quiet = [producer for producer in self._running.values() if producer.quiet_for_s > quiet_s]
        for count, producer in enumerate(quiet, 1):
            if not producer.feed.log.complete:
                producer.check()
            if count % _CHECKS_AT_ONCE == 0:
                await asyncio.sleep(_BETWEEN_CHECKS_S)  # thousands at once would hold up what is said

    async def relist(self) -> None:
        """List and report again what is live or has just ended: Valkey was away, and may have lost the lists.

        Raises StoreUnavailable.
        """
        feeds = [producer.feed for producer in self._running.values() if not producer.feed.invalid]
        there = [feed for feed in feeds if not await self._was_deleted(feed)]
        for feed in there:
            await list_again(self._store, feed)
        await self._reporter.report_again(there)

    async def _was_deleted(self, feed: Feed) -> bool:
        gone = await self._store.last(feed.generation_id) is None
        return gone and await self._store.was_buried(feed.generation_id, feed.start.run)

    async def renew(self) -> None:
        """Keep the logs of silent generations from expiring; raises StoreUnavailable."""
        for producer in [producer for producer in self._running.values() if producer.renewal_due]:
            await producer.renew()

    # The node's end.

    async def drain(self, grace_s: float) -> None:
        """Let what runs finish for a while, then end the rest as interrupted."""
        await self._wait_until_ended(grace_s)
        for _ in range(2):  # a start that was under way may come in between
            for producer in self._running.values():
                producer.finish(Status.INTERRUPTED, Shutdown("the node was shut down"))
            await self._wait_until_ended(self._settings.store_timeout_s / 2)
        await self._reporter.wait_written(self._settings.store_timeout_s / 2)

    async def _wait_until_ended(self, timeout: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout
        for producer in tuple(self._running.values()):
            await producer.feed.wait_end(deadline - asyncio.get_running_loop().time())
