"""Ends the generations whose node is gone.

Every node looks now and then for live generations whose producer has no lease any more, and appends their
`end` by the same compare-and-append as everybody: the log is the lock, there is no leader, and who is refused
leaves it alone. Then its activity is reported, as far as that was not done.
"""

from __future__ import annotations

import asyncio
import logging

from replay.errors import GenerationNotFound, NodeLost, StoreUnavailable
from replay.live.activity_reporter import ActivityReporter
from replay.live.counters import Counters
from replay.live.endings import Endings
from replay.live.hub import Hub
from replay.live.producers import Producers
from replay.model.generation import Status
from replay.store import EventStore

logger = logging.getLogger(__name__)

_WRITTEN_S = 2.0


class Orphans:
    """Looks for orphans, but not while leases may be missing for another reason than a node's death."""

    def __init__(
        self,
        store: EventStore,
        hub: Hub,
        producers: Producers,
        endings: Endings,
        reporter: ActivityReporter,
        counters: Counters,
        *,
        node: str,
        lease_s: float,
    ) -> None:
        self._store = store
        self._hub = hub
        self._producers = producers
        self._endings = endings
        self._reporter = reporter
        self._counters = counters
        self._node = node
        self._lease_s = lease_s  # what every node has to renew its lease, wherever leases may have been lost
        self._lost_at = asyncio.get_running_loop().time()  # when that was; this node's start counts as such
        self.alone = False  # no other node can be using this Valkey: whatever is not ours is lost
        self._unclaimed: set[str] = set()  # ours by the list, but nobody here produces them

    def note_lost_leases(self) -> None:
        """Take nobody for dead until all had the time to renew their leases: Valkey has lost some."""
        self._lost_at = asyncio.get_running_loop().time()

    @property
    def _trusted(self) -> bool:
        since = asyncio.get_running_loop().time() - self._lost_at
        return self.alone or min(since, self._store.leases_steady_for) >= self._lease_s

    async def sweep(self) -> None:
        """End what is orphaned; raises StoreUnavailable where it cannot be said what is."""
        # The list may have been lost; whoever is read here is looked after all the same.
        read = {feed.generation_id: feed.start.node for feed in self._hub if feed.log and not feed.log.complete}
        live = read | await self._store.live()
        if not live:
            return
        alive = await self._alive({self._node, *live.values()})
        # Also where Valkey has come back with these answers, or has lost the lease of this node, which lives.
        if not self._trusted or (self._node not in alive and not self.alone):
            return
        alive.add(self._node)
        unclaimed = {name for name, node in live.items() if node == self._node and name not in self._producers}
        lost = [name for name, node in live.items() if node not in alive]
        suspects, self._unclaimed = (*lost, *(unclaimed & self._unclaimed)), unclaimed
        for generation_id in suspects:
            try:
                await self._end(generation_id)
            except (StoreUnavailable, TimeoutError) as error:
                reason = error.in_full if isinstance(error, StoreUnavailable) else "it takes too long"
                logger.info("orphan not ended yet", extra={"generation": generation_id, "reason": reason})
            except Exception:  # one that cannot be ended must not keep the others from it
                logger.exception("orphan cannot be ended", extra={"generation": generation_id})

    async def _alive(self, nodes: set[str]) -> set[str]:
        return set() if self.alone else await self._store.alive(nodes)

    async def _end(self, generation_id: str) -> None:
        """End what the list takes for an orphan, if its log says so too."""
        try:
            feed = await self._hub.open(generation_id)
            start = feed.start
            if start.node != self._node and await self._alive({start.node}) and not feed.log.complete:
                await self._store.register(generation_id, node=start.node, created_ms=feed.log.times[0])
                return
            error = NodeLost(f"node {start.node} went away")
            ended = not feed.log.complete
            feed = await self._endings.end(generation_id, Status.INTERRUPTED, error)
            self._counters.orphans_ended += ended
            async with asyncio.timeout(_WRITTEN_S):
                await self._reporter.report_ended(feed)
        except GenerationNotFound:
            logger.info("orphan had expired", extra={"generation": generation_id})
            await self._store.unregister(generation_id)
