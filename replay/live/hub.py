"""The feeds of this node: open, follow, keep for a while, evict."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from replay.errors import GenerationNotFound, StoreUnavailable
from replay.live.feed import Feed
from replay.live.follower import Follower
from replay.live.outlet import Outlet
from replay.model.event import Event, EventId
from replay.store import EventStore

log = logging.getLogger(__name__)

_LINGER_S = 5.0  # a live feed that nobody watches is followed on for a page reload's length
_LOOKS_AT_ONCE = 64  # safety reads in one round trip
_ACKNOWLEDGED_S = 1.0
_HEALING_S = 3.0  # after Valkey was away: until every producer is connected again and has repaired its logs


class Hub:
    """All feeds this node holds, each once.

    A generation produced here has a feed that its producer extends; any other has one with a follower.
    """

    def __init__(self, store: EventStore, *, cache_bytes: int, patience_s: float) -> None:
        self.subscribers: set[Outlet] = set()
        self._store = store
        self._cache_bytes = cache_bytes
        self._patience_s = patience_s
        self._feeds: dict[str, Feed] = {}
        self._followers: dict[str, Follower] = {}
        self._loading: dict[str, asyncio.Task[Feed]] = {}
        # Told of a generation that is produced here and whose log has gone on without its producer.
        self.on_lag: Callable[[str], None] = lambda generation_id: None

    @property
    def healing(self) -> bool:
        """Whether a log may be shorter than it was, or missing, because its producer is still repairing it."""
        return self._store.steady_for < _HEALING_S

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._feeds.values())

    def get(self, generation_id: str) -> Feed | None:
        """The feed, if this node has it."""
        return self._feeds.get(generation_id)

    def produce(self, feed: Feed) -> None:
        """Take in the feed of a generation that is produced here."""
        stale = self._feeds.get(feed.generation_id)
        if stale is not None:
            self.drop(stale)
        self._feeds[feed.generation_id] = feed

    def forget(self, generation_id: str) -> None:
        """Forget a feed; whoever reads what it has may finish."""
        self._feeds.pop(generation_id, None)
        follower = self._followers.pop(generation_id, None)
        if follower is not None:
            follower.close()

    def drop(self, feed: Feed) -> None:
        """Forget a feed; whoever follows it is cut off."""
        if self._feeds.get(feed.generation_id) is feed:
            self.forget(feed.generation_id)
        feed.invalidate()

    def deleted(self, generation_id: str) -> None:
        """A generation was deleted somewhere: do not keep what it said."""
        feed = self._feeds.get(generation_id)
        if feed is not None and feed.log.complete:
            self.forget(generation_id)

    async def open(self, generation_id: str) -> Feed:
        """The feed with all that Valkey has now; raises GenerationNotFound, StoreUnavailable.

        Valkey is asked every time: a generation may have been deleted elsewhere, or have expired.
        """
        last = await self._store.last(generation_id)
        feed = self._feeds.get(generation_id)
        if feed is not None and generation_id not in self._followers and await self._is_ours(feed, last):
            return feed
        if last is None and feed is not None and await self._may_come_back(feed):
            return feed  # its follower says when that has taken too long
        if last is None and self.healing:
            raise StoreUnavailable("Valkey has just come back and this generation is not there yet")
        if last is None:
            if feed is not None:
                self.drop(feed)
            raise GenerationNotFound(f"generation {generation_id!r} does not exist; it may have expired")
        if feed is not None and self._is_stale(feed, last):
            self.drop(feed)
        elif feed is not None and last.id.seq >= len(feed.log):
            await self._followers[generation_id].catch_up()
        if feed is None or feed.invalid:
            return await self._load(generation_id)
        return feed

    async def _is_ours(self, feed: Feed, last: Event | None) -> bool:
        """Whether a feed with a producer here is what the log shows, or will show again once it is repaired."""
        if feed.invalid:
            return False
        if last is None:
            return not feed.expired and not await self._store.was_buried(feed.generation_id, feed.start.run)
        if last.id.seq < len(feed.log) or feed.log.complete:
            return feed.log.holds(last.id)
        # Valkey's acknowledgement, or somebody else's end, is on its way here; or it was missed.
        if not await feed.wait_change(last.id.seq - 1, timeout=_ACKNOWLEDGED_S):
            self.on_lag(feed.generation_id)
            await feed.wait_change(last.id.seq - 1, timeout=_ACKNOWLEDGED_S)
        return not feed.invalid

    async def _may_come_back(self, feed: Feed) -> bool:
        """Whether a log that is missing may be put back by its producer."""
        if feed.invalid or feed.log.complete:
            return False
        return not await self._store.was_buried(feed.generation_id, feed.start.run)

    @staticmethod
    def _is_stale(feed: Feed, last: Event) -> bool:
        """Whether the log is another one than the feed shows: lost and grown again, or deleted and made anew."""
        if feed.invalid:
            return True
        if last.id.seq < len(feed.log):
            return not feed.log.holds(last.id)
        return feed.log.complete

    async def _load(self, generation_id: str) -> Feed:
        """A new feed, read from the log once for all who ask for it meanwhile."""
        loading = self._loading.get(generation_id)
        if loading is None:
            loading = asyncio.create_task(self._load_new(generation_id))
            self._loading[generation_id] = loading
            loading.add_done_callback(lambda _: self._loading.pop(generation_id, None))
        return await asyncio.shield(loading)

    async def _load_new(self, generation_id: str) -> Feed:
        feed = Feed(generation_id)
        follower = Follower(self._store, feed, patience_s=self._patience_s)
        try:
            await follower.load()
        except BaseException:
            await follower.stop()
            raise
        if not feed.log:
            await follower.stop()
            raise GenerationNotFound(f"generation {generation_id!r} does not exist; it may have expired")
        if generation_id in self._feeds:  # started here while it was being read
            await follower.stop()
            return self._feeds[generation_id]
        self._feeds[generation_id] = feed
        self._followers[generation_id] = follower
        return feed

    def settle(self, feed: Feed) -> None:
        """A producer here is done with its feed: from now on it is like any other."""
        if self._feeds.get(feed.generation_id) is feed:
            self._followers[feed.generation_id] = Follower(self._store, feed, patience_s=self._patience_s)

    async def find(self, feed: Feed, event_id: EventId) -> bool:
        """Whether an id names an event of the feed's log, or does so as soon as the log is repaired."""
        deadline = asyncio.get_running_loop().time() + _HEALING_S
        while not feed.log.holds(event_id):
            left = deadline - asyncio.get_running_loop().time()
            lost = event_id.seq >= len(feed.log) and not feed.log.complete and self.healing
            if not lost or not await feed.wait_change(len(feed.log), timeout=max(0.0, left)):
                return False
        return True

    def keep_alive(self, silence: float) -> None:
        """Write keep-alives where nothing was written for that long."""
        now = asyncio.get_running_loop().time()
        for feed in tuple(self._feeds.values()):
            feed.keep_alive(now, silence)

    async def look(self) -> None:
        """The slow safety read of what is followed, once a second."""
        now = asyncio.get_running_loop().time()
        followers = [follower for follower in self._followers.values() if not follower.feed.log.complete]
        for start in range(0, len(followers), _LOOKS_AT_ONCE):
            looks = (follower.look(now) for follower in followers[start : start + _LOOKS_AT_ONCE])
            for result in await asyncio.gather(*looks, return_exceptions=True):
                if isinstance(result, BaseException) and not isinstance(result, StoreUnavailable):
                    raise result

    def evict(self) -> None:
        """Forget what nobody here watches or produces: live feeds soon, ended ones when memory is short."""
        now = asyncio.get_running_loop().time()
        followed = [self._feeds[name] for name in self._followers]
        idle = [
            feed
            for feed in followed
            if feed.idle_since is not None and now - feed.idle_since > _LINGER_S and not feed.in_use
        ]
        idle.sort(key=lambda feed: feed.idle_since or 0.0)
        room = self._cache_bytes - sum(feed.size for feed in idle)
        for feed in idle:
            if room >= 0:
                break
            room += feed.size
            feed.forget_segments()  # before a log that would have to be read again
            room -= feed.size
        for feed in idle:
            if feed.invalid or feed.expired or not feed.log.complete or room < 0:
                room += feed.size
                self.drop(feed)

    async def stop(self) -> None:
        """Stop following."""
        for loading in self._loading.values():
            loading.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        await asyncio.gather(*(follower.stop() for follower in self._followers.values()))
