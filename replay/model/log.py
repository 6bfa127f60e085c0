"""A generation's events in memory."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from replay.model.event import TOKENS, WHOLES, Entry, Event, EventId

_END = Entry.END[0]


EVENT_OVERHEAD = 60  # bytes an event takes beside its entry: an object's header, rounded up, a pointer, a time


class Hole(Exception):
    """An event arrived without the one before it."""


class Log:
    """Events from `start` on, without a hole, so that `seq` is the index in the list.

    Times and entries stand in two flat lists: 100,000 event objects would cost more in garbage
    collection than in reading.
    """

    __slots__ = ("entries", "first", "size", "times", "wholes")

    def __init__(self) -> None:
        self.first = 0  # the seq of the first event that is here
        self.times = array("Q")  # unix ms of each event
        self.entries: list[bytes] = []
        self.wholes = array("L")  # where the whole chunks stand, which are templates to those after them
        self.size = 0  # about how many bytes of memory the events take

    def __len__(self) -> int:
        return len(self.entries)

    def extend(self, events: Sequence[Event]) -> None:
        """Append events; raises Hole when the first does not follow the last."""
        for (ms, seq), entry in events:
            if seq != len(self.entries):
                raise Hole(f"event {seq} after event {len(self.entries) - 1}")
            if entry[0] in WHOLES:
                self.wholes.append(seq)
            self.times.append(ms)
            self.entries.append(entry)
            self.size += len(entry) + EVENT_OVERHEAD

    def without_holes(self, events: Sequence[Event]) -> Sequence[Event]:
        """What the store has after the last event, as `extend` takes it: a hole is an error, so none is filled."""
        return events

    @property
    def last_id(self) -> EventId | None:
        """The id of the last event; None for a log that is still empty."""
        return self.event_id(len(self.entries) - 1) if self.entries else None

    @property
    def complete(self) -> bool:
        """Whether the last event is an `end`."""
        return bool(self.entries) and self.entries[-1][0] == _END

    def event_id(self, seq: int) -> EventId:
        """The id of the event at ``seq``."""
        return EventId(self.times[seq], seq)

    def holds(self, event_id: EventId) -> bool:
        """Whether an id names an event of this log, and not just a `seq` in it."""
        return event_id.seq < len(self.entries) and self.times[event_id.seq] == event_id.ms

    def events(self, start: int, stop: int | None = None) -> Iterator[Event]:
        """The events from ``start`` to before ``stop``."""
        for seq in range(start, len(self.entries) if stop is None else min(stop, len(self.entries))):
            yield Event(EventId(self.times[seq], seq), self.entries[seq])

    def reach(self, start: int, stop: int, max_bytes: int) -> int:
        """Where the events from ``start`` on end whose entries take so many bytes; at least one, before ``stop``."""
        if stop - start == 1:
            return stop
        sizes = accumulate(map(len, self.entries[start - self.first : stop - self.first]))
        return start + max(1, bisect_right(list(sizes), max_bytes))

    def since(self, ms: int) -> int:
        """The seq of the first event at or after a time, unix ms."""
        return self.first + bisect_left(self.times, ms)

    def last_whole(self, seq: int) -> int:
        """The seq of the last whole chunk at or before ``seq``; -1 where there is none."""
        count = bisect_right(self.wholes, seq)
        return self.wholes[count - 1] if count else -1

    def token_times(self, stop: int | None = None) -> list[int]:
        """The time of every `token` before ``stop``, unix ms."""
        pairs = zip(self.times, self.entries[:stop], strict=False)
        return [ms for ms, entry in pairs if entry[0] in TOKENS]
