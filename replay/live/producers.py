"""The generations this node produces, and how any generation is ended from here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from replay.config import Settings
from replay.errors import GenerationNotFound, ReplayError, Shutdown, StoreUnavailable
from replay.live.abandonment import Abandonment
from replay.live.chronicle import Chronicle
from replay.live.closing import close_from_outside
from replay.live.counters import Counters
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.lives import Lives
from replay.live.producer import Producer
from replay.live.repair import list_again
from replay.live.writer import Fenced, Writer
from replay.model.event import Event
from replay.model.generation import Status
from replay.redaction import Redaction
from replay.store import EventStore
from replay.upstream import Call, Upstream
from replay.wire.events import decode_end

log = logging.getLogger(__name__)

T = TypeVar("T")

_QUIET_S = 5.0  # seconds without an append after which a producer compares its log
_CHECKS_AT_ONCE = 50
_BETWEEN_CHECKS_S = 0.01


class Producers:
    """Runs what is produced here, and ends generations wherever they run."""

    def __init__(
        self,
        store: EventStore,
        hub: Hub,
        chronicle: Chronicle,
        upstream: Upstream,
        settings: Settings,
        counters: Counters,
        *,
        node: str,
        redaction: Redaction,
    ) -> None:
        self.draining = False
        self.lives = Lives(store, chronicle, self.own)
        self._store = store
        self._hub = hub
        self._upstream = upstream
        self._settings = settings
        self._counters = counters
        self._chronicle = chronicle
        self._node = node
        self._redaction = redaction
        self._running: dict[str, Producer] = {}
        self._keeping: set[Writer] = set()  # logs that were ended from here and are produced elsewhere
        self._tasks: set[asyncio.Task[Any]] = set()
        self._clearing: dict[str, asyncio.Task[None]] = {}
        self._abandonment = Abandonment(store, node=node, lease_s=settings.lease_s)
        hub.on_lag = self.check_one

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
        log.info("generation started", extra={"generation": feed.generation_id, "model": start.model})
        if start.notice:
            log.warning(start.notice, extra={"generation": feed.generation_id})
        self.lives.begin(feed)
        self.own(self._run(producer))

    def own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something that outlives the request which caused it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ReplayError):  # those are told to whoever asked
            log.error("producing failed", exc_info=error)

    async def _run(self, producer: Producer) -> None:
        feed = producer.feed
        watching = asyncio.create_task(self._note_end(feed))
        try:
            await producer.run()
        finally:
            watching.cancel()
            if not feed.log.complete:
                self.lives.give_up(feed)
            if self._running.get(producer.generation_id) is producer:  # the id may be in use again
                del self._running[producer.generation_id]
            self._hub.settle(feed)

    async def _note_end(self, feed: Feed) -> None:
        await feed.wait_end(None)
        if feed.invalid:
            return
        end = decode_end(feed.log.entries[-1])
        self._counters.count_end(end.status.value)
        log.info(
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
        producer = self._running.get(feed.generation_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.head_patience_s):
                if producer is not None and producer.feed is feed:
                    await producer.answered.wait()
                await feed.wait_change(1, self._settings.keepalive_s)

    # End.

    async def end(self, generation_id: str, status: Status, error: ReplayError | None = None) -> Feed:
        """End a generation wherever it runs; its feed, complete. It may have ended otherwise before.

        Raises GenerationNotFound, StoreUnavailable.
        """
        feed = await self._hub.open(generation_id)
        producer = self._running.get(generation_id)
        if producer is not None and producer.feed is feed:
            producer.finish(status, error)
            if not await feed.wait_end(self._settings.store_timeout_s):
                raise StoreUnavailable(
                    "Valkey has not confirmed the end in time; it will be written as soon as it does"
                )
            return feed
        described = None if error is None else {"code": error.code, "message": str(error)}
        feed, closed = await close_from_outside(
            self._store, self._hub, self._counters, generation_id, status, described
        )
        if closed:
            self._counters.count_end(status.value)
            self.own(self._keep(feed))
        return feed

    async def _keep(self, feed: Feed) -> None:
        """An end that was written from here is repaired from here."""
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
        self._keeping.add(writer)
        try:
            await writer.keep()
        except Fenced:
            log.info("log is gone", extra={"generation": feed.generation_id})
        finally:
            self._keeping.discard(writer)

    async def cancel(self, generation_id: str) -> Feed:
        """Cancel on request, whether or not the caller waits; raises GenerationNotFound, StoreUnavailable."""
        return await asyncio.shield(self.own(self.end(generation_id, Status.CANCELLED)))

    async def delete(self, generation_id: str) -> None:
        """Cancel if live, then remove every trace; raises GenerationNotFound, StoreUnavailable."""
        await asyncio.shield(self.own(self._delete(generation_id)))

    async def _delete(self, generation_id: str) -> None:
        feed = await self.end(generation_id, Status.CANCELLED)
        start = feed.start
        await self._chronicle.take_out(start, feed.log.times[-1])
        removed = await self._store.delete(
            generation_id, run=start.run, idempotency=start.idempotency, claim=start.claim, digest=start.digest
        )
        if not removed:
            raise GenerationNotFound(f"generation {generation_id!r} was deleted meanwhile")
        self._hub.forget(generation_id)
        self.deleted(generation_id)

    async def clear(self, feed: Feed) -> None:
        """Remove every trace of a refused generation, once for all its callers; raises as `delete` does.

        Only where it was produced: who is told of the refusal elsewhere, or later, may find the next try under its id.
        """
        generation_id = feed.generation_id
        if feed.start.node == self._node and self._hub.wake(generation_id) is feed:
            if generation_id not in self._clearing:
                clearing = self._clearing[generation_id] = self.own(self._delete(generation_id))
                clearing.add_done_callback(lambda _: self._clearing.pop(generation_id))
            await asyncio.shield(self._clearing[generation_id])

    def deleted(self, generation_id: str) -> None:
        """A generation was deleted somewhere: do not keep what it said, or what happened to it."""
        self._hub.deleted(generation_id)
        self._chronicle.forget(generation_id)
        self.check_one(generation_id)  # whoever stands ready to repair it finds that it is gone, and lets go of it

    def notified(self, generation_id: str, events: list[Event]) -> None:
        """Another node has appended to a generation of ours."""
        if producer := self._running.get(generation_id):
            producer.notified(events)

    # What has to be looked at from time to time.

    def check(self) -> None:
        """Valkey was away: compare every log with what was acknowledged."""
        self._abandonment.hold()
        for producer in self._running.values():
            producer.check()
        for writer in self._keeping:
            writer.check()

    def check_one(self, generation_id: str) -> None:
        """A log has gone on without its producer here, or is gone: compare it."""
        if producer := self._running.get(generation_id):
            producer.check()
        for writer in (writer for writer in self._keeping if writer.generation_id == generation_id):
            writer.check()

    async def look(self) -> None:
        """Compare the logs of silent producers: a notification may have been missed."""
        patience_s = _QUIET_S if self._store.hears else 1.0
        quiet = [producer for producer in self._running.values() if producer.quiet_for_s > patience_s]
        for place, producer in enumerate(quiet, 1):
            if not producer.feed.log.complete:
                producer.check()
            if place % _CHECKS_AT_ONCE == 0:
                await asyncio.sleep(_BETWEEN_CHECKS_S)  # thousands at once would hold up what is said

    async def relist(self) -> None:
        """Valkey was away and may have lost the lists: list and tell again what is live or has just ended."""
        feeds = [producer.feed for producer in self._running.values() if not producer.feed.invalid]
        there = [feed for feed in feeds if not await self._was_deleted(feed)]
        for feed in there:
            await list_again(self._store, feed)
        await self.lives.begin_again(there)

    async def _was_deleted(self, feed: Feed) -> bool:
        gone = await self._store.last(feed.generation_id) is None
        return gone and await self._store.was_buried(feed.generation_id, feed.start.run)

    async def renew(self) -> None:
        """Keep the logs of silent generations from expiring."""
        for producer in [producer for producer in self._running.values() if producer.renewal_due]:
            await producer.renew()

    async def abandon(self) -> None:
        """Cancel what nobody has watched for as long as its caller allowed."""
        await self._abandonment.look(self._running)

    # The node's end.

    async def drain(self, grace_s: float) -> None:
        """Let what runs finish for a while, then end the rest as interrupted."""
        await self._wait_until_ended(grace_s)
        for _ in range(2):  # a start that was under way may come in between
            for producer in self._running.values():
                producer.finish(Status.INTERRUPTED, Shutdown("the node was shut down"))
            await self._wait_until_ended(self._settings.store_timeout_s / 2)
        await self.lives.wait_told(self._settings.store_timeout_s / 2)

    async def _wait_until_ended(self, timeout: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout
        for producer in tuple(self._running.values()):
            await producer.feed.wait_end(deadline - asyncio.get_running_loop().time())

    async def stop(self) -> None:
        """Stop producing at once; what has not ended is left to the other nodes."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
