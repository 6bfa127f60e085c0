"""What a node does besides serving: its lease, who follows what here, and the things it looks at from time to time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from replay.config import Settings
from replay.errors import StoreUnavailable
from replay.live.abandonment import Abandonment
from replay.live.activity import Activity
from replay.live.endings import Endings
from replay.live.hub import Hub
from replay.live.keeper import Keeper
from replay.live.orphans import Orphans
from replay.live.producers import Producers
from replay.live.progress import Progress
from replay.store import EventStore

logger = logging.getLogger(__name__)

_RETRY_S = 1.0  # after Valkey did not answer
_SUBSCRIBERS_S = 0.5  # how late the other nodes may know who follows what here


class PeriodicWork:
    """Runs the periodic work, each part in a task of its own that survives Valkey's absence."""

    def __init__(
        self,
        store: EventStore,
        hub: Hub,
        activity: Activity,
        producers: Producers,
        endings: Endings,
        keeper: Keeper,
        orphans: Orphans,
        settings: Settings,
        *,
        name: str,
    ) -> None:
        self.name = name
        self._store = store
        self._hub = hub
        self._activity = activity
        self._progress = Progress(store, hub, producers, activity, node=name)
        self._producers = producers
        self._endings = endings
        self._keeper = keeper
        self._abandonment = Abandonment(store, producers, node=name, lease_s=settings.lease_s)
        self._orphans = orphans
        self._settings = settings
        self._reported: dict[str, int] = {}  # subscribers by generation, as the other nodes know them
        self._restore = False  # the lists may have been lost
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def _lease_ms(self) -> int:
        return int(self._settings.lease_s * 1000)

    async def start(self, *, alone: bool) -> None:
        """Take the lease and begin. ``alone``: no other node can be using this Valkey."""
        self._orphans.alone = alone
        self._store.on_reconnect.append(self._reconnected)
        self._store.on_missed.append(self._check_logs)
        await self._store.attend(self.name, notified=self._producers.notified, deleted=self._endings.deleted)
        await self._renew()
        lease = self._settings.lease_s
        self._tasks = [
            asyncio.create_task(_every(seconds, action), name=f"every {seconds:g} s {action.__qualname__}")
            for seconds, action in (
                (lease / 3, self._renew),
                (_SUBSCRIBERS_S, self._report_subscribers),
                (_SUBSCRIBERS_S, self._abandonment.look),
                (lease / 10, self._orphans.sweep),
                (min(1.0, lease / 10), self._hub.look),
                (1.0, self._activity.look),
                (1.0, self._progress.publish),
                (1.0, self._producers.look),
                (0.25, self._producers.renew),
                (min(0.5, self._settings.keepalive_s / 4), self._tick),
            )
        ]

    async def _renew(self) -> None:
        lease = await self._store.renew_lease(self.name, self._lease_ms)
        if not lease.stood:
            self._orphans.note_lost_leases()
        if not lease.subscribers_stood:
            self._reported = {}  # what was said of the subscribers here has run out

    async def _report_subscribers(self) -> None:
        if self._restore:
            await self._renew()
            await self._producers.relist()
            self._restore = False
        counts = {feed.generation_id: count for feed in self._hub if (count := feed.subscribers)}
        changes = {name: count for name, count in counts.items() if self._reported.get(name) != count}
        changes |= dict.fromkeys(self._reported.keys() - counts.keys(), 0)
        if changes:
            await self._store.report_subscribers(self.name, changes, self._lease_ms)
        self._reported = counts

    async def _tick(self) -> None:
        """Do what needs no Valkey."""
        self._hub.keep_alive(self._settings.keepalive_s)
        self._activity.keep_alive(self._settings.keepalive_s)
        self._hub.tidy()

    def _reconnected(self) -> None:
        """Say and list all again, and compare the logs: Valkey was away, and may have lost what was not on disk."""
        self._reported = {}
        self._restore = True
        self._check_logs()

    def _check_logs(self) -> None:
        """Compare every log that is ours to repair: something that Valkey said was missed."""
        self._abandonment.hold()
        self._producers.check()
        self._keeper.check()

    async def stop(self) -> None:
        """Stop the periodic work and give up the lease."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._store.end_lease(self.name)
        except StoreUnavailable as error:
            logger.info("lease not given up", extra={"reason": error.in_full})


async def _every(seconds: float, action: Callable[[], Awaitable[None]]) -> None:
    """Repeat an action, with jitter so that nodes do not act together; what Valkey refuses is tried next time."""
    while True:
        pause = seconds
        try:
            await action()
        except StoreUnavailable as error:
            logger.debug("postponed", extra={"action": action.__qualname__, "reason": error.in_full})
            pause = min(seconds, _RETRY_S)
        except Exception:
            logger.exception("periodic work failed", extra={"action": action.__qualname__})
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))
