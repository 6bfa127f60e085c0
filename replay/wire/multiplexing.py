"""Several generations in one event stream: every event says whose it is, and its id is a cursor over all of them.

A cursor is `<names>:<position>,<position>,…`, one for each generation in the order in which they were asked for:
`<ms>.<seq>` of its last event in hexadecimal, `-` before the first, `x` once the reader was told that it is gone.
`<names>` is a hash of the ids, so that a cursor of other generations is told from one of these.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any

from replay.errors import InvalidEventId
from replay.model.event import Entry, Event, EventId
from replay.wire import json, sse
from replay.wire.events import Recording, event_data

_CURSOR = re.compile(r"([0-9a-f]{16}):([-x,.0-9a-f]+)")
_POSITION = re.compile(r"([0-9a-f]{1,16})\.([0-9a-f]{1,16})")


class NoEvent(Enum):
    """Where a reader stands who has no event of a generation."""

    BEFORE = b"-"
    GONE = b"x"


class Cursor:
    """Where a reader stands in each of several generations."""

    __slots__ = ("_encoded", "_names", "positions")

    def __init__(self, generation_ids: Sequence[str], positions: Sequence[EventId | NoEvent] | None = None) -> None:
        self.positions = list(positions or [NoEvent.BEFORE] * len(generation_ids))
        self._names = _names_of(generation_ids)
        self._encoded = [_encode_position(position) for position in self.positions]

    @classmethod
    def parse(cls, text: str, generation_ids: Sequence[str]) -> Cursor:
        """Read a cursor over these generations; raises InvalidEventId for anything else."""
        match = _CURSOR.fullmatch(text)
        positions = [_parse_position(part) for part in match[2].split(",")] if match is not None else []
        valid = [position for position in positions if position is not None]
        named = match is not None and match[1].encode() == _names_of(generation_ids)
        if not named or len(valid) != len(positions) or len(positions) != len(generation_ids):
            raise InvalidEventId(f"cursor {text[:100]!r}: expected an event's id over these generations, in this order")
        return cls(generation_ids, valid)

    def move(self, index: int, position: EventId | NoEvent) -> None:
        """Move on the position in one of the generations."""
        self._encoded[index] = _encode_position(position)

    def __bytes__(self) -> bytes:
        return self._names + b":" + b",".join(self._encoded)


def _names_of(generation_ids: Sequence[str]) -> bytes:
    return hashlib.sha256(",".join(generation_ids).encode()).hexdigest()[:16].encode()


def _encode_position(position: EventId | NoEvent) -> bytes:
    return b"%x.%x" % position if isinstance(position, EventId) else position.value


def _parse_position(text: str) -> EventId | NoEvent | None:
    if text in ("-", "x"):
        return NoEvent(text.encode())
    match = _POSITION.fullmatch(text)
    return None if match is None else EventId(int(match[1], 16), int(match[2], 16))


def encode(recording: Recording, start: int, cursor: Cursor, index: int, max_bytes: int) -> tuple[bytes, int]:
    """Events of one generation from ``start`` on, each with the cursor after it, and where they end.

    They are as many as make ``max_bytes``, so that only the last of them passes it.
    """
    name = b'{"generation_id":%b,' % json.dumps(recording.start.generation_id)
    blocks: list[bytes] = []
    size = 0
    for event in recording.log.events(start):
        if size >= max_bytes:
            break
        cursor.move(index, event.id)
        blocks.append(_block(event, recording, name, bytes(cursor)))
        size += len(blocks[-1])
    return b"".join(blocks), start + len(blocks)


def _block(event: Event, recording: Recording, name: bytes, cursor: bytes) -> bytes:
    data = event_data(event, recording.template(event.id.seq))
    labelled = data if event.entry[:1] == Entry.START else name + data[1:]  # a start names its generation itself
    return sse.block(event.kind.value.encode(), labelled, event_id=cursor)


def notice(kind: str, generation_id: str, cursor: Cursor | None = None, **data: Any) -> bytes:
    """What concerns this reader of a generation only; with the reader's cursor, where it is to have an id."""
    labelled = json.dumps({"type": kind, "generation_id": generation_id, **data})
    return sse.block(kind.encode(), labelled, event_id=None if cursor is None else bytes(cursor))
