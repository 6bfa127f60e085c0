"""One connection that follows several generations.

Each of them has a leg, which pulls from its feed what it lacks. The id of an event is a cursor over all of them:
where every leg stands after that event. So whoever reconnects with it resumes each generation exactly.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from replay.live.counters import Counters
from replay.live.feed import Feed
from replay.live.framing import Channel
from replay.live.outlet import Lent, Outlet
from replay.wire.bundle import Cursor, encode, notice

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a leg begins."""

    feed: Feed | None  # None: it does not exist any more
    start: int = 0  # the place of the next event in the log
    first: Callable[[], bytes] | None = None  # makes a block that comes before all events
    snapshot: Callable[[], bytes] | None = None  # makes the block that comes before this leg's; moves the cursor


class Leg:
    """One generation of a bundle; what its feed takes for a subscriber that is always behind."""

    __slots__ = ("_bundle", "_next", "_place", "_snapshot", "_told_live", "channel", "feed")

    def __init__(self, bundle: Bundle, place: int, feed: Feed, origin: Origin) -> None:
        self.channel = bundle.channel
        self.feed = feed
        self._bundle = bundle
        self._place = place  # in the cursor
        self._next = origin.start
        self._snapshot = origin.snapshot  # until it is written: there is none in memory for who does not read
        self._told_live = False

    @property
    def behind(self) -> bool:
        """Whether there is something to write."""
        return self._snapshot is not None or self._next < len(self.feed.log)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.feed.log.complete and not self.behind

    def pump(self) -> None:
        """The feed has grown."""
        self._bundle.pump(self)

    def take(self, cursor: Cursor) -> bytes:
        """The blocks of one turn, no more than a piece and an event; moves the cursor behind them."""
        if self._snapshot is not None:
            snapshot, self._snapshot = self._snapshot, None
            blocks = snapshot()
        else:
            piece_bytes = self.channel.piece_bytes
            blocks, self._next = encode(self.feed.recording, self._next, cursor, self._place, piece_bytes)
        return blocks + self._live(cursor)

    def _live(self, cursor: Cursor) -> bytes:
        """What is said once, when the past has been shown."""
        log = self.feed.log
        if self._told_live or self.behind or log.complete:
            return b""
        self._told_live = True
        return notice("live", self.feed.generation_id, cursor, last_event_id=str(log.last_id))

    def keep_alive(self, now: float, silence: float) -> None:
        """All legs are one connection."""
        self._bundle.keep_alive(now, silence)

    def write(self, data: bytes) -> None:
        """What is the same for all live subscribers is nothing for one that is never live."""

    def abort(self) -> None:
        """What the feed shows is not the log any more; the reader comes back and goes on with all of them."""
        self._bundle.abort()


class Bundle(Outlet):
    """See the module."""

    def __init__(
        self,
        origins: Sequence[Origin],
        *,
        cursor: Cursor,
        channel: Channel,
        counters: Counters,
        deadline_s: float,
        on_gone: Callable[[Bundle], None],
    ) -> None:
        super().__init__(counters, chunked=channel.chunked, deadline_s=deadline_s)
        self.channel = channel
        self._cursor = cursor
        self._on_gone = on_gone
        # What has no id comes before what has one, whose cursor is behind it.
        ordered = sorted(origins, key=lambda origin: origin.feed is None)
        self._first = b"".join(origin.first() for origin in ordered if origin.first is not None)
        self._legs = deque(
            Leg(self, place, origin.feed, origin) for place, origin in enumerate(origins) if origin.feed is not None
        )
        self._last_written = self._loop.time()

    def take_over(self, connection: Lent, head: bytes, preface: bytes, buffer_bytes: int) -> None:
        """Make the connection this bundle's, answer the request, and begin; ``preface`` goes into the first block."""
        self._take(connection, buffer_bytes)
        self.write(head)
        for leg in self._legs:
            leg.feed.add(leg)
        if any(leg.feed.invalid for leg in self._legs):
            self.abort()
            return
        self._first = preface + self._first
        self.drained()

    @property
    def _writable(self) -> bool:
        return not self._full and self._transport is not None and not self._transport.is_closing()

    def pump(self, leg: Leg) -> None:
        """Write what may be written now of what one generation has beyond its place."""
        if not self._writable:
            return
        try:
            blocks = leg.take(self._cursor)
        except Exception:
            log.exception("events could not be encoded", extra={"generation": leg.feed.generation_id})
            self.abort()
            return
        self._tell(blocks)
        if leg.behind:
            self._leave_to_others()
        elif leg.over:
            self._finish_if_over()

    def _tell(self, blocks: bytes) -> None:
        if blocks:
            blocks, self._first = self._first + blocks, b""
            self._last_written = self._loop.time()
            self.write(self.channel.framed(blocks))

    def drained(self) -> None:
        """There is room: every generation has its turn, first the one that has waited for it longest."""
        for _ in range(len(self._legs)):
            if not self._writable:
                return
            self._legs.rotate(-1)
            self.pump(self._legs[-1])
        self._finish_if_over()

    def _finish_if_over(self) -> None:
        if self._transport is None or self._transport.is_closing() or not all(leg.over for leg in self._legs):
            return
        self._tell(self._first)
        self._finish(clean=True)

    def keep_alive(self, now: float, silence: float) -> None:
        """Write a sign of life if the reader has heard nothing for that long."""
        if now - self._last_written >= silence and not self._full:
            self._last_written = now
            self.write(self.channel.framed(self.channel.face.keepalive))

    def left(self) -> None:
        """Follow no more."""
        for leg in self._legs:
            leg.feed.remove(leg)
        self._legs.clear()
        self._on_gone(self)
