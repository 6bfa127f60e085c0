"""The activity of all generations, as events of one log: `created`, `first_token`, `ended`.

An entry is its kind, the event's name, a space, and its data as JSON. One without a name is shown to nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from replay.model.event import Entry, Event
from replay.model.generation import End, Start
from replay.wire import json, sse
from replay.wire.events import NDJSON, SSE, Format, Recording


def created(start: Start, created_ms: int) -> bytes:
    """The entry of a generation that was started."""
    return _entry("created", start, created_ms, created_ms, status="queued")


def first_token(start: Start, created_ms: int, at_ms: int) -> bytes:
    """The entry of a generation that has begun to speak."""
    return _entry("first_token", start, created_ms, at_ms, status="streaming", ttft_ms=at_ms - created_ms)


def ended(start: Start, created_ms: int, at_ms: int, end: End) -> bytes:
    """The entry of a generation that is over."""
    return _entry(
        "ended",
        start,
        created_ms,
        at_ms,
        status=end.status,
        finish_reason=end.finish_reason,
        error=end.error,
        usage=end.usage,
        tokens=end.total_tokens,
        total_tokens=end.total_tokens,
        ttft_ms=end.ttft_ms,
        duration_ms=end.duration_ms,
    )


def deleted(start: Start) -> bytes:
    """The entry of a generation that was deleted, which does not name it."""
    run = f"{start.generation_id} {start.run}"
    return b"%b %b" % (Entry.ACTIVITY, hashlib.sha256(run.encode()).hexdigest()[:32].encode())


def mark_of(generation_id: str) -> bytes:
    """What stands in every entry about a generation."""
    return b'"generation_id":%b,' % json.dumps(generation_id)


def generation_id_of(entry: bytes) -> str | None:
    """Which generation an entry is about; None for one that names none."""
    name, _, data = entry[1:].partition(b" ")
    return json.loads(data)["generation_id"] if name else None


def _entry(name: str, start: Start, created_ms: int, at_ms: int, *, status: str, **further: Any) -> bytes:
    entry = {
        "type": name,
        "generation_id": start.generation_id,
        "status": status,
        "model": start.model,
        "created": created_ms / 1000,
        "timestamp": at_ms / 1000,
    }
    return b"%b%b %b" % (Entry.ACTIVITY, name.encode(), json.dumps(entry | further))


def _as_sse(recording: Recording, start: int, stop: int) -> bytes:
    return b"".join(
        sse.block(name, data, event_id=b"%d-%d" % event.id) for event, name, data in _shown(recording, start, stop)
    )


def _as_lines(recording: Recording, start: int, stop: int) -> bytes:
    return b"".join(b'{"id":"%d-%d",%b\n' % (*event.id, data[1:]) for event, _, data in _shown(recording, start, stop))


def _shown(recording: Recording, start: int, stop: int) -> Iterator[tuple[Event, bytes, bytes]]:
    for event in recording.log.events(start, stop):
        name, _, data = event.entry[1:].partition(b" ")
        if name:
            yield event, name, data


ACTIVITY_EVENTS = replace(SSE, encode=_as_sse)
ACTIVITY_LINES: Format = replace(NDJSON, encode=_as_lines)
# Its readers also learn how far the live ones have come.
ACTIVITY_WITH_PROGRESS = replace(SSE, encode=_as_sse)
