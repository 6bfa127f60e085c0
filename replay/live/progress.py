"""How far the live generations have come, published once a second to whoever shows it, and kept nowhere.

Each node publishes what it produces and how many follow what there, on one channel, and only as long as some node
listens; so it costs the same with one dashboard and with a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replay.live.activity import Activity
from replay.live.clock import now_ms
from replay.live.hub import Hub
from replay.live.producers import Producers
from replay.model.event import Entry, Event, EventId
from replay.store import PROGRESS, EventStore
from replay.wire import json
from replay.wire.activity import ACTIVITY_WITH_PROGRESS


class Progress:
    """Publishes it for this node, and is the Listener that hears it from all."""

    def __init__(self, store: EventStore, hub: Hub, producers: Producers, activity: Activity, *, node: str) -> None:
        self._store = store
        self._hub = hub
        self._producers = producers
        self._activity = activity
        self._node = node
        self._heard = False  # somebody has listened when it was published last
        self._listening = False

    async def publish(self) -> None:
        """Say how far it is here, and listen if anybody here wants to know of all; raises StoreUnavailable."""
        await self._listen_if_wanted()
        report = self._report() if self._heard else None
        events = [] if report is None else [Event(EventId(now_ms(), 0), Entry.START + json.dumps(report))]
        if events or not self._heard:
            self._heard = bool(await self._store.publish(PROGRESS, events))

    def _report(self) -> dict[str, Any] | None:
        generations = {
            producer.generation_id: {"tokens": producer.tokens, "ttft_ms": producer.ttft_ms}
            for producer in self._producers
            if not producer.feed.log.complete
        }
        subscribers = {feed.generation_id: feed.subscribers for feed in self._hub if feed.subscribers}
        if not generations and not subscribers:
            return None
        return {"node": self._node, "generations": generations, "watching": subscribers}

    async def _listen_if_wanted(self) -> None:
        wanted = self._activity.has_subscribers(ACTIVITY_WITH_PROGRESS)
        if wanted and not self._listening:
            await self._store.listen(PROGRESS, self)
        elif self._listening and not wanted:
            self._store.unlisten(PROGRESS)
        self._listening = wanted

    # The Listener.

    def heard(self, events: Sequence[Event]) -> None:
        """Pass on what some node has published."""
        for event in events:
            self._activity.pass_on(ACTIVITY_WITH_PROGRESS, "progress", json.loads(event.entry[1:]))

    def deleted(self) -> None:
        """Do nothing: nobody deletes what is kept nowhere."""

    def reconnected(self) -> None:
        """Do nothing: the next second brings all of it again."""
