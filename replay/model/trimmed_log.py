"""The last part of a log that loses its beginning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from replay.model.event import Entry, Event, EventId
from replay.model.log import Hole, Log

ERASED = Entry.ACTIVITY  # the entry of an event that is not to be known any more


class TrimmedLog(Log):
    """A log of which only the last ``keep`` events, or up to twice as many, are here; it never ends.

    Its length is that of the whole log, so that `seq` means the same here too. Its events are no chunks, so there is no
    token and no whole chunk in it; what it takes of memory is bounded, and not counted.
    """

    __slots__ = ("_keep",)

    def __init__(self, keep: int) -> None:
        super().__init__()
        self._keep = keep

    def __len__(self) -> int:
        return self.first + len(self.entries)

    def extend(self, events: Sequence[Event]) -> None:
        """Append events, of which the very first may have any `seq`; raises Hole."""
        if events and not self.entries:
            self.first = events[0].id.seq
        for (ms, seq), entry in events:
            if seq != len(self):
                raise Hole(f"event {seq} after event {len(self) - 1}")
            self.times.append(ms)
            self.entries.append(entry)
        if len(self.entries) > 2 * self._keep:
            self.forget_before(len(self) - self._keep)

    def without_holes(self, events: Sequence[Event]) -> Sequence[Event]:
        """What the store has after the last event, with `ERASED` where something was taken out."""
        filled: list[Event] = []
        expected = len(self) if self.entries else None
        for event in events:
            if expected is not None:
                missing = range(expected, event.id.seq)
                filled += (Event(EventId(event.id.ms, seq), ERASED) for seq in missing)
            filled.append(event)
            expected = event.id.seq + 1
        return filled

    def find(self, mark: bytes) -> list[EventId]:
        """The ids of the events in whose entry a mark stands."""
        return [self.event_id(seq) for seq, entry in enumerate(self.entries, self.first) if mark in entry]

    def erase(self, mark: bytes) -> bool:
        """Take out every event in whose entry a mark stands; whether there was one."""
        event_ids = self.find(mark)
        for event_id in event_ids:
            self.entries[event_id.seq - self.first] = ERASED
        return bool(event_ids)

    def forget_before(self, seq: int) -> None:
        """Drop what stands before ``seq``, but not the last event."""
        count = max(0, min(seq - self.first, len(self.entries) - 1))
        del self.times[:count]
        del self.entries[:count]
        self.first += count

    @property
    def last_id(self) -> EventId | None:
        """The id of the last event; None for a log that is still empty."""
        return self.event_id(len(self) - 1) if self.entries else None

    @property
    def complete(self) -> bool:
        """There is always more to come."""
        return False

    def event_id(self, seq: int) -> EventId:
        """The id of the event at ``seq``."""
        return EventId(self.times[seq - self.first], seq)

    def holds(self, event_id: EventId) -> bool:
        """Whether an id names an event that is here, or one that was taken out, of which only the `seq` is certain."""
        index = event_id.seq - self.first
        if not 0 <= index < len(self.entries):
            return False
        if self.entries[index] != ERASED:
            return self.times[index] == event_id.ms
        return self._time_before(index) <= event_id.ms <= self.times[index]

    def _time_before(self, index: int) -> int:
        """When what stands before ``index`` happened, as far as it was not taken out itself."""
        before = range(index - 1, -1, -1)
        return next((self.times[each] for each in before if self.entries[each] != ERASED), self.times[0])

    def events(self, start: int, stop: int | None = None) -> Iterator[Event]:
        """The events from ``start`` to before ``stop``, as far as they are here."""
        for seq in range(max(start, self.first), len(self) if stop is None else min(stop, len(self))):
            yield Event(self.event_id(seq), self.entries[seq - self.first])
