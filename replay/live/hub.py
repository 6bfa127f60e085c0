"""The feeds of this node: open, follow, keep for a while.

A feed is produced here, or followed, which is to say that another node writes its log, or it has ended. What is live,
is in use, or was opened a moment ago is looked at from time to time; an ended log that nobody uses goes into the
cache and is not looked at any more. `open` takes it out again, and asks Valkey whether it is still what it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from replay.errors import GenerationNotFound, StoreUnavailable
from replay.live.cache import Cache
from replay.live.clock import now_ms
from replay.live.feed import Feed
from replay.live.follower import Follower
from replay.live.memory import Memory
from replay.live.stream_connection import StreamConnection
from replay.model.event import Event, EventId
from replay.store import EventStore

logger = logging.getLogger(__name__)

_LINGER_S = 5.0  # a live feed that nobody uses is followed on for a page reload's length
_LOOKS_AT_ONCE = 64  # safety reads in one round trip
_ACKNOWLEDGED_S = 1.0
_HEALING_S = 3.0  # after Valkey was away: until every producer is connected again and has repaired its logs


class Hub:
    """All feeds this node holds, each once.

    A generation produced here has a feed that its producer extends; any other has one with a follower.
    """

    def __init__(self, store: EventStore, *, cache_bytes: int, lost_after_s: float) -> None:
        self.connections: set[StreamConnection] = set()  # those that follow a feed, or several
        self._store = store
        self._lost_after_s = lost_after_s
        self._feeds: dict[str, Feed] = {}  # all that are not in the cache
        self._memory = Memory()
        self._cache = Cache(cache_bytes, self._memory)
        self._produced: set[str] = set()
        self._followers: dict[str, Follower] = {}
        self._loading: dict[str, asyncio.Task[Feed]] = {}
        # Told of a generation that is produced here and whose log has gone on without its producer.
        self.on_lag: Callable[[str], None] = lambda generation_id: None

    @property
    def healing(self) -> bool:
        """Whether a log may be shorter than it was, or missing, because its producer is still repairing it."""
        return self._store.steady_for < _HEALING_S

    def __iter__(self) -> Iterator[Feed]:
        """The feeds that somebody may be using."""
        return iter(self._feeds.values())

    def __len__(self) -> int:
        return len(self._feeds) + len(self._cache)

    @property
    def size(self) -> int:
        """About how many bytes of memory all feeds take."""
        return self._cache.size + sum(feed.size for feed in self._feeds.values())

    def get(self, generation_id: str) -> Feed | None:
        """The feed, if somebody here may be using it."""
        return self._feeds.get(generation_id)

    def wake(self, generation_id: str) -> Feed | None:
        """Return the feed, if this node has it, and keep it at hand: somebody is about to use it."""
        feed = self._feeds.get(generation_id)
        if feed is None and (cached := self._cache.take(generation_id)) is not None:
            feed = self._feeds[generation_id] = cached
        return feed

    def produce(self, feed: Feed) -> None:
        """Take in the feed of a generation that is produced here."""
        stale = self.wake(feed.generation_id)
        if stale is not None:
            self.drop(stale)
        self._feeds[feed.generation_id] = feed
        self._produced.add(feed.generation_id)

    def forget(self, generation_id: str) -> None:
        """Forget a feed; whoever reads what it has may finish."""
        feed = self._feeds.pop(generation_id, None)
        self._memory.forget(0 if feed is None else feed.size)
        self._cache.forget(generation_id)
        self._produced.discard(generation_id)
        self._unfollow(generation_id)

    def _unfollow(self, generation_id: str) -> None:
        follower = self._followers.pop(generation_id, None)
        if follower is not None:
            follower.close()

    def drop(self, feed: Feed) -> None:
        """Forget a feed; whoever follows it is cut off."""
        if self._feeds.get(feed.generation_id) is feed:
            self.forget(feed.generation_id)
        feed.invalidate()

    def deleted(self, generation_id: str) -> None:
        """Forget what a generation said that was deleted somewhere; where it goes on here, its end is on its way."""
        feed = self._feeds.get(generation_id)
        if feed is None or feed.log.complete:
            self.forget(generation_id)

    async def open(self, generation_id: str) -> Feed:
        """Return the feed with all that Valkey has now; raises GenerationNotFound (404), StoreUnavailable (503).

        Valkey is asked every time for the log's last event: a generation may have been deleted elsewhere, or be gone.

            last event          produced here       followed here       ended, kept here    not here
            ------------------  ------------------  ------------------  ------------------  ------------
            none                keep: it is put     keep: it may be     503 while healing,  503 while
                                back                put back            then drop, 404      healing,
            none, and its run   503 while healing,  503 while healing,  likewise            then 404
            is buried, or its   then drop, 404      then drop, 404
            time has come
            the feed has it     keep                keep                keep                load
            another in its      drop, load          drop, load          drop, load          load
            place
            later than the      wait for it, keep;  catch up, keep      drop, load          load
            feed's              an ended one: drop,
                                load

        A feed that is invalid is dropped, and counts as not here. To load reads the log once for all who ask meanwhile.
        A caller that is cancelled takes nobody along.
        """
        last = await self._store.last(generation_id)
        feed = self.wake(generation_id)
        if feed is not None and generation_id in self._produced and await self._is_ours(feed, last):
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
        if generation_id not in self._loading:
            self._loading[generation_id] = asyncio.create_task(
                self._load_new(generation_id), name=f"load {generation_id}"
            )
            self._loading[generation_id].add_done_callback(lambda _: self._loading.pop(generation_id, None))
        return await asyncio.shield(self._loading[generation_id])

    async def _load_new(self, generation_id: str) -> Feed:
        """Read a log into a new feed, which follows it if it goes on."""
        feed = Feed(generation_id)
        follower = Follower(self._store, feed, lost_after_s=self._lost_after_s)
        try:
            await follower.load()
        except BaseException:
            await follower.stop()
            raise
        if not feed.log:
            await follower.stop()
            raise GenerationNotFound(f"generation {generation_id!r} does not exist; it may have expired")
        known = self.wake(generation_id)
        if known is not None:  # started here while it was being read
            await follower.stop()
            return known
        self._feeds[generation_id] = feed
        if not feed.log.complete:
            self._followers[generation_id] = follower
        return feed

    def settle(self, feed: Feed) -> None:
        """Treat a feed like any other from now on: its producer here is done with it."""
        if self._feeds.get(feed.generation_id) is feed:
            self._produced.discard(feed.generation_id)
            if not feed.log.complete:
                self._followers[feed.generation_id] = Follower(self._store, feed, lost_after_s=self._lost_after_s)

    async def find(self, feed: Feed, event_id: EventId) -> bool:
        """Whether an id names an event of the feed's log; waits a moment where the log is being repaired."""
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
        """Read what quiet channels may have swallowed of what is followed, as far as Valkey answers."""
        now = asyncio.get_running_loop().time()
        followers = [follower for follower in self._followers.values() if not follower.feed.log.complete]
        for start in range(0, len(followers), _LOOKS_AT_ONCE):
            looks = (follower.look(now) for follower in followers[start : start + _LOOKS_AT_ONCE])
            for result in await asyncio.gather(*looks, return_exceptions=True):
                if isinstance(result, BaseException) and not isinstance(result, StoreUnavailable):
                    raise result

    def tidy(self) -> None:
        """Give up what nobody here uses or produces: a live feed soon; an ended one goes into the cache."""
        now = asyncio.get_running_loop().time()
        for generation_id, feed in tuple(self._feeds.items()):
            if generation_id in self._produced or feed.in_use:
                continue
            if feed.log.complete and not feed.invalid:
                del self._feeds[generation_id]
                self._unfollow(generation_id)
                self._cache.put(feed)
            elif feed.idle_since is not None and now - feed.idle_since > _LINGER_S:
                self.drop(feed)
        self._cache.forget_expired(now_ms())
        self._memory.give_back()

    async def stop(self) -> None:
        """Stop following."""
        for loading in self._loading.values():
            loading.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        await asyncio.gather(*(follower.stop() for follower in self._followers.values()))
