"""How any generation is ended from here, wherever it is produced, and how its every trace is removed."""

from __future__ import annotations

import asyncio

from replay.config import Settings
from replay.errors import GenerationNotFound, ReplayError, StoreUnavailable
from replay.live.activity import Activity
from replay.live.closing import close_from_outside
from replay.live.counters import Counters
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.keeper import Keeper
from replay.live.producers import Producers
from replay.live.tasks import Tasks
from replay.model.generation import Status
from replay.store import EventStore


class Endings:
    """Ends, cancels and deletes generations; whoever asks may hang up meanwhile."""

    def __init__(
        self,
        store: EventStore,
        hub: Hub,
        producers: Producers,
        keeper: Keeper,
        activity: Activity,
        settings: Settings,
        counters: Counters,
        tasks: Tasks,
        *,
        node: str,
    ) -> None:
        self._store = store
        self._hub = hub
        self._producers = producers
        self._keeper = keeper
        self._activity = activity
        self._settings = settings
        self._counters = counters
        self._tasks = tasks
        self._node = node
        self._clearing: dict[str, asyncio.Task[None]] = {}

    async def end(self, generation_id: str, status: Status, error: ReplayError | None = None) -> Feed:
        """End a generation wherever it runs; its feed, complete. It may have ended otherwise before.

        Raises GenerationNotFound, StoreUnavailable.
        """
        feed = await self._hub.open(generation_id)
        producer = self._producers.get(feed)
        if producer is not None:
            producer.finish(status, error)
            if not await feed.wait_end(self._settings.store_timeout_s):
                raise StoreUnavailable(
                    "Valkey has not confirmed the end in time; it will be written as soon as it does"
                )
            return feed
        description = None if error is None else {"code": error.code, "message": str(error)}
        feed, closed = await close_from_outside(
            self._store, self._hub, self._counters, generation_id, status, description
        )
        if closed:
            self._counters.count_end(status.value)
            self._keeper.keep(feed)
        return feed

    async def cancel(self, generation_id: str) -> Feed:
        """Cancel on request, whether or not the caller waits; raises GenerationNotFound, StoreUnavailable."""
        work = self.end(generation_id, Status.CANCELLED)
        return await asyncio.shield(self._tasks.run(work, name=f"cancel {generation_id}"))

    async def delete(self, generation_id: str) -> None:
        """Cancel if live, then remove every trace; raises GenerationNotFound, StoreUnavailable."""
        await asyncio.shield(self._tasks.run(self._delete(generation_id), name=f"delete {generation_id}"))

    async def _delete(self, generation_id: str) -> None:
        feed = await self.end(generation_id, Status.CANCELLED)
        start = feed.start
        await self._activity.take_out(start, feed.log.times[-1])
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
                clearing = self._tasks.run(self._delete(generation_id), name=f"clear {generation_id}")
                self._clearing[generation_id] = clearing
                clearing.add_done_callback(lambda _: self._clearing.pop(generation_id))
            await asyncio.shield(self._clearing[generation_id])

    def deleted(self, generation_id: str) -> None:
        """Forget what a generation said and what happened to it: it was deleted somewhere."""
        self._hub.deleted(generation_id)
        self._activity.forget(generation_id)
        # Whoever stands ready to repair it finds that it is gone, and lets go of it.
        self._producers.check(generation_id)
        self._keeper.check(generation_id)
