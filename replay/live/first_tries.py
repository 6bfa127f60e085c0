"""Finds what a call has started already that says it is a retry.

A client that gives up waiting hangs up and calls again, and does not know what became of its first try, which goes on.
So every start without a key is noted under a digest of its request and of its caller's credentials, as long as it is
live. A retry gets what it finds there, if nobody reads that: a call that is like it may have a reader of its own.
Who reads is known at once of this node, and within `_SUBSCRIBERS_S` of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from replay.errors import GenerationNotFound
from replay.live.clock import now_ms
from replay.live.feed import Feed
from replay.live.hub import Hub
from replay.live.producers import Producers
from replay.model.event import Kind
from replay.model.generation import Start
from replay.store import Bounds, EventStore
from replay.wire.events import decode_start

_SUBSCRIBERS_S = 1.0  # until every node has said who follows what there
_NOTICED_S = 2.0  # until a reader that has hung up is known to have done so, wherever that was
_LOOK_AGAIN_S = 0.1


class FirstTries:
    """What retries are led to."""

    def __init__(self, store: EventStore, hub: Hub, producers: Producers, *, node: str) -> None:
        self._store = store
        self._hub = hub
        self._producers = producers
        self._node = node

    async def take(self, digest: str) -> Feed | None:
        """What a call with this digest has started, is live, and is read by nobody; raises StoreUnavailable.

        No other retry is given the same until it can be seen to have a reader again.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _NOTICED_S
        while candidates := await self._live(digest):
            for generation_id in await self._unread(candidates):
                if await self._store.take_try(generation_id, hold_ms=int(_SUBSCRIBERS_S * 1000)):
                    feed = await self._opened(generation_id)
                    if feed is not None:
                        return feed
            if loop.time() > deadline:
                return None
            await asyncio.sleep(_LOOK_AGAIN_S)
        return None

    async def _live(self, digest: str) -> dict[str, Bounds]:
        if self._hub.healing:
            return {}  # the nodes may not have said yet who follows what there
        names = await self._store.tries(digest)
        pairs = zip(names, await self._store.bounds(names), strict=True)
        live = {name: bounds for name, bounds in pairs if bounds is not None and bounds.last.kind is not Kind.END}
        starts = {name: decode_start(bounds.first.entry) for name, bounds in live.items()}
        return {
            name: live[name]
            for name, start in starts.items()
            if start.digest == digest and await self._is_produced(name, start)
        }

    async def _is_produced(self, generation_id: str, start: Start) -> bool:
        """Whether its node is there; a lease tells that too late for a retry."""
        if start.node == self._node:
            return self._producers.live(generation_id) is not None
        return await self._store.listens(start.node)

    async def _unread(self, candidates: Mapping[str, Bounds]) -> list[str]:
        elsewhere = await self._store.subscribers(list(candidates), beside=self._node)
        return [
            name for name, bounds in candidates.items() if not elsewhere[name] and self._is_unread_here(name, bounds)
        ]

    def _is_unread_here(self, generation_id: str, bounds: Bounds) -> bool:
        """Whether this node knows of no reader, and would know."""
        feed = self._hub.get(generation_id)
        if feed is not None and feed.subscribers:
            return False
        return self._producers.live(generation_id) is not None or now_ms() - bounds.first.id.ms > _SUBSCRIBERS_S * 1000

    async def _opened(self, generation_id: str) -> Feed | None:
        """The feed of what was taken, unless it has just come to nothing."""
        try:
            feed = self._producers.live(generation_id) or await self._hub.open(generation_id)
        except GenerationNotFound:
            return None
        return feed if feed.completed or not feed.log.complete else None
