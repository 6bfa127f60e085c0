"""One generation's acknowledged events on this node, and who follows them.

Subscribers are of two sorts. Those that have everything are live: an event is encoded once per format and the
same bytes go to each of them in one loop. All others are behind, each at a `seq` of its own, and pull
what they lack at their own pace (see `subscriber.py`). Nobody has a queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from replay.live.clock import now_ms
from replay.live.encoding import Encoding, Segments, encode
from replay.model.event import FROM_START, Event, EventId, Kind
from replay.model.generation import End, Start, Status
from replay.model.log import Log
from replay.model.transcript import Transcript
from replay.wire.events import Format, Recording
from replay.wire.folding import Folding

logger = logging.getLogger(__name__)

_OVERHEAD = 1800  # bytes that an idle feed takes beside its log's events, as measured


class FeedSubscriber(Protocol):
    """Who follows a feed."""

    encoding: Encoding

    def pump(self) -> None:
        """Pull what is lacking: the feed has grown, or has ended."""

    def write(self, data: bytes) -> None:
        """Send bytes, while live: the same for all who are."""

    def keep_alive(self, now: float, silence: float) -> None:
        """Write a sign of life where nothing was written for that long."""

    def abort(self) -> None:
        """Cut the connection: the feed is not the log any more, or cannot be encoded."""


class Feed:
    """The log as far as this node knows it; whoever extends it has Valkey's acknowledgement."""

    __slots__ = (
        "__weakref__",
        "_behind",
        "_change_waiters",
        "_changed",
        "_end_waiters",
        "_ended",
        "_folding",
        "_live",
        "_segments",
        "_whole_answer_waiters",
        "generation_id",
        "idle_since",
        "invalid",
        "last_written",
        "log",
        "recording",
        "shown",
    )

    def __init__(self, generation_id: str, log: Log | None = None) -> None:
        self.generation_id = generation_id
        self.log = Log() if log is None else log
        self.recording = Recording(self.log)
        self.invalid = False  # the log it shows is not the one in Valkey; nobody may be served from it
        self.last_written = asyncio.get_running_loop().time()  # to the live subscribers
        self.idle_since: float | None = self.last_written  # loop time at which the last subscriber left
        self.shown = len(self.log)  # how far the live subscribers have been written to
        self._live: dict[Encoding, set[FeedSubscriber]] = {}
        self._behind: set[FeedSubscriber] = set()
        self._segments = Segments()
        self._changed: asyncio.Event | None = None  # there where somebody waits for it
        self._change_waiters = 0
        self._ended: asyncio.Event | None = None  # likewise
        self._end_waiters = 0
        self._whole_answer_waiters = 0
        self._folding: Folding | None = None

    @property
    def in_use(self) -> bool:
        """Whether anybody here follows it or waits for it."""
        return bool(self._change_waiters or self._end_waiters or self.subscribers)

    @property
    def subscribers(self) -> int:
        """How many follow it here."""
        return len(self._behind) + sum(map(len, self._live.values())) + self._whole_answer_waiters

    @property
    def size(self) -> int:
        """About how many bytes of memory the feed takes, when it rests."""
        return _OVERHEAD + self.log.size + self.segments_size

    @property
    def segments_size(self) -> int:
        """What of that is framed for late joiners."""
        return self._segments.size

    @property
    def start(self) -> Start:
        """What the log's first event tells."""
        return self.recording.start

    @property
    def end(self) -> End | None:
        """What the log's last event tells, once it is an `end`."""
        return self.recording.end

    @property
    def completed(self) -> bool:
        """Whether the generation has ended, and well."""
        return self.end is not None and self.end.status is Status.COMPLETED

    @property
    def in_vain(self) -> bool:
        """Whether the generation has failed or was interrupted."""
        return self.end is not None and self.end.status.in_vain

    @property
    def refused(self) -> bool:
        """Whether the generation has failed without a word of the upstream's."""
        return self.unanswered and self.recording.status is Status.FAILED

    @property
    def unanswered(self) -> bool:
        """Whether the generation has ended without a word of the upstream's, and not well."""
        return self.log.complete and len(self.log) == 2 and not self.completed

    @property
    def expired(self) -> bool:
        """Whether the log has ended so long ago that nobody keeps it any more."""
        return self.log.complete and now_ms() > self.expires_ms

    @property
    def expires_ms(self) -> int:
        """When an ended log will be kept no more, unix ms."""
        return self.log.times[-1] + self.start.ttl_ms

    def extend(self, events: Sequence[Event]) -> None:
        """Show acknowledged events to everybody who follows."""
        start = len(self.log)
        self.log.extend(events)
        stop = len(self.log)
        for encoding, subscribers in self._live.items():
            if subscribers:
                self._show(encoding, subscribers, start, stop)
        self.shown = stop
        self.last_written = asyncio.get_running_loop().time()
        for subscriber in tuple(self._behind):
            subscriber.pump()
        if self.log.complete:
            for subscriber in self._all():
                subscriber.pump()
        self._wake()

    def rest(self) -> None:
        """Let go of what is made of the log when it is asked for; nobody uses it for now."""
        self.recording = Recording(self.log)
        self._folding = None
        self._live, self._behind = {}, set()  # which never shrink

    @property
    def cursor(self) -> str:
        """What a reader that has everything comes back with."""
        return FROM_START if self.log.last_id is None else str(self.log.last_id)

    def forget_segments(self) -> None:
        """Let go of what is framed for late joiners; it is framed again when it is asked for."""
        self._segments.clear()

    def has_subscribers(self, format: Format) -> bool:
        """Whether a live subscriber has that format."""
        return any(subscribers for encoding, subscribers in self._live.items() if encoding.format is format)

    def send_notice(self, format: Format, name: str, data: dict[str, Any]) -> None:
        """Send the live subscribers of one format something that is not in the log."""
        for encoding, subscribers in self._live.items():
            if encoding.format is format and subscribers:
                self._broadcast(subscribers, encoding.framed(format.notice(name, data, self.cursor)))

    def _show(self, encoding: Encoding, subscribers: set[FeedSubscriber], seq: int, stop: int) -> None:
        """Write events to the live subscribers of one encoding."""
        # Piece by piece: one whom the first has filled gets no more of them, and goes on from there when it can.
        while seq < stop and subscribers:
            try:
                data, seq = encode(self.recording, encoding, seq, stop)
            except Exception:
                # Who misses an event must not get the next one; the writer and the other readers know nothing of it.
                logger.exception("events could not be encoded", extra={"generation": self.generation_id, "events": seq})
                for subscriber in tuple(subscribers):
                    subscriber.abort()
                return
            self.shown = seq
            self._broadcast(subscribers, data)

    @staticmethod
    def _broadcast(subscribers: set[FeedSubscriber], data: bytes) -> None:
        # A copy: one that turns out to be slow leaves the set while it is written to.
        for subscriber in tuple(subscribers):
            subscriber.write(data)

    def keep_alive(self, now: float, silence: float) -> None:
        """Write to whoever has heard nothing for that long."""
        if now - self.last_written >= silence:
            self.last_written = now
            for encoding, subscribers in self._live.items():
                if subscribers:
                    self._broadcast(subscribers, encoding.framed(encoding.format.keepalive))
        for subscriber in tuple(self._behind):
            subscriber.keep_alive(now, silence)

    def segment(self, encoding: Encoding, start: int, stop: int) -> tuple[bytes, int]:
        """A piece of the events from ``start`` to before ``stop``, ready to be written, and the seq after it."""
        return self._segments.piece(self.recording, encoding, start, stop)

    def add(self, subscriber: FeedSubscriber) -> None:
        """Take a subscriber in, as one that is behind."""
        self.idle_since = None
        self._behind.add(subscriber)

    def go_live(self, subscriber: FeedSubscriber) -> None:
        """Write to a subscriber from now on, which has everything."""
        self._behind.discard(subscriber)
        self._live.setdefault(subscriber.encoding, set()).add(subscriber)

    def fall_behind(self, subscriber: FeedSubscriber) -> None:
        """Write no more to a live subscriber that could not keep up; it goes on from `shown`."""
        self._live[subscriber.encoding].discard(subscriber)
        self._behind.add(subscriber)

    def remove(self, subscriber: FeedSubscriber) -> None:
        """Let go of a subscriber that has left."""
        self._behind.discard(subscriber)
        self._live.get(subscriber.encoding, set()).discard(subscriber)
        self._idle_if_left()

    @contextmanager
    def subscribed(self) -> Iterator[None]:
        """Count as a subscriber while waiting for the whole answer."""
        self.idle_since = None
        self._whole_answer_waiters += 1
        try:
            yield
        finally:
            self._whole_answer_waiters -= 1
            self._idle_if_left()

    def _idle_if_left(self) -> None:
        if self.idle_since is None and not self.subscribers:
            self.idle_since = asyncio.get_running_loop().time()

    def _all(self) -> list[FeedSubscriber]:
        return [subscriber for group in (self._behind, *self._live.values()) for subscriber in group]

    def invalidate(self) -> None:
        """Cut everybody off: what this node shows is not what a replay would show."""
        self.invalid = True
        for subscriber in self._all():
            subscriber.abort()
        self._wake()

    async def wait_change(self, seen: int, timeout: float | None) -> bool:
        """Wait until there are more than ``seen`` events; whether there are, in time and before it is invalid."""
        self._change_waiters += 1
        try:
            async with asyncio.timeout(timeout):
                while len(self.log) <= seen and not self.invalid:
                    self._changed = self._changed or asyncio.Event()
                    await self._changed.wait()
        except TimeoutError:
            return False
        finally:
            self._change_waiters -= 1
        return len(self.log) > seen

    async def wait_token(self) -> EventId | None:
        """Wait for the first token; its id, or None when it ends, or becomes invalid, without one."""
        seen = 0
        while await self.wait_change(seen, None):
            for event in self.log.events(seen):
                if event.kind is Kind.TOKEN:
                    return event.id
            seen = len(self.log)
            if self.log.complete:
                break
        return None

    async def wait_end(self, timeout: float | None) -> bool:
        """Wait until the generation has ended; whether it has, in time and before the feed is invalid."""
        self._end_waiters += 1
        try:
            async with asyncio.timeout(timeout):
                if not self.log.complete and not self.invalid:
                    self._ended = self._ended or asyncio.Event()
                    await self._ended.wait()
        except TimeoutError:
            return False
        finally:
            self._end_waiters -= 1
        return self.log.complete

    def transcript(self, stop: int) -> Transcript:
        """The transcript of the events before ``stop``; what was folded once is not folded again."""
        if self._folding is None or self._folding.stop > stop:
            self._folding = Folding()
        self._folding.go_on(self.recording, stop)
        return self._folding.transcript

    def _wake(self) -> None:
        if self._ended is not None and (self.log.complete or self.invalid):
            self._ended.set()
            self._ended = None
        if self._changed is not None:
            # Everybody waits on an event of their own time: one who is cancelled takes nobody along.
            self._changed.set()
            self._changed = None
