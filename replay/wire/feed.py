"""The life of all generations, as events of one log: `created`, `first_token`, `ended`.

An entry is `l`, the event's name, a space, and its data as JSON.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from replay.model.generation import End, Start
from replay.model.tail import ERASED
from replay.wire import json, sse
from replay.wire.events import NDJSON, SSE, Face, Recording


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
        total_tokens=end.total_tokens,
        ttft_ms=end.ttft_ms,
        duration_ms=end.duration_ms,
    )


def mark_of(generation_id: str) -> bytes:
    """What stands in every entry about a generation."""
    return b'"generation_id":%b,' % json.dumps(generation_id)


def _entry(name: str, start: Start, created_ms: int, at_ms: int, *, status: str, **further: Any) -> bytes:
    told = {
        "type": name,
        "generation_id": start.generation_id,
        "status": status,
        "model": start.model,
        "created": created_ms / 1000,
        "timestamp": at_ms / 1000,
    }
    return b"l%b %b" % (name.encode(), json.dumps(told | further))


def _as_sse(recording: Recording, start: int, stop: int) -> bytes:
    blocks = []
    for event_id, entry in recording.log.events(start, stop):
        if entry == ERASED:
            continue
        name, _, data = entry[1:].partition(b" ")
        blocks.append(sse.block(name, data, event_id=b"%d-%d" % event_id))
    return b"".join(blocks)


def _as_lines(recording: Recording, start: int, stop: int) -> bytes:
    return b"".join(
        b'{"id":"%d-%d",%b\n' % (*event_id, entry.partition(b" ")[2][1:])
        for event_id, entry in recording.log.events(start, stop)
        if entry != ERASED
    )


FEED = replace(SSE, encode=_as_sse)
FEED_LINES: Face = replace(NDJSON, encode=_as_lines)
# Its readers are also told how far the live ones have come.
FEED_WITH_PROGRESS = replace(SSE, encode=_as_sse)
