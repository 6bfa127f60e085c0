"""One entry of a generation's log."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from replay.errors import InvalidEventId

# Valkey's ids are two unsigned 64-bit integers; 20 digits hold them all.
_EVENT_ID = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)
_LARGEST = 2**64 - 1


FROM_START = "-1"  # the cursor of who has nothing


class EventId(NamedTuple):
    """Where an event stands; also its Valkey stream id and its SSE id."""

    ms: int  # when it was accepted, unix ms; never goes back
    seq: int  # 0 is `start`, then 1, 2, 3 … a hole is a loss, and is seen at once

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> EventId:
        """Read ``<ms>-<seq>``; raises InvalidEventId for anything else."""
        match = _EVENT_ID.fullmatch(text)
        if match is None:
            raise InvalidEventId(f"event id {text[:100]!r}: expected <ms>-<seq>, two integers")
        ms, seq = int(match[1]), int(match[2])
        if max(ms, seq) > _LARGEST:
            raise InvalidEventId(f"event id {text!r}: expected integers of at most 64 bits")
        return cls(ms, seq)


class Kind(Enum):
    """What an event is; the value is its SSE name."""

    START = "start"
    TOKEN = "token"
    DELTA = "delta"
    END = "end"
    ACTIVITY = "activity"  # of the activity log, whose entries name themselves


class Entry:
    """The first byte of an entry as it is stored; the payload follows it.

    A chunk that differs from the last whole chunk before it in one string only is stored as
    that string; `wire/openai.py` says when, and gives the chunk back. Where it differs in more,
    the whole chunk is stored as a form and those after it as what fills that; see `wire/forms.py`.
    """

    START = b"s"  # JSON: what is known before the upstream is called
    TOKEN = b"t"  # the new string, as the inside of a JSON string literal; visible text
    DELTA = b"d"  # likewise, but not visible text of choice 0
    WHOLE_TOKEN = b"T"  # the chunk's own JSON; it has visible text for choice 0
    WHOLE_DELTA = b"D"  # the chunk's own JSON; it has none
    FILLED_TOKEN = b"f"  # the new string and the other values that fill the form; visible text
    FILLED_DELTA = b"g"  # likewise, but not visible text of choice 0
    FORM_TOKEN = b"F"  # where the chunk's blanks are, a line feed and its own JSON; it has visible text for choice 0
    FORM_DELTA = b"G"  # likewise, but it has none
    END = b"e"  # JSON: how it ended
    ACTIVITY = b"l"  # in the activity log: see `wire/activity.py`


_KINDS = {
    ord(Entry.START): Kind.START,
    ord(Entry.TOKEN): Kind.TOKEN,
    ord(Entry.WHOLE_TOKEN): Kind.TOKEN,
    ord(Entry.FILLED_TOKEN): Kind.TOKEN,
    ord(Entry.FORM_TOKEN): Kind.TOKEN,
    ord(Entry.DELTA): Kind.DELTA,
    ord(Entry.WHOLE_DELTA): Kind.DELTA,
    ord(Entry.FILLED_DELTA): Kind.DELTA,
    ord(Entry.FORM_DELTA): Kind.DELTA,
    ord(Entry.END): Kind.END,
    ord(Entry.ACTIVITY): Kind.ACTIVITY,
}

# First bytes, as indexing an entry gives them.
TOKENS = frozenset(kind for kind in _KINDS if _KINDS[kind] is Kind.TOKEN)
WHOLES = frozenset(b"TDFG")  # the whole chunk stands in the entry
FORMS = frozenset(b"FG")
FILLED = frozenset(b"fg")
TEMPLATED = frozenset(b"tdfg")  # read by the last whole chunk before them


class Event(NamedTuple):
    """One event: where it stands, and its entry exactly as stored."""

    id: EventId
    entry: bytes

    @property
    def kind(self) -> Kind:
        """Derived from the entry's first byte."""
        return _KINDS[self.entry[0]]


def number(entries: list[bytes], *, after: EventId | None, now_ms: int) -> list[Event]:
    """Give new entries their ids: contiguous, and never back in time."""
    ms, seq = (now_ms, -1) if after is None else (max(now_ms, after.ms), after.seq)
    return [Event(EventId(ms, seq + count), entry) for count, entry in enumerate(entries, start=1)]
