"""How a generation ends."""

from __future__ import annotations

import logging

from replay.errors import StoreUnavailable
from replay.live.feed import Feed, now_ms
from replay.live.hub import Hub
from replay.model.event import number
from replay.model.generation import End, Status
from replay.model.log import Log
from replay.store import EventStore
from replay.wire.events import Templates, encode_end, fold

log = logging.getLogger(__name__)

_MOST_TRIES = 200  # against a producer that appends all the time; each try is a round trip


def end_of(
    events: Log, templates: Templates, status: Status, *, ended_ms: int, error: dict[str, str] | None = None
) -> End:
    """The end of a log that somebody other than its producer ends."""
    tokens = events.token_times()
    transcript = fold(events, templates)
    return End(
        status=status,
        finish_reason=transcript.finish_reason,
        usage=transcript.usage,
        error=error,
        total_tokens=len(tokens),
        ttft_ms=tokens[0] - events.times[0] if tokens else None,
        duration_ms=ended_ms - events.times[0],
    )


async def close_from_outside(
    store: EventStore, hub: Hub, generation_id: str, status: Status, error: dict[str, str] | None = None
) -> tuple[Feed, bool]:
    """End a generation that another node produces, or produced until it died.

    Returns its feed, complete, and whether it was ended by this call. Appends like everybody else: the log is the
    lock. Raises GenerationNotFound, StoreUnavailable.
    """
    for _ in range(_MOST_TRIES):
        feed = await hub.open(generation_id)
        if feed.log.complete:
            return feed, False
        last_id = feed.log.last_id
        ended_ms = max(now_ms(), feed.log.times[-1])
        entry = encode_end(end_of(feed.log, feed.templates, status, ended_ms=ended_ms, error=error))
        events = number([entry], after=last_id, now_ms=ended_ms)
        start = feed.start
        if await store.append(generation_id, events, after=last_id, ttl_ms=start.ttl_ms) is None:
            if not feed.log.complete:
                feed.extend(events)
            await store.notify(start.node, generation_id, events)
            await store.unregister(generation_id)
            log.info("generation ended from outside", extra={"generation": generation_id, "status": status.value})
            return feed, True
    raise StoreUnavailable(f"generation {generation_id!r} grows too fast to be ended from here")
