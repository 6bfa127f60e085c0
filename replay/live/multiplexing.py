"""One connection that follows several generations.

Each of them has a track, which pulls from its feed what it lacks. The id of an event is a cursor over all of them:
where every track is after that event. So whoever reconnects with it resumes each generation exactly.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from replay.live.counters import Counters
from replay.live.encoding import Encoding
from replay.live.feed import Feed
from replay.live.stream_connection import Handover, StreamConnection
from replay.wire.multiplexing import Cursor, encode, notice

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrackStart:
    """Where a track begins."""

    feed: Feed | None  # None: it does not exist any more
    next_seq: int = 0
    first: Callable[[], bytes] | None = None  # makes a block that comes before all events
    snapshot: Callable[[], bytes] | None = None  # makes the block that comes before this track's; moves the cursor


class Track:
    """One generation of a multiplexed stream; what its feed takes for a subscriber that is always behind."""

    __slots__ = ("_index", "_next", "_snapshot", "_stream", "_told_live", "encoding", "feed")

    def __init__(self, multiplexed: MultiplexedStream, index: int, feed: Feed, start: TrackStart) -> None:
        self.encoding = multiplexed.encoding
        self.feed = feed
        self._stream = multiplexed
        self._index = index  # in the cursor
        self._next = start.next_seq
        self._snapshot = start.snapshot  # until it is written: there is none in memory for who does not read
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
        """Write what may be written now: the feed has grown."""
        self._stream.pump(self)

    def take(self, cursor: Cursor) -> bytes:
        """The blocks of one turn, no more than a piece and an event; moves the cursor past them."""
        if self._snapshot is not None:
            snapshot, self._snapshot = self._snapshot, None
            blocks = snapshot()
        else:
            piece_bytes = self.encoding.piece_bytes
            blocks, self._next = encode(self.feed.recording, self._next, cursor, self._index, piece_bytes)
        return blocks + self._live(cursor)

    def _live(self, cursor: Cursor) -> bytes:
        """What is said once, when the past has been shown."""
        log = self.feed.log
        if self._told_live or self.behind or log.complete:
            return b""
        self._told_live = True
        return notice("live", self.feed.generation_id, cursor, last_event_id=str(log.last_id))

    def keep_alive(self, now: float, silence: float) -> None:
        """Write a sign of life if the connection, which is all tracks', has been silent for that long."""
        self._stream.keep_alive(now, silence)

    def write(self, data: bytes) -> None:
        """Do nothing: what is the same for all live ones is nothing for one that is never live."""

    def abort(self) -> None:
        """Cut the connection: the feed is not the log any more. Its reader comes back, and goes on with all of them."""
        self._stream.abort()


class MultiplexedStream(StreamConnection):
    """One reader's connection to several feeds, each of which has a track in it."""

    def __init__(
        self,
        starts: Sequence[TrackStart],
        *,
        cursor: Cursor,
        encoding: Encoding,
        counters: Counters,
        deadline_s: float,
        on_gone: Callable[[MultiplexedStream], None],
    ) -> None:
        super().__init__(counters, encoding.framing, deadline_s=deadline_s)
        self.encoding = encoding
        self._cursor = cursor
        self._on_gone = on_gone
        # What has no id comes before what has one, whose cursor is past it.
        ordered = sorted(starts, key=lambda start: start.feed is None)
        self._first = b"".join(start.first() for start in ordered if start.first is not None)
        self._tracks = deque(
            Track(self, index, start.feed, start) for index, start in enumerate(starts) if start.feed is not None
        )
        self._last_written = self._loop.time()

    def take_over(self, handover: Handover, head: bytes, preface: bytes, buffer_bytes: int) -> None:
        """Take the connection over, answer the request, and begin; ``preface`` goes into the first block."""
        self._take(handover, buffer_bytes)
        self.write(head)
        for track in self._tracks:
            track.feed.add(track)
        if any(track.feed.invalid for track in self._tracks):
            self.abort()
            return
        self._first = preface + self._first
        self.drained()

    @property
    def _writable(self) -> bool:
        return not self._full and self._transport is not None and not self._transport.is_closing()

    def pump(self, track: Track) -> None:
        """Write what may be written now of what one generation has that is not written."""
        if not self._writable:
            return
        try:
            blocks = track.take(self._cursor)
        except Exception:
            logger.exception("events could not be encoded", extra={"generation": track.feed.generation_id})
            self.abort()
            return
        self._tell(blocks)
        if track.behind:
            self._leave_to_others()
        elif track.over:
            self._finish_if_over()

    def _tell(self, blocks: bytes) -> None:
        if blocks:
            blocks, self._first = self._first + blocks, b""
            self._last_written = self._loop.time()
            self.write(self.encoding.framed(blocks))

    def drained(self) -> None:
        """Write on, as there is room: each generation has its turn, first the one that has waited for it longest."""
        for _ in range(len(self._tracks)):
            if not self._writable:
                return
            self._tracks.rotate(-1)
            self.pump(self._tracks[-1])
        self._finish_if_over()

    def _finish_if_over(self) -> None:
        if self._transport is None or self._transport.is_closing() or not all(track.over for track in self._tracks):
            return
        self._tell(self._first)
        self._finish(clean=True)

    def keep_alive(self, now: float, silence: float) -> None:
        """Write a sign of life if the reader has heard nothing for that long."""
        if now - self._last_written >= silence and not self._full:
            self._last_written = now
            self.write(self.encoding.framed(self.encoding.format.keepalive))

    def left(self) -> None:
        """Follow none of them any more."""
        for track in self._tracks:
            track.feed.remove(track)
        self._tracks.clear()
        self._on_gone(self)
